//! Three fuzzers side by side: header, tables and entries, whole images in use. They know the format, so that most of what
//! they make gets past the first check; what they look for is a panic, a hang, or memory without bound.
//!
//! `QCOW2_FUZZ_SECONDS` is how long each goes on (default 3). A case that fails names its seed; `QCOW2_FUZZ_SEED` runs that
//! one alone.

use crate::support;
use blockgraph::driver::qcow2::check::Repair;
use blockgraph::driver::qcow2::format::bitmap_dir::{Of, parse_directory};
use blockgraph::driver::qcow2::format::entry::{DataIn, L1Entry, Layout, Words, ZeroFlag};
use blockgraph::driver::qcow2::format::header::{Header, Strictness};
use blockgraph::driver::qcow2::format::snapshot_table::parse_table;
use std::time::{Duration, Instant};
use support::Chance;
use support::corrupt::{At, BASES, Base, checked, make, outcome, place, use_it};

/// Says which case it was if that panics.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("QCOW2_FUZZ_SEED={}", self.0);
        }
    }
}

fn run(first_seed: u64, mut case: impl FnMut(&mut Chance)) {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse().expect("a number"))
    };
    if let Some(seed) = number("QCOW2_FUZZ_SEED") {
        return case(&mut Chance(seed));
    }
    let seconds = number("QCOW2_FUZZ_SECONDS").unwrap_or(3);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut cases = 0u64;
    while cases == 0 || Instant::now() < end {
        let seed = first_seed.wrapping_add(cases);
        let _named = Named(seed);
        case(&mut Chance(seed));
        cases += 1;
    }
    println!("{cases} cases from seed {first_seed}");
}

/// A number that is often at an edge of something.
fn telling(chance: &mut Chance) -> u64 {
    let bit = 1u64 << chance.below(64);
    match chance.below(8) {
        0 => 0,
        1 => u64::MAX,
        2 => bit,
        3 => bit.wrapping_sub(1),
        4 => chance.below(300),
        5 => chance.below(64) << 16,
        6 => 1 << 63 | chance.below(64) << 16,
        _ => chance.next(),
    }
}

fn strike(chance: &mut Chance, bytes: &mut [u8], at: usize) {
    let value = telling(chance).to_be_bytes();
    let len = [1, 2, 4, 8][chance.below(4) as usize];
    let end = bytes.len().min(at.saturating_add(len));
    if let Some(hit) = bytes.get_mut(at..end) {
        hit.copy_from_slice(&value[8 - hit.len()..]);
    }
}

fn bases() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().expect("a directory");
    BASES.iter().map(|base| make(dir.path(), *base)).collect()
}

#[test]
fn no_header_panics_and_what_parses_is_written_back_the_same() {
    let bases = bases();
    run(1 << 40, |chance| {
        let base = &bases[chance.below(bases.len() as u64) as usize];
        let cluster = Header::cluster_bytes_of(base).expect("sound");
        let mut bytes = base[..cluster].to_vec();
        for _ in 0..=chance.below(4) {
            let at = match chance.below(3) {
                0 => chance.below(cluster as u64),
                _ => chance.below(0x120),
            };
            strike(chance, &mut bytes, at as usize);
        }
        let short = chance.below(cluster as u64) as usize;
        let _ = Header::cluster_bytes_of(&bytes[..short.min(64)]);
        let _ = Header::parse(&bytes[..short], Strictness::Open);
        let Ok(header) = Header::parse(&bytes, Strictness::Check) else {
            return;
        };
        if let Ok(again) = header.encode() {
            let again = Header::parse(&again, Strictness::Check).expect("what we write, we read");
            assert_eq!((again.l1, again.size_bytes), (header.l1, header.size_bytes));
            assert_eq!(again.backing, header.backing);
        }
    });
}

#[test]
fn no_table_panics_and_entries_are_read_back_as_they_were_written() {
    run(2 << 40, |chance| {
        let layout = Layout {
            cluster_bits: 9 + chance.below(13) as u32,
            words: [Words::One, Words::Two][chance.below(2) as usize],
            data: [DataIn::Image, DataIn::DataFile][chance.below(2) as usize],
            zero_flag: [ZeroFlag::Known, ZeroFlag::Unknown][chance.below(2) as usize],
        };
        for _ in 0..200 {
            let words = [telling(chance), telling(chance)];
            let _ = L1Entry::decode(words[0], layout.cluster_bits);
            let Ok(entry) = layout.decode(words) else {
                continue;
            };
            assert_eq!(layout.decode(layout.encode(entry)), Ok(entry));
            let within = chance.below(1 << layout.cluster_bits);
            let (_, len) = entry.part(within, layout.cluster_bits);
            assert!((1..=(1 << layout.cluster_bits) - within).contains(&len));
        }
        let mut bytes = vec![0; chance.below(600) as usize];
        for _ in 0..20 {
            let at = chance.below(600) as usize;
            strike(chance, &mut bytes, at);
        }
        let count = telling(chance) as u32;
        let _ = parse_table(&bytes, count);
        let of = Of {
            cluster_bytes: 1 << layout.cluster_bits,
            size_bytes: chance.next() >> 1,
        };
        let _ = parse_directory(&bytes, count, of);
    });
}

/// Words of all tables are struck; then the image is read, written, checked, repaired and written again.
#[test]
fn no_image_in_use_panics_or_hangs_and_a_repair_is_lasting() {
    let dir = tempfile::tempdir().expect("a directory");
    let images: Vec<Vec<u8>> = BASES.iter().map(|base| make(dir.path(), *base)).collect();
    let path = dir.path().join("image");
    run(3 << 40, |chance| {
        let which = chance.below(BASES.len() as u64) as usize;
        let base = BASES[which];
        let mut image = images[which].clone();
        for _ in 0..=chance.below(3) {
            let at = somewhere(chance, base, &images[which]);
            strike(chance, &mut image, at as usize);
        }
        if chance.below(8) == 0 {
            image.truncate(chance.below(image.len() as u64) as usize);
        }
        // A file made long by a number in it is not to be written out in full.
        std::fs::write(&path, &image).expect("written");
        let _ = outcome(&path, base);
        use_it(&path, base, chance, 30);
        let repaired = checked(&path, Repair::Everything);
        assert_eq!(checked(&path, Repair::Everything), repaired);
        use_it(&path, base, chance, 30);
    });
}

fn somewhere(chance: &mut Chance, base: Base, image: &[u8]) -> u64 {
    let small = chance.below(40);
    let at = match chance.below(10) {
        0 => At::Byte(chance.below(120)),
        1 => At::L1(small % 4),
        2..=4 => At::L2(small),
        5 => At::RefcountTable(small % 4),
        6 => At::RefcountBlock(small),
        7 if matches!(base, Base::Plain | Base::Old) => At::Snapshots(small * 2),
        8 if base == Base::Plain => At::BitmapDirectory(small),
        9 if base == Base::Plain => At::BitmapsExtension(small % 24),
        _ => At::Byte(chance.below(image.len() as u64)),
    };
    place(image, at)
}
