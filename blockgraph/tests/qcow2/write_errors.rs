//! One error at each host operation of a workload, one run for each: what failed may be old or new, everything else is as the
//! model says, and the image is closed clean.

use crate::support;
use blockgraph::driver::qcow2::Options;
use blockgraph::{Kind, Mode, NodeId, Unmap};
use ring::sim::{Act, Disk, Images, Rule, Times, Weather};
use ring::{Durability, Mem};
use support::sectors::SECTOR;
use support::{Bench, Chance, sim, span, writes};

const SIZE: u64 = 256 << 10;
const REQUESTS: usize = 200;

fn disk(image: Images) -> Disk {
    sim::disk(image, 16 << 20, 1, Weather::CALM)
}

fn bench(disk: &Disk, mode: Mode) -> (Bench, NodeId, NodeId) {
    let (mut bench, file) = sim::bench(disk, mode);
    let node = sim::open(&mut bench, file, Options::default());
    (bench, file, node)
}

/// What each sector may be: one thing, or several after an error.
type Model = Vec<Vec<u8>>;

/// The same requests every time; returns how many failed.
fn work(bench: &mut Bench, node: NodeId, model: &mut Model) -> usize {
    let mut chance = Chance(5);
    let mut failed = 0;
    for n in 0..REQUESTS {
        let unit = [1, 8][chance.below(2) as usize];
        let units = model.len() / unit;
        let at = chance.below(units as u64) as usize * unit;
        let len = ((1 + chance.below(20) as usize) * unit).min(model.len() - at);
        let byte = 1 + (n % 255) as u8;
        let (kind, byte) = match chance.below(12) {
            0 => (Kind::WriteZeroes(Unmap::Allow, Durability::Cached), 0),
            1 => (Kind::WriteZeroes(Unmap::Keep, Durability::Through), 0),
            2 => (Kind::Discard, 0),
            3 | 4 => (Kind::Flush, 0),
            _ => (Kind::Write(Durability::Cached), byte),
        };
        let mem = match kind {
            Kind::Write(_) => Mem::zeroed(len * SECTOR).expect("memory"),
            _ => Mem::none(),
        };
        mem.store(0, &vec![byte; len * SECTOR]);
        let whole = span((at * SECTOR) as u64, (len * SECTOR) as u64);
        let outcome = bench.ask(node, kind, whole, &mem);
        failed += usize::from(outcome.is_err());
        for may_be in &mut model[at..at + len] {
            match (kind, outcome) {
                (Kind::Flush, _) => {}
                // Advice: done or not.
                (Kind::Discard, _) | (_, Err(_)) => may_be.push(byte),
                (_, Ok(())) => *may_be = vec![byte],
            }
        }
    }
    failed
}

fn compare(bytes: &[u8], model: &Model, what: &str) {
    for (n, (sector, may_be)) in bytes.chunks(SECTOR).zip(model).enumerate() {
        // A write that failed may have reached some of its sectors, each of them whole.
        let whole = sector.iter().all(|byte| *byte == sector[0]);
        assert!(
            whole && may_be.contains(&sector[0]),
            "{what}: sector {n} is {} of {may_be:?}",
            sector[0]
        );
    }
}

/// A run in which the disk's operation `number` fails; false if there is none of that number.
fn run(image: &Images, mode: Mode, number: u64, errno: i32) -> bool {
    let disk = disk(image.clone());
    let what = format!("{mode:?} operation {number} errno {errno}");
    let (mut bench, file, node) = bench(&disk, mode);
    let rule = Rule::every(Act::Fail(errno)).times(Times::After(number));
    disk.rule(rule);
    let before = disk.count();
    let mut model: Model = vec![vec![0]; SIZE as usize / SECTOR];
    let failed = work(&mut bench, node, &mut model);
    let came = disk.count() - before > number;
    disk.clear_rules();
    assert!(failed <= 3, "{what}: {failed} requests failed");
    let bytes = bench.read(node, 0, SIZE as usize);
    compare(&bytes, &model, &what);
    assert_eq!(writes::close(&mut bench, node), Ok(()), "{what}");
    let report = sim::look(&mut bench, file);
    assert!(report.is_clean(), "{what}: {:?}", report.findings);
    let again = self::disk(disk.images());
    let (mut bench, _, node) = self::bench(&again, Mode::Fast);
    let now = bench.read(node, 0, SIZE as usize);
    assert!(now == bytes, "{what}: the closed image reads otherwise");
    came
}

fn every_operation(options: &str, mode: Mode, errno: i32) {
    let image = sim::image(options, SIZE);
    let mut number = 0;
    while run(&image, mode, number, errno) {
        number += 1;
    }
    println!("{options} {mode:?}: {number} operations");
    assert!(number > 200);
}

#[test]
fn an_input_or_output_error_anywhere_loses_nothing() {
    every_operation("cluster_size=4096", Mode::Fast, libc::EIO);
}

#[test]
fn an_error_anywhere_on_the_serve_path_loses_nothing() {
    every_operation(
        "cluster_size=4096,refcount_bits=1",
        Mode::ServeAlways,
        libc::EIO,
    );
}

#[test]
fn a_full_disk_anywhere_loses_nothing() {
    every_operation(
        "cluster_size=512,refcount_bits=64",
        Mode::Fast,
        libc::ENOSPC,
    );
}
