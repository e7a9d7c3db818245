//! Dirty bitmaps against the real qemu-storage-daemon: both are told the same and written to alike, and answer the same, in
//! commands, hashes and NBD contexts. `script.txt` is the conversation: commands as JSON, what begins with `$` for the shell, and
//! events to be waited for after `&`. So is `backups.txt`, of transactions and backup jobs, where `%` waits until no job is at work
//! any more, and `?` until so many events had such a word; both answer what was heard since. And so is `persistent.txt`, of bitmaps
//! that images keep, where `!` ends the daemon by a signal, or by `quit`, and starts another.

mod failures;

use serde_json::{Value, json};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tests::daemon::Kind;
use tests::qemu_img::qemu_img;
use tests::qmp::Qmp;

const SCRIPT: &str = include_str!("script.txt");
const BACKUPS: &str = include_str!("backups.txt");
const PERSISTENT: &str = include_str!("persistent.txt");
/// A daemon is there in a fraction of this.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A daemon that is killed when the test is over, however it ended.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn monitor(socket: &Path) -> Qmp {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        match Qmp::connect(socket) {
            Ok(monitor) => return monitor,
            Err(error) => assert!(Instant::now() < deadline, "no monitor: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a command of the monitor's answered, well or badly.
fn ask(monitor: &mut Qmp, message: &str) -> Value {
    let mut message: Value = serde_json::from_str(message).expect("JSON");
    let arguments = message["arguments"].take();
    let name = message["execute"].as_str().expect("a name");
    match monitor.execute(name, arguments) {
        Ok(answer) if name == "query-named-block-nodes" => bitmaps(&answer),
        Ok(answer) => json!({"return": answer}),
        Err(error) => json!({"error": error}),
    }
}

/// What a query of all nodes says of their bitmaps; names that a daemon has made up are its own.
fn bitmaps(answer: &Value) -> Value {
    let nodes = answer.as_array().into_iter().flatten();
    // What is nameless is how QSD does something: a successor, or what a filter has still to copy.
    let named = |bitmaps: &Value| -> Vec<Value> {
        let all = bitmaps.as_array().into_iter().flatten();
        let named = all.filter(|bitmap| bitmap["name"].is_string());
        named.cloned().collect()
    };
    let shown = nodes.map(|node| json!([node["node-name"], named(&node["dirty-bitmaps"])]));
    let shown = shown.filter(|node| !node[0].as_str().is_some_and(|name| name.starts_with('#')));
    let mut shown: Vec<Value> = shown.collect();
    // Places that were left are taken again, here.
    shown.sort_by_key(|node| node[0].to_string());
    shown.into()
}

/// What a command of the shell printed, without what depends on time.
fn shell(command: &str, dir: &Path) -> Value {
    let output = Command::new("sh")
        .args(["-c", command])
        .current_dir(dir)
        .output();
    let output = output.expect("a shell");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&output.stderr);
    let lines = said.lines().filter(|line| !line.contains(" ops; "));
    lines.map(Value::from).collect()
}

/// No job is at work, and whatever was heard of one has been heard to its end.
fn are_over(jobs: &[Value], heard: &[Value]) -> bool {
    let is_end = |status: &Value| status == "concluded" || status == "null";
    let of = |event: &Value| (event[1]["id"].clone(), event[1]["status"].clone());
    let changes = heard.iter().filter(|event| event[0] == "JOB_STATUS_CHANGE");
    let last: Vec<(Value, Value)> = changes.map(of).collect();
    let ended = |(id, _): &(Value, Value)| {
        let of_it = last.iter().rev().find(|(other, _)| other == id);
        of_it.is_some_and(|(_, status)| is_end(status))
    };
    jobs.iter().all(|job| is_end(&job["status"])) && last.iter().all(ended)
}

/// What is heard of jobs until it is enough. Of `ignored`, members of events by name, and whole changes of states, are left out.
fn heard_until(
    monitor: &mut Qmp,
    ignored: &str,
    is_enough: impl Fn(&[Value], &[Value]) -> bool,
) -> Value {
    let deadline = Instant::now() + START_LIMIT;
    let mut heard = Vec::new();
    let mut rounds = 0;
    // Once more, for what was said between two answers.
    while rounds < 2 {
        let jobs = monitor.succeed("query-jobs", json!({}));
        let events = monitor.events().into_iter();
        heard.extend(events.map(|event| json!([event["event"], event["data"]])));
        rounds += usize::from(is_enough(jobs.as_array().expect("a list"), &heard));
        assert!(Instant::now() < deadline, "{heard:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    let ignores = |word: &str| ignored.split(' ').any(|other| other == word);
    heard.retain(|event| !event[1]["status"].as_str().is_some_and(ignores));
    for event in &mut heard {
        let data = event[1].as_object_mut().expect("an object");
        data.retain(|name, _| !ignores(name));
    }
    heard.into()
}

fn make_images(dir: &Path) -> std::io::Result<()> {
    let path = |name: &str| dir.join(name).display().to_string();
    for raw in ["raw.img", "read-only.img"] {
        qemu_img(["create", "-q", "-f", "raw", &path(raw), "10M"])?;
    }
    for (image, clusters) in [("small.qcow2", "512"), ("image.qcow2", "4k")] {
        let options = format!("cluster_size={clusters}");
        qemu_img([
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &options,
            &path(image),
            "10M",
        ])?;
    }
    let top = path("top.qcow2");
    let options = ["create", "-q", "-f", "qcow2", "-b", "raw.img", "-F", "raw"];
    qemu_img(options.into_iter().chain([top.as_str()])).map(drop)
}

fn start(kind: Kind, dir: &Path) -> (Running, Qmp) {
    let daemon = Command::new(kind.program().expect("the program"))
        .args(["--chardev", "socket,id=mon,path=monitor,server=on,wait=off"])
        .args(["--monitor", "mon"])
        .args(["--nbd-server", "addr.type=unix,addr.path=nbd"])
        .current_dir(dir)
        .spawn();
    let running = Running(daemon.expect("the daemon"));
    (running, monitor(&dir.join("monitor")))
}

/// Ends a daemon by a signal, or by the command of that name; says how it went.
fn end(running: &mut Running, monitor: &mut Qmp, how: &str) -> Value {
    match how {
        "quit" => drop(monitor.execute("quit", json!({}))),
        signal => {
            let pid = running.0.id().to_string();
            let sent = Command::new("kill").args(["-s", signal, &pid]).status();
            assert!(sent.expect("kill").success());
        }
    }
    let status = running.0.wait().expect("its end");
    json!([status.code(), status.signal()])
}

/// What was said to a daemon, and what it answered.
fn session(kind: Kind, script: &'static str) -> Vec<(&'static str, Value)> {
    let dir = tempfile::tempdir().expect("a directory");
    make_images(dir.path()).expect("images");
    let (mut running, mut monitor) = start(kind, dir.path());
    let lines = script
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let steps = lines.map(|line| {
        let answer = match line.split_at(2) {
            ("$ ", command) => shell(command, dir.path()),
            ("! ", how) => {
                let ended = end(&mut running, &mut monitor, how);
                (running, monitor) = start(kind, dir.path());
                ended
            }
            ("& ", event) => monitor.event(event)["data"].take(),
            ("% ", ignored) => heard_until(&mut monitor, ignored, are_over),
            ("? ", said) => {
                let (count, word) = said.split_once(' ').expect("a count and a word");
                let count: usize = count.parse().expect("a count");
                let has = |one: &&Value| one.to_string().contains(word);
                heard_until(&mut monitor, "", |_, heard| {
                    heard.iter().filter(has).count() >= count
                })
            }
            _ => ask(&mut monitor, line),
        };
        (line, answer)
    });
    steps.collect()
}

#[test]
fn bitmaps_answer_as_qemu_storage_daemons_do() {
    let ours = same_sessions(SCRIPT);
    let hashes = ours
        .iter()
        .filter(|(_, answer)| answer.pointer("/return/sha256").is_some());
    assert!(hashes.count() > 20, "the script compares no hashes");
}

#[test]
fn backups_and_transactions_answer_as_qemu_storage_daemons_do() {
    let ours = same_sessions(BACKUPS);
    let told = ours.iter().map(|(_, answer)| answer.to_string());
    let told: String = told.collect();
    for event in [
        "BLOCK_JOB_COMPLETED",
        "BLOCK_JOB_CANCELLED",
        "BLOCK_JOB_ERROR",
    ] {
        assert!(told.contains(event), "no {event} in {told}");
    }
    assert!(!told.contains("Content mismatch"), "{told}");
}

#[test]
fn bitmaps_that_images_keep_answer_as_qemu_storage_daemons_do() {
    let ours = same_sessions(PERSISTENT);
    let told: String = ours.iter().map(|(_, answer)| answer.to_string()).collect();
    for said in [
        "in-use",
        "auto",
        "readonly",
        "inconsistent",
        "BLOCK_JOB_COMPLETED",
    ] {
        assert!(told.contains(said), "no {said} in {told}");
    }
}

/// Holds a session with each, and says what we answered.
fn same_sessions(script: &'static str) -> Vec<(&'static str, Value)> {
    let theirs = session(Kind::QemuStorageDaemon, script);
    let ours = session(Kind::Virtioblkd, script);
    let mut different = Vec::new();
    for ((sent, theirs), (_, ours)) in theirs.iter().zip(&ours) {
        if theirs != ours {
            different.push(format!("{sent}\n  theirs: {theirs}\n  ours:   {ours}"));
        }
    }
    assert_eq!(theirs.len(), ours.len());
    assert!(different.is_empty(), "{}", different.join("\n"));
    ours
}
