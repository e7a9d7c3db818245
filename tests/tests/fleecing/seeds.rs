//! Fleecing with something wrong: a guest writes on four queues, an NBD client takes the snapshot, and copies fail, come late
//! or are slow.
//!
//! The rule: with break-guest-write the snapshot is right and guests may get errors; with break-snapshot guests get none and
//! whoever reads the snapshot gets what was there or an error. Nobody ever gets anything else. What a bitmap of the same
//! transaction says has changed since the one before is what differs between the two snapshots.

use super::Kind;
use super::history::{BLOCK, History, Seen, stamp_of};
use super::reader::Reader;
use super::writer::{BLOCKS, Chance, SIZE, Stops, Writer};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};
use tests::client::deadline;
use tests::client::starter::{Disk, Node, Running};
use tests::operator::Operator;

const SEEDS: u64 = 200;
/// So many of them are told to qemu-storage-daemon, too.
const SEEDS_OF_QSD: u64 = 32;
/// Daemons at once: they mostly wait.
const LANES: u64 = 6;
/// The guest has done so much before each instant, and between the two times that the snapshot is read.
const REQUESTS_BEFORE: u64 = 150;
const REQUESTS_BETWEEN: u64 = 60;
/// As the tracker of a bitmap has it when nobody says otherwise.
const GRANULARITY: u64 = 64 << 10;
/// NBD_EINVAL: what EACCES comes to.
const INVALID: u32 = 22;

/// What is wrong with the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Nothing,
    /// Writes fail.
    Errors,
    /// Some MiB/s.
    Slow,
    /// A few writes a second, and copies may take one second.
    Late,
}

/// What a copy that fails breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Breaks {
    GuestWrite,
    Snapshot,
}

/// What makes the instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// A filter that `blockdev-reopen` puts below the guest's node.
    Reopen,
    /// A transaction of bitmaps and a job that copies nothing by itself.
    Transaction,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    seed: u64,
    trouble: Trouble,
    breaks: Breaks,
    way: Way,
}

impl Case {
    fn new(kind: Kind, seed: u64) -> Case {
        let trouble = match seed % 8 {
            0 | 1 => Trouble::Nothing,
            2..=4 => Trouble::Errors,
            5 => Trouble::Slow,
            _ => Trouble::Late,
        };
        let breaks = match seed / 8 % 2 == seed % 2 {
            true => Breaks::GuestWrite,
            false => Breaks::Snapshot,
        };
        // A job has no such options before QEMU 10.1.
        let has_options = breaks == Breaks::Snapshot || trouble == Trouble::Late;
        let way =
            match (seed / 16).is_multiple_of(2) || kind == Kind::QemuStorageDaemon && has_options {
                true => Way::Reopen,
                false => Way::Transaction,
            };
        Case {
            seed,
            trouble,
            breaks,
            way,
        }
    }

    /// The options of the filter, or of the job, that has it.
    fn options(&self, node: &mut Value) {
        if self.breaks == Breaks::Snapshot {
            node["on-cbw-error"] = json!("break-snapshot");
        }
        if self.trouble == Trouble::Late {
            node["cbw-timeout"] = json!(1);
        }
    }
}

/// A snapshot that was read twice.
struct Taken {
    case: Case,
    /// The request for it, and the answer.
    within: (Instant, Instant),
    /// Until its filter had gone.
    until: Instant,
    seen: [Seen; 2],
}

/// One daemon, its guest and its operator.
struct Lane<'a> {
    kind: Kind,
    dir: &'a Path,
    monitor: Operator,
    ended: &'a AtomicU64,
    writing: ScopedJoinHandle<'a, History>,
    /// The bitmap that was begun by the last transaction, and what was there then.
    since: Option<(String, Seen)>,
    maps: usize,
}

fn start(kind: Kind, dir: &Path, engine: &str) -> Running {
    for file in ["disk", "target"] {
        fs::write(dir.join(file), vec![0; SIZE as usize]).unwrap();
    }
    let path = dir.display();
    let words = [
        format!("--chardev socket,id=m,path={path}/m,server=on,wait=off"),
        "--monitor m".into(),
        format!("--nbd-server addr.type=unix,addr.path={path}/s"),
        "--object throttle-group,id=slow,limits.bps-write=2097152".into(),
        "--object throttle-group,id=late,limits.iops-write=8".into(),
        format!("--blockdev file,node-name=d,filename={path}/disk,{engine}"),
        format!("--blockdev file,node-name=f,filename={path}/target,{engine}"),
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

fn named(node: &str) -> Value {
    json!({"node-name": node})
}

fn bitmap(name: &str) -> Value {
    json!({"node": "d", "name": name})
}

impl Lane<'_> {
    fn ok(&mut self, command: &str, arguments: Value) {
        self.monitor.ok(command, arguments);
    }

    /// Waits until the guest has done so much more.
    fn let_it_write(&self, requests: u64) {
        let enough = self.ended.load(Ordering::SeqCst) + requests;
        let until = deadline();
        while self.ended.load(Ordering::SeqCst) < enough {
            assert!(!self.writing.is_finished(), "the guest gave up");
            assert!(Instant::now() < until, "the guest stands still");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn await_event(&mut self, wanted: impl Fn(&Value) -> bool) {
        let until = deadline() + Duration::from_secs(10);
        while !self.monitor.events.iter().any(&wanted) {
            assert!(Instant::now() < until, "{:?}", self.monitor.events);
            // Events come with answers.
            self.ok("query-version", json!({}));
            std::thread::sleep(Duration::from_micros(500));
        }
        self.monitor.events.clear();
    }

    /// What used a node may use it for a moment more.
    fn del(&mut self, node: &str) {
        let until = deadline() + Duration::from_secs(10);
        while let Err(why) = self.monitor.ask("blockdev-del", &named(node)) {
            assert!(Instant::now() < until, "{node}: {why}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn target(&self, case: Case, chance: &mut Chance) -> Value {
        let throttled = |group: &str| {
            json!({
                "driver": "throttle", "node-name": "t", "throttle-group": group, "file": "f",
            })
        };
        match case.trouble {
            Trouble::Nothing => json!({"driver": "raw", "node-name": "t", "file": "f"}),
            Trouble::Slow => throttled("slow"),
            Trouble::Late => throttled("late"),
            Trouble::Errors => {
                let errno = chance.one_of(&[5, 28]);
                let is_once = chance.below(2) == 0;
                let mut error = json!({
                    "event": "none", "iotype": "write", "errno": errno, "once": is_once,
                });
                if chance.below(2) == 0 {
                    error["sector"] = json!(chance.below(SIZE / 512));
                }
                json!({
                    "driver": "blkdebug", "node-name": "t", "image": "f", "inject-error": [error],
                })
            }
        }
    }

    /// Makes the instant; when that was.
    fn make_instant(&mut self, case: Case, chance: &mut Chance) -> (Instant, Instant) {
        match case.way {
            Way::Reopen => {
                let cluster = chance.one_of(&[0, 65536, 131_072, 262_144]);
                let mut filter = json!({
                    "driver": "copy-before-write", "node-name": "c", "file": "d", "target": "t",
                    "min-cluster-size": cluster,
                });
                case.options(&mut filter);
                self.ok("blockdev-add", filter);
                let asked = Instant::now();
                self.reopen_on("c");
                (asked, Instant::now())
            }
            Way::Transaction => {
                let mut job = json!({
                    "job-id": "j", "device": "n0", "target": "t", "sync": "none", "filter-node-name": "c",
                });
                case.options(&mut job);
                let begun = bitmap(&format!("b{}", case.seed));
                let mut actions = vec![json!({"type": "block-dirty-bitmap-add", "data": begun})];
                if let Some((name, _)) = &self.since {
                    let ends = bitmap(name);
                    actions.push(json!({"type": "block-dirty-bitmap-disable", "data": ends}));
                }
                actions.push(json!({"type": "blockdev-backup", "data": job}));
                let asked = Instant::now();
                self.ok("transaction", json!({"actions": actions}));
                (asked, Instant::now())
            }
        }
    }

    fn reopen_on(&mut self, child: &str) {
        let node = json!({"driver": "raw", "node-name": "n0", "file": child});
        self.ok("blockdev-reopen", json!({"options": [node]}));
    }

    /// Shows the snapshot to the world.
    fn show(&mut self, case: Case) {
        let shown = json!({"driver": "snapshot-access", "node-name": "a", "file": "c"});
        self.ok("blockdev-add", shown);
        let ended = self.since.as_ref().filter(|_| case.way == Way::Transaction);
        let bitmaps: Vec<Value> = ended.iter().map(|(name, _)| bitmap(name)).collect();
        let export = json!({
            "id": "s", "type": "nbd", "node-name": "a", "name": "a", "bitmaps": bitmaps,
        });
        self.ok("block-export-add", export);
    }

    fn take_away(&mut self, case: Case) {
        self.ok("block-export-del", json!({"id": "s", "mode": "hard"}));
        self.await_event(|event| event["event"] == "BLOCK_EXPORT_DELETED");
        self.del("a");
        match case.way {
            Way::Reopen => {
                self.reopen_on("d");
                self.del("c");
            }
            Way::Transaction => {
                self.ok("job-cancel", json!({"id": "j"}));
                self.await_event(|event| event["data"] == json!({"id": "j", "status": "null"}));
            }
        }
        self.del("t");
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///a?socket={}", self.dir.join("s").display())
    }

    /// All pieces of the snapshot, in some order.
    fn read(&self, case: Case, chance: &mut Chance) -> Seen {
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        let mut at = 0;
        while at < BLOCKS {
            let len = (1 + chance.below(32)).min(BLOCKS - at);
            pieces.push((at, len));
            at += len;
        }
        let mut reader = Reader::connect(&self.dir.join("s"), "a").unwrap();
        assert_eq!(reader.size_bytes, SIZE);
        let mut seen: Seen = vec![None; BLOCKS as usize];
        while !pieces.is_empty() {
            let (block, len) = pieces.swap_remove(chance.below(pieces.len() as u64) as usize);
            let bytes = reader.read(block * BLOCK, (len * BLOCK) as u32).unwrap();
            match (bytes, case.breaks) {
                (Ok(bytes), _) => {
                    for (nth, bytes) in bytes.chunks(BLOCK as usize).enumerate() {
                        seen[block as usize + nth] = Some(stamp_of(bytes));
                    }
                }
                (Err(INVALID), Breaks::Snapshot) if case.trouble != Trouble::Nothing => {}
                (Err(error), _) => panic!("{case:?}: block {block} is not readable: {error}"),
            }
        }
        seen
    }

    /// What has changed between two transactions, to the cluster: by the bitmap, and by the snapshots.
    fn check_changes(&mut self, case: Case, seen: &Seen) {
        let Some((name, was)) = &self.since else {
            return;
        };
        let map = format!("--map=qemu:dirty-bitmap:{name}");
        let output = Command::new("nbdinfo")
            .args(["--json", &map, &self.uri()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let extents: Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut dirty = vec![false; SIZE.div_ceil(GRANULARITY) as usize];
        for extent in extents.as_array().unwrap() {
            let (at, len) = (extent["offset"].as_u64(), extent["length"].as_u64());
            let (at, end) = (at.unwrap(), at.unwrap() + len.unwrap());
            let clusters = (at / GRANULARITY) as usize..end.div_ceil(GRANULARITY) as usize;
            dirty[clusters].fill(extent["type"] == 1);
        }
        let blocks = (GRANULARITY / BLOCK) as usize;
        let pairs = was.chunks(blocks).zip(seen.chunks(blocks));
        let differs: Vec<bool> = pairs.map(|(was, is)| was != is).collect();
        assert_eq!(dirty, differs, "{case:?}: what is dirty, and what differs");
        self.maps += 1;
    }

    fn run(&mut self, case: Case) -> Taken {
        let mut chance = Chance(case.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let target = self.target(case, &mut chance);
        self.ok("blockdev-add", target);
        self.let_it_write(REQUESTS_BEFORE);
        let within = self.make_instant(case, &mut chance);
        self.show(case);
        let first = self.read(case, &mut chance);
        self.let_it_write(REQUESTS_BETWEEN);
        let second = self.read(case, &mut chance);
        if case.way == Way::Transaction {
            let is_whole = second.iter().all(Option::is_some);
            if is_whole {
                self.check_changes(case, &second);
            }
            let begun = (format!("b{}", case.seed), second.clone());
            self.take_away(case);
            if let Some((name, _)) = self.since.replace(begun) {
                self.ok("block-dirty-bitmap-remove", bitmap(&name));
            }
            if !is_whole {
                let (name, _) = self.since.take().expect("just begun");
                self.ok("block-dirty-bitmap-remove", bitmap(&name));
            }
        } else {
            self.take_away(case);
        }
        Taken {
            case,
            within,
            until: Instant::now(),
            seen: [first, second],
        }
    }
}

/// What became of the cases of one sort.
#[derive(Debug, Default)]
struct Count {
    cases: usize,
    guest_errors: usize,
    broken: usize,
}

type Counts = BTreeMap<(Trouble, Breaks), Count>;

fn judge(taken: &[Taken], history: &History, counts: &mut Counts) {
    for Taken {
        case, within, seen, ..
    } in taken
    {
        for seen in seen {
            assert_eq!(history.check(seen, Some(*within)), Ok(()), "{case:?}");
        }
        let [first, second] = seen;
        let both = first.iter().zip(second).enumerate();
        let mut changed = both.filter(|(_, (one, other))| one != other && other.is_some());
        assert_eq!(changed.next(), None, "{case:?}: the snapshot changed");
        let count = counts.entry((case.trouble, case.breaks)).or_default();
        count.cases += 1;
        count.broken += usize::from(second.iter().any(Option::is_none));
    }
    for (begun, ended) in &history.failed {
        let during = |taken: &&Taken| *begun <= taken.until && *ended >= taken.within.0;
        let may_fail =
            |case: Case| case.breaks == Breaks::GuestWrite && case.trouble != Trouble::Nothing;
        let excuse = taken
            .iter()
            .filter(during)
            .find(|taken| may_fail(taken.case));
        let case = excuse.expect("an error of a guest for no reason").case;
        let count = counts.entry((case.trouble, case.breaks)).or_default();
        count.guest_errors += 1;
    }
}

/// The seeds of one lane, on one daemon.
fn run_lane(kind: Kind, lane: u64, lanes: u64, seeds: u64) -> (Counts, usize) {
    let dir = tempfile::tempdir().unwrap();
    let engine = ["aio=threads", "aio=io_uring"][(lane % 2) as usize];
    let mut daemon = start(kind, dir.path(), engine);
    let (ended, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let writer = Writer::start(&daemon.socket, lane, &ended);
    let (taken, maps, history) = std::thread::scope(|scope| {
        let mut all = Lane {
            kind,
            dir: dir.path(),
            monitor: Operator::connect(&dir.path().join("m")).unwrap(),
            ended: &ended,
            writing: scope.spawn(|| writer.run(&stop)),
            since: None,
            maps: 0,
        };
        let stops = Stops(&stop);
        let mut taken = Vec::new();
        for seed in (lane..seeds).step_by(lanes as usize) {
            println!("seed {seed} of {:?}", all.kind);
            taken.push(all.run(Case::new(kind, seed)));
        }
        drop(stops);
        (taken, all.maps, all.writing.join().unwrap())
    });
    let mut counts = Counts::new();
    judge(&taken, &history, &mut counts);
    daemon.terminate().unwrap();
    let disk: PathBuf = dir.path().join("disk");
    assert!(history.is_last(&fs::read(disk).unwrap()), "{kind:?}");
    (counts, maps)
}

fn run(kind: Kind, lanes: u64, seeds: u64) -> (Counts, usize) {
    let mut counts = Counts::new();
    let mut maps = 0;
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes)
            .map(|lane| scope.spawn(move || run_lane(kind, lane, lanes, seeds)))
            .collect();
        for lane in lanes {
            let (found, compared) = lane.join().unwrap();
            maps += compared;
            for (sort, one) in found {
                let count = counts.entry(sort).or_default();
                count.cases += one.cases;
                count.guest_errors += one.guest_errors;
                count.broken += one.broken;
            }
        }
    });
    println!("{kind:?}: {seeds} seeds, {maps} bitmaps compared: {counts:#?}");
    (counts, maps)
}

#[test]
fn whatever_is_wrong_with_the_target_a_snapshot_is_of_its_instant_or_an_error() {
    for (kind, lanes, seeds) in [
        (Kind::QemuStorageDaemon, 4, SEEDS_OF_QSD),
        (Kind::Virtioblkd, LANES, SEEDS),
    ] {
        let (counts, maps) = run(kind, lanes, seeds);
        assert!(maps > 0);
        for ((trouble, breaks), count) in &counts {
            if kind == Kind::QemuStorageDaemon && *trouble == Trouble::Late {
                // Too few of these to be sure that one comes too late.
                continue;
            }
            let is_broken = matches!(trouble, Trouble::Errors | Trouble::Late);
            let is = (count.guest_errors > 0, count.broken > 0);
            let wanted = match breaks {
                Breaks::GuestWrite => (is_broken, false),
                Breaks::Snapshot => (false, is_broken),
            };
            assert_eq!(is, wanted, "{kind:?}: {trouble:?}, {breaks:?}: {count:?}");
        }
    }
}
