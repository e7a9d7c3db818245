//! The command line, compatible with `qemu-storage-daemon`: arguments in, a list of typed commands out, in strict order.
//!
//! Nothing here opens a file or a socket; executing the commands is the daemon's work. Two passes, as in QSD: first what concerns the process
//! (help, version, `--daemonize`, `--pidfile`, words that are no option of ours), then everything else in the order given. What is wrong with a
//! command is kept in its step, because everything before it is done first.

mod error;
mod getopt;
mod help;
mod json;
mod json_lex;
mod keyval;
mod options;
mod program;
mod scalar;
mod schema_export;
mod schema_nbd;
mod schema_node;
mod schema_object;
#[cfg(test)]
mod tests;
mod visit;

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;

use serde_json::Value;

pub use error::Refusal;
pub use help::QEMU_VERSION;
pub use json::parse as parse_json;
pub use options::*;
pub use schema_export::export;
pub use schema_nbd::nbd_server;
pub use schema_node::{blockdev, child_blockdev};
pub use schema_object::{POLL_MAX_NS_DEFAULT, object};
pub use visit::{Object, Spelling};

use getopt::{Name, Word};
use program::Program;

/// What stands before every message.
pub const PROGRAM_NAME: &str = "virtioblkd";

/// What the arguments come to.
#[derive(Debug)]
pub enum Outcome {
    /// Print this on stdout and end with success.
    Print(String),
    /// Execute these steps.
    Run(Invocation),
}

/// Reads the arguments, without the program's own name. `activated` are the sockets that the service manager passed, for `--blk-file`.
///
/// # Errors
/// What is wrong with the arguments as such, for stderr after `virtioblkd: `. What is wrong with one command is in its [`Step`].
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    activated: &[RawFd],
) -> Result<Outcome, Refusal> {
    let words = getopt::split(args);
    // vhost-user.rst: with --print-capabilities, "other options and arguments should be ignored".
    let names = words.iter().flatten().map(|word| word.name);
    if names
        .into_iter()
        .any(|name| name == Name::PrintCapabilities)
    {
        return Ok(Outcome::Print(help::capabilities()));
    }
    let mut invocation = Invocation {
        steps: Vec::new(),
        pidfile: None,
        daemonize: Daemonize::Foreground,
        notices: Vec::new(),
    };
    let mut program = Program::default();
    for word in words {
        let word = word?;
        match word.name {
            Name::Help => return Ok(Outcome::Print(help::usage())),
            Name::Version => return Ok(Outcome::Print(help::version())),
            Name::Daemonize => invocation.daemonize = Daemonize::Background,
            Name::Pidfile => invocation.pidfile = Some(word.value.into()),
            _ => {
                if let Some(word) = program.take(word)? {
                    invocation.steps.push(step(word));
                }
            }
        }
    }
    add_disk(&mut invocation, program, activated)?;
    Ok(Outcome::Run(invocation))
}

fn add_disk(
    invocation: &mut Invocation,
    program: Program,
    activated: &[RawFd],
) -> Result<(), Refusal> {
    let Some(disk) = program.into_disk(activated)? else {
        return Ok(());
    };
    if let Some(step) = invocation.steps.first() {
        return Err(Refusal::new(format!(
            "{}: cannot be combined with --blk-file",
            step.origin
        )));
    }
    invocation.steps = disk.steps;
    invocation.notices.extend(disk.notice);
    Ok(())
}

fn step(word: Word) -> Step {
    let command = match word.name {
        Name::Blockdev => argument(&word.value, Some("driver"), Help::Refused)
            .and_then(|argument| argument.command(blockdev, Command::Blockdev)),
        Name::Export => argument(&word.value, Some("type"), Help::Refused)
            .and_then(|argument| argument.command(export, Command::Export)),
        Name::Object => argument(&word.value, Some("qom-type"), Help::Objects)
            .and_then(|argument| argument.command(object, Command::Object)),
        Name::NbdServer => argument(&word.value, None, Help::Refused)
            .and_then(|argument| argument.command(nbd_server, Command::NbdServer)),
        Name::Bare => Err(Refusal::new("Unexpected argument")),
        _ => Err(Refusal::new("not supported by this version")),
    };
    Step {
        origin: word.origin,
        command,
    }
}

/// What `help` among the parameters of an option does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Help {
    Refused,
    Objects,
}

/// An option's argument, in whichever form it was written.
enum Argument {
    Options(Object),
    Help(String),
}

impl Argument {
    fn command<T>(
        self,
        read: impl FnOnce(Object) -> Result<T, Refusal>,
        command: impl FnOnce(T) -> Command,
    ) -> Result<Command, Refusal> {
        match self {
            Argument::Options(object) => read(object).map(command),
            Argument::Help(text) => Ok(Command::ShowHelp(text)),
        }
    }
}

fn argument(text: &OsStr, implied: Option<&str>, help: Help) -> Result<Argument, Refusal> {
    let text = text
        .to_str()
        .ok_or_else(|| Refusal::new("the argument is not valid UTF-8"))?;
    if text.starts_with('{') {
        return match parse_json(text)? {
            Value::Object(members) => Ok(Argument::Options(Object::root(members, Spelling::Json))),
            _ => Err(Refusal::wrong_type("null", "object")),
        };
    }
    let keyval = keyval::parse(text, implied)?;
    if keyval.help && help == Help::Refused {
        return Err(Refusal::new("Help is not available for this option"));
    }
    let members = keyval::listify(keyval.members)?;
    if keyval.help {
        let kind = implied
            .and_then(|key| members.get(key))
            .and_then(Value::as_str);
        return Ok(Argument::Help(help::objects(kind)));
    }
    Ok(Argument::Options(Object::root(members, Spelling::Keyval)))
}

/// Identifiers of nodes, exports and objects: a letter, then letters, digits, `-`, `.` and `_`.
pub fn id_is_well_formed(id: &str) -> bool {
    id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}
