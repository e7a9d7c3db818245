//! System calls of a running process, counted by strace.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::deadline;

/// An strace that looks at a process; it lets go when this is dropped.
#[derive(Debug)]
pub struct Trace {
    strace: Child,
    dir: TempDir,
}

impl Trace {
    /// Attaches to every thread of `pid`, now and later, and counts `calls`.
    pub fn attach(pid: u32, calls: &[&str]) -> io::Result<Trace> {
        let dir = tempfile::tempdir()?;
        let strace = Command::new("strace")
            .args(["-f", "-e"])
            .arg(format!("trace={}", calls.join(",")))
            .arg("-o")
            .arg(dir.path().join("log"))
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut trace = Trace { strace, dir };
        trace.wait_attached()?;
        Ok(trace)
    }

    /// strace says when it has attached; the pipe stays open for as long as it runs.
    fn wait_attached(&mut self) -> io::Result<()> {
        let stderr = self.strace.stderr.take().ok_or(io::ErrorKind::NotFound)?;
        let mut lines = BufReader::new(stderr);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        if !line.contains("attached") {
            return Err(io::Error::other(format!("strace says: {line}")));
        }
        thread::spawn(move || lines.read_to_end(&mut Vec::new()));
        Ok(())
    }

    /// Lets go and says what calls there were, one line each, as strace writes them.
    pub fn finish(mut self) -> io::Result<Vec<String>> {
        self.interrupt()?;
        let log = fs::read_to_string(self.dir.path().join("log"))?;
        let calls = log
            .lines()
            .filter(|line| line.contains('(') && !line.contains(" resumed>"));
        Ok(calls.map(str::to_owned).collect())
    }

    fn interrupt(&mut self) -> io::Result<()> {
        if self.strace.try_wait()?.is_some() {
            return Ok(());
        }
        // SAFETY: a plain system call on our own child, which is not reaped yet.
        unsafe { libc::kill(self.strace.id() as i32, libc::SIGINT) };
        let until = deadline();
        while self.strace.try_wait()?.is_none() {
            if Instant::now() > until {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "strace does not end",
                ));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // Killed, it would leave the traced process stopped.
        let _ = self.interrupt();
    }
}
