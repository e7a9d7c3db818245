//! Going to the background. The program is started a second time, in a session of its own, and tells the first when it is up; the first then ends
//! with that status, so that whoever started it knows.
//!
//! The one rule: before any thread and before anything is opened. Starting anew instead of forking needs no unsafe code and carries no
//! half-copied state over; inherited descriptors and the arguments are all there is, and both are passed on.

use std::env;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode};

use rustix::fs::Mode;

/// Set for the second process; its standard input is then the socket that it reports on.
const MARK: &str = "VIRTIOBLKD_BACKGROUND";
/// What the second process sends once everything is up.
const UP: u8 = b'U';

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Background {
    /// The one that was started: end with this status.
    Parent(ExitCode),
    /// The one that stays: start up, then call [`Daemon::up`].
    Daemon(Daemon),
}

/// The process that stays. Dropping it without [`Daemon::up`] tells the parent that starting failed.
#[derive(Debug)]
pub struct Daemon {
    status: UnixStream,
}

/// In the process that was started: starts the second one with the same arguments and waits until it is up or has failed.
/// In the second one: leaves the terminal's session, as QSD does with umask 027.
///
/// # Errors
/// The program cannot be started again, or its status not read.
pub fn enter_background() -> io::Result<Background> {
    if !is_background() {
        return start_again().map(Background::Parent);
    }
    rustix::process::setsid()?;
    rustix::process::umask(Mode::from_raw_mode(0o027));
    let status = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(null()?)?;
    Ok(Background::Daemon(Daemon {
        status: status.into(),
    }))
}

/// Whether this is the second process.
pub(super) fn is_background() -> bool {
    env::var_os(MARK).is_some()
}

fn start_again() -> io::Result<ExitCode> {
    let (mut status, theirs) = UnixStream::pair()?;
    let child = spawn(theirs)?;
    let mut up = [0];
    match status.read(&mut up)? {
        1 if up == [UP] => Ok(ExitCode::SUCCESS),
        _ => exit_code(child),
    }
}

fn spawn(status: UnixStream) -> io::Result<Child> {
    let mut args = env::args_os();
    let name = args.next().unwrap_or_default();
    Command::new("/proc/self/exe")
        .arg0(name)
        .args(args)
        .env(MARK, "1")
        .stdin(OwnedFd::from(status))
        .spawn()
}

/// The status of a daemon that ended before it was up: its own where it has one (`--object help` ends with success).
fn exit_code(mut child: Child) -> io::Result<ExitCode> {
    let code = child
        .wait()?
        .code()
        .and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

fn null() -> io::Result<std::fs::File> {
    OpenOptions::new().read(true).write(true).open("/dev/null")
}

impl Daemon {
    /// Everything is up: lets go of the working directory and the standard streams, and of the parent.
    ///
    /// # Errors
    /// `/` or /dev/null cannot be opened. A parent that is gone is none.
    pub fn up(mut self) -> io::Result<()> {
        env::set_current_dir("/")?;
        let null = null()?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        // Whoever waited may have given up; the daemon serves all the same.
        let _ = self.status.write(&[UP]);
        Ok(())
    }
}
