//! Commands about sets of descriptors, which nodes open as `/dev/fdset/N`. QSD has none of these; they are as QEMU's.

use super::{Command, NOTHING, command, done};
use crate::cli::Object;
use crate::qapi::Type;
use crate::qapi::tables::EMPTY;
use crate::qapi::tables::fdsets::{ADD_FD_ARG, ADDFD_INFO, FDSET_INFO, REMOVE_FD_ARG};
use crate::qmp::{Context, QmpError};
use blockgraph::graph::FdSetError;
use serde_json::{Map, Value, json};

/// Commands that take the descriptors that come with them.
pub(super) const TAKE_DESCRIPTORS: &[&str] = &["add-fd"];

pub(super) static COMMANDS: &[Command] = &[
    command("add-fd", &ADD_FD_ARG, Type::Object(&ADDFD_INFO), add),
    command("remove-fd", &REMOVE_FD_ARG, NOTHING, remove),
    command(
        "query-fdsets",
        &EMPTY,
        Type::Array(&Type::Object(&FDSET_INFO)),
        query,
    ),
];

fn refused(error: FdSetError) -> QmpError {
    QmpError::new(error.to_string())
}

fn add(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    // Of several, QEMU takes the first; the others are closed.
    let fds = std::mem::take(&mut context.fds);
    let missing = || QmpError::new("No file descriptor supplied via SCM_RIGHTS");
    let fd = fds.into_iter().next().ok_or_else(missing)?;
    let id = arguments.int64("fdset-id")?;
    let opaque = arguments.string("opaque")?;
    let (id, fd) = context
        .daemon
        .fdsets()
        .add(id, fd, opaque)
        .map_err(refused)?;
    Ok(json!({"fdset-id": id, "fd": fd}))
}

fn remove(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let id = arguments.int64("fdset-id")?.unwrap_or(-1);
    let fd = arguments.int64("fd")?;
    context.daemon.fdsets().remove(id, fd).map_err(refused)?;
    done()
}

fn query(context: &mut Context<'_>, _: Object) -> Result<Value, QmpError> {
    let sets = context.daemon.fdsets().all().map(|(id, fds)| {
        let fds = fds.map(|(fd, opaque)| {
            let mut shown = Map::new();
            shown.insert("fd".into(), fd.into());
            if let Some(opaque) = opaque {
                shown.insert("opaque".into(), opaque.into());
            }
            Value::Object(shown)
        });
        json!({"fdset-id": id, "fds": fds.collect::<Vec<_>>()})
    });
    Ok(Value::Array(sets.collect()))
}
