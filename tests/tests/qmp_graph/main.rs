//! Changes of a graph, one after the other, on ours and on the real qemu-storage-daemon: each is taken by both or refused by
//! both in the same words.
//!
//! The rule: a line of the script is a command; one that begins with `!` is answered differently on purpose, and says how by us.

mod interrupted;
mod jobs;

use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tests::daemon::Kind;
use tests::operator::Operator;
use tests::qemu_img::{create, create_on};

const SCRIPT: &str = include_str!("script.jsonl");
const DISK_BYTES: u64 = 64 << 20;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What came of each command: `Ok` without what was returned, which is nothing for all of these.
fn answers(kind: Kind) -> Vec<Result<(), String>> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    for raw in ["a.raw", "b.raw"] {
        let file = std::fs::File::create(path(raw)).expect("made");
        file.set_len(DISK_BYTES).expect("sized");
    }
    for image in ["base.q", "x.q", "y.q"] {
        create(&path(image), DISK_BYTES);
    }
    create_on(&path("top.q"), &path("base.q"));
    let _running = start(kind, dir.path());
    let mut operator = Operator::connect(&path("monitor")).expect("a monitor");
    let here = dir.path().display().to_string();
    let answer = |line: &str| {
        let line = line.trim_start_matches('!').replace("@DIR@", &here);
        let command: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line}: {e}"));
        let name = command["execute"].as_str().expect("a command");
        let said = operator.ask(name, &command["arguments"]);
        said.map(drop).map_err(|why| why.replace(&here, "@DIR@"))
    };
    lines().map(answer).collect()
}

/// Commands, without comments.
fn lines() -> impl Iterator<Item = &'static str> {
    let lines = SCRIPT.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn start(kind: Kind, dir: &Path) -> Running {
    let monitor = dir.join("monitor").display().to_string();
    let nbd = dir.join("nbd.sock").display().to_string();
    let mut command = Command::new(kind.program().expect("a daemon"));
    command
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command.args([
        "--chardev",
        &format!("socket,id=c,path={monitor},server=on,wait=off"),
    ]);
    command.args(["--monitor", "chardev=c"]);
    command.args([
        "--object",
        "throttle-group,id=g",
        "--object",
        "throttle-group,id=h",
    ]);
    command.args(["--nbd-server", &format!("addr.type=unix,addr.path={nbd}")]);
    Running(command.spawn().expect("a daemon"))
}

#[test]
fn every_change_of_a_graph_is_answered_as_by_qemu_storage_daemon() {
    let theirs = answers(Kind::QemuStorageDaemon);
    let ours = answers(Kind::Virtioblkd);
    let mut differ = Vec::new();
    for (line, (theirs, ours)) in lines().zip(theirs.iter().zip(&ours)) {
        let on_purpose = line.starts_with('!');
        if (theirs == ours) == on_purpose {
            differ.push(format!("{line}\n  theirs {theirs:?}\n  ours   {ours:?}"));
        }
    }
    assert!(
        differ.is_empty(),
        "{} lines:\n{}",
        differ.len(),
        differ.join("\n")
    );
}
