//! Commands about the monitor itself.

use super::super::events;
use super::{Command, NOTHING, Oob, command, done};
use crate::cli::Object;
use crate::qapi::Type;
use crate::qapi::introspect::{Entry, schema};
use crate::qapi::tables::EMPTY;
use crate::qapi::tables::control::{COMMAND_INFO, QMP_CAPABILITIES_ARG, VERSION_INFO};
use crate::qapi::tables::introspect::SCHEMA_INFO;
use crate::qmp::{Context, ErrorClass, QmpError};
use serde_json::{Value, json};

pub(super) static COMMANDS: &[Command] = &[
    // Understood where a conversation begins, and refused here.
    command(
        "qmp_capabilities",
        &QMP_CAPABILITIES_ARG,
        NOTHING,
        |_, _| Err(already_negotiated()),
    ),
    command(
        "query-version",
        &EMPTY,
        Type::Object(&VERSION_INFO),
        |_, _| Ok(crate::qmp::session::version()),
    ),
    command(
        "query-commands",
        &EMPTY,
        Type::Array(&Type::Object(&COMMAND_INFO)),
        query_commands,
    ),
    command(
        "query-qmp-schema",
        &EMPTY,
        Type::Array(&Type::Object(&SCHEMA_INFO)),
        query_schema,
    ),
    command("quit", &EMPTY, NOTHING, |context, _| {
        context.daemon.quit();
        done()
    }),
];

fn already_negotiated() -> QmpError {
    QmpError::of_class(
        ErrorClass::CommandNotFound,
        "Capabilities negotiation is already complete, command ignored",
    )
}

fn query_commands(_: &mut Context<'_>, _: Object) -> Result<Value, QmpError> {
    let names = super::all().map(|command| json!({"name": command.name}));
    Ok(Value::Array(names.collect()))
}

fn query_schema(_: &mut Context<'_>, _: Object) -> Result<Value, QmpError> {
    let commands = super::all().map(|command| Entry {
        name: command.name,
        args: command.args,
        returns: Some(command.returns),
        oob: command.oob != Oob::Never,
        features: command.features,
    });
    let events = events::ALL.iter().map(|event| Entry {
        name: event.name,
        args: event.data,
        returns: None,
        oob: false,
        features: &[],
    });
    Ok(schema(commands.chain(events)))
}
