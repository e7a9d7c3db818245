//! Backup jobs of a disk that a guest uses: compressed ones, and what becomes of one whose copies for guest writes fail.
//!
//! The rule: a job that says it is done has made a disk of one instant, that of its command; a guest gets an error only where it
//! was to be the guest that pays.

use super::Kind;
use super::history::{History, stamps_of};
use super::writer::{SIZE, Stops, Writer};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tests::client::deadline;
use tests::client::starter::{Disk, Node, Running};
use tests::operator::Operator;
use tests::qemu_img::{self, qemu_img};

const SEED: u64 = 11;
/// The guest comes to the end of the disk long before the job does.
const SLOW: u64 = 512 << 10;

fn start(kind: Kind, dir: &Path) -> Running {
    fs::write(dir.join("disk"), vec![0; SIZE as usize]).unwrap();
    let path = dir.display();
    let words = [
        format!("--chardev socket,id=m,path={path}/m,server=on,wait=off"),
        "--monitor m".into(),
        "--object throttle-group,id=late,limits.bps-write=262144".into(),
        format!("--blockdev file,node-name=d,filename={path}/disk"),
        "--blockdev raw,node-name=n0,file=d".into(),
    ];
    let words = words.iter().flat_map(|word| word.split(' '));
    let disk = Disk {
        arguments: words.map(str::to_owned).collect(),
        node: Node::Graph(Vec::new()),
        export_options: "num-queues=4",
        ..Disk::file(Path::new(""))
    };
    Running::start(kind, &disk).unwrap()
}

/// What one job came to.
#[derive(Debug)]
struct Ended {
    /// From its command to the answer.
    within: (Instant, Instant),
    /// Until it was over.
    until: Instant,
    error: Option<String>,
    /// The target.
    image: PathBuf,
}

/// The operator's side: a monitor, and the guest's progress.
struct Desk<'a> {
    dir: &'a Path,
    monitor: Operator,
    ended: &'a AtomicU64,
}

impl Desk<'_> {
    fn let_it_write(&self, requests: u64) {
        let enough = self.ended.load(Ordering::SeqCst) + requests;
        let until = deadline();
        while self.ended.load(Ordering::SeqCst) < enough {
            assert!(Instant::now() < until, "the guest stands still");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Runs one job to its end, on a target that is added by `nodes`, top last, and called `t`.
    fn back_up(&mut self, image: PathBuf, nodes: &[Value], options: &Value) -> Ended {
        for node in nodes {
            self.monitor.ok("blockdev-add", node.clone());
        }
        self.let_it_write(100);
        let mut job = json!({"job-id": "j", "device": "n0", "target": "t", "sync": "full"});
        let members = options.as_object().unwrap().clone();
        job.as_object_mut().unwrap().extend(members);
        let asked = Instant::now();
        self.monitor.ok("blockdev-backup", job);
        let within = (asked, Instant::now());
        let completed = self.event(|event| event["event"] == "BLOCK_JOB_COMPLETED");
        self.event(|event| event["data"] == json!({"id": "j", "status": "null"}));
        self.monitor.events.clear();
        for node in nodes.iter().rev() {
            let name = json!({"node-name": node["node-name"]});
            let until = deadline();
            // What a guest write waited for in vain may still be under way.
            while let Err(why) = self.monitor.ask("blockdev-del", &name) {
                assert!(Instant::now() < until, "{why}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let error = completed["data"]["error"].as_str().map(str::to_owned);
        Ended {
            within,
            until: Instant::now(),
            error,
            image,
        }
    }

    fn event(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        // A job flushes its target at the end, which on a disk that others keep busy takes what it takes.
        let until = deadline() + Duration::from_secs(60);
        loop {
            if let Some(event) = self.monitor.events.iter().find(|event| wanted(event)) {
                return event.clone();
            }
            if Instant::now() > until {
                let jobs = self.monitor.ask("query-block-jobs", &json!({}));
                panic!(
                    "{jobs:?} after {}",
                    Value::from(self.monitor.events.clone())
                );
            }
            // Events come with answers.
            self.monitor.ok("query-version", json!({}));
            std::thread::sleep(Duration::from_micros(500));
        }
    }
}

/// Jobs under a guest that writes all the time.
fn run(
    kind: Kind,
    dir: &Path,
    jobs: impl FnOnce(&mut Desk<'_>) -> Vec<Ended>,
) -> (Vec<Ended>, History) {
    let mut daemon = start(kind, dir);
    let (ended, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let writer = Writer::start(&daemon.socket, SEED, &ended);
    let (all, history) = std::thread::scope(|scope| {
        let writing = scope.spawn(|| writer.run(&stop));
        let stops = Stops(&stop);
        let mut desk = Desk {
            dir,
            monitor: Operator::connect(&dir.join("m")).unwrap(),
            ended: &ended,
        };
        let all = jobs(&mut desk);
        drop(stops);
        (all, writing.join().unwrap())
    });
    daemon.terminate().unwrap();
    assert!(
        history.is_last(&fs::read(dir.join("disk")).unwrap()),
        "{kind:?}"
    );
    (all, history)
}

fn qcow2(dir: &Path, number: usize) -> (PathBuf, Vec<Value>) {
    let image = dir.join(format!("{number}.qcow2"));
    qemu_img::create(&image, SIZE);
    let file = json!({"driver": "file", "filename": image});
    let node = json!({"driver": "qcow2", "node-name": "t", "file": file});
    (image, vec![node])
}

#[test]
fn a_compressed_backup_under_a_guest_is_of_the_instant_of_its_command() {
    println!("seed {SEED}");
    for kind in super::BOTH {
        let dir = tempfile::tempdir().unwrap();
        let (all, history) = run(kind, dir.path(), |desk| {
            let one = |number| {
                let (image, nodes) = qcow2(desk.dir, number);
                // Slowly at first, so that guest writes are copied for, too.
                let speed = if number < 3 { 0 } else { 4 << 20 };
                let options = json!({"compress": true, "speed": speed});
                desk.back_up(image, &nodes, &options)
            };
            (0..6).map(one).collect()
        });
        assert_eq!(history.failed, [], "{kind:?}");
        for job in all {
            assert_eq!(job.error, None, "{kind:?}");
            let checked = history.check(&stamps_of(&qemu_img::flat(&job.image)), Some(job.within));
            assert_eq!(checked, Ok(()), "{kind:?}: {:?}", job.image);
            let image = job.image.to_str().unwrap();
            let said = qemu_img(["check", "-f", "qcow2", "--output=json", image]).unwrap();
            let said: Value = serde_json::from_str(&said).unwrap();
            let (all, packed) = (&said["allocated-clusters"], &said["compressed-clusters"]);
            assert!(all.as_u64() > Some(0) && all == packed, "{kind:?}: {said}");
        }
    }
}

/// As QEMU 10.1 has them; 10.0's daemon, which is what there is to compare with, knows no such options of a job.
#[test]
fn a_job_whose_copies_for_guest_writes_fail_breaks_what_it_was_told_to() {
    println!("seed {SEED}");
    let file = |dir: &Path, number: usize| {
        let image = dir.join(format!("{number}.raw"));
        fs::write(&image, vec![0; SIZE as usize]).unwrap();
        let node = json!({"driver": "file", "node-name": "f", "filename": image});
        (image, node)
    };
    let bad = json!({
        "driver": "blkdebug", "node-name": "t", "image": "f",
        "inject-error": [{
            "event": "none", "iotype": "write", "errno": 28, "once": true, "sector": SIZE / 512 - 100,
        }],
    });
    let late =
        json!({"driver": "throttle", "node-name": "t", "throttle-group": "late", "file": "f"});
    let cases = [
        (
            &bad,
            json!({"on-cbw-error": "break-snapshot", "speed": SLOW}),
            Some("No space left on device"),
        ),
        (
            &bad,
            json!({"on-cbw-error": "break-guest-write", "speed": SLOW}),
            None,
        ),
        (
            &late,
            json!({"on-cbw-error": "break-snapshot", "cbw-timeout": 1}),
            Some("Connection timed out"),
        ),
        (
            &late,
            json!({"on-cbw-error": "break-guest-write", "cbw-timeout": 1}),
            None,
        ),
        (&late, json!({"cbw-timeout": 1}), None),
    ];
    let dir = tempfile::tempdir().unwrap();
    let (all, history) = run(Kind::Virtioblkd, dir.path(), |desk| {
        let one = |(number, (node, options, _)): (usize, &(&Value, Value, _))| {
            let (image, below) = file(desk.dir, number);
            desk.back_up(image, &[below, (*node).clone()], options)
        };
        cases.iter().enumerate().map(one).collect()
    });
    for (job, (_, options, error)) in all.iter().zip(&cases) {
        assert_eq!(job.error.as_deref(), *error, "{options}");
        let during =
            |(begun, ended): &&(Instant, Instant)| *begun <= job.until && *ended >= job.within.0;
        let failed = history.failed.iter().filter(during).count();
        println!("{options}: {failed} guest writes failed, {:?}", job.error);
        assert_eq!(failed > 0, error.is_none(), "{options}: {failed}");
        if error.is_none() {
            let seen = stamps_of(&fs::read(&job.image).unwrap());
            assert_eq!(history.check(&seen, Some(job.within)), Ok(()), "{options}");
        }
    }
}
