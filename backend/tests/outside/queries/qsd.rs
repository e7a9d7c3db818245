//! The real qemu-storage-daemon and its monitor.

use super::stage::{connected, words};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

#[derive(Debug)]
pub struct Qsd {
    child: Child,
    stream: BufReader<UnixStream>,
    socket: PathBuf,
}

impl Qsd {
    pub fn start(dir: &Path, setup: &str) -> Qsd {
        let socket = dir.join("qmp.sock");
        let chardev = format!("socket,id=c,path={},server=on,wait=off", socket.display());
        let mut command = Command::new("qemu-storage-daemon");
        command.current_dir(dir).args(words(setup, dir));
        let child = command
            .args(["--chardev", &chardev, "--monitor", "c"])
            .spawn();
        let child = child.unwrap();
        // The first to connect is who it talks to.
        let stream = BufReader::new(connected(&socket));
        let mut qsd = Qsd {
            child,
            stream,
            socket,
        };
        qsd.line();
        qsd.ask("qmp_capabilities", &json!({}));
        qsd
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    pub fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        let ask = json!({"execute": command, "arguments": arguments});
        // In one piece: it is gone before the end of a line that asks it to quit.
        let line = format!("{ask}\n");
        self.stream.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let mut answer = self.line();
            if let Some(value) = answer.get_mut("return") {
                return value.take();
            }
            // Who connects while it is starting may be greeted twice.
            let is_other = answer.get("event").is_some() || answer.get("QMP").is_some();
            assert!(is_other, "{command}: {answer}");
        }
    }
}

impl Qsd {
    /// Ends it, sockets and all.
    pub fn quit(mut self) {
        self.ask("quit", &json!({}));
        self.child.wait().unwrap();
        // The monitor's is left behind, and would be taken for one at which somebody listens.
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Drop for Qsd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
