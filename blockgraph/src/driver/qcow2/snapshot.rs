//! Internal snapshots: listed, created, applied, deleted.
//!
//! The rule: a snapshot is another L1 table; what it shares with the disk is kept apart by refcounts alone, so every change
//! of the table of snapshots goes through `restructure.rs`.

use super::Qcow2;
use super::check::{CheckError, read_snapshots};
use super::format::entry::{DataIn, L1Entry};
use super::format::header::{L1_BYTES_MAX, SNAPSHOTS_MAX, TableAt};
use super::format::snapshot_table::{Snapshot, SnapshotError, Taken, encode_table};
use super::image_file::ImageFile;
use super::meta::Why;
use super::restructure::{Plan, Touched};
use crate::io::Io;
use ring::Errno;

/// Where the header tells of snapshots: their number, and the offset of their table.
const SNAPSHOTS_AT: u64 = 60;
/// Where it tells of the disk: its size, the encryption, the L1 table's length and offset.
pub(super) const DISK_AT: u64 = 24;

/// Why a snapshot cannot be had, made, applied or deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotFailure {
    /// Neither an id nor a name.
    #[error("snapshot not found")]
    NotFound,
    /// As many as there may be.
    #[error("too many snapshots")]
    TooMany,
    /// Names are at most 65535 bytes.
    #[error("the snapshot's name is too long")]
    LongName,
    /// The data file holds the disk as it is now and nothing else.
    #[error("internal snapshots are not supported with an external data file")]
    DataFile,
    /// What bitmaps say of the disk would be wrong.
    #[error("Device has active dirty bitmaps")]
    Bitmaps,
    /// A snapshot's table.
    #[error(transparent)]
    Table(#[from] SnapshotError),
    /// The image.
    #[error(transparent)]
    Image(#[from] CheckError),
}

impl From<Errno> for SnapshotFailure {
    fn from(errno: Errno) -> SnapshotFailure {
        SnapshotFailure::Image(CheckError::File(errno))
    }
}

/// A snapshot to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSnapshot {
    /// What its user calls it.
    pub name: String,
    /// When.
    pub taken: Taken,
}

impl Qcow2 {
    /// The snapshots, in the order of their table.
    pub async fn snapshots(&self, io: &Io) -> Result<Vec<Snapshot>, SnapshotFailure> {
        let file = ImageFile::new(io, self.file(io)?);
        let header = self.header();
        Ok(read_snapshots(&file, &header).await?.0)
    }

    /// Keeps the disk as it is now; returns the snapshot's id. Errors: see [`SnapshotFailure`]; the image is then as it was.
    pub async fn create_snapshot(
        &self,
        io: &Io,
        new: NewSnapshot,
    ) -> Result<String, SnapshotFailure> {
        self.may_have_snapshots()?;
        if new.name.len() > usize::from(u16::MAX) {
            return Err(SnapshotFailure::LongName);
        }
        let still = self.still(io, Touched::Metadata).await?;
        let mut table = self.snapshots(io).await?;
        if table.len() >= SNAPSHOTS_MAX as usize {
            return Err(SnapshotFailure::TooMany);
        }
        let mut plan = self.new_plan(io, Why::Snapshot)?;
        let words: Vec<u64> = self.meta().l1.iter().map(|word| uncopied(*word)).collect();
        let id = new_id(&table);
        table.push(Snapshot {
            id: id.clone().into_bytes(),
            name: new.name.into_bytes(),
            l1: plan.l1(&words),
            vm_state_bytes: 0,
            size_bytes: Some(self.disk_bytes()),
            taken: new.taken,
            extra: Vec::new(),
        });
        switch_snapshots(&mut plan, &table)?;
        self.restructure(io, &still, plan).await?;
        Ok(id)
    }

    /// Makes the disk what it was; what it is now is lost, but for snapshots. `which` is an id or a name. Errors: see
    /// [`SnapshotFailure`].
    pub async fn apply_snapshot(&self, io: &Io, which: &str) -> Result<(), SnapshotFailure> {
        self.may_have_snapshots()?;
        if !self.bitmaps().is_empty() {
            return Err(SnapshotFailure::Bitmaps);
        }
        let still = self.still(io, Touched::Disk).await?;
        let table = self.snapshots(io).await?;
        let snapshot = &table[find(&table, which).ok_or(SnapshotFailure::NotFound)?];
        let file = ImageFile::new(io, self.file(io)?);
        let (words, size_bytes) = self.disk_of(&file, snapshot).await?;
        let mut plan = self.new_plan(io, Why::Snapshot)?;
        let l1 = plan.l1(&words);
        plan.switch(DISK_AT, disk_fields(size_bytes, l1));
        self.restructure(io, &still, plan).await?;
        Ok(())
    }

    /// The L1 table of a snapshot, made as long as the disk then needs, and the disk's size.
    async fn disk_of(
        &self,
        file: &ImageFile,
        snapshot: &Snapshot,
    ) -> Result<(Vec<u64>, u64), SnapshotFailure> {
        snapshot.check_l1(self.geometry.cluster_bytes())?;
        let header = self.header();
        let size_bytes = snapshot.size_bytes.unwrap_or(header.size_bytes);
        let needed = header.l1_entries_for(size_bytes);
        if needed * 8 > L1_BYTES_MAX {
            return Err(SnapshotError::L1TooLarge.into());
        }
        let bytes = file
            .read(snapshot.l1.at, snapshot.l1.count as usize * 8)
            .await?;
        let words = bytes.as_chunks().0.iter();
        let mut words: Vec<u64> = words
            .map(|word| uncopied(u64::from_be_bytes(*word)))
            .collect();
        if (words.len() as u64) < needed {
            words.resize(needed as usize, 0);
        }
        Ok((words, size_bytes))
    }

    /// Forgets a snapshot; `which` is an id or a name. Errors: see [`SnapshotFailure`].
    pub async fn delete_snapshot(&self, io: &Io, which: &str) -> Result<(), SnapshotFailure> {
        self.may_have_snapshots()?;
        let still = self.still(io, Touched::Metadata).await?;
        let mut table = self.snapshots(io).await?;
        table.remove(find(&table, which).ok_or(SnapshotFailure::NotFound)?);
        let mut plan = self.new_plan(io, Why::Snapshot)?;
        switch_snapshots(&mut plan, &table)?;
        self.restructure(io, &still, plan).await?;
        Ok(())
    }

    fn may_have_snapshots(&self) -> Result<(), SnapshotFailure> {
        match self.geometry.layout().data {
            DataIn::Image => Ok(()),
            DataIn::DataFile => Err(SnapshotFailure::DataFile),
        }
    }
}

fn switch_snapshots(plan: &mut Plan, table: &[Snapshot]) -> Result<(), SnapshotError> {
    let at = plan.region(encode_table(table)?);
    let mut fields = (table.len() as u32).to_be_bytes().to_vec();
    fields.extend_from_slice(&at.to_be_bytes());
    plan.switch(SNAPSHOTS_AT, fields);
    Ok(())
}

/// The header's fields from [`DISK_AT`] on, for a disk of that size and L1 table.
pub(super) fn disk_fields(size_bytes: u64, l1: TableAt) -> Vec<u8> {
    let mut fields = size_bytes.to_be_bytes().to_vec();
    // No encryption: such images are refused.
    fields.extend_from_slice(&0u32.to_be_bytes());
    fields.extend_from_slice(&l1.count.to_be_bytes());
    fields.extend_from_slice(&l1.at.to_be_bytes());
    fields
}

/// The word of an L1 table that shares what it leads to.
pub(super) fn uncopied(word: u64) -> u64 {
    let copied = L1Entry::Table {
        at: 0,
        copied: true,
    };
    word & !copied.encode()
}

/// An id comes before a name, as in QEMU.
fn find(table: &[Snapshot], which: &str) -> Option<usize> {
    let which = which.as_bytes();
    let by_id = table.iter().position(|snapshot| snapshot.id == which);
    by_id.or_else(|| table.iter().position(|snapshot| snapshot.name == which))
}

/// One more than the largest id that is a number.
fn new_id(table: &[Snapshot]) -> String {
    let ids = table
        .iter()
        .filter_map(|snapshot| std::str::from_utf8(&snapshot.id).ok());
    let largest = ids.filter_map(|id| id.parse::<u64>().ok()).max();
    largest.unwrap_or(0).saturating_add(1).to_string()
}
