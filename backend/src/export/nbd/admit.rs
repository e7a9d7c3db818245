//! What a request's head asks for, checked before anything is done: a pure function, in QEMU's order and words.

use super::options::TRANSFER_BYTES_MAX;
use blockgraph::driver::nbd::wire::{Command, CommandFlags, Form, RequestHead};

/// NBD_CMD_CACHE reads so much at once.
pub(super) const CACHE_STEP_BYTES: u64 = 1 << 20;

/// What requests of a connection are held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// How requests and replies look.
    pub(super) form: Form,
    /// The export's size.
    pub(super) size_bytes: u64,
    /// Are changes refused?
    pub(super) read_only: bool,
    /// How many contexts were chosen.
    pub(super) contexts: usize,
}

/// What is to be done about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// End the connection in good order.
    Disconnect,
    /// Do it.
    Go(Ask),
    /// Receive that many bytes, then write them.
    Write {
        /// How many.
        len: u32,
        /// Durable before the reply?
        fua: bool,
    },
    /// Receive that many bytes, which say what block status is asked.
    StatusPayload {
        /// How many.
        len: u32,
        /// Is one extent enough?
        one: bool,
    },
    /// Throw that many bytes away, then say no (NBD_EINVAL).
    Refuse {
        /// How many.
        skip_bytes: u32,
        /// Why.
        text: String,
    },
    /// Say no, then end the connection: where the next request begins is anybody's guess.
    Fatal(String),
}

/// A request without a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Data; in one piece?
    Read {
        /// In one piece?
        whole: bool,
    },
    /// Make what was written durable.
    Flush,
    /// No longer needed.
    Trim {
        /// Durable before the reply?
        fua: bool,
    },
    /// Will be read soon.
    Cache,
    /// Make it zeroes.
    WriteZeroes {
        /// Durable before the reply?
        fua: bool,
        /// Does it keep its space?
        keep: bool,
        /// Only if that is faster than writing?
        fast: bool,
    },
    /// Tell about it.
    Status {
        /// Is one extent enough?
        one: bool,
    },
}

impl Ask {
    /// How much memory its data takes.
    pub(super) fn data_bytes(self, head: &RequestHead) -> usize {
        match self {
            // Admitted ones are within 32 bits.
            Ask::Read { .. } => usize::try_from(head.len).unwrap_or(usize::MAX),
            Ask::Cache => CACHE_STEP_BYTES as usize,
            _ => 0,
        }
    }
}

/// What a command may have and must have.
struct Kind {
    flags: u16,
    changes: bool,
    /// Is the length that of data?
    transfers: bool,
}

fn kind(command: Command, form: Form) -> Kind {
    let (flags, changes, transfers) = match command {
        Command::Read if form >= Form::Structured => (CommandFlags::DF, false, true),
        Command::Read | Command::Cache => (0, false, true),
        Command::Write if form == Form::Extended => (CommandFlags::PAYLOAD_LEN, true, true),
        Command::Write => (0, true, true),
        Command::Trim => (0, true, false),
        Command::WriteZeroes => {
            let flags = CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO;
            (flags, true, false)
        }
        Command::BlockStatus => (CommandFlags::REQ_ONE, false, false),
        Command::Flush | Command::Disconnect | Command::Other(_) => (0, false, false),
    };
    Kind {
        // "A server SHOULD ignore FUA on commands that do not write"; QEMU takes it everywhere.
        flags: flags | CommandFlags::FUA,
        changes,
        transfers,
    }
}

/// Decides about a request.
pub(super) fn admit(head: &RequestHead, rules: &Rules) -> Admission {
    if head.command == Command::Disconnect {
        return Admission::Disconnect;
    }
    let kind = kind(head.command, rules.form);
    let with_payload = rules.form == Form::Extended && head.flags.has(CommandFlags::PAYLOAD_LEN);
    let has_payload = with_payload || head.command == Command::Write;
    let too_long = head.len > u64::from(TRANSFER_BYTES_MAX);
    if too_long && (kind.transfers || has_payload) {
        let text = format!(
            "len ({}) is larger than max len ({TRANSFER_BYTES_MAX})",
            head.len
        );
        return match has_payload {
            true => Admission::Fatal(text),
            false => refuse(0, text),
        };
    }
    let payload = if has_payload { head.len as u32 } else { 0 };
    if with_payload && head.command == Command::BlockStatus {
        return status_payload(head, payload, rules);
    }
    // What has no business having a payload is not about its length.
    let len = match has_payload && !kind.transfers {
        true => 0,
        false => head.len,
    };
    match objection(head, len, &kind, rules) {
        Some(text) => refuse(payload, text),
        None => accept(head, payload),
    }
}

fn refuse(skip_bytes: u32, text: impl Into<String>) -> Admission {
    Admission::Refuse {
        skip_bytes,
        text: text.into(),
    }
}

/// The first thing wrong with a request that is read to its end.
fn objection(head: &RequestHead, len: u64, kind: &Kind, rules: &Rules) -> Option<String> {
    if kind.changes && rules.read_only {
        return Some("Export is read-only".to_owned());
    }
    if let Some(text) = past_end(head.at, len, rules) {
        return Some(text);
    }
    if head.flags.beyond(kind.flags) {
        let name = command_name(head.command);
        let flags = head.flags.0;
        return Some(format!(
            "unsupported flags for command {name} (got {flags:#x})"
        ));
    }
    match head.command {
        Command::Other(number) => Some(format!("invalid request type ({number}) received")),
        Command::BlockStatus if head.len == 0 => Some("need non-zero length".to_owned()),
        Command::BlockStatus if rules.contexts == 0 => {
            Some("CMD_BLOCK_STATUS not negotiated".to_owned())
        }
        _ => None,
    }
}

/// What is wrong with a range, if it does not lie within the export.
pub(super) fn past_end(at: u64, len: u64, rules: &Rules) -> Option<String> {
    let size = rules.size_bytes;
    let fits = at <= size && len <= size - at;
    (!fits).then(|| format!("operation past EOF; From: {at}, Len: {len}, Size: {size}"))
}

fn accept(head: &RequestHead, payload: u32) -> Admission {
    let fua = head.flags.has(CommandFlags::FUA);
    Admission::Go(match head.command {
        Command::Write => return Admission::Write { len: payload, fua },
        Command::Read => Ask::Read {
            whole: head.flags.has(CommandFlags::DF),
        },
        Command::Trim => Ask::Trim { fua },
        Command::Cache => Ask::Cache,
        Command::WriteZeroes => Ask::WriteZeroes {
            fua,
            keep: head.flags.has(CommandFlags::NO_HOLE),
            fast: head.flags.has(CommandFlags::FAST_ZERO),
        },
        Command::BlockStatus => Ask::Status {
            one: head.flags.has(CommandFlags::REQ_ONE),
        },
        Command::Flush => Ask::Flush,
        // Both were dealt with before.
        Command::Disconnect | Command::Other(_) => return Admission::Disconnect,
    })
}

/// The longest payload that can name each chosen context once.
fn status_payload(head: &RequestHead, len: u32, rules: &Rules) -> Admission {
    let longest = 8 + 4 * rules.contexts as u64;
    if u64::from(len) > longest || len < 12 || !len.is_multiple_of(4) {
        return refuse(len, INVALID_STATUS_PAYLOAD);
    }
    let known = CommandFlags::FUA | CommandFlags::REQ_ONE | CommandFlags::PAYLOAD_LEN;
    if head.flags.beyond(known) {
        let flags = head.flags.0;
        let text = format!("unsupported flags for command block status (got {flags:#x})");
        return refuse(len, text);
    }
    Admission::StatusPayload {
        len,
        one: head.flags.has(CommandFlags::REQ_ONE),
    }
}

/// What is said of a block status payload that makes no sense.
pub(super) const INVALID_STATUS_PAYLOAD: &str = "CMD_BLOCK_STATUS payload not valid";

fn command_name(command: Command) -> &'static str {
    match command {
        Command::Read => "read",
        Command::Write => "write",
        Command::Disconnect => "disconnect",
        Command::Flush => "flush",
        Command::Trim => "trim",
        Command::Cache => "cache",
        Command::WriteZeroes => "write zeroes",
        Command::BlockStatus => "block status",
        Command::Other(_) => "<unknown>",
    }
}
