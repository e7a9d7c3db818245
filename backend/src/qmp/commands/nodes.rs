//! Commands about block nodes.

use super::{Command, NOTHING, command, done};
use crate::cli::{self, Object};
use crate::qapi::tables::node_commands::BLOCKDEV_DEL_ARG;
use crate::qapi::tables::nodes::BLOCKDEV_OPTIONS;
use crate::qmp::{Context, QmpError};
use serde_json::Value;

pub(super) static COMMANDS: &[Command] = &[
    command("blockdev-add", &BLOCKDEV_OPTIONS, NOTHING, blockdev_add),
    command("blockdev-del", &BLOCKDEV_DEL_ARG, NOTHING, blockdev_del),
];

fn blockdev_add(context: &mut Context<'_>, arguments: Object) -> Result<Value, QmpError> {
    let options = cli::blockdev(arguments)?;
    context.daemon.execute(cli::Command::Blockdev(options))?;
    done()
}

fn blockdev_del(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let name = arguments.required_string("node-name")?;
    context.daemon.remove_node(&name)?;
    done()
}
