//! Stories of block jobs, each told to ours and to the real qemu-storage-daemon on the same images: every reply, every event and its
//! order, and what the images hold in the end.
//!
//! The rule: replies and events are two sequences, as whether an event comes before a reply or after it is a matter of time. Lines of
//! the script: `{"story": NAME, ...}` begins one, with a chain of images and the nodes on them; `{"await": {...}}` waits for an event
//! whose data has these members; `{"offset": n}` waits until the job `j` is so far; `{"synced": yes}` until it says so of itself;
//! `{"guest": [...]}` is what a guest does on the NBD export `x`; anything else is a command.

use super::{Running, start};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tests::daemon::Kind;
use tests::operator::Operator;
use tests::qemu_img::{qemu_img, qemu_io};

/// Read when the test runs, so that a story more needs no build.
const SCRIPTS: [&str; 3] = [
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qmp_graph/jobs.jsonl"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qmp_graph/mirrors.jsonl"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qmp_graph/drives.jsonl"),
];
/// Stories that are told at the same time.
const TELLERS: usize = 10;
const LIMIT: Duration = Duration::from_secs(20);

/// What came of a story.
#[derive(Debug, Default)]
struct Told {
    replies: Vec<(String, Value)>,
    events: Vec<Value>,
    /// The content of each image, and what it says of itself.
    images: Vec<(Vec<u8>, Value)>,
}

/// A story: how it begins, and its lines.
pub(super) type Story = (Value, Vec<Value>);

fn stories() -> Vec<Story> {
    let mut stories: Vec<Story> = Vec::new();
    let script = SCRIPTS.map(|path| std::fs::read_to_string(path).expect("a script"));
    let script = script.concat();
    // `STORY=mirror` tells those alone that have it in their names.
    let wanted = std::env::var("STORY").unwrap_or_default();
    for line in script.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        match (line.get("story").is_some(), stories.last_mut()) {
            (true, _) => stories.push((line, Vec::new())),
            (false, Some((_, lines))) => lines.push(line),
            (false, None) => panic!("a line before the first story: {line}"),
        }
    }
    stories.retain(|(head, _)| {
        head["story"]
            .as_str()
            .is_some_and(|name| name.contains(&wanted))
    });
    stories
}

/// A chain of images, each with a part of the one below covered.
fn make_images(dir: &Path, head: &Value) -> Vec<PathBuf> {
    let count = head["images"].as_u64().unwrap_or(3);
    let mut images: Vec<PathBuf> = Vec::new();
    for n in 0..count {
        let path = dir.join(format!("c{n}.qcow2"));
        let shown = path.display().to_string();
        let mut words = vec!["create".to_owned(), "-q".to_owned()];
        words.extend(["-f".to_owned(), "qcow2".to_owned()]);
        match images.last() {
            None => words.extend([shown.clone(), "8M".to_owned()]),
            Some(below) => {
                let below = below.display().to_string();
                words.extend(["-b".to_owned(), below, "-F".to_owned(), "qcow2".to_owned()]);
                words.push(shown.clone());
                words.extend(head["sizes"][n as usize].as_str().map(str::to_owned));
            }
        }
        qemu_img(words).expect("made");
        let write = format!("write -P {} {}M 2M", n + 1, n);
        qemu_io(["-f", "qcow2", "-c", &write, &shown]).expect("written");
        images.push(path);
    }
    images
}

/// Images that jobs may copy to, each `8M` of nothing unless something else is said.
fn make_targets(dir: &Path, head: &Value) -> Vec<PathBuf> {
    let targets = head["targets"].as_array().into_iter().flatten();
    let made = targets.enumerate().map(|(n, target)| {
        let path = dir.join(format!("t{n}.image"));
        let word = |key: &str, usual: &str| target[key].as_str().unwrap_or(usual).to_owned();
        let (format, size) = (word("format", "qcow2"), word("size", "8M"));
        let shown = path.display().to_string();
        qemu_img(["create", "-q", "-f", &format, &shown, &size]).expect("made");
        if let Some(write) = target["write"].as_str() {
            qemu_io(["-f", &format, "-c", write, &shown]).expect("written");
        }
        path
    });
    made.collect()
}

/// The nodes `t0` and so on, each on a file with blkdebug between them where that is said.
fn open_targets(operator: &mut Operator, head: &Value, targets: &[PathBuf]) {
    for (n, path) in targets.iter().enumerate() {
        let target = &head["targets"][n];
        let mut file = json!({"driver": "file", "filename": path, "node-name": format!("tf{n}")});
        if let Some(errors) = target.get("errors") {
            file = json!({"driver": "blkdebug", "image": file, "inject-error": errors});
        }
        let format = target["format"].as_str().unwrap_or("qcow2");
        let mut node = json!({"driver": format, "node-name": format!("t{n}"), "file": file});
        let more = target["node"].as_object().cloned().unwrap_or_default();
        node.as_object_mut().expect("a node").extend(more);
        operator.ok("blockdev-add", node);
    }
}

/// The nodes `n0`, `n1` and so on, each on a file with blkdebug between them where that is said, and whatever else.
fn open(operator: &mut Operator, head: &Value, images: &[PathBuf]) {
    for (n, path) in images.iter().enumerate() {
        let mut file = json!({"driver": "file", "filename": path, "node-name": format!("f{n}")});
        if let Some(errors) = head["errors"].get(n.to_string()) {
            file = json!({"driver": "blkdebug", "image": file, "inject-error": errors});
        }
        let below = match head["on"].get(n.to_string()) {
            Some(node) => node.clone(),
            None if n == 0 => Value::Null,
            None => json!(format!("n{}", n - 1)),
        };
        let read_only = head["read-only"]
            .as_array()
            .is_some_and(|all| all.contains(&json!(n)));
        let node = json!({
            "driver": "qcow2", "node-name": format!("n{n}"), "file": file, "backing": below,
            "read-only": read_only,
        });
        operator.ok("blockdev-add", node);
        for filter in head["filters"][n.to_string()]
            .as_array()
            .into_iter()
            .flatten()
        {
            operator.ok("blockdev-add", filter.clone());
        }
    }
}

/// An event without its time.
fn plain(mut event: Value) -> Value {
    if let Some(members) = event.as_object_mut() {
        members.remove("timestamp");
    }
    event
}

fn wait_for(operator: &mut Operator, seen: &mut usize, wanted: &Value, told: &Told) {
    let until = Instant::now() + LIMIT;
    let members = wanted.as_object().expect("members");
    loop {
        while let Some(event) = operator.events.get(*seen).cloned() {
            *seen += 1;
            let name = ("event".to_owned(), event["event"].clone());
            let data = event["data"].as_object().cloned().unwrap_or_default();
            let has = |key: &String, value: &Value| match key.as_str() {
                "event" => name.1 == *value,
                _ => data.get(key) == Some(value),
            };
            if members.iter().all(|(key, value)| has(key, value)) {
                return;
            }
        }
        assert!(
            Instant::now() < until,
            "no {wanted} in {:#?}, {told:#?}",
            operator.events
        );
        // Events come with the answers.
        operator.ok("query-version", Value::Object(Default::default()));
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn wait_for_offset(operator: &mut Operator, offset: u64) {
    let until = Instant::now() + LIMIT;
    loop {
        let jobs = operator.ask("query-jobs", &json!({})).expect("jobs");
        if jobs[0]["current-progress"].as_u64() >= Some(offset) {
            return;
        }
        assert!(Instant::now() < until, "never at {offset}: {jobs}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn wait_for_sync(operator: &mut Operator, wanted: &Value) {
    let until = Instant::now() + LIMIT;
    loop {
        let jobs = operator.ask("query-block-jobs", &json!({})).expect("jobs");
        if jobs[0]["actively-synced"] == *wanted {
            return;
        }
        assert!(Instant::now() < until, "never {wanted}: {jobs}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What a guest does.
fn guest(dir: &Path, commands: &Value) {
    let uri = format!("nbd+unix:///x?socket={}", dir.join("nbd.sock").display());
    let mut words = vec!["-f".to_owned(), "raw".to_owned()];
    for command in commands.as_array().expect("commands") {
        words.extend(["-c".to_owned(), command.as_str().expect("one").to_owned()]);
    }
    words.push(uri);
    qemu_io(words).expect("done");
}

fn tell(kind: Kind, (head, lines): &Story) -> Told {
    let dir = tempfile::tempdir().expect("a directory");
    let here = dir.path().display().to_string();
    let mut images = make_images(dir.path(), head);
    let targets = make_targets(dir.path(), head);
    let running = start(kind, dir.path());
    let mut operator = Operator::connect(&dir.path().join("monitor")).expect("a monitor");
    open(&mut operator, head, &images);
    if head["closed-targets"] != true {
        open_targets(&mut operator, head, &targets);
    }
    images.extend(targets);
    // Those that the daemon makes.
    let made = head["made"].as_array().into_iter().flatten();
    images.extend(made.map(|name| dir.path().join(name.as_str().expect("a name"))));
    operator.events.clear();
    let mut told = Told::default();
    let (mut seen, mut kept) = (0, 0);
    for line in lines {
        if let Some(wanted) = line.get("await") {
            wait_for(&mut operator, &mut seen, wanted, &told);
            // What comes after a wait is apart from what came before it.
            let events = operator.events[kept..seen].iter().cloned().map(plain);
            told.events.extend(without_noise(events.collect()));
            kept = seen;
        } else if let Some(offset) = line.get("offset") {
            wait_for_offset(&mut operator, offset.as_u64().expect("a number"));
        } else if let Some(synced) = line.get("synced") {
            wait_for_sync(&mut operator, synced);
        } else if let Some(commands) = line.get("guest") {
            guest(dir.path(), commands);
        } else {
            let text = line.to_string().replace("@DIR@", &here);
            let command: Value = serde_json::from_str(&text).expect("JSON");
            let name = command["execute"].as_str().expect("a command");
            let said = operator.ask(name, &command["arguments"]);
            if let (Ok(answer), Kind::Virtioblkd) = (&said, kind) {
                let mut commands = backend::qmp::commands();
                let known = commands.find(|known| known.name == name);
                let fits = backend::qapi::check(answer, known.expect("ours").returns);
                assert_eq!(fits, Ok(()), "{text}: {answer}");
            }
            let said = match name {
                "query-named-block-nodes" => said.map(|nodes| what_stands_on_what(&nodes)),
                _ => said,
            };
            let said = said.unwrap_or_else(Value::String);
            let said = said.to_string().replace(&here, "@DIR@");
            told.replies
                .push((line.to_string(), times_aside(names_aside(&said))));
        }
    }
    // Whatever is still on its way.
    let jobs = operator.ask("query-jobs", &json!({})).expect("jobs");
    assert_eq!(jobs, json!([]), "a story ends with its jobs: {head}");
    let events = operator.events[kept..].iter().cloned().map(plain);
    told.events.extend(without_noise(events.collect()));
    drop(operator);
    end(running);
    let is_raw = |path: &Path| info(path)["format"] == "raw";
    if kind == Kind::Virtioblkd {
        let images = images.iter().filter(|path| !is_raw(path));
        images.for_each(|path| tests::qemu_img::check(path));
    }
    told.images = images.iter().map(|path| content(path, &here)).collect();
    told
}

/// QSD has jobs rest for a moment with every change of the graph; ours have no need to.
fn without_noise(events: Vec<Value>) -> Vec<Value> {
    let mut kept: Vec<Value> = Vec::new();
    for event in events {
        let rests = match event["data"]["status"].as_str() {
            Some("running") => "paused",
            Some("ready") => "standby",
            _ => "",
        };
        let rested = json!({"status": rests, "id": event["data"]["id"]});
        match kept.last() {
            Some(last) if last["data"] == rested => drop(kept.pop()),
            _ => kept.push(event),
        }
    }
    kept
}

/// Of each node what it is, and what it is on.
fn what_stands_on_what(nodes: &Value) -> Value {
    let plain = |node: &Value| {
        let name = names_aside(&node["node-name"].to_string());
        json!([
            name,
            node["drv"],
            node["file"],
            node["backing_file"],
            node["ro"]
        ])
    };
    let mut plain: Vec<Value> = nodes
        .as_array()
        .expect("a list")
        .iter()
        .map(plain)
        .collect();
    plain.sort_by_key(Value::to_string);
    Value::Array(plain)
}

/// When a snapshot was taken is a matter of time; that both its clocks say the same is not.
fn times_aside(mut said: Value) -> Value {
    if let Some(members) = said.as_object_mut()
        && let Some(date) = members.remove("date-sec")
    {
        let clock = members.remove("vm-clock-sec");
        members.insert("same-clock".to_owned(), (clock == Some(date)).into());
        members.remove("date-nsec");
        members.remove("vm-clock-nsec");
    }
    said
}

/// Generated names mean nothing.
fn names_aside(text: &str) -> Value {
    let mut parts = text.split("#block");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str("#block");
        plain.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    serde_json::from_str(&plain).expect("JSON")
}

fn end(mut running: Running) {
    let pid = rustix::process::Pid::from_child(&running.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("told to end");
    let _ = running.0.wait();
}

fn info(path: &Path) -> Value {
    let shown = path.display().to_string();
    let info = qemu_img(["info", "--output=json", &shown]).expect("info");
    serde_json::from_str(&info).expect("JSON")
}

fn content(path: &Path, here: &str) -> (Vec<u8>, Value) {
    let info = info(path);
    let snapshots = info["snapshots"].as_array().into_iter().flatten();
    let snapshots: Vec<Value> = snapshots
        .map(|one| json!([one["id"], one["name"]]))
        .collect();
    let (backing, format) = (&info["backing-filename"], &info["backing-filename-format"]);
    let backing = json!([backing, format, info["format"], snapshots]);
    let backing = backing.to_string().replace(here, "@DIR@");
    let bytes = match info["format"] == "raw" {
        true => std::fs::read(path).expect("read"),
        false => tests::qemu_img::flat(path),
    };
    (bytes, serde_json::from_str(&backing).expect("JSON"))
}

/// How far a job is at some moment is a matter of time, and so is what a cancelled one has done below the top.
fn without_time(head: &Value, mut told: Told) -> Told {
    for event in &mut told.events {
        if let Some(data) = event["data"].as_object_mut() {
            data.remove("offset");
        }
    }
    let top = told
        .images
        .pop()
        .filter(|_| head["compare-images"] != false);
    told.images = top.into_iter().collect();
    told
}

/// Where the two told it differently.
fn differences(story: &Story) -> Vec<String> {
    let name = story.0["story"].as_str().expect("a name");
    if story.0["alone"] == true {
        // QEMU gets it wrong: what our guests read is all that counts.
        tell(Kind::Virtioblkd, story);
        return Vec::new();
    }
    let (mut theirs, mut ours) = (
        tell(Kind::QemuStorageDaemon, story),
        tell(Kind::Virtioblkd, story),
    );
    if story.0["timing"] == "any" {
        let head = &story.0;
        (theirs, ours) = (without_time(head, theirs), without_time(head, ours));
    }
    assert!(!theirs.replies.is_empty(), "{name}");
    let mut differ = Vec::new();
    for (theirs, ours) in theirs.replies.iter().zip(&ours.replies) {
        if theirs != ours {
            let (asked, ours) = ours;
            differ.push(format!(
                "{name}: {asked}\n  theirs {}\n  ours   {ours}",
                theirs.1
            ));
        }
    }
    if theirs.events != ours.events {
        let show = |events: &[Value]| {
            let lines = events.iter().map(|event| format!("\n    {event}"));
            lines.collect::<String>()
        };
        let (theirs, ours) = (show(&theirs.events), show(&ours.events));
        differ.push(format!("{name}: events\n  theirs{theirs}\n  ours{ours}"));
    }
    for (n, (theirs, ours)) in theirs.images.iter().zip(&ours.images).enumerate() {
        if theirs.1 != ours.1 {
            differ.push(format!("{name}: image {n} is {} and {}", theirs.1, ours.1));
        }
        if theirs.0 != ours.0 {
            differ.push(format!("{name}: image {n} has another content"));
        }
    }
    differ
}

#[test]
fn block_jobs_answer_tell_and_leave_behind_what_qemu_storage_daemons_do() {
    compare(&stories());
}

/// Tells all of them to both.
pub(super) fn compare(stories: &[Story]) {
    let next = AtomicUsize::new(0);
    let differ = Mutex::new(Vec::new());
    // They mostly wait.
    std::thread::scope(|scope| {
        for _ in 0..TELLERS {
            scope.spawn(|| {
                while let Some(story) = stories.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = differences(story);
                    differ.lock().expect("no panic").extend(found);
                }
            });
        }
    });
    let differ = differ.into_inner().expect("no panic");
    assert!(
        differ.is_empty(),
        "{} differences:\n{}",
        differ.len(),
        differ.join("\n")
    );
}
