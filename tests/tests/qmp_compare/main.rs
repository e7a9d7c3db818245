//! A scripted session of the `qemu.qmp` client against us and against the real qemu-storage-daemon: every reply and every
//! event is compared member by member. The intended differences (`intended.rs`) are the only allowance, and each of them has
//! to be seen: one that is no longer there fails the test too.
//!
//! The client is Python's, installed by ci/setup.sh; its path may be said in `QMP_PYTHON`.

mod diff;
mod intended;

use backend::qapi;
use diff::{Difference, differences};
use intended::INTENDED;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tests::daemon::Kind;
use tests::qemu_img::{qemu_img, qemu_io};

const SCRIPT: &str = include_str!("script.jsonl");
/// A daemon is there in a fraction of this.
const START_LIMIT: Duration = Duration::from_secs(20);
/// The issue of this test: fewer would not be a session.
const COMMANDS_MIN: usize = 150;

/// What a session came to.
struct Session {
    greeting: Value,
    steps: Vec<Step>,
    events: Value,
}

/// A message and its reply.
struct Step {
    sent: Value,
    reply: Value,
}

/// QSD answers these from hash tables: their order says nothing.
const UNORDERED: &[&str] = &["qom-list", "qom-list-properties", "query-commands"];

impl Step {
    fn new(sent: Value, mut reply: Value) -> Step {
        let name = sent["execute"].as_str().unwrap_or_default();
        if let Some(Value::Array(list)) = reply.get_mut("return")
            && UNORDERED.contains(&name)
        {
            list.sort_by_key(order);
        }
        Step { sent, reply }
    }
}

/// By name.
fn order(item: &Value) -> String {
    item["name"].as_str().unwrap_or_default().to_owned()
}

/// A daemon that is killed when the test is over, however it ended.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_reply_and_event_equals_qemu_storage_daemons_but_for_the_intended_differences() {
    let theirs = session(Kind::QemuStorageDaemon);
    let ours = session(Kind::Virtioblkd);
    assert!(ours.steps.len() >= COMMANDS_MIN, "{}", ours.steps.len());
    let mut found = Vec::new();
    found.extend(differences("greeting", &theirs.greeting, &ours.greeting));
    for (theirs, ours) in theirs.steps.iter().zip(&ours.steps) {
        assert_eq!(theirs.sent, ours.sent, "both ran the same script");
        found.extend(differences(
            &ours.sent.to_string(),
            &theirs.reply,
            &ours.reply,
        ));
    }
    found.extend(differences("events", &theirs.events, &ours.events));
    assert_eq!(theirs.steps.len(), ours.steps.len());
    judge(&found);
}

#[test]
fn every_answer_is_of_the_type_that_the_schema_promises() {
    let ours = session(Kind::Virtioblkd);
    let mut seen = BTreeSet::new();
    for step in &ours.steps {
        let name = step.sent.get("execute").and_then(Value::as_str);
        let command = backend::qmp::commands().find(|command| Some(command.name) == name);
        if let (Some(command), Some(answer)) = (command, step.reply.get("return")) {
            let fits = qapi::check(answer, command.returns);
            assert_eq!(fits, Ok(()), "{}: {answer}", step.sent);
            seen.insert(command.name);
        }
    }
    // `quit` ends the session, and `qmp_capabilities` is the client's.
    let unseen: Vec<&str> = backend::qmp::commands()
        .map(|command| command.name)
        .filter(|name| !seen.contains(name) && !["quit", "qmp_capabilities"].contains(name))
        .filter(|name| !intended::NOT_IN_SCRIPT.contains(name))
        .collect();
    assert!(
        unseen.is_empty(),
        "the script never succeeds with {unseen:?}"
    );
}

fn judge(found: &[Difference]) {
    let allows = |difference: &Difference| INTENDED.iter().any(|one| one.covers(difference));
    let unexpected: Vec<String> = found
        .iter()
        .filter(|difference| !allows(difference))
        .map(Difference::to_string)
        .collect();
    assert!(
        unexpected.is_empty(),
        "{} differences that nobody intended:\n{}",
        unexpected.len(),
        unexpected.join("\n")
    );
    let unseen: Vec<&str> = INTENDED
        .iter()
        .filter(|one| !found.iter().any(|difference| one.covers(difference)))
        .map(|one| one.why)
        .collect();
    assert!(
        unseen.is_empty(),
        "intended differences that are not there: {unseen:?}"
    );
}

fn session(kind: Kind) -> Session {
    let dir = tempfile::tempdir().expect("a directory");
    make_images(dir.path()).expect("images");
    let here = dir.path().display().to_string();
    let script = dir.path().join("script.jsonl");
    std::fs::write(&script, SCRIPT.replace("@DIR@", &here)).expect("the script");
    let socket = dir.path().join("monitor");
    let _daemon = start(kind, &socket);
    let output = Command::new(python())
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qmp_compare/run.py"))
        .args([&socket, &script])
        .output()
        .expect("python");
    let said = String::from_utf8_lossy(&output.stdout).replace(&here, "@DIR@");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}: {complaint}\n{}",
        kind.name(),
        last_line(&said)
    );
    read(&said)
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

fn read(said: &str) -> Session {
    let mut session = Session {
        greeting: Value::Null,
        steps: Vec::new(),
        events: Value::Null,
    };
    for line in said.lines() {
        let mut line: Value = serde_json::from_str(line).expect("JSON");
        if let Some(greeting) = line.get_mut("greeting") {
            session.greeting = greeting.take();
        } else if let Some(events) = line.get_mut("events") {
            session.events = events.take();
        } else {
            session
                .steps
                .push(Step::new(line["sent"].take(), line["reply"].take()));
        }
    }
    session
}

fn make_images(dir: &Path) -> std::io::Result<()> {
    let path = |name: &str| dir.join(name).display().to_string();
    for raw in ["raw.img", "other.raw"] {
        qemu_img(["create", "-q", "-f", "raw", &path(raw), "4M"])?;
    }
    for image in ["base.qcow2", "other.qcow2"] {
        qemu_img(["create", "-q", "-f", "qcow2", &path(image), "4M"])?;
    }
    let (base, top) = (path("base.qcow2"), path("top.qcow2"));
    qemu_io(["-f", "qcow2", "-c", "write -P 1 0 64k", &base])?;
    qemu_img([
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "base.qcow2",
        "-F",
        "qcow2",
        &top,
    ])?;
    Ok(())
}

fn start(kind: Kind, socket: &Path) -> Running {
    let at = socket.display();
    let child = Command::new(kind.program().expect("the program"))
        .args([
            "--chardev",
            &format!("socket,id=mon0,path={at},server=on,wait=off"),
        ])
        .args(["--monitor", "chardev=mon0"])
        .stdout(Stdio::null())
        .spawn();
    let running = Running(child.expect("the daemon"));
    let deadline = Instant::now() + START_LIMIT;
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < deadline, "{} has no monitor", kind.name());
        std::thread::sleep(Duration::from_millis(5));
    }
    running
}

/// What ci/setup.sh made, unless the environment knows better.
fn python() -> PathBuf {
    if let Some(said) = std::env::var_os("QMP_PYTHON") {
        return said.into();
    }
    let executable = std::env::current_exe().expect("a path");
    let beside = executable
        .ancestors()
        .map(|dir| dir.join("qmp-client/bin/python"));
    let found = beside.into_iter().find(|path| path.exists());
    found.expect("the qemu.qmp client is not installed: run ci/setup.sh, or set QMP_PYTHON")
}
