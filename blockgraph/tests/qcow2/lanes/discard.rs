//! What the host is told of clusters that changes of the whole have freed, counted on the disk.

use super::support::{Bench, sim, span};
use blockgraph::driver::qcow2::format::snapshot_table::Taken;
use blockgraph::driver::qcow2::snapshot::NewSnapshot;
use blockgraph::driver::qcow2::{Options, PassDiscard};
use blockgraph::request::Prealloc;
use blockgraph::{Kind, Mode, NodeId};
use ring::sim::{Disk, Event, Kind as Host, Weather};

const CLUSTER: u64 = 4096;
const CLUSTERS: u64 = 64;

struct Image {
    disk: Disk,
    bench: Bench,
    node: NodeId,
}

impl Image {
    fn new(pass_discard: PassDiscard) -> Image {
        let image = sim::image("cluster_size=4096", CLUSTERS * CLUSTER);
        let disk = sim::disk(image, 16 << 20, 1, Weather::CALM);
        let (mut bench, file) = sim::bench(&disk, Mode::Fast);
        let mut options = Options::default();
        options.write.pass_discard = pass_discard;
        let node = sim::open(&mut bench, file, options);
        Image { disk, bench, node }
    }

    fn fill(&mut self, byte: u8) {
        let bytes = vec![byte; (CLUSTERS * CLUSTER) as usize];
        assert_eq!(self.bench.write(self.node, 0, &bytes), Ok(()));
        let flushed = self.bench.plain(self.node, Kind::Flush, span(0, 0));
        assert_eq!(flushed, Ok(()));
    }

    fn create(&mut self, name: &str) {
        let (name, taken) = (name.to_owned(), Taken::default());
        let new = NewSnapshot { name, taken };
        let made = sim::with(&mut self.bench, self.node, async move |image, io| {
            image.create_snapshot(io, new).await
        });
        made.expect("made");
    }

    fn delete(&mut self, name: &'static str) {
        let deleted = sim::with(&mut self.bench, self.node, async move |image, io| {
            image.delete_snapshot(io, name).await
        });
        deleted.expect("deleted");
    }

    fn resize(&mut self, size_bytes: u64) {
        let resized = sim::with(&mut self.bench, self.node, async move |image, io| {
            image.resize(io, size_bytes, Prealloc::Off).await
        });
        resized.expect("resized");
    }

    /// Bytes that holes were made of so far.
    fn holes(&self) -> u64 {
        let log = self.disk.log().into_iter();
        let holes = log.filter_map(|event| match event {
            Event::CarriedOut(seen) if seen.kind == Host::Punch => Some(seen.len_bytes),
            _ => None,
        });
        holes.sum()
    }
}

/// A disk written, kept and written again: what the host is told when the snapshot goes.
fn told_of_a_snapshot(pass_discard: PassDiscard) -> u64 {
    let mut image = Image::new(pass_discard);
    image.fill(1);
    image.create("kept");
    image.fill(2);
    let before = image.holes();
    image.delete("kept");
    let all = (CLUSTERS * CLUSTER) as usize;
    assert!(image.bench.read(image.node, 0, all) == vec![2; all]);
    image.holes() - before
}

#[test]
fn a_deleted_snapshot_s_clusters_are_discarded_unless_that_is_turned_off() {
    let on = PassDiscard::default();
    assert!(on.snapshot, "QEMU's default");
    let told = told_of_a_snapshot(on);
    // Its clusters and tables; not much more.
    let least = CLUSTERS * CLUSTER;
    assert!((least..least + 8 * CLUSTER).contains(&told), "{told}");
    let off = PassDiscard {
        snapshot: false,
        ..on
    };
    assert_eq!(told_of_a_snapshot(off), 0);
}

#[test]
fn what_a_snapshot_still_has_is_not_discarded_with_another() {
    let mut image = Image::new(PassDiscard::default());
    image.fill(1);
    image.create("one");
    image.create("two");
    image.fill(2);
    let before = image.holes();
    image.delete("one");
    let told = image.holes() - before;
    assert!(told < 8 * CLUSTER, "tables alone: {told}");
}

#[test]
fn a_smaller_disk_s_clusters_are_discarded_whatever_is_asked() {
    let off = PassDiscard {
        request: false,
        snapshot: false,
        other: false,
    };
    let mut image = Image::new(off);
    image.fill(1);
    image.resize(CLUSTERS / 2 * CLUSTER);
    assert_eq!(image.holes(), CLUSTERS / 2 * CLUSTER);
}
