//! Everything in an image that refers to a host cluster, walked once per window of counters.
//!
//! The rule: a table that many entries refer to is read once and counted as often as it is referred to, so that a small
//! image cannot make a long walk; and what is remembered meanwhile is bounded.

use super::counts::Counts;
use super::image::{Image, read_words};
use super::{Finding, Report};
use crate::driver::qcow2::format::bitmap_dir::TableEntry;
use crate::driver::qcow2::format::entry::{DataIn, L1Entry, L2Entry};
use crate::driver::qcow2::format::header::{Bitmaps, TableAt, Version};
use ring::Errno;
use std::collections::BTreeMap;

/// L2 tables remembered before they are read.
const BATCH_MAX: usize = 1 << 22;
/// Words of a table that are read at once.
const STEP_WORDS: u64 = 1 << 17;

/// Whose tables they are: the figures are about the active ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Active,
    Snapshots,
}

/// Do the refcount structures themselves count?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refcounts {
    /// As they are.
    Counted,
    /// They are about to be replaced.
    Ignored,
}

/// Where a reference leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    InFile,
    PastEnd,
}

/// One walk.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    image: &'a Image,
    pub(super) counts: Counts,
    report: &'a mut Report,
    /// Findings and figures are taken once, not once per window.
    first: bool,
    batch: Vec<(u64, u32)>,
    next_host: u64,
}

impl<'a> Walk<'a> {
    pub(super) fn new(image: &'a Image, counts: Counts, report: &'a mut Report) -> Walk<'a> {
        Walk {
            first: counts.from() == 0,
            image,
            counts,
            report,
            batch: Vec::new(),
            next_host: 0,
        }
    }

    /// Counts it all, and gives the counters back.
    pub(super) async fn run(mut self, refcounts: Refcounts) -> Result<Counts, Errno> {
        let header = &self.image.header;
        self.region(0, header.cluster_bytes(), 1);
        self.l1(header.l1, 1, Whose::Active).await?;
        self.flush(Whose::Active).await?;
        for (table, times) in self.snapshot_tables() {
            self.l1(table, times, Whose::Snapshots).await?;
        }
        for table in &self.image.extra.l1 {
            self.l1(*table, 1, Whose::Snapshots).await?;
        }
        for (at, len) in &self.image.extra.regions {
            self.region(*at, *len, 1);
        }
        self.flush(Whose::Snapshots).await?;
        self.region(header.snapshots.at, self.image.snapshots_bytes, 1);
        self.bitmaps().await?;
        if refcounts == Refcounts::Counted {
            self.refcount_structures().await?;
        }
        Ok(self.counts)
    }

    fn find(&mut self, finding: Finding) {
        if self.first {
            self.report.found(finding);
        }
    }

    /// References from `at` on; a region that ends a cluster or more past the end of the file is none.
    fn region(&mut self, at: u64, len: u64, times: u32) -> Place {
        if len == 0 {
            return Place::InFile;
        }
        let cluster = self.image.header.cluster_bytes();
        let end = at.saturating_add(len);
        if end.saturating_sub(self.image.file_bytes) >= cluster {
            self.find(Finding::PastEnd { at, len });
            return Place::PastEnd;
        }
        self.counts.add(at / cluster, (end - 1) / cluster, times);
        Place::InFile
    }

    /// The snapshots' L1 tables, equal ones together.
    fn snapshot_tables(&mut self) -> BTreeMap<TableAt, u32> {
        let mut tables = BTreeMap::new();
        let cluster = self.image.header.cluster_bytes();
        for (number, snapshot) in self.image.snapshots.iter().enumerate() {
            if snapshot.size_bytes.is_none() && self.image.header.version == Version::V3 {
                self.find(Finding::SnapshotIncomplete(number));
            }
            match snapshot.check_l1(cluster) {
                Ok(()) => *tables.entry(snapshot.l1).or_insert(0u32) += 1,
                Err(error) => self.find(Finding::SnapshotTable(number, error)),
            }
        }
        tables
    }

    async fn l1(&mut self, table: TableAt, times: u32, whose: Whose) -> Result<(), Errno> {
        let entries = u64::from(table.count);
        self.region(table.at, entries * 8, times);
        let mut done = 0;
        while done < entries {
            let step = (entries - done).min(STEP_WORDS);
            let words = read_words(&self.image.file, table.at + done * 8, step as usize).await?;
            for (index, word) in (done..).zip(words) {
                match L1Entry::decode(word, self.image.header.cluster_bits) {
                    Ok(L1Entry::Absent) => {}
                    Ok(L1Entry::Table { at, .. }) => self.batch.push((at, times)),
                    Err(error) => self.find(Finding::L1Entry(index, error)),
                }
            }
            if self.batch.len() >= BATCH_MAX {
                self.flush(whose).await?;
            }
            done += step;
        }
        Ok(())
    }

    /// Reads the L2 tables that are remembered.
    async fn flush(&mut self, whose: Whose) -> Result<(), Errno> {
        let batch = merged(std::mem::take(&mut self.batch));
        for (at, times) in batch {
            if self.region(at, self.image.header.cluster_bytes(), times) == Place::InFile {
                self.l2(at, times, whose).await?;
            }
        }
        Ok(())
    }

    async fn l2(&mut self, at: u64, times: u32, whose: Whose) -> Result<(), Errno> {
        let image = self.image;
        if at >= image.file_bytes {
            return Ok(());
        }
        let layout = image.header.entry_layout();
        let bytes = image
            .file
            .read(at, image.header.cluster_bytes() as usize)
            .await?;
        let words = layout.words.count() as usize;
        self.next_host = 0;
        for entry in bytes.chunks_exact(8 * words) {
            let Some(pair) = entry_words(entry) else {
                break;
            };
            if pair == [0, 0] {
                continue;
            }
            match layout.decode(pair) {
                Ok(entry) => self.entry(entry, times, whose),
                Err(error) => self.find(Finding::L2Entry(at, error)),
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: L2Entry, times: u32, whose: Whose) {
        let header = &self.image.header;
        let (cluster, data) = (header.cluster_bytes(), header.entry_layout().data);
        if let L2Entry::Compressed { host, len_bytes } = entry {
            self.figures(whose, None, cluster);
            self.region(host, len_bytes, times);
        }
        if let Some(host) = entry.host_cluster() {
            self.figures(whose, Some(host), cluster);
            if data == DataIn::Image {
                self.region(host, cluster, times);
            }
        }
    }

    /// Clusters in use, and how many of them do not follow the one before.
    fn figures(&mut self, whose: Whose, host: Option<u64>, cluster: u64) {
        if !self.first || whose != Whose::Active {
            return;
        }
        self.report.allocated_clusters += 1;
        match host {
            None => {
                self.report.compressed_clusters += 1;
                // A compressed cluster counts as one that does not follow.
                self.report.fragmented_clusters += 1;
            }
            Some(host) => {
                if self.next_host != 0 && host != self.next_host {
                    self.report.fragmented_clusters += 1;
                }
                self.next_host = host + cluster;
            }
        }
    }

    async fn bitmaps(&mut self) -> Result<(), Errno> {
        let image = self.image;
        if let Bitmaps::Valid(at) = image.header.bitmaps {
            self.region(at.at, at.len_bytes, 1);
        }
        let mut tables = BTreeMap::new();
        for bitmap in &image.bitmaps {
            let table = (bitmap.table_at, u64::from(bitmap.table_entries));
            *tables.entry(table).or_insert(0u32) += 1;
        }
        for ((at, entries), times) in tables {
            self.bitmap_table(at, entries, times).await?;
        }
        Ok(())
    }

    async fn bitmap_table(&mut self, at: u64, entries: u64, times: u32) -> Result<(), Errno> {
        let cluster = self.image.header.cluster_bytes();
        self.region(at, entries * 8, times);
        let mut done = 0;
        while done < entries {
            let step = (entries - done).min(STEP_WORDS);
            for word in read_words(&self.image.file, at + done * 8, step as usize).await? {
                match TableEntry::decode(word, cluster) {
                    Ok(TableEntry::At(at)) => {
                        self.region(at, cluster, times);
                    }
                    Ok(TableEntry::Zeroes | TableEntry::Ones) => {}
                    Err(error) => self.find(Finding::Bitmap(error)),
                }
            }
            done += step;
        }
        Ok(())
    }

    async fn refcount_structures(&mut self) -> Result<(), Errno> {
        let image = self.image;
        let table = image.header.refcount_table;
        let cluster = image.header.cluster_bytes();
        self.region(table.at, u64::from(table.count) * cluster, 1);
        for (index, word) in (0..).zip(image.refcount_table().await?) {
            match block_at(word, cluster) {
                Ok(None) => {}
                Ok(Some(at)) if at >= image.file_bytes => {
                    self.find(Finding::BlockOutside(index));
                }
                Ok(Some(at)) => {
                    self.region(at, cluster, 1);
                }
                Err(()) => self.find(Finding::BlockEntry(index, word)),
            }
        }
        Ok(())
    }
}

/// Where the refcount table's word says a block is (qcow2.txt: "Bits 9 - 63 of the offset into the image file").
pub(super) fn block_at(word: u64, cluster_bytes: u64) -> Result<Option<u64>, ()> {
    match word {
        0 => Ok(None),
        at if at.is_multiple_of(cluster_bytes) && at <= i64::MAX as u64 => Ok(Some(at)),
        _ => Err(()),
    }
}

/// The words of an L2 entry, the second being 0 where there is one only.
pub(super) fn entry_words(entry: &[u8]) -> Option<[u64; 2]> {
    let word = |at: usize| Some(u64::from_be_bytes(entry.get(at..at + 8)?.try_into().ok()?));
    Some([word(0)?, word(8).unwrap_or(0)])
}

/// Tables that are there more than once are put together; without any, the order stays.
pub(super) fn merged(batch: Vec<(u64, u32)>) -> Vec<(u64, u32)> {
    let mut sorted = batch.clone();
    sorted.sort_unstable_by_key(|(at, _)| *at);
    let count = sorted.len();
    sorted.dedup_by(|again, kept| {
        let same = again.0 == kept.0;
        if same {
            kept.1 = kept.1.saturating_add(again.1);
        }
        same
    });
    if sorted.len() == count { batch } else { sorted }
}
