//! Every command: its name, the types of its arguments and its answer, and what it does. One file for each subject.
//!
//! To add a command: write its types in `qapi/tables`, a function here, and a line in the list of its file. The command line,
//! the dispatcher and `query-qmp-schema` read the same lists.

mod bitmaps;
mod block_jobs;
mod chardevs;
mod control;
mod exports;
mod fdsets;
mod graph;
mod job_starts;
mod jobs;
mod nodes;
mod objects;
mod qom;
mod query;
mod transaction;

use super::dispatch::Context;
use super::error::{ErrorClass, QmpError};
use crate::cli::Object;
use crate::qapi::{self, Type};
use serde_json::{Value, json};

/// May a command be executed while others wait for their turn?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oob {
    /// It may not.
    Never,
}

/// A command.
#[derive(Debug)]
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub args: &'static qapi::Object,
    /// What it answers; the empty object for most.
    pub returns: Type,
    /// May it be executed out of band?
    pub oob: Oob,
    /// `deprecated`, `unstable`
    pub features: &'static [&'static str],
    /// What it does. Its arguments have been held against `args`.
    pub run: fn(&mut Context<'_>, Object) -> Result<Value, QmpError>,
}

/// What a command with nothing to tell answers.
pub(super) const NOTHING: Type = Type::Object(&qapi::tables::EMPTY);

/// Nothing to tell.
pub(super) fn done() -> Result<Value, QmpError> {
    Ok(json!({}))
}

/// A command as most are: in its turn, and stable.
pub(super) const fn command(
    name: &'static str,
    args: &'static qapi::Object,
    returns: Type,
    run: fn(&mut Context<'_>, Object) -> Result<Value, QmpError>,
) -> Command {
    Command {
        name,
        args,
        returns,
        oob: Oob::Never,
        features: &[],
        run,
    }
}

/// Every command.
pub fn all() -> impl Iterator<Item = &'static Command> {
    let lists = [
        control::COMMANDS,
        nodes::COMMANDS,
        graph::COMMANDS,
        exports::COMMANDS,
        objects::COMMANDS,
        qom::COMMANDS,
        jobs::COMMANDS,
        block_jobs::COMMANDS,
        job_starts::COMMANDS,
        bitmaps::COMMANDS,
        transaction::COMMANDS,
        chardevs::COMMANDS,
        fdsets::COMMANDS,
        query::COMMANDS,
    ];
    lists.into_iter().flatten()
}

/// A command by name.
pub(super) fn find(name: &str) -> Option<&'static Command> {
    all().find(|command| command.name == name)
}

/// Does it take the descriptors that come with it?
pub(super) fn takes_descriptors(name: &str) -> bool {
    fdsets::TAKE_DESCRIPTORS.contains(&name)
}

/// There is none.
pub(super) fn not_found(name: &str) -> QmpError {
    QmpError::of_class(
        ErrorClass::CommandNotFound,
        format!("The command {name} has not been found"),
    )
}
