//! Reads equal a `Vec<u8>` model, whatever the driver, the engine, the cache and the way requests go.

mod support;

use blockgraph::driver::file::Cache;
use blockgraph::driver::raw::Window;
use blockgraph::graph::open::NodeSpec;
use blockgraph::{Kind, Mode, Unmap};
use ring::{Choice, Durability, Mem};
use std::path::Path;
use support::{Bench, Chance, engines, file, inline, modes, raw, span};

/// A disk that is not a multiple of 4096 bytes.
const SIZE: u64 = (1 << 20) + 512;

fn check(name: &str, seed: u64, choice: &Choice, mode: Mode, size: u64, spec: NodeSpec) {
    println!("{name}: {choice:?} {mode:?} seed {seed}");
    let mut bench = Bench::new(choice.clone(), mode);
    let node = bench.open(spec);
    let mut model = vec![0u8; size as usize];
    let mut chance = Chance(seed);
    for _ in 0..250 {
        step(&mut bench, node, &mut model, &mut chance);
    }
    assert_eq!(bench.read(node, 0, model.len()), model);
}

/// One random request; sizes are whole sectors, memory begins anywhere.
fn step(bench: &mut Bench, node: blockgraph::NodeId, model: &mut [u8], chance: &mut Chance) {
    let sectors = model.len() as u64 / 512;
    let at = chance.below(sectors);
    let longest = if chance.below(8) == 0 { 1024 } else { 24 };
    let len = 1 + chance.below((sectors - at).min(longest));
    let (at, len) = (at * 512, (len * 512) as usize);
    let range = at as usize..at as usize + len;
    let durability = match chance.below(4) {
        0 => Durability::Through,
        _ => Durability::Cached,
    };
    let kind = chance.below(10);
    let skip = chance.below(3) as usize * 100;
    let mem = Mem::zeroed(len + skip).expect("memory").slice(skip, len);
    let where_ = span(at, len as u64);
    match kind {
        0..4 => {
            let bytes: Vec<u8> = (0..len).map(|_| chance.next() as u8).collect();
            mem.store(0, &bytes);
            let outcome = bench.ask(node, Kind::Write(durability), where_, &mem);
            assert_eq!(outcome, Ok(()));
            model[range].copy_from_slice(&bytes);
        }
        4..7 => {
            mem.store(0, &vec![0xee; len]);
            assert_eq!(bench.ask(node, Kind::Read, where_, &mem), Ok(()));
            let mut bytes = vec![0; len];
            mem.load(0, &mut bytes);
            assert_eq!(bytes, model[range], "read of {where_}");
        }
        7 | 8 => {
            let unmap = [Unmap::Allow, Unmap::Keep][chance.below(2) as usize];
            let kind = Kind::WriteZeroes(unmap, durability);
            assert_eq!(bench.plain(node, kind, where_), Ok(()));
            model[range].fill(0);
        }
        _ => {
            // What was discarded may read as anything; from then on it stays as it is.
            assert_eq!(bench.plain(node, Kind::Discard, where_), Ok(()));
            let now = bench.read(node, at, len);
            model[range].copy_from_slice(&now);
            assert_eq!(bench.plain(node, Kind::Flush, span(0, 0)), Ok(()));
        }
    }
}

fn image(dir: &Path, size: u64) -> std::path::PathBuf {
    let path = dir.join("disk.raw");
    let file = std::fs::File::create(&path).expect("created");
    file.set_len(size).expect("sized");
    path
}

fn everywhere(name: &str, seed: u64, size: u64, spec: impl Fn(&Path) -> (u64, NodeSpec)) {
    for choice in engines() {
        for mode in modes(seed) {
            let dir = tempfile::tempdir().expect("a directory");
            let (disk, spec) = spec(&image(dir.path(), size));
            check(name, seed, &choice, mode, disk, spec);
        }
    }
}

#[test]
fn a_file_in_the_page_cache_equals_the_model() {
    everywhere("page cache", 1, SIZE, |path| {
        (SIZE, file(path, Cache::Page))
    });
}

#[test]
fn a_file_with_direct_io_equals_the_model() {
    everywhere("direct", 2, SIZE, |path| (SIZE, file(path, Cache::Direct)));
}

#[test]
fn a_window_off_the_sectors_with_direct_io_equals_the_model() {
    everywhere("raw window", 3, SIZE, |path| {
        let window = Window {
            offset_bytes: 100,
            size_bytes: Some(300 * 512),
        };
        (300 * 512, raw(inline(file(path, Cache::Direct)), window))
    });
}

#[test]
fn a_whole_raw_node_equals_the_model() {
    everywhere("raw", 4, SIZE, |path| {
        (
            SIZE,
            raw(inline(file(path, Cache::Page)), Window::default()),
        )
    });
}
