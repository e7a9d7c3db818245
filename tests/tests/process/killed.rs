//! `kill -9` under load: the next daemon begins again what was in flight, and the guest's driver sees requests that took a
//! little longer, each answered once.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::process::Signal;
use serde_json::json;
use tests::client::blk::{OK, Request, kind};
use tests::client::deadline;
use tests::client::guest::{Client, Guest, Pending, Setup};
use tests::client::pattern::pattern;
use tests::qemu_img;
use tests::qmp::Qmp;

use super::support::{Place, Process, Start, export, file, words};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 8192;
const SECTORS: u64 = BLOCK / 512;
const QUEUES: u16 = 4;
/// Requests in flight in each queue.
const DEPTH: usize = 16;
const KILLS: u64 = 12;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A request on its way, and what its block holds when it is answered.
struct Flight {
    pending: Pending,
    block: u64,
    /// `None`: a read.
    written: Option<Vec<u8>>,
}

struct Load {
    guest: Guest,
    /// It is about these alone.
    blocks: std::ops::Range<u64>,
    random: Random,
    model: Vec<u8>,
    flights: Vec<HashMap<u16, Flight>>,
    answered: u64,
}

impl Load {
    /// On a disk of zeroes.
    fn new(socket: &Path, client: Client, seed: u64) -> Load {
        let setup = Setup {
            client,
            queues: QUEUES,
            ring_size: 64,
            ..Setup::default()
        };
        let flights = (0..QUEUES).map(|_| HashMap::new()).collect();
        Load {
            guest: Guest::start(socket, setup).unwrap(),
            blocks: 0..BLOCKS,
            random: Random(seed),
            model: vec![0; (BLOCKS * BLOCK) as usize],
            flights,
            answered: 0,
        }
    }

    fn range(block: u64) -> std::ops::Range<usize> {
        (block * BLOCK) as usize..((block + 1) * BLOCK) as usize
    }

    /// Every queue is full of requests, each about a block of its own.
    fn fill(&mut self) {
        for queue in 0..usize::from(QUEUES) {
            while self.flights[queue].len() < DEPTH {
                let count = self.blocks.end - self.blocks.start;
                let block = self.blocks.start + self.random.below(count);
                let taken = |flight: &Flight| flight.block == block;
                if self.flights.iter().any(|queue| queue.values().any(taken)) {
                    continue;
                }
                let sector = block * SECTORS;
                let written = (self.random.below(3) > 0)
                    .then(|| pattern(self.random.below(u64::MAX), BLOCK as usize));
                let request = match &written {
                    Some(bytes) => Request::write(sector, bytes.clone()),
                    None => Request::read(sector, BLOCK as u32),
                };
                let pending = self.guest.add(queue, &request);
                let flight = Flight {
                    pending,
                    block,
                    written,
                };
                self.flights[queue].insert(pending.head, flight);
            }
            self.guest.submit(queue);
        }
    }

    /// Takes the answers there are.
    fn take(&mut self) {
        for queue in 0..usize::from(QUEUES) {
            while let Some(used) = self.guest.rings[queue].pop() {
                let flight = self.flights[queue].remove(&(used.id as u16));
                let flight = flight.expect("an answer to what was asked, and only one");
                let done = self.guest.done(flight.pending, used.len);
                assert_eq!(done.status, OK);
                let there = &mut self.model[Load::range(flight.block)];
                match flight.written {
                    Some(bytes) => there.copy_from_slice(&bytes),
                    None => assert!(done.data == *there, "block {} read wrong", flight.block),
                }
                self.answered += 1;
            }
        }
    }

    fn run_for(&mut self, requests: u64) {
        let (until, goal) = (deadline(), self.answered + requests);
        while self.answered < goal {
            assert!(Instant::now() < until, "the guest is not served");
            self.fill();
            self.take();
            std::thread::yield_now();
        }
    }

    fn in_flight(&self) -> usize {
        self.flights.iter().map(HashMap::len).sum()
    }

    /// Until everything is answered.
    fn finish(&mut self) {
        let until = deadline();
        while self.in_flight() > 0 {
            assert!(Instant::now() < until, "{} are lost", self.in_flight());
            self.take();
            std::thread::yield_now();
        }
    }
}

/// What a daemon serves: arguments for its nodes, and which of them the guest has.
struct Stack {
    nodes: Vec<String>,
    top: &'static str,
    /// Arguments that come last.
    after: Vec<String>,
}

impl Stack {
    fn of(nodes: Vec<String>, top: &'static str) -> Stack {
        let after = Vec::new();
        Stack { nodes, top, after }
    }

    fn raw(disk: &Path) -> Stack {
        let nodes = file("f", disk, "");
        Stack::of(nodes, "f")
    }

    fn image(disk: &Path) -> Stack {
        let mut nodes = file("f", disk, ",discard=unmap");
        nodes.extend(words("--blockdev qcow2,node-name=q,file=f,discard=unmap"));
        Stack::of(nodes, "q")
    }

    fn start(&self, place: &Place) -> Process {
        let mut arguments = self.nodes.clone();
        let monitor = place.path("qmp").display().to_string();
        arguments.extend(words(&format!(
            "--chardev socket,id=c,path={monitor},server=on,wait=off --monitor c"
        )));
        let more = format!(",num-queues={QUEUES}");
        arguments.extend(export("e", self.top, &place.path("s"), &more));
        arguments.extend(self.after.clone());
        let until = deadline();
        loop {
            let process = Start::new(arguments.clone()).spawn();
            if process.becomes_ready() {
                return process;
            }
            // The kernel lets go of a killed process's files, and their locks, when its requests have ended.
            let said = process.stderr();
            assert!(said.contains("lock") && Instant::now() < until, "{said}");
        }
    }
}

/// Kills daemons under load, one after the other; returns what the disk has to hold.
fn kill_again_and_again(client: Client, seed: u64, place: &Place, stack: &Stack) -> Vec<u8> {
    println!("{client:?} seed {seed} {:?}", stack.nodes);
    let socket = place.path("s");
    let mut process = stack.start(place);
    let mut load = Load::new(&socket, client, seed);
    let mut random = Random(seed ^ 0xdead);
    let mut interrupted = 0;
    for _ in 0..KILLS {
        load.run_for(random.below(300));
        load.fill();
        process.signal(Signal::KILL);
        process.wait();
        load.take();
        interrupted += load.in_flight();
        process = stack.start(place);
        load.guest.reconnect(&socket).unwrap();
    }
    assert!(interrupted > 0, "nothing was in flight");
    println!(
        "{interrupted} requests were in flight, {} answered",
        load.answered
    );
    load.run_for(100);
    load.finish();
    process.stop();
    load.model
}

fn image(place: &Place) -> PathBuf {
    let path = place.path("d.qcow2");
    qemu_img::create(&path, BLOCKS * BLOCK);
    path
}

#[test]
fn a_guest_whose_daemon_is_killed_loses_no_request_and_has_none_done_twice() {
    for (client, seed) in Client::ALL.into_iter().zip(1..) {
        let place = Place::new();
        let disk = place.disk("d", BLOCKS * BLOCK);
        fs::write(&disk, vec![0; (BLOCKS * BLOCK) as usize]).unwrap();
        let model = kill_again_and_again(client, seed, &place, &Stack::raw(&disk));
        assert!(fs::read(&disk).unwrap() == model, "seed {seed}");
    }
}

/// Where there is a limit, most requests wait in the daemon and not in the kernel.
#[test]
fn requests_that_were_waiting_for_a_limit_are_begun_again() {
    let place = Place::new();
    let disk = image(&place);
    let mut stack = Stack::image(&disk);
    let limit = "--object throttle-group,id=g,limits.iops-total=4000 \
                 --blockdev throttle,node-name=t,throttle-group=g,file=q";
    stack.nodes.extend(words(limit));
    stack.top = "t";
    let model = kill_again_and_again(Client::ALL[0], 11, &place, &stack);
    assert!(qemu_img::flat(&disk) == model);
}

/// The guest never flushes: what it wrote to new clusters is in the file, and where it is, in the daemon's memory alone.
#[test]
fn an_image_whose_map_was_in_memory_loses_nothing_either() {
    for (client, seed) in Client::ALL.into_iter().zip(21..) {
        let place = Place::new();
        let disk = image(&place);
        let model = kill_again_and_again(client, seed, &place, &Stack::image(&disk));
        qemu_img::check(&disk);
        assert!(qemu_img::flat(&disk) == model, "seed {seed}");
    }
}

#[test]
fn the_log_follows_the_guest_s_writes_to_the_layers_above() {
    let place = Place::new();
    let disk = image(&place);
    let socket = place.path("s");
    let mut process = Stack::image(&disk).start(&place);
    let mut load = Load::new(&socket, Client::ALL[0], 31);
    let (mut newest, mut top) = (disk.clone(), "q".to_owned());
    for layer in 0..4 {
        load.run_for(150);
        let overlay = place.path(&format!("o{layer}.qcow2"));
        {
            let mut qmp = Qmp::connect(&place.path("qmp")).unwrap();
            let arguments = json!({ "node-name": top, "snapshot-file": overlay, "format": "qcow2",
                                    "snapshot-node-name": format!("o{layer}") });
            qmp.succeed("blockdev-snapshot-sync", arguments);
        }
        load.run_for(150);
        load.fill();
        process.signal(Signal::KILL);
        process.wait();
        (newest, top) = (overlay, "q".to_owned());
        process = Stack::image(&newest).start(&place);
        load.guest.reconnect(&socket).unwrap();
    }
    load.finish();
    process.stop();
    assert!(qemu_img::flat(&newest) == load.model);
}

#[test]
fn a_daemon_with_another_image_is_not_let_loose_on_what_the_first_had() {
    let place = Place::new();
    let disk = image(&place);
    let socket = place.path("s");
    let stack = Stack::image(&disk);
    let mut process = stack.start(&place);
    let mut load = Load::new(&socket, Client::ALL[0], 41);
    load.run_for(200);
    process.signal(Signal::KILL);
    process.wait();
    let copy = place.path("copy.qcow2");
    fs::copy(&disk, &copy).unwrap();
    for wrong in [Stack::image(&copy), Stack::raw(&copy)] {
        let process = wrong.start(&place);
        load.guest.reconnect(&socket).unwrap_err();
        let said = process.stop();
        assert!(said.contains("the map of another image"), "{said}");
    }
    let process = stack.start(&place);
    load.guest.reconnect(&socket).unwrap();
    load.finish();
    process.stop();
    assert!(qemu_img::flat(&disk) == load.model);
}

/// What a daemon that ended by itself had in memory is in the image; nothing is left to be taken up.
#[test]
fn a_daemon_that_is_told_to_end_leaves_nothing_to_be_taken_up() {
    let place = Place::new();
    let disk = image(&place);
    let socket = place.path("s");
    let process = Stack::image(&disk).start(&place);
    let mut load = Load::new(&socket, Client::ALL[0], 51);
    load.run_for(200);
    load.finish();
    process.stop();
    assert!(qemu_img::flat(&disk) == load.model);
    let copy = place.path("copy.qcow2");
    fs::copy(&disk, &copy).unwrap();
    let process = Stack::image(&copy).start(&place);
    load.guest.reconnect(&socket).unwrap();
    load.run_for(100);
    load.finish();
    process.stop();
    assert!(qemu_img::flat(&copy) == load.model);
}

/// As for a migration: what the guest had written is in the image by then, whoever opens it.
#[test]
fn a_guest_that_has_stopped_may_go_on_with_a_daemon_elsewhere() {
    let place = Place::new();
    let disk = image(&place);
    let socket = place.path("s");
    let mut process = Stack::image(&disk).start(&place);
    let mut load = Load::new(&socket, Client::ALL[0], 61);
    load.run_for(200);
    load.finish();
    load.guest.stop_rings().unwrap();
    process.signal(Signal::KILL);
    process.wait();
    let copy = place.path("copy.qcow2");
    fs::copy(&disk, &copy).unwrap();
    assert!(qemu_img::flat(&copy) == load.model);
    process = Stack::image(&copy).start(&place);
    load.guest.reconnect(&socket).unwrap();
    load.run_for(100);
    load.finish();
    process.stop();
    assert!(qemu_img::flat(&copy) == load.model);
}

/// Two logs of one image would undo each other: it has none, and what both guests have flushed is there.
#[test]
fn two_guests_of_one_image_keep_what_they_flushed() {
    let place = Place::new();
    let disk = image(&place);
    let (socket, other_socket) = (place.path("s"), place.path("other"));
    let mut stack = Stack::image(&disk);
    let more = format!(",num-queues={QUEUES}");
    stack.after = export("e2", "q", &other_socket, &more);
    let mut process = stack.start(&place);
    let half = BLOCKS / 2;
    let mut load = Load::new(&socket, Client::ALL[0], 71);
    load.blocks = 0..half;
    load.run_for(100);
    let mut other = Load::new(&other_socket, Client::ALL[1], 72);
    other.blocks = half..BLOCKS;
    for turn in 0..3 {
        for load in [&mut load, &mut other] {
            load.run_for(100);
            load.finish();
            let flushed = load.guest.run(0, &Request::bare(kind::FLUSH)).unwrap();
            assert_eq!(flushed.status, OK);
        }
        process.signal(Signal::KILL);
        process.wait();
        process = stack.start(&place);
        let mut both = [(&mut load, &socket), (&mut other, &other_socket)];
        // Either may be the first.
        both.rotate_left(turn % 2);
        for (load, socket) in both {
            load.guest.reconnect(socket).unwrap();
        }
    }
    load.run_for(100);
    other.run_for(100);
    load.finish();
    other.finish();
    let said = process.stop();
    assert_eq!(said.matches("has two exports").count(), 1, "{said}");
    let flat = qemu_img::flat(&disk);
    let middle = (half * BLOCK) as usize;
    assert!(flat[..middle] == load.model[..middle]);
    assert!(flat[middle..] == other.model[middle..]);
}

/// The clusters of the log may be somebody else's by then.
#[test]
fn an_image_that_somebody_has_written_to_meanwhile_is_not_changed_by_an_old_log() {
    let place = Place::new();
    let disk = image(&place);
    let socket = place.path("s");
    let stack = Stack::image(&disk);
    let mut process = stack.start(&place);
    let mut load = Load::new(&socket, Client::ALL[0], 81);
    load.run_for(200);
    process.signal(Signal::KILL);
    process.wait();
    let minute = std::time::Duration::from_secs(60);
    let later = std::time::SystemTime::now() + minute;
    let file = fs::File::options().write(true).open(&disk).unwrap();
    file.set_modified(later).unwrap();
    let before = fs::read(&disk).unwrap();
    let process = stack.start(&place);
    load.guest.reconnect(&socket).unwrap_err();
    let said = process.stop();
    assert!(said.contains("somebody has written"), "{said}");
    assert!(fs::read(&disk).unwrap() == before);
}
