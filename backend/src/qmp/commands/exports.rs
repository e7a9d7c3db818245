//! Commands about exports and the NBD server.

use super::{Command, NOTHING, command, done};
use crate::cli::{self, Object};
use crate::daemon::Removal;
use crate::qapi::Type;
use crate::qapi::tables::EMPTY;
use crate::qapi::tables::exports::{
    BLOCK_EXPORT_DEL_ARG, BLOCK_EXPORT_INFO, BLOCK_EXPORT_OPTIONS, NBD_SERVER_OPTIONS_LEGACY,
};
use crate::qmp::{Context, QmpError};
use serde_json::{Value, json};

pub(super) static COMMANDS: &[Command] = &[
    command("block-export-add", &BLOCK_EXPORT_OPTIONS, NOTHING, add),
    command("block-export-del", &BLOCK_EXPORT_DEL_ARG, NOTHING, del),
    command(
        "query-block-exports",
        &EMPTY,
        Type::Array(&Type::Object(&BLOCK_EXPORT_INFO)),
        query,
    ),
    command(
        "nbd-server-start",
        &NBD_SERVER_OPTIONS_LEGACY,
        NOTHING,
        nbd_server_start,
    ),
    command("nbd-server-stop", &EMPTY, NOTHING, |context, _| {
        context.daemon.stop_nbd_server()?;
        done()
    }),
];

fn add(context: &mut Context<'_>, arguments: Object) -> Result<Value, QmpError> {
    let options = cli::export(arguments)?;
    context.daemon.execute(cli::Command::Export(options))?;
    done()
}

fn del(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let id = arguments.required_string("id")?;
    let mode = arguments.word("mode", &[("safe", Removal::Safe), ("hard", Removal::Hard)])?;
    let removal = mode.unwrap_or(Removal::Safe);
    context.daemon.remove_export(&id, removal)?;
    done()
}

fn nbd_server_start(context: &mut Context<'_>, arguments: Object) -> Result<Value, QmpError> {
    let options = cli::nbd_server_start(arguments)?;
    context.daemon.execute(cli::Command::NbdServer(options))?;
    done()
}

fn query(context: &mut Context<'_>, _: Object) -> Result<Value, QmpError> {
    let exports = context.daemon.exports();
    let shown = exports.map(|export| {
        json!({
            "id": export.id, "type": export.kind, "node-name": export.node_name,
            "shutting-down": export.shutting_down,
        })
    });
    Ok(Value::Array(shown.collect()))
}
