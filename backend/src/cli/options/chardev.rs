//! `--chardev` and `--monitor`.

use super::InetAddress;
use std::path::PathBuf;
use std::time::Duration;

/// `--chardev`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChardevOptions {
    /// Well formed, not known to be free.
    pub id: String,
    /// What it is.
    pub backend: ChardevBackend,
    /// The words of the option: what stands before a message about it.
    pub origin: String,
}

/// What a character device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChardevBackend {
    /// `socket,…,server=on`
    Server {
        /// Where.
        at: ChardevAddress,
        /// `wait`
        wait: Wait,
    },
    /// `socket` without `server=on`
    Client {
        /// Where.
        at: ChardevAddress,
        /// `reconnect-ms`, `reconnect`: how long after a failure or an end; `None`: never again.
        reconnect: Option<Duration>,
    },
    /// `stdio`
    Stdio {
        /// `signal`
        signal: StdioSignal,
    },
    /// `null`
    Null,
    /// `file`
    File {
        /// `path`: what is written goes there.
        path: PathBuf,
        /// `append`
        mode: FileMode,
        /// `input-path`: what is read comes from there.
        input: Option<PathBuf>,
    },
    /// `ringbuf`, `memory`
    Ringbuf {
        /// By which of the two names.
        name: &'static str,
        /// A power of two.
        size_bytes: usize,
    },
}

/// A socket's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChardevAddress {
    /// `path`
    Unix(PathBuf),
    /// `path` with `abstract=on`
    Abstract {
        /// Without the NUL before it.
        name: String,
        /// `tight`
        tight: Tight,
    },
    /// `host`, `port`
    Inet {
        /// Where.
        address: InetAddress,
        /// `nodelay`, `delay`
        delay: Delay,
    },
    /// `fd`
    Fd(i32),
}

/// Is start-up to wait for the first client?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// It is.
    Yes,
    /// It is not.
    No,
}

/// Does an abstract address end with its name?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tight {
    /// It does.
    Yes,
    /// It is filled up with NULs.
    No,
}

/// May small pieces be held back to be sent together (TCP_NODELAY)?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delay {
    /// They may.
    Yes,
    /// They may not.
    No,
}

/// What becomes of a file that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileMode {
    /// It is emptied.
    Truncate,
    /// It is written at its end.
    Append,
}

/// Does Ctrl-C at the terminal end the process, or is it input?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StdioSignal {
    /// It ends the process.
    Yes,
    /// It is input.
    No,
}

/// `--monitor`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitorOptions {
    /// What the log calls it; its character device's id otherwise.
    pub id: Option<String>,
    /// The character device, by id.
    pub chardev: String,
    /// `mode=readline`: refused, but only once the character device is known to be there.
    pub mode: MonitorMode,
    /// `pretty=`
    pub pretty: bool,
}

/// Who is at the other end of a monitor?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MonitorMode {
    /// A program.
    Control,
    /// A person.
    Readline,
}
