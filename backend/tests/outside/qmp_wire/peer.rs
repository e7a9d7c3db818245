//! A monitor of either program, and conversations with it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
/// Answered with an error that names it, after everything else.
const LAST_WORD: &str = "the-last-word";

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Ours,
    Theirs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Compact,
    Pretty,
}

/// A running daemon with one monitor; killed when dropped.
#[derive(Debug)]
pub(crate) struct Peer {
    child: Child,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    pub(crate) fn start(program: Program, layout: Layout) -> Peer {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("monitor");
        let program = match program {
            Program::Ours => env!("CARGO_BIN_EXE_virtioblkd"),
            Program::Theirs => "qemu-storage-daemon",
        };
        let chardev = format!("socket,id=c,path={},server=on,wait=off", path.display());
        let monitor = match layout {
            Layout::Compact => "chardev=c",
            Layout::Pretty => "chardev=c,pretty=on",
        };
        let child = Command::new(program)
            .args(["--chardev", &chardev, "--monitor", monitor])
            .stdin(Stdio::null())
            .spawn()
            .expect("it starts");
        Peer {
            child,
            path,
            _dir: dir,
        }
    }

    fn connect(&self) -> UnixStream {
        let until = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(&self.path) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < until, "no monitor: {error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    fn send(&self, pieces: &[&[u8]]) -> UnixStream {
        let mut stream = self.connect();
        for piece in pieces {
            stream.write_all(piece).expect("it listens");
        }
        stream
    }

    /// Sends all, then says that nothing more comes; everything that comes back.
    pub(crate) fn talk_to_the_end(&self, pieces: &[&[u8]]) -> String {
        let mut stream = self.send(pieces);
        stream.shutdown(Shutdown::Write).expect("still there");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an end");
        normalised(&answer)
    }

    /// Sends all, then a command that nobody knows; everything that comes back up to the answer to that.
    pub(crate) fn talk_up_to_a_last_word(&self, pieces: &[&[u8]]) -> String {
        let last = format!("{{\"execute\":\"{LAST_WORD}\"}}");
        let mut stream = self.send(pieces);
        stream.write_all(last.as_bytes()).expect("it listens");
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains(LAST_WORD) {
            let mut bytes = [0; 4096];
            let count = stream.read(&mut bytes).expect("an answer");
            assert!(count > 0, "it hung up: {}", answer.escape_ascii());
            answer.extend(&bytes[..count]);
        }
        normalised(&answer)
    }
}

/// Without what tells the two programs apart.
fn normalised(answer: &[u8]) -> String {
    const PACKAGE: &str = "\"package\": \"";
    let text = answer.escape_ascii().to_string().replace("\\\"", "\"");
    let mut parts = text.split(PACKAGE);
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let after = part.split_once('"').map_or("", |(_, after)| after);
        shown += PACKAGE;
        shown += "…\"";
        shown += after;
    }
    shown
}
