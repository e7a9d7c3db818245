//! Commands that make and remove objects; `qom.rs` has those that look at them.

use super::{Command, NOTHING, command, done};
use crate::cli::{self, Object};
use crate::qapi::tables::objects::{OBJECT_DEL_ARG, OBJECT_OPTIONS};
use crate::qmp::{Context, QmpError};
use serde_json::Value;

pub(super) static COMMANDS: &[Command] = &[
    command("object-add", &OBJECT_OPTIONS, NOTHING, add),
    command("object-del", &OBJECT_DEL_ARG, NOTHING, del),
];

fn add(context: &mut Context<'_>, arguments: Object) -> Result<Value, QmpError> {
    let options = cli::object(arguments)?;
    context.daemon.execute(cli::Command::Object(options))?;
    done()
}

fn del(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let id = arguments.required_string("id")?;
    context.daemon.remove_object(&id)?;
    done()
}
