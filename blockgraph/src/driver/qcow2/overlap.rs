//! Writes of guest data that would hit metadata: an image in which a guest cluster is where a table is, is corrupt, and says
//! so from then on (QEMU's `overlap-check`).
//!
//! The rule: where metadata was when the image was first written is looked up without a lock, before every write. That may
//! be out of date; who is stopped by it asks again under the lock, where it is not.

use super::Qcow2;
use super::alloc::Run;
use super::check::read_snapshots;
use super::format::entry::DataIn;
use super::format::header::{Bitmaps, TableAt};
use super::image_file::ImageFile;
use super::meta::Meta;
use super::refcount::Lack;
use crate::io::Io;
use crate::node::Outcome;
use crate::units::Span;
use ring::Errno;

/// L2 entries and refcount table entries have other bits than those of an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// What writes are checked against. The default is QEMU's, `cached`: all but the L2 tables of snapshots, which would have to
/// be read for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlapChecks {
    /// The header.
    pub main_header: bool,
    /// The active L1 table.
    pub active_l1: bool,
    /// The L2 tables it refers to.
    pub active_l2: bool,
    /// The refcount table.
    pub refcount_table: bool,
    /// Refcount blocks.
    pub refcount_block: bool,
    /// The snapshot table.
    pub snapshot_table: bool,
    /// The L1 tables of snapshots.
    pub inactive_l1: bool,
    /// The L2 tables they refer to.
    pub inactive_l2: bool,
    /// The bitmap directory.
    pub bitmap_directory: bool,
}

impl Default for OverlapChecks {
    fn default() -> OverlapChecks {
        OverlapChecks {
            main_header: true,
            active_l1: true,
            active_l2: true,
            refcount_table: true,
            refcount_block: true,
            snapshot_table: true,
            inactive_l1: true,
            inactive_l2: false,
            bitmap_directory: true,
        }
    }
}

/// Ranges of the image file in order: first byte and the one past the last. None touches the next.
#[derive(Debug, Default)]
pub(crate) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    fn new(mut all: Vec<(u64, u64)>) -> Ranges {
        all.retain(|(at, end)| at < end);
        all.sort_unstable();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (at, end) in all {
            match ranges.last_mut() {
                Some(last) if at <= last.1 => last.1 = last.1.max(end),
                _ => ranges.push((at, end)),
            }
        }
        Ranges(ranges)
    }

    /// True if one of them has a byte of `len` bytes at `at`.
    pub(crate) fn hit(&self, at: u64, len: u64) -> bool {
        let next = self.0.partition_point(|(_, end)| *end <= at);
        let found = self.0.get(next);
        found.is_some_and(|(start, _)| *start < at.saturating_add(len))
    }
}

impl Qcow2 {
    /// Learns where metadata is that does not move while the image is open, and where the rest is now.
    pub(super) async fn load_overlaps(&self, io: &Io) -> Outcome {
        if self.geometry.layout().data == DataIn::DataFile {
            return Ok(());
        }
        let fixed = self.fixed_metadata(io).await?;
        let mut meta = self.meta();
        meta.fixed = fixed;
        let ranges = Ranges::new(meta.metadata(&self.writer.options.overlap_checks).collect());
        drop(meta);
        // The gate is opened once.
        let _ = self.writer.overlaps.set(ranges);
        Ok(())
    }

    /// The tables of snapshots and bitmaps.
    async fn fixed_metadata(&self, io: &Io) -> Result<Vec<(u64, u64)>, Errno> {
        let checks = self.writer.options.overlap_checks;
        let header = self.header();
        let mut ranges = Vec::new();
        if let (Bitmaps::Valid(at), true) = (header.bitmaps, checks.bitmap_directory) {
            ranges.push((at.at, at.at.saturating_add(at.len_bytes)));
        }
        if header.snapshots.count == 0 {
            return Ok(ranges);
        }
        let file = ImageFile::new(io, self.file(io)?);
        let read = read_snapshots(&file, &header).await;
        let (snapshots, len) = read.map_err(|_| Errno::IO)?;
        if checks.snapshot_table {
            ranges.push((header.snapshots.at, header.snapshots.at.saturating_add(len)));
        }
        for snapshot in snapshots {
            if checks.inactive_l1 {
                ranges.push(l1_range(snapshot.l1));
            }
            if checks.inactive_l2 {
                self.add_l2_tables(io, snapshot.l1, &mut ranges).await?;
            }
        }
        Ok(ranges)
    }

    async fn add_l2_tables(&self, io: &Io, l1: TableAt, ranges: &mut Vec<(u64, u64)>) -> Outcome {
        let cluster = self.geometry.cluster_bytes();
        let len = (u64::from(l1.count) * 8).min(super::geometry::L1_BYTES_MAX);
        if len == 0 {
            return Ok(());
        }
        let bytes = self.read_metadata(io, l1.at, len).await?;
        let words = bytes.as_chunks().0.iter();
        let tables = words.map(|word| u64::from_be_bytes(*word) & OFFSET);
        ranges.extend(tables.filter(|at| *at != 0).map(|at| (at, at + cluster)));
        Ok(())
    }

    /// May guest data be written there? Pure; a no may be out of date.
    pub(super) fn may_write(&self, host: u64, len: u64) -> bool {
        let ranges = self.writer.overlaps.get();
        !ranges.is_some_and(|ranges| ranges.hit(host, len))
    }

    /// Before guest data is written there. Errors: EIO, and the image is corrupt from now on.
    pub(super) async fn check_write(&self, io: &Io, host: u64, len: u64) -> Outcome {
        if self.may_write(host, len) {
            return Ok(());
        }
        let checks = &self.writer.options.overlap_checks;
        let hit = self.meta().has_metadata(checks, host, len);
        if hit {
            self.corrupt(io).await;
            return Err(Errno::IO);
        }
        Ok(())
    }

    /// Clusters that were handed out cannot be metadata: if they are, refcounts are wrong.
    pub(super) async fn check_run(&self, io: &Io, run: Run) -> Outcome {
        let bits = self.geometry.cluster_bits();
        self.check_write(io, run.first << bits, run.count << bits)
            .await
    }

    /// An L2 table that was given a cluster cannot be where other metadata is: if it is, refcounts are wrong. It is given up
    /// then, before anything is written to it.
    pub(super) fn check_table(&self, meta: &mut Meta, index: usize) -> Result<(), Lack> {
        let Some(at) = meta.new_tables.get(&index).map(|table| table.at) else {
            return Ok(());
        };
        let len = self.geometry.cluster_bytes();
        if self.may_write(at, len)
            || !meta.has_metadata(&self.writer.options.overlap_checks, at, len)
        {
            return Ok(());
        }
        meta.new_tables.remove(&index);
        Err(Lack::Corrupt)
    }

    /// The same for a span of the node that has the data.
    pub(super) async fn check_span(&self, io: &Io, span: Span) -> Outcome {
        self.check_write(io, span.at, span.len).await
    }
}

fn l1_range(l1: TableAt) -> (u64, u64) {
    (l1.at, l1.at.saturating_add(u64::from(l1.count) * 8))
}

impl Meta {
    /// Is any of it in `len` bytes at `at`?
    fn has_metadata(&self, checks: &OverlapChecks, at: u64, len: u64) -> bool {
        let beyond = at.saturating_add(len);
        let mut ranges = self.metadata(checks);
        ranges.any(|(from, end)| from < beyond && at < end)
    }

    /// Where metadata is, as far as it is checked: first byte and the one past the last. Whole clusters, as in QEMU: what
    /// shares a cluster with a table was never handed out either.
    fn metadata(&self, checks: &OverlapChecks) -> impl Iterator<Item = (u64, u64)> + '_ {
        let cluster = 1u64 << self.header.cluster_bits;
        let whole = move |at: u64| (at, at.saturating_add(cluster));
        let (table_at, table_len) = self.refs.table_span();
        let one = [
            checks.main_header.then_some((0, cluster)),
            checks.active_l1.then_some(l1_range(self.header.l1)),
            checks
                .refcount_table
                .then_some((table_at, table_at.saturating_add(table_len))),
        ];
        let l2 = self.l1.iter().filter(|_| checks.active_l2);
        let blocks = self.refs.table().iter().filter(|_| checks.refcount_block);
        let many = l2.chain(blocks).map(|word| word & OFFSET);
        let many = many.filter(|at| *at != 0).map(whole).collect::<Vec<_>>();
        one.into_iter()
            .flatten()
            .chain(many)
            .chain(self.fixed.iter().copied())
            .filter(|(at, end)| at < end)
            .map(move |(at, end)| {
                let end = end.checked_next_multiple_of(cluster).unwrap_or(u64::MAX);
                (at & !(cluster - 1), end)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_hit_by_their_bytes_and_no_others() {
        let ranges = Ranges::new(vec![(100, 200), (0, 10), (150, 300), (300, 310), (5, 5)]);
        assert_eq!(ranges.0, [(0, 10), (100, 310)]);
        assert!(ranges.hit(0, 1) && ranges.hit(9, 1) && ranges.hit(50, 51));
        assert!(ranges.hit(305, 100) && ranges.hit(0, u64::MAX));
        assert!(!ranges.hit(10, 90) && !ranges.hit(310, 1));
    }
}
