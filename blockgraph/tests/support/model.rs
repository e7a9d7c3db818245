//! The model: random requests on a disk and on a `Vec<u8>`, compared after every read and at the end.

use super::{Bench, Chance, span};
use blockgraph::{Kind, NodeId, Unmap};
use ring::{Durability, Mem};

/// Runs `requests` random requests on `node`, which is `size` bytes of zeroes.
pub fn check(bench: &mut Bench, node: NodeId, seed: u64, size: u64, requests: usize) {
    let mut model = vec![0u8; size as usize];
    let mut chance = Chance(seed);
    for _ in 0..requests {
        step(bench, node, &mut model, &mut chance);
    }
    assert_eq!(bench.read(node, 0, model.len()), model);
}

/// One random request; sizes are whole sectors, memory begins anywhere.
fn step(bench: &mut Bench, node: NodeId, model: &mut [u8], chance: &mut Chance) {
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
