//! The command line, compatible with `qemu-storage-daemon`: arguments in, a list of typed commands out, in strict order.
//!
//! Nothing here opens a file or a socket; executing the commands is the daemon's work. Two passes, as in QSD: first what concerns the process
//! (help, version, `--daemonize`, `--pidfile`, words that are no option of ours), then everything else in the order given. What is wrong with a
//! command is kept in its step, because everything before it is done first.

mod error;
#[cfg(test)]
mod fuzz;
mod getopt;
mod help;
mod keyval;
mod options;
mod program;
mod qemu_opts;
pub(crate) mod scalar;
mod schema_chardev;
mod schema_create;
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

pub use crate::json::parse as parse_json;
pub use error::Refusal;
pub use help::{QEMU_VERSION, QEMU_VERSION_TRIPLE};
pub(crate) use keyval::DEPTH_MAX;
pub use options::*;
pub use schema_create::image_to_create;
pub use schema_export::export;
pub(crate) use schema_nbd::bitmap_refs;
pub use schema_nbd::{nbd_server, nbd_server_start};
pub use schema_node::{blockdev, child_blockdev, reopened_blockdev};
pub use schema_object::{POLL_MAX_NS_DEFAULT, object, throttle_limits};
pub use visit::{Object, Spelling};

use crate::qapi;
use crate::qapi::tables::control::MONITOR_OPTIONS;
use crate::qapi::tables::exports::{BLOCK_EXPORT_OPTIONS, NBD_SERVER_OPTIONS};
use crate::qapi::tables::nodes::BLOCKDEV_OPTIONS;
use crate::qapi::tables::objects::OBJECT_OPTIONS;
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
    if invocation.daemonize == Daemonize::Background {
        invocation.steps.iter_mut().for_each(refuse_stdio);
    }
    add_disk(&mut invocation, program, activated)?;
    Ok(Outcome::Run(invocation))
}

/// A daemon lets go of the standard streams.
fn refuse_stdio(step: &mut Step) {
    if let Ok(Command::Chardev(chardev)) = &step.command
        && matches!(chardev.backend, ChardevBackend::Stdio { .. })
    {
        step.command = Err(Refusal::new("cannot use stdio with -daemonize"));
    }
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
        Name::Blockdev => BLOCKDEV.command(&word.value, blockdev, Command::Blockdev),
        Name::Export => EXPORT.command(&word.value, export, Command::Export),
        Name::Object => OBJECT.command(&word.value, object, Command::Object),
        Name::NbdServer => NBD_SERVER.command(&word.value, nbd_server, Command::NbdServer),
        Name::Chardev => return chardev_step(word),
        Name::Monitor => MONITOR.command(&word.value, schema_chardev::monitor, Command::Monitor),
        Name::Bare => Err(Refusal::new("Unexpected argument")),
        _ => Err(Refusal::new("not supported by this version")),
    };
    Step {
        origin: word.origin,
        warnings: Vec::new(),
        command,
    }
}

/// An option whose argument is an object, in either form.
struct Form {
    /// What its members can be.
    table: &'static qapi::Object,
    /// The member whose name may be left out.
    implied: Option<&'static str>,
    help: Help,
}

fn chardev_step(word: Word) -> Step {
    let (warnings, chardev) = schema_chardev::chardev(&word.value, &word.origin);
    Step {
        origin: word.origin,
        warnings,
        command: chardev.map(|chardev| match chardev {
            schema_chardev::Chardev::Options(options) => Command::Chardev(options),
            schema_chardev::Chardev::Help(text) => Command::ShowHelp(text),
        }),
    }
}

/// What `help` among the parameters of an option does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Help {
    Refused,
    Objects,
}

const BLOCKDEV: Form = Form {
    table: &BLOCKDEV_OPTIONS,
    implied: Some("driver"),
    help: Help::Refused,
};
const EXPORT: Form = Form {
    table: &BLOCK_EXPORT_OPTIONS,
    implied: Some("type"),
    help: Help::Refused,
};
const OBJECT: Form = Form {
    table: &OBJECT_OPTIONS,
    implied: Some("qom-type"),
    help: Help::Objects,
};
const NBD_SERVER: Form = Form {
    table: &NBD_SERVER_OPTIONS,
    implied: None,
    help: Help::Refused,
};
const MONITOR: Form = Form {
    table: &MONITOR_OPTIONS,
    implied: Some("chardev"),
    help: Help::Refused,
};

/// An option's argument, in whichever form it was written.
enum Argument {
    Options(Object),
    Help(String),
}

impl Form {
    fn command<T>(
        &self,
        text: &OsStr,
        read: impl FnOnce(Object) -> Result<T, Refusal>,
        command: impl FnOnce(T) -> Command,
    ) -> Result<Command, Refusal> {
        match self.argument(text)? {
            Argument::Options(object) => read(object).map(command),
            Argument::Help(text) => Ok(Command::ShowHelp(text)),
        }
    }

    fn argument(&self, text: &OsStr) -> Result<Argument, Refusal> {
        let text = text
            .to_str()
            .ok_or_else(|| Refusal::new("the argument is not valid UTF-8"))?;
        let options = |members, spelling| {
            Object::checked(members, self.table, spelling).map(Argument::Options)
        };
        if text.starts_with('{') {
            return match parse_json(text)? {
                Value::Object(members) => options(members, Spelling::Json),
                _ => Err(Refusal::wrong_type("null", "object")),
            };
        }
        let keyval = keyval::parse(text, self.implied)?;
        if keyval.help && self.help == Help::Refused {
            return Err(Refusal::new("Help is not available for this option"));
        }
        let members = keyval::listify(keyval.members)?;
        if keyval.help {
            let kind = self.implied.and_then(|key| members.get(key));
            return Ok(Argument::Help(help::objects(kind.and_then(Value::as_str))));
        }
        options(members, Spelling::Keyval)
    }
}

/// Identifiers of nodes, exports and objects: a letter, then letters, digits, `-`, `.` and `_`.
pub fn id_is_well_formed(id: &str) -> bool {
    id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}
