//! The host's end of the guest's second serial port: scripts go in, their output and exit codes come out.
//!
//! The protocol, by lines: the guest says `@@ready` when it is up; the host sends a script and `@@run`;
//! the guest answers with the script's output, one empty line and `@@exit CODE`. The rule to know: one script at a time.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

const READY: &str = "@@ready";
const RUN: &str = "@@run";
const EXIT: &str = "@@exit ";

/// What a script printed (both streams) and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit code of the script's last command.
    pub exit_code: i32,
    /// Both streams as they came, without the end of line at the end.
    pub text: String,
}

/// What can come instead of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// The deadline passed.
    TimeLimit,
    /// QEMU closed the port.
    Closed,
    /// The guest started anew.
    Rebooted,
}

/// The serial port, from the host's side.
#[derive(Debug)]
pub(super) struct Agent {
    to_guest: ChildStdin,
    lines: Receiver<String>,
}

impl Agent {
    /// Starts reading what the guest says; the reader ends when QEMU does.
    pub(super) fn new(to_guest: ChildStdin, from_guest: ChildStdout) -> Agent {
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(from_guest)
                .split(b'\n')
                .map_while(Result::ok)
            {
                let line = String::from_utf8_lossy(&line);
                let line = line.trim_end_matches('\r').to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Agent { to_guest, lines }
    }

    /// Waits until the guest is up.
    pub(super) fn wait_ready(&mut self, deadline: Instant) -> Result<(), Silence> {
        while self.line(deadline)? != READY {}
        Ok(())
    }

    /// Sends a script for the guest to run.
    pub(super) fn send(&mut self, script: &str) -> io::Result<()> {
        let message = format!("{script}\n{RUN}\n");
        self.to_guest.write_all(message.as_bytes())?;
        self.to_guest.flush()
    }

    /// Waits for the end of the script that was sent.
    pub(super) fn answer(&mut self, deadline: Instant) -> Result<Output, Silence> {
        let mut said: Vec<String> = Vec::new();
        loop {
            let line = self.line(deadline)?;
            if line == READY {
                return Err(Silence::Rebooted);
            }
            if let Some(code) = line.strip_prefix(EXIT) {
                return Ok(output(code, &said));
            }
            said.push(line);
        }
    }

    fn line(&mut self, deadline: Instant) -> Result<String, Silence> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.lines.recv_timeout(left).map_err(|e| match e {
            RecvTimeoutError::Timeout => Silence::TimeLimit,
            RecvTimeoutError::Disconnected => Silence::Closed,
        })
    }
}

/// A code that is no number cannot come from the guest's shell; it is shown as a failure rather than lost.
fn output(code: &str, said: &[String]) -> Output {
    let text = said.join("\n");
    Output {
        exit_code: code.parse().unwrap_or(-1),
        // The guest puts an end of line before its marker, for output that lacks one.
        text: text.trim_end_matches('\n').to_owned(),
    }
}
