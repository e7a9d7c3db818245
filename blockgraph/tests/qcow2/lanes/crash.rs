//! What a power cut leaves of a world: opened, checked, compared, written over, and now and then shown to qemu-img.

use super::admin::{Admin, PREALLOCATIONS, names, snapshot};
use super::support::sectors::{SECTOR, Version, stamp, versions};
use super::support::sim::{self, BACKING, DATA, FILE, Verdict};
use super::support::{Bench, writes};
use super::world::{BELOW, ROOM, World};
use blockgraph::driver::qcow2::Options;
use blockgraph::{Mode, NodeId};
use ring::sim::{Images, Weather};

/// What was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub images: u64,
    /// While a change of the image as a whole was under way.
    pub during: u64,
    /// Whose last writer was within such a change when the power went.
    pub dirty: u64,
    pub shown_to_qemu: u64,
    /// With a power cut in the repair, too.
    pub cut_again: u64,
    /// Changes of the size that were made.
    pub resized: u64,
}

/// A version that no request has.
const LATER: Version = 1 << 60;

/// Loses power, in one of the ways there are, and looks at what is left.
pub fn crash(world: &mut World, seen: &mut Seen) {
    seen.images += 1;
    seen.during += u64::from(world.admin.is_some());
    let seed = world.chance.next();
    let mut files = world.disk.crash(seed);
    let to_qemu = seen.images.is_multiple_of(20);
    // Bit 0 of the incompatible features, which version 2 does not have.
    let is_dirty = |files: &Images| files[&FILE][7] == 3 && files[&FILE][79] & 1 == 1;
    let was_dirty = is_dirty(&files);
    seen.dirty += u64::from(was_dirty);
    if was_dirty && seen.dirty.is_multiple_of(3) {
        seen.cut_again += 1;
        files = sim::cut_while_opening(files, ROOM, seed % 80, seed);
    }
    if to_qemu {
        seen.shown_to_qemu += 1;
        show(world, &files, is_dirty(&files) || files[&FILE][7] == 2);
    }
    let dirty = is_dirty(&files);
    let version_3 = files[&FILE][7] == 3;
    files_beside_are_right(world, &files);
    let left = sim::disk(files, ROOM, seed, Weather::CALM);
    let (mut bench, file) = sim::bench(&left, Mode::Fast);
    let report = sim::look(&mut bench, file);
    let what = &world.name;
    let fine = sim::refcounts_are_high_enough(&report);
    assert!(
        fine || (dirty && world.lazy),
        "{what}: {:?}",
        report.findings
    );
    // Flags that do not fit are a matter of a moment, in which version 3 has the dirty bit.
    assert!(
        dirty || !version_3 || report.corruptions == 0,
        "{what}: {:?}",
        report.findings
    );
    let node = sim::open(&mut bench, file, Options::default());
    if dirty {
        let report = sim::look(&mut bench, file);
        assert!(report.is_clean(), "{what}: repaired: {:?}", report.findings);
        if to_qemu {
            let (verdict, said) = sim::ask_qemu(&left.images());
            assert_eq!(verdict, Verdict::Clean, "{what}: repaired: {said}");
        }
    }
    let there = snapshots_are_there(world, &mut bench, node);
    active_is_right(world, &mut bench, node);
    if seed.is_multiple_of(3) || !version_3 {
        write_over(&mut bench, node);
        assert_eq!(writes::close(&mut bench, node), Ok(()), "{what}");
        let report = sim::look(&mut bench, file);
        assert!(
            sim::refcounts_are_high_enough(&report),
            "{what}: written over: {:?}",
            report.findings
        );
        assert!(
            !version_3 || report.corruptions == 0,
            "{what}: {:?}",
            report.findings
        );
    }
    if there.is_empty() && seed % 3 == 1 {
        grow(&mut bench, node, seed);
    }
    for name in there {
        snapshot_is_right(world, &name, &snapshot(&left, &name, &world.name));
    }
    if to_qemu {
        show(world, &left.images(), !version_3);
    }
}

/// The real qemu-img finds leaks at worst, or flags where they may be wrong.
fn show(world: &World, files: &Images, flags: bool) {
    let (verdict, said) = sim::ask_qemu(files);
    if verdict != Verdict::Errors {
        return;
    }
    let errors = said.split("\\n").filter(|line| line.starts_with("ERROR"));
    let others: Vec<&str> = errors
        .filter(|line| !line.contains("OFLAG_COPIED"))
        .collect();
    let behind = others
        .iter()
        .all(|line| world.lazy && line.contains("refcount="));
    assert!(flags && behind, "{}: {said}", world.name);
}

/// Those that were made, and not one that was deleted; of what was under way, one or the other.
pub fn snapshots_are_there(world: &World, bench: &mut Bench, node: NodeId) -> Vec<String> {
    let there = names(bench, node);
    let under_way = world.admin.as_ref().map(|(admin, _)| admin);
    for kept in &world.kept {
        let may_be_gone = under_way == Some(&Admin::Delete(kept.name.clone()));
        assert!(
            may_be_gone || there.contains(&kept.name),
            "{}: {} is gone",
            world.name,
            kept.name
        );
    }
    for name in &there {
        let is_kept = world.kept.iter().any(|kept| kept.name == *name);
        let is_new = under_way == Some(&Admin::Create(name.clone()));
        assert!(is_kept || is_new, "{}: {name} is still there", world.name);
    }
    there
}

pub fn snapshot_is_right(world: &World, name: &str, content: &[Version]) {
    match world.kept.iter().find(|kept| kept.name == name) {
        Some(kept) => {
            let wrong = kept.content.iter().zip(content).position(|(a, b)| a != b);
            assert_eq!(wrong, None, "{}: snapshot {name}", world.name);
            assert_eq!(kept.content.len(), content.len());
        }
        None => {
            let (_, begun) = world.admin.as_ref().expect("under way");
            world.is_one(content, (*begun, world.now));
        }
    }
}

/// What was flushed is there, and whatever is there was written there.
pub fn active_is_right(world: &World, bench: &mut Bench, node: NodeId) {
    let size = bench.current.get().info(node).expect("open").size_bytes as usize;
    let found = versions(0, &bench.read(node, 0, size), &world.name);
    let to = match &world.admin {
        Some((Admin::Resize(to, _), _)) => *to,
        _ => world.sectors.len(),
    };
    let len = found.len();
    assert!(
        len == to || len == world.sectors.len(),
        "{}: {len} sectors",
        world.name
    );
    for (n, version) in found.into_iter().enumerate() {
        let may_be = match world.sectors.get(n) {
            Some(sector) => sector.may_be_left(world.flushed),
            None => vec![0],
        };
        assert!(
            may_be.contains(&version),
            "{}: sector {n} is {version}, not of {may_be:?}",
            world.name
        );
    }
}

/// Nobody has written to what lies below; a raw data file is the guest's disk, as far as that goes.
pub fn files_beside_are_right(world: &World, files: &Images) {
    if let Some(below) = files.get(&BACKING) {
        let found = versions(0, below, &world.name);
        assert!(found == vec![BELOW; world.below], "{}: below", world.name);
    }
    let raw = world.name.contains("data_file_raw=on");
    let Some(data) = files.get(&DATA).filter(|_| raw) else {
        return;
    };
    let found = versions(0, data, &world.name);
    for (n, (version, sector)) in found.into_iter().zip(&world.sectors).enumerate() {
        let may_be = sector.may_be_left(world.flushed);
        assert!(
            may_be.contains(&version),
            "{}: sector {n} of the data file is {version}, not of {may_be:?}",
            world.name
        );
    }
}

/// Whatever a change of the size has left beyond the end of the disk, a larger disk does not show it.
fn grow(bench: &mut Bench, node: NodeId, seed: u64) {
    let before = bench.current.get().info(node).expect("open").size_bytes;
    let new = (1 + seed as usize / 3 % 1000) * SECTOR;
    let how = PREALLOCATIONS[seed as usize / 3000 % 4];
    let grown = sim::with(bench, node, async move |image, io| {
        image.resize(io, before + new as u64, how).await
    });
    assert_eq!(grown, Ok(()));
    let found = bench.read(node, before, new);
    let wrong = found.iter().position(|byte| *byte != 0);
    assert_eq!(wrong, None, "{how:?} from {before} by {new}");
}

/// Everything is written: what a snapshot has is not touched by it.
fn write_over(bench: &mut Bench, node: NodeId) {
    let size = bench.current.get().info(node).expect("open").size_bytes as usize;
    let bytes: Vec<u8> = (0..size / SECTOR).flat_map(|n| stamp(n, LATER)).collect();
    assert_eq!(bench.write(node, 0, &bytes), Ok(()));
    assert!(bench.read(node, 0, size) == bytes);
}
