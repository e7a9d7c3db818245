//! A guest's four queues under verified load while an operator changes the graph hundreds of times.
//!
//! The rule: the guest sees neither an error nor a wrong byte, whatever the edits are, those that are refused among them; and
//! when all is taken away again, nothing is left of it: no node, no descriptor.

mod jobs;

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tests::client::blk::{OK, Request, kind};
use tests::client::guest::{Guest, Setup};
use tests::client::memory::HIGH;
use tests::client::pattern::pattern;
use tests::daemon::{Daemon, Kind};
use tests::operator::Operator;
use tests::qemu_img;

const EDITS: usize = 500;
const QUEUES: usize = 4;
/// What the guest uses; the disk is never smaller than this.
const USED_BYTES: u64 = 16 << 20;
const DISK_BYTES: u64 = 32 << 20;
const BLOCK_BYTES: u64 = 4096;
const DEPTH: usize = 8;
/// Guest memory of each request: what it sends, then what it gets.
const PLACE_BYTES: u64 = 256 << 10;
/// So long a chain of overlays, no longer.
const LAYERS_MAX: usize = 12;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}

/// A request under way, in a place of guest memory of its own.
struct Flight {
    head: u16,
    request: Request,
    first: u64,
    count: u64,
    in_gpa: u64,
    begun: Instant,
}

/// One queue's part of the disk, and what is under way on it.
struct Queue {
    first_block: u64,
    model: Vec<u8>,
    flights: Vec<Option<Flight>>,
    chance: Chance,
}

impl Queue {
    fn next(&mut self) -> Option<(Request, u64, u64)> {
        let blocks = self.model.len() as u64 / BLOCK_BYTES;
        let first = self.chance.below(blocks);
        let count = 1 + self.chance.below((blocks - first).min(16));
        let taken =
            |flight: &Flight| flight.first < first + count && first < flight.first + flight.count;
        if self.flights.iter().flatten().any(taken) {
            return None;
        }
        let sector = (self.first_block + first) * BLOCK_BYTES / 512;
        let len = count * BLOCK_BYTES;
        let request = match self.chance.below(8) {
            0..4 => Request::write(sector, pattern(self.chance.below(u64::MAX), len as usize)),
            4 => Request::segments(kind::WRITE_ZEROES, &[(sector, (len / 512) as u32, 1)]),
            5 => Request::bare(kind::FLUSH),
            _ => Request::read(sector, len as u32),
        };
        Some((request, first, count))
    }

    fn end(&mut self, request: &Request, first: u64, count: u64, data: &[u8]) {
        let span = (first * BLOCK_BYTES) as usize..((first + count) * BLOCK_BYTES) as usize;
        let model = &mut self.model[span];
        match request.kind {
            kind::OUT => model.copy_from_slice(&request.payload),
            kind::WRITE_ZEROES => model.fill(0),
            kind::IN => assert!(data == model, "{count} blocks at {first} read wrong"),
            _ => {}
        }
    }
}

/// The guest's load, until it is told to stop: requests done, the longest any of them took in microseconds.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    slowest_us: Arc<AtomicU64>,
    thread: JoinHandle<Vec<u8>>,
}

impl Load {
    fn start(socket: &Path, seed: u64) -> Load {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let slowest_us = Arc::<AtomicU64>::default();
        let (socket, stops, counts) = (socket.to_owned(), stop.clone(), done.clone());
        let times = slowest_us.clone();
        let thread = std::thread::spawn(move || {
            let setup = Setup {
                queues: QUEUES as u16,
                ..Setup::default()
            };
            let mut guest = Guest::start(&socket, setup).expect("a guest");
            load(&mut guest, seed, &stops, (&counts, &times))
        });
        Load {
            stop,
            done,
            slowest_us,
            thread,
        }
    }

    fn run_for(&self, requests: u64) {
        let before = self.done.load(Ordering::Acquire);
        let deadline = Instant::now() + tests::client::patience();
        while self.done.load(Ordering::Acquire) < before + requests {
            assert!(!self.thread.is_finished(), "the guest failed");
            assert!(Instant::now() < deadline, "the guest hangs");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn stop(self) -> Vec<u8> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the guest failed")
    }
}

fn load(
    guest: &mut Guest,
    seed: u64,
    stop: &AtomicBool,
    (done, slowest_us): (&AtomicU64, &AtomicU64),
) -> Vec<u8> {
    let each = USED_BYTES / QUEUES as u64;
    let mut queues: Vec<Queue> = (0..QUEUES as u64)
        .map(|n| Queue {
            first_block: n * each / BLOCK_BYTES,
            model: vec![0; each as usize],
            flights: std::iter::repeat_with(|| None).take(DEPTH).collect(),
            chance: Chance(seed + n),
        })
        .collect();
    let mut last = Instant::now();
    loop {
        let stopping = stop.load(Ordering::Acquire);
        let mut progress = false;
        for (at, queue) in queues.iter_mut().enumerate() {
            while let Some(used) = guest.rings[at].pop() {
                progress = true;
                let head = used.id as u16;
                let of = |flight: &Option<Flight>| flight.as_ref().is_some_and(|f| f.head == head);
                let slot = queue.flights.iter().position(of);
                let slot = slot.expect("a chain that was offered");
                let flight = queue.flights[slot].take().expect("found");
                finish(guest, queue, &flight);
                let took = flight.begun.elapsed().as_micros() as u64;
                slowest_us.fetch_max(took, Ordering::Relaxed);
                done.fetch_add(1, Ordering::AcqRel);
            }
            let mut added = false;
            for slot in 0..DEPTH {
                if stopping || queue.flights[slot].is_some() {
                    continue;
                }
                let Some((request, first, count)) = queue.next() else {
                    break;
                };
                queue.flights[slot] = Some(begin(guest, (at, slot), request, first, count));
                added = true;
            }
            if added {
                guest.submit(at);
            }
        }
        if progress {
            last = Instant::now();
        } else {
            assert!(
                last.elapsed() < tests::client::patience(),
                "a request was lost"
            );
            std::thread::sleep(Duration::from_micros(50));
        }
        let idle = |queue: &Queue| queue.flights.iter().all(Option::is_none);
        if stopping && queues.iter().all(idle) {
            return queues.into_iter().flat_map(|queue| queue.model).collect();
        }
    }
}

fn begin(
    guest: &mut Guest,
    (queue, slot): (usize, usize),
    request: Request,
    first: u64,
    count: u64,
) -> Flight {
    let out_gpa = HIGH + (queue * DEPTH + slot) as u64 * PLACE_BYTES;
    let in_gpa = out_gpa + PLACE_BYTES / 2;
    guest.memory.write(out_gpa, &request.out_stream());
    let untouched = vec![0xff; request.in_bytes() as usize];
    guest.memory.write(in_gpa, &untouched);
    let buffers = request.buffers(out_gpa, in_gpa);
    let head = guest.rings[queue].add(&buffers).expect("room in the ring");
    Flight {
        head,
        request,
        first,
        count,
        in_gpa,
        begun: Instant::now(),
    }
}

fn finish(guest: &Guest, queue: &mut Queue, flight: &Flight) {
    let len = flight.request.in_len as usize;
    let mut data = guest.memory.read(flight.in_gpa, len + 1);
    let status = data.pop().expect("a status byte");
    let (kind, first, count) = (flight.request.kind, flight.first, flight.count);
    assert_eq!(status, OK, "kind {kind}: {count} blocks at {first}");
    queue.end(&flight.request, flight.first, flight.count, &data);
}

/// The graph as the edits have made it.
struct World {
    dir: tempfile::TempDir,
    operator: Operator,
    chance: Chance,
    /// What the guest is on, and the name of the first image.
    top: String,
    /// Has it a name that is no more than a path?
    plain: bool,
    layers: usize,
    extra: usize,
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

impl World {
    fn path(&self, name: &str) -> String {
        path(self.dir.path(), name)
    }

    fn image(&mut self, file: &str) -> Value {
        self.plain = file == "topfile";
        let mut options = json!({
            "driver": "qcow2", "node-name": "top", "file": file, "backing": "base", "discard": "unmap",
        });
        match self.chance.below(4) {
            0 => options["lazy-refcounts"] = json!(true),
            1 => options["l2-cache-size"] = json!(65536),
            2 => options["overlap-check"] = json!("all"),
            _ => {}
        }
        if self.layers > 0 {
            options["read-only"] = json!(self.chance.below(2) == 0);
        }
        options
    }

    fn reopen(&mut self, nodes: Vec<Value>) {
        self.log(&json!(nodes));
        self.operator
            .ok("blockdev-reopen", json!({"options": nodes}));
    }

    fn file(&mut self) -> Value {
        let direct = self.chance.below(2) == 0;
        let no_flush = self.chance.below(4) == 0;
        json!({
            "driver": "file", "node-name": "topfile", "filename": self.path("top.qcow2"),
            "cache": {"direct": direct, "no-flush": no_flush},
        })
    }

    /// Shown when the test fails.
    fn log(&self, what: &Value) {
        println!("{what}");
    }

    fn edit(&mut self) {
        match self.chance.below(12) {
            0 => {
                let file = self.file();
                self.reopen(vec![file]);
            }
            1..4 => {
                let file = *self.chance.of(&["topfile", "slow", "ahead"]);
                let image = self.image(file);
                self.reopen(vec![image]);
            }
            4 => {
                let group = *self.chance.of(&["g", "h"]);
                let node = json!({
                    "driver": "throttle", "node-name": "slow", "file": "topfile", "throttle-group": group,
                });
                self.reopen(vec![node]);
            }
            5 => {
                let (file, image) = (self.file(), self.image("slow"));
                self.reopen(vec![file, image]);
            }
            6 => self.refusals(),
            7 if self.layers < LAYERS_MAX => self.layer(),
            8 => {
                let size = USED_BYTES + self.chance.below(64) * (1 << 20);
                let node = self.top.clone();
                let resize = json!({"node-name": node, "size": size});
                self.log(&resize);
                self.operator.ok("block_resize", resize);
            }
            9 => self.guest_of_another_disk(),
            10 => {
                let at = self.chance.below(USED_BYTES);
                let threshold = json!({"node-name": "topfile", "write-threshold": at});
                self.operator.ok("block-set-write-threshold", threshold);
            }
            _ => {
                let name = self.path("base.qcow2");
                let rename =
                    json!({"device": self.top, "image-node-name": "top", "backing-file": name});
                self.log(&rename);
                self.operator.ok("change-backing-file", rename);
            }
        }
    }

    /// An overlay, by one command or by two.
    fn layer(&mut self) {
        self.layers += 1;
        let name = format!("layer{}", self.layers);
        let file = self.path(&format!("{name}.qcow2"));
        let node = self.top.clone();
        self.log(&json!(name));
        if self.chance.below(2) == 0 && self.plain {
            let sync = json!({
                "node-name": node, "snapshot-file": file, "snapshot-node-name": name, "format": "qcow2",
            });
            self.operator.ok("blockdev-snapshot-sync", sync);
        } else {
            qemu_img::create(Path::new(&file), DISK_BYTES);
            let overlay = json!({
                "driver": "qcow2", "node-name": name, "backing": null,
                "file": {"driver": "file", "filename": file},
            });
            self.operator.ok("blockdev-add", overlay);
            let put = json!({"node": node, "overlay": name});
            self.operator.ok("blockdev-snapshot", put);
        }
        // So that QEMU's tools find it: a throttled disk has no plain name, and an overlay of our own making names nothing.
        let below = self.path(&format!("{node}.qcow2"));
        let rename = json!({"device": name, "image-node-name": name, "backing-file": below});
        self.operator.ok("change-backing-file", rename);
        self.top = name;
    }

    fn refusals(&mut self) {
        let cycle = json!({"driver": "qcow2", "node-name": "base", "file": "basefile", "read-only": true, "backing": "top"});
        let why = "Making 'top' a backing child of 'base' would create a cycle";
        self.operator
            .refused("blockdev-reopen", json!({"options": [cycle]}), why);
        let missing = json!({"driver": "qcow2", "node-name": "top", "file": "topfile"});
        let why = "backing is missing for 'top'";
        self.operator
            .refused("blockdev-reopen", json!({"options": [missing]}), why);
        let why = format!("Node {} is in use", self.top);
        let del = json!({"node-name": self.top});
        self.operator.refused("blockdev-del", del, &why);
        let file = json!({"node-name": "topfile"});
        let said = self.operator.ask("blockdev-del", &file);
        assert_eq!(said, Err("Block device topfile is in use".to_owned()));
    }

    /// Another disk comes and goes.
    fn guest_of_another_disk(&mut self) {
        self.extra += 1;
        let (disk, export) = (format!("x{}", self.extra), format!("e{}", self.extra));
        let node = json!({"driver": "null-co", "node-name": disk, "read-zeroes": true});
        self.operator.ok("blockdev-add", node);
        let socket = self.path(&format!("{export}.sock"));
        let add = json!({
            "type": "vhost-user-blk", "id": export, "node-name": disk, "writable": true,
            "addr": {"type": "unix", "path": socket},
        });
        self.operator.ok("block-export-add", add);
        let why = format!("Node {disk} is in use");
        let del = json!({"node-name": disk});
        self.operator.refused("blockdev-del", del.clone(), &why);
        self.operator.ok("block-export-del", json!({"id": export}));
        self.operator.ok("blockdev-del", del);
    }
}

/// The descriptors of a process that are of files in `dir`.
fn descriptors(pid: u32, dir: &Path) -> Vec<PathBuf> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("listed");
    let links = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    links.filter(|link| link.starts_with(dir)).collect()
}

fn count(pid: u32, what: &str) -> usize {
    fs::read_dir(format!("/proc/{pid}/{what}"))
        .expect("listed")
        .count()
}

fn arguments(dir: &Path) -> Vec<String> {
    let monitor = path(dir, "monitor");
    let file = |node: &str, name: &str, more: &str| {
        let name = path(dir, name);
        format!("driver=file,node-name={node},filename={name}{more}")
    };
    let all = [
        (
            "--chardev",
            format!("socket,id=c,path={monitor},server=on,wait=off"),
        ),
        ("--monitor", "chardev=c".to_owned()),
        ("--object", "throttle-group,id=g".to_owned()),
        (
            "--object",
            "throttle-group,id=h,limits.iops-total=1000000".to_owned(),
        ),
        (
            "--blockdev",
            file("basefile", "base.qcow2", ",read-only=on"),
        ),
        (
            "--blockdev",
            "driver=qcow2,node-name=base,file=basefile,read-only=on".to_owned(),
        ),
        ("--blockdev", file("topfile", "top.qcow2", "")),
        (
            "--blockdev",
            "driver=throttle,node-name=slow,file=topfile,throttle-group=g".to_owned(),
        ),
        (
            "--blockdev",
            "driver=preallocate,node-name=ahead,file=topfile".to_owned(),
        ),
        (
            "--blockdev",
            "driver=qcow2,node-name=top,file=topfile,backing=base,discard=unmap".to_owned(),
        ),
    ];
    let words = all
        .into_iter()
        .flat_map(|(option, value)| [option.to_owned(), value]);
    words.collect()
}

#[test]
fn hundreds_of_edits_under_load_lose_nothing_and_leave_nothing_behind() {
    let seed = std::env::var("SOAK_SEED").ok();
    let seed = seed.and_then(|seed| seed.parse().ok()).unwrap_or(7);
    println!("seed {seed}");
    let dir = tempfile::tempdir().expect("a directory");
    qemu_img::create(&dir.path().join("base.qcow2"), DISK_BYTES);
    qemu_img::create_on(
        &dir.path().join("top.qcow2"),
        &dir.path().join("base.qcow2"),
    );
    let arguments = arguments(dir.path());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let daemon = Daemon::serve_graph(Kind::Virtioblkd, &arguments, "top").expect("a daemon");
    let operator = Operator::connect(&dir.path().join("monitor")).expect("a monitor");
    let load = Load::start(daemon.socket(0), seed);
    load.run_for(200);
    let mut world = World {
        dir,
        operator,
        chance: Chance(seed),
        top: "top".to_owned(),
        plain: true,
        layers: 0,
        extra: 0,
    };
    let before = count(daemon.pid(), "fd");
    let begun = Instant::now();
    for _ in 0..EDITS {
        world.edit();
        load.run_for(10);
    }
    println!(
        "{EDITS} edits in {:?}, slowest {:?}; {} requests, slowest {} us; {} layers",
        begun.elapsed(),
        world.operator.slowest,
        load.done.load(Ordering::Relaxed),
        load.slowest_us.load(Ordering::Relaxed),
        world.layers
    );
    check_drains(&mut world.operator);
    // Each layer has one descriptor more, and nothing else does.
    let fds = count(daemon.pid(), "fd");
    assert!(
        fds <= before + world.layers + 2,
        "{before} descriptors have become {fds}"
    );
    let size = json!({"node-name": world.top, "size": DISK_BYTES});
    world.operator.ok("block_resize", size);
    let model = load.stop();
    take_apart(&mut world, daemon.pid());
    check_images(&world, &model);
    let said = daemon.stop().expect("a clean end");
    assert!(!said.contains("ERROR"), "{said}");
}

/// Drains end soon after the last request that they wait for, as the daemon measures it: within 100 ms. A machine that others
/// share has the thread that waits wait for a processor, too, which one in a hundred may have to do for longer.
fn check_drains(operator: &mut Operator) {
    let graph = operator.ok("x-debug-query-block-graph", json!({}));
    let drains = &graph["x-drains"];
    println!("{drains}");
    let number = |value: &Value| value.as_u64().expect("a number");
    let numbers = |name: &str| -> Vec<u64> {
        let list = drains["settling"][name].as_array().expect("a list");
        list.iter().map(number).collect()
    };
    let (boundaries, bins) = (numbers("boundaries"), numbers("bins"));
    let below = |ns: u64| -> u64 {
        let intervals = boundaries.iter().zip(&bins);
        intervals
            .filter(|(end, _)| **end <= ns)
            .map(|(_, count)| count)
            .sum()
    };
    let count = number(&drains["count"]);
    assert!(count > EDITS as u64 / 3, "most edits hold requests back");
    assert_eq!(drains["timed-out"], 0);
    assert_eq!(bins.iter().sum::<u64>(), count);
    assert!(boundaries.contains(&100_000_000), "{boundaries:?}");
    assert!(below(10_000_000) * 2 > count, "the median: {drains}");
    assert!(
        below(100_000_000) * 100 >= count * 99,
        "99 of 100: {drains}"
    );
}

/// Removes everything, as far down as it goes.
fn take_apart(world: &mut World, pid: u32) {
    let operator = &mut world.operator;
    operator.ok("block-export-del", json!({"id": "export0"}));
    for layer in (1..=world.layers).rev() {
        // One that a single command made was its users', and went with them.
        let name = json!({"node-name": format!("layer{layer}")});
        if let Err(why) = operator.ask("blockdev-del", &name) {
            let gone = format!("Failed to find node with node-name='layer{layer}'");
            assert_eq!(why, gone);
        }
    }
    for name in ["top", "slow", "ahead", "topfile", "base", "basefile"] {
        operator.ok("blockdev-del", json!({"node-name": name}));
    }
    let images = || {
        let all = descriptors(pid, world.dir.path()).into_iter();
        let images = all.filter(|link| link.extension().is_some_and(|e| e == "qcow2"));
        images.collect::<Vec<PathBuf>>()
    };
    let until = tests::client::deadline();
    while !images().is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(images(), Vec::<PathBuf>::new(), "every file is closed");
}

/// What the guest wrote is what QEMU reads, and no image has errors or leaks.
fn check_images(world: &World, model: &[u8]) {
    let top = world.path(&format!("{}.qcow2", world.top));
    for layer in 0..=world.layers {
        let name = match layer {
            0 => "top".to_owned(),
            n => format!("layer{n}"),
        };
        qemu_img::check(Path::new(&world.path(&format!("{name}.qcow2"))));
    }
    let found = qemu_img::flat(Path::new(&top));
    assert!(
        found[..model.len()] == *model,
        "the disk is not what was written"
    );
}
