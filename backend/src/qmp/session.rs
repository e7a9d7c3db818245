//! One client's conversation: negotiation first, then commands, each answered once and in order.

use super::commands::{self, Oob};
use super::error::{ErrorClass, QmpError};
use crate::cli::{QEMU_VERSION_TRIPLE, Refusal, Spelling};
use crate::json::in_order;
use crate::qapi;
use crate::qapi::tables::control::QMP_CAPABILITIES_ARG;
use serde_json::{Map, Value, json};

/// Where the conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Only `qmp_capabilities` is understood.
    Negotiating,
    /// Commands are executed.
    Commanding,
}

/// One client's conversation.
#[derive(Debug)]
pub(super) struct Session {
    state: State,
    oob: bool,
}

/// What becomes of a message.
#[derive(Debug)]
pub(super) enum Next {
    /// It is answered at once.
    Answer(Value),
    /// It waits for its turn.
    Execute(Todo),
}

/// A command, or why there is none, waiting for its turn.
#[derive(Debug)]
pub struct Todo {
    /// Sent back with the answer.
    pub id: Option<Value>,
    /// The command and its arguments, or what was wrong with the message.
    pub call: Result<(String, Map<String, Value>), QmpError>,
}

/// The version as `query-version` and the greeting say it.
pub(crate) fn version() -> Value {
    let [major, minor, micro] = QEMU_VERSION_TRIPLE;
    json!({
        "qemu": {"major": major, "minor": minor, "micro": micro},
        "package": format!("virtioblkd {}", env!("CARGO_PKG_VERSION")),
    })
}

/// May a client ask for its commands to overtake others?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overtaking {
    Offered,
    /// It cannot even ask.
    Impossible,
}

/// What a client sees first.
pub(super) fn greeting(overtaking: Overtaking) -> Value {
    let capabilities: &[&str] = match overtaking {
        Overtaking::Offered => &["oob"],
        Overtaking::Impossible => &[],
    };
    json!({"QMP": {"version": version(), "capabilities": capabilities}})
}

/// An answer, with the id it is to have.
pub(super) fn answer(id: Option<Value>, result: Result<Value, QmpError>) -> Value {
    let mut reply = Map::new();
    if let Some(id) = id {
        reply.insert("id".into(), id);
    }
    match result {
        Ok(value) => reply.insert("return".into(), value),
        Err(error) => reply.insert("error".into(), error.to_json()),
    };
    Value::Object(reply)
}

impl Session {
    pub(super) fn new() -> Session {
        Session {
            state: State::Negotiating,
            oob: false,
        }
    }

    /// May it have several commands waiting?
    pub(super) fn pipelines(&self) -> bool {
        self.oob
    }

    /// Are events to be sent?
    pub(super) fn hears_events(&self) -> bool {
        self.state == State::Commanding
    }

    /// Looks at a message that came in.
    pub(super) fn receive(&mut self, message: Result<Value, Refusal>) -> Next {
        let members = match message {
            // All of it: what was stray may have been a line break.
            Err(refusal) => {
                let error = QmpError::new(refusal.to_string());
                return self.in_turn(None, Err(error));
            }
            Ok(Value::Object(members)) => members,
            Ok(_) => {
                let error = QmpError::new("QMP input must be a JSON object");
                return self.in_turn(None, Err(error));
            }
        };
        // Who asks to be served out of turn is answered out of turn, also if that cannot be done.
        let out_of_turn = members.contains_key("exec-oob") && !members.contains_key("execute");
        let (id, call) = understand(members, self.oob);
        match (out_of_turn, call) {
            (false, call) => self.in_turn(id, call),
            (true, Ok(call)) if self.state == State::Commanding => {
                Next::Answer(answer(id, out_of_band(&call)))
            }
            (true, call) => {
                let result = call.and_then(|call| self.negotiate(call));
                Next::Answer(answer(id, result))
            }
        }
    }

    fn in_turn(&mut self, id: Option<Value>, call: Result<Call, QmpError>) -> Next {
        match self.state {
            State::Negotiating => {
                let result = call.and_then(|call| self.negotiate(call));
                Next::Answer(answer(id, result))
            }
            State::Commanding => Next::Execute(Todo {
                id,
                call: call.map(|call| (call.name, call.arguments)),
            }),
        }
    }

    fn negotiate(&mut self, call: Call) -> Result<Value, QmpError> {
        if call.name != "qmp_capabilities" {
            return Err(QmpError::of_class(
                ErrorClass::CommandNotFound,
                "Expecting capabilities negotiation with 'qmp_capabilities'",
            ));
        }
        qapi::check_members(&call.arguments, &QMP_CAPABILITIES_ARG, Spelling::Json)?;
        let enabled = call.arguments.get("enable").and_then(Value::as_array);
        self.oob = enabled.is_some_and(|list| list.iter().any(|word| word == "oob"));
        self.state = State::Commanding;
        Ok(json!({}))
    }
}

struct Call {
    name: String,
    arguments: Map<String, Value>,
}

/// The id, and the call. Members are looked at in QEMU's order, and the first that is wrong is what is reported.
fn understand(
    mut members: Map<String, Value>,
    oob: bool,
) -> (Option<Value>, Result<Call, QmpError>) {
    let id = members.shift_remove("id");
    (id, call(members, oob))
}

fn call(mut members: Map<String, Value>, oob: bool) -> Result<Call, QmpError> {
    let mut named: Option<(&str, String)> = None;
    for (member, value) in in_order(&members) {
        let member = member.as_str();
        match (member, value) {
            ("execute" | "exec-oob", _) if member == "exec-oob" && !oob => {
                return Err(unexpected(member));
            }
            ("execute" | "exec-oob", Value::String(name)) => {
                if let Some((first, _)) = named {
                    return Err(clash(member, first));
                }
                named = Some((member, name.clone()));
            }
            ("execute" | "exec-oob", _) => return Err(must_be(member, "a string")),
            ("arguments", Value::Object(_)) => {}
            ("arguments", _) => return Err(must_be(member, "an object")),
            _ => return Err(unexpected(member)),
        }
    }
    let Some((_, name)) = named else {
        return Err(QmpError::new("QMP input lacks member 'execute'"));
    };
    let arguments = match members.shift_remove("arguments") {
        Some(Value::Object(arguments)) => arguments,
        _ => Map::new(),
    };
    Ok(Call { name, arguments })
}

fn unexpected(member: &str) -> QmpError {
    QmpError::new(format!("QMP input member '{member}' is unexpected"))
}

fn must_be(member: &str, what: &str) -> QmpError {
    QmpError::new(format!("QMP input member '{member}' must be {what}"))
}

fn clash(member: &str, with: &str) -> QmpError {
    QmpError::new(format!("QMP input member '{member}' clashes with '{with}'"))
}

/// No command of ours may run beside another.
fn out_of_band(call: &Call) -> Result<Value, QmpError> {
    match commands::find(&call.name) {
        None => Err(commands::not_found(&call.name)),
        Some(command) => match command.oob {
            Oob::Never => Err(QmpError::new(format!(
                "The command {} does not support OOB",
                call.name
            ))),
        },
    }
}
