//! Writes of guest data that would hit metadata: an image in which a guest cluster is where a table is, is corrupt, and says
//! so from then on (QEMU's `overlap-check`).
//!
//! The rule: where metadata is, is looked up without a lock before every write. That is never less than there is, but may be
//! more (a table that has moved away); who is stopped by it asks again under the lock, where it is exact.

mod ranges;
mod section;

pub(crate) use ranges::Ranges;
pub(crate) use section::{Region, Section};

use super::Qcow2;
use super::alloc::Run;
use super::check::read_snapshots;
use super::damage::Damage;
use super::format::entry::DataIn;
use super::format::header::{Bitmaps, TableAt};
use super::image_file::ImageFile;
use super::meta::Meta;
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

impl Qcow2 {
    /// Learns where metadata is: what moves only when the image is restructured, and where the rest is now.
    pub(super) async fn load_overlaps(&self, io: &Io) -> Outcome {
        if self.geometry.layout().data == DataIn::DataFile {
            return Ok(());
        }
        let fixed = self.fixed_metadata(io).await?;
        let mut meta = self.meta();
        meta.fixed = fixed;
        meta.take_added();
        self.list_metadata(&meta);
        Ok(())
    }

    fn list_metadata(&self, meta: &Meta) {
        let checks = &self.writer.options.overlap_checks;
        let all = meta.metadata(checks);
        let all = all.map(|region| (region.from, region.end)).collect();
        self.writer.overlaps.replace(all);
    }

    /// The tables of snapshots and bitmaps.
    async fn fixed_metadata(&self, io: &Io) -> Result<Vec<Region>, Errno> {
        let checks = self.writer.options.overlap_checks;
        let header = self.header();
        let mut regions = Vec::new();
        if header.snapshots.count > 0 {
            let file = ImageFile::new(io, self.file(io)?);
            let read = read_snapshots(&file, &header).await;
            let (snapshots, len) = read.map_err(|_| Errno::IO)?;
            regions.push(Region::new(
                Section::SnapshotTable,
                header.snapshots.at,
                len,
            ));
            let tables = snapshots.iter().map(|snapshot| snapshot.l1);
            regions.extend(tables.clone().map(|l1| l1_region(Section::InactiveL1, l1)));
            if checks.inactive_l2 {
                for l1 in tables {
                    self.add_l2_tables(io, l1, &mut regions).await?;
                }
            }
        }
        if let Bitmaps::Valid(at) = header.bitmaps {
            regions.push(Region::new(Section::BitmapDirectory, at.at, at.len_bytes));
        }
        Ok(regions)
    }

    async fn add_l2_tables(&self, io: &Io, l1: TableAt, regions: &mut Vec<Region>) -> Outcome {
        let cluster = self.geometry.cluster_bytes();
        let len = (u64::from(l1.count) * 8).min(super::geometry::L1_BYTES_MAX);
        if len == 0 {
            return Ok(());
        }
        let bytes = self.read_metadata(io, l1.at, len).await?;
        let words = bytes.as_chunks().0.iter();
        let tables = words.map(|word| u64::from_be_bytes(*word) & OFFSET);
        let tables = tables.filter(|at| *at != 0);
        regions.extend(tables.map(|at| Region::new(Section::InactiveL2, at, cluster)));
        Ok(())
    }

    /// May guest data be written there? Pure; a no may be out of date.
    pub(super) fn may_write(&self, host: u64, len: u64) -> bool {
        !self.writer.overlaps.hit(host, len)
    }

    /// Before guest data is written there. Errors: EIO, and the image is corrupt from now on.
    pub(super) async fn check_write(&self, io: &Io, host: u64, len: u64) -> Outcome {
        if self.may_write(host, len) {
            return Ok(());
        }
        let checks = &self.writer.options.overlap_checks;
        let found = self.meta().sections_at(checks, host, len).next();
        match found {
            None => Ok(()),
            Some(section) => {
                let place = Span { at: host, len };
                self.corrupt(io, Damage::overlap(section, place)).await;
                Err(Errno::IO)
            }
        }
    }

    /// Clusters that were handed out cannot be metadata: if they are, refcounts are wrong.
    pub(super) async fn check_run(&self, io: &Io, run: Run) -> Outcome {
        let bits = self.geometry.cluster_bits();
        self.check_write(io, run.first << bits, run.count << bits)
            .await
    }

    /// The same for a span of the node that has the data.
    pub(super) async fn check_span(&self, io: &Io, span: Span) -> Outcome {
        self.check_write(io, span.at, span.len).await
    }

    /// Takes up the metadata that was given clusters since the last call, before the lock is let go. If it is where other
    /// metadata is, refcounts are wrong: nothing is written any more, so nothing is overwritten.
    pub(super) fn note_added(&self, meta: &mut Meta) -> Result<(), Damage> {
        let added = meta.take_added();
        if added.is_empty() || self.geometry.layout().data == DataIn::DataFile {
            return Ok(());
        }
        let checks = &self.writer.options.overlap_checks;
        for region in added {
            if let Some(damage) = self.conflict(meta, region) {
                self.shut();
                return Err(damage);
            }
            if region.section.is_checked(checks) {
                self.writer.overlaps.insert(region.from, region.end);
            }
        }
        Ok(())
    }

    /// Is other metadata where that is?
    pub(super) fn conflict(&self, meta: &Meta, region: Region) -> Option<Damage> {
        let (at, len) = (region.from, region.end - region.from);
        if self.may_write(at, len) {
            return None;
        }
        // It is there itself, once.
        let found = meta.sections_at(&self.writer.options.overlap_checks, at, len);
        let found: Vec<Section> = found.collect();
        let own = found.iter().position(|section| *section == region.section);
        let mut found = found.into_iter().enumerate();
        let (_, with) = found.find(|(index, _)| Some(*index) != own)?;
        Some(Damage::overlap(with, Span { at, len }))
    }

    /// Metadata has moved away from somewhere.
    pub(super) fn note_left(&self, meta: &Meta) {
        if self.geometry.layout().data == DataIn::Image {
            self.list_metadata(meta);
        }
    }
}

fn l1_region(section: Section, l1: TableAt) -> Region {
    Region::new(section, l1.at, u64::from(l1.count) * 8)
}

impl Meta {
    /// What metadata there is in `len` bytes at `at`.
    fn sections_at(
        &self,
        checks: &OverlapChecks,
        at: u64,
        len: u64,
    ) -> impl Iterator<Item = Section> {
        let beyond = at.saturating_add(len);
        let regions = self.metadata(checks);
        let found = regions.filter(move |region| region.from < beyond && at < region.end);
        found.map(|region| region.section)
    }

    /// Where metadata is, as far as it is checked, in the order in which QEMU looks. Whole clusters, as there: what shares a
    /// cluster with a table was never handed out either.
    fn metadata(&self, checks: &OverlapChecks) -> impl Iterator<Item = Region> {
        let cluster = 1u64 << self.header.cluster_bits;
        let (table_at, table_len) = self.refs.table_span();
        let one = |section, at, len| std::iter::once(Region::new(section, at, len));
        let many = move |section, words: &[u64]| {
            let offsets = words.iter().map(|word| word & OFFSET);
            let offsets = offsets.filter(|at| *at != 0);
            let regions = offsets.map(|at| Region::new(section, at, cluster));
            regions.collect::<Vec<_>>()
        };
        let new_tables: Vec<u64> = self.new_tables.values().map(|table| table.at).collect();
        let checks = *checks;
        one(Section::Header, 0, cluster)
            .chain([l1_region(Section::ActiveL1, self.header.l1)])
            .chain(many(Section::ActiveL2, &self.l1))
            .chain(many(Section::ActiveL2, &new_tables))
            .chain(one(Section::RefcountTable, table_at, table_len))
            .chain(many(Section::RefcountBlock, self.refs.table()))
            .chain(self.fixed.iter().copied())
            .filter(move |region| region.section.is_checked(&checks) && region.from < region.end)
            .map(move |region| region.whole(cluster))
    }
}
