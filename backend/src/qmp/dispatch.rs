//! Executes what clients want, on the control thread: one command after the other, each wholly or not at all.
//!
//! The rule: arguments are held against the table of types before a command sees them, and in debug builds its answer is too.

use super::commands;
use super::error::QmpError;
use super::hub::{Request, SessionId};
use super::session::answer;
use crate::cli::{self, Object, Spelling};
use crate::daemon::Daemon;
use crate::qapi;
use serde_json::{Map, Value};
use std::os::fd::OwnedFd;

/// What a command works on.
#[derive(Debug)]
pub struct Context<'a> {
    /// Everything the control thread owns.
    pub daemon: &'a mut Daemon,
    /// Descriptors that came with the command; closed if it does not take them.
    pub fds: Vec<OwnedFd>,
}

impl Daemon {
    /// Executes a request; what to send to whom.
    pub(crate) fn execute_request(&mut self, request: Request) -> (SessionId, Value) {
        let Request { session, todo, fds } = request;
        let result = todo.call.and_then(|(name, arguments)| {
            let mut context = Context { daemon: self, fds };
            context.execute(&name, arguments)
        });
        (session, answer(todo.id, result))
    }
}

impl Context<'_> {
    /// Executes a command by name.
    ///
    /// # Errors
    /// There is no such command; its arguments are not what it takes; what the command says.
    pub fn execute(
        &mut self,
        name: &str,
        arguments: Map<String, Value>,
    ) -> Result<Value, QmpError> {
        let command = commands::find(name).ok_or_else(|| commands::not_found(name))?;
        if !is_shallow(&arguments, cli::DEPTH_MAX) {
            return Err(QmpError::new("Parameters are nested too deeply"));
        }
        let arguments = Object::checked(arguments, command.args, Spelling::Json)?;
        let answer = (command.run)(self, arguments)?;
        debug_assert_eq!(
            qapi::check(&answer, command.returns),
            Ok(()),
            "{name}: {answer}"
        );
        Ok(answer)
    }
}

/// Nothing sensible is nested as deeply as the parser takes, and whoever takes options apart may do so by recursion.
fn is_shallow(members: &Map<String, Value>, depth_max: usize) -> bool {
    let Some(left) = depth_max.checked_sub(1) else {
        return false;
    };
    members.values().all(|value| is_value_shallow(value, left))
}

fn is_value_shallow(value: &Value, depth_max: usize) -> bool {
    match value {
        Value::Object(members) => is_shallow(members, depth_max),
        Value::Array(elements) => {
            let left = depth_max.checked_sub(1);
            left.is_some_and(|left| elements.iter().all(|e| is_value_shallow(e, left)))
        }
        _ => true,
    }
}
