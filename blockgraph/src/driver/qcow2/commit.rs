//! Commits: the disk is brought after memory, in an order that leaves at worst leaks whenever it is cut short.
//!
//! The rule: what a commit writes is copied out in one go, so it is of one moment, and all that it refers to was written
//! before. `plan.rs` says the order. Clusters that were freed are free only after the commit is durable and whoever looked
//! them up before has done with them.

use super::Qcow2;
use super::cache::{Mark, Slot};
use super::format::entry::L1Entry;
use super::map_log::Settled;
use super::meta::{Freed, Meta, NewTable, Why};
use super::plan::{Ahead, Patch, Phases, SliceOut, phases};
use super::refcount::{BlockOut, TableOut};
use super::together::together;
use super::writer::Gate;
use crate::filter::blkdebug::BlkdebugEvent;
use crate::io::Io;
use crate::node::{Local, NodeId, Outcome};
use crate::request::{Kind, Request};
use crate::units::Span;
use ring::{Errno, Mem};
use std::collections::BTreeMap;

/// What one commit takes up.
#[derive(Debug, Default)]
struct Batch<'a> {
    slices: Vec<(Slot<'a>, Mark)>,
    bytes: Vec<SliceOut>,
    tables: BTreeMap<usize, u64>,
    new_tables: BTreeMap<usize, NewTable>,
    l1: BTreeMap<usize, u64>,
    blocks: Vec<BlockOut>,
    table_out: TableOut,
    freed: Vec<Freed>,
    settled: Settled,
}

/// A commit under way. Dropped, it ends: as told, or as one that wrote nothing.
struct Commit<'a> {
    image: &'a Qcow2,
    batch: Batch<'a>,
    outcome: Outcome,
}

impl Drop for Commit<'_> {
    fn drop(&mut self) {
        if self.outcome.is_err() {
            self.image.restore(std::mem::take(&mut self.batch));
        }
        self.image.writer.commits.end(self.outcome);
    }
}

impl Qcow2 {
    /// Makes everything durable that was written before the call.
    pub(crate) async fn flush(&self, io: &Io) -> Outcome {
        match self.writer.gate() {
            Gate::Metadata | Gate::Open => {}
            Gate::Shut => return Ok(()),
            Gate::Corrupt => return Err(Errno::IO),
        }
        self.tell(io, BlkdebugEvent::FlushToOs);
        let is_ahead = self.meta().is_ahead();
        if is_ahead || !self.writer.commits.is_idle() {
            return self.commit(io).await;
        }
        self.sync(io).await
    }

    /// Brings the disk to where memory is at the call, or later. Those who ask while a commit is under way share the next.
    pub(crate) async fn commit(&self, io: &Io) -> Outcome {
        let wanted = self.writer.commits.next();
        let _turn = match self.writer.commits.turn(wanted).await {
            Ok(turn) => turn,
            Err(outcome) => return outcome,
        };
        let mut commit = Commit {
            image: self,
            batch: Batch::default(),
            outcome: Err(Errno::CANCELED),
        };
        commit.outcome = match self.take_batch() {
            Ok(batch) => {
                commit.batch = batch;
                self.write_batch(io, &mut commit.batch).await
            }
            Err(errno) => Err(errno),
        };
        if commit.outcome.is_ok() {
            let freed = self.settle(std::mem::take(&mut commit.batch));
            self.release(io, freed).await;
        }
        commit.outcome
    }

    /// Copies out, at one moment, all that is ahead of the disk. With the dirty bit on disk refcounts may stay behind: they
    /// are made anew should this process end early.
    /// Errors: EIO once metadata was found impossible.
    fn take_batch(&self) -> Result<Batch<'_>, Errno> {
        let mut meta = self.meta();
        let meta = &mut *meta;
        if self.writer.gate() == Gate::Corrupt {
            return Err(Errno::IO);
        }
        let stale = std::mem::take(&mut meta.l1_stale).into_iter();
        let mut batch = Batch {
            new_tables: meta.new_tables.clone(),
            l1: stale.map(|index| (index, meta.l1[index])).collect(),
            freed: std::mem::take(&mut meta.freed),
            settled: meta
                .logs
                .iter()
                .map(|log| (log.clone(), log.position()))
                .collect(),
            ..Batch::default()
        };
        if !self.writer.is_lazy() {
            batch.blocks = meta.refs.take_dirty();
            batch.table_out = meta.refs.take_table();
            for (at, len) in meta.refs.take_abandoned() {
                let why = Why::Other;
                batch.freed.push(Freed { at, len, why });
            }
        }
        for (index, table) in &batch.new_tables {
            batch.l1.insert(*index, new_l1_word(table));
        }
        for slice in std::mem::take(&mut meta.dirty) {
            self.take_slice(meta, slice, &mut batch);
        }
        Ok(batch)
    }

    fn take_slice<'a>(&'a self, meta: &Meta, slice: u64, batch: &mut Batch<'a>) {
        // A dirty slice stays cached, and whoever made it dirty had it cached.
        let Some(slot) = self.l2.resident(slice) else {
            debug_assert!(false, "a dirty slice is not cached");
            return;
        };
        let mark = slot.mark();
        let table = self.geometry.l1_index(slice);
        if let Ok(L1Entry::Table { at, copied: true }) = meta.l2_table(table) {
            batch.tables.insert(table, at);
        }
        batch.bytes.push(SliceOut {
            table,
            within: self.geometry.slice_in_table(slice),
            bytes: slot.bytes(0, self.geometry.slice_entries() as usize),
        });
        batch.slices.push((slot, mark));
    }

    async fn write_batch(&self, io: &Io, batch: &mut Batch<'_>) -> Outcome {
        let copies = self.read_copies(io, batch).await?;
        let phases = self.phases(batch, &copies);
        let file = self.file(io)?;
        self.tell_unreachable(io, batch);
        write_all(io, file, phases.unreachable).await?;
        self.reach_new_tables(batch);
        self.sync(io).await?;
        if !phases.refcounts.is_empty() {
            self.tell_refcounts(io, &batch.table_out);
            write_all(io, file, phases.refcounts).await?;
            sync_node(io, file).await?;
        }
        self.refcounts_written(batch);
        if !phases.mapping.is_empty() {
            self.tell_mapping(io, batch);
            write_all(io, file, phases.mapping).await?;
            sync_node(io, file).await?;
        }
        Ok(())
    }

    /// What is written in one go is told in one go, before it.
    fn tell_unreachable(&self, io: &Io, batch: &Batch<'_>) {
        if !batch.blocks.is_empty() {
            self.tell(io, BlkdebugEvent::RefblockUpdatePart);
        }
        match batch.table_out {
            TableOut::None => {}
            TableOut::Entries { .. } => {
                self.tell(io, BlkdebugEvent::RefblockAlloc);
                self.tell(io, BlkdebugEvent::RefblockAllocWrite);
            }
            TableOut::Moved { .. } => {
                self.tell(io, BlkdebugEvent::RefblockAlloc);
                self.tell(io, BlkdebugEvent::ReftableGrow);
                self.tell(io, BlkdebugEvent::RefblockAllocWriteBlocks);
                self.tell(io, BlkdebugEvent::RefblockAllocWriteTable);
            }
        }
        if !batch.new_tables.is_empty() {
            self.tell(io, BlkdebugEvent::L2AllocWrite);
        }
    }

    fn tell_refcounts(&self, io: &Io, table_out: &TableOut) {
        match table_out {
            TableOut::None => {}
            TableOut::Entries { .. } => self.tell(io, BlkdebugEvent::RefblockAllocHookup),
            TableOut::Moved { .. } => self.tell(io, BlkdebugEvent::RefblockAllocSwitchTable),
        }
    }

    fn tell_mapping(&self, io: &Io, batch: &Batch<'_>) {
        if !batch.tables.is_empty() {
            self.tell(io, BlkdebugEvent::L2Update);
        }
        if !batch.l1.is_empty() {
            self.tell(io, BlkdebugEvent::L1Update);
        }
    }

    fn phases(&self, batch: &Batch<'_>, copies: &BTreeMap<usize, Vec<u8>>) -> Phases {
        let ahead = Ahead {
            blocks: &batch.blocks,
            table_out: &batch.table_out,
            new_tables: &batch.new_tables,
            tables: &batch.tables,
            slices: &batch.bytes,
            l1: &batch.l1,
            l1_at: self.meta().header.l1.at,
            cluster_bytes: self.geometry.cluster_bytes(),
        };
        phases(ahead, copies)
    }

    /// The tables that new ones are copies of, as on disk, where nobody changes them.
    async fn read_copies(
        &self,
        io: &Io,
        batch: &Batch<'_>,
    ) -> Result<BTreeMap<usize, Vec<u8>>, Errno> {
        let cluster = self.geometry.cluster_bytes();
        let mut copies = BTreeMap::new();
        for (index, table) in &batch.new_tables {
            if let Some(at) = table.copy_of {
                self.tell(io, BlkdebugEvent::L2AllocCowRead);
                copies.insert(*index, self.read_metadata(io, at, cluster).await?);
            }
        }
        Ok(copies)
    }

    /// The new tables are there to be read, durable or not: the L1 table in memory refers to them from now on.
    fn reach_new_tables(&self, batch: &mut Batch<'_>) {
        let mut meta = self.meta();
        for (index, table) in std::mem::take(&mut batch.new_tables) {
            meta.l1[index] = new_l1_word(&table);
            meta.new_tables.remove(&index);
            if let Some(at) = table.copy_of {
                let (len, why) = (self.geometry.cluster_bytes(), Why::Other);
                batch.freed.push(Freed { at, len, why });
            }
        }
    }

    /// The refcounts of a batch, and where they are, are durable.
    fn refcounts_written(&self, batch: &mut Batch<'_>) {
        if let TableOut::Moved { at, clusters, .. } = batch.table_out {
            self.refcount_table_moved(at, clusters);
            self.note_left(&self.meta());
        }
        self.meta().refs.written(&batch.blocks);
        batch.blocks.clear();
        batch.table_out = TableOut::None;
    }

    /// All of a batch is durable. Returns what it freed.
    fn settle(&self, batch: Batch<'_>) -> Vec<Freed> {
        let _meta = self.meta();
        for (slot, mark) in batch.slices {
            slot.written(mark);
        }
        batch
            .settled
            .iter()
            .for_each(|(log, position)| log.settle(*position));
        batch.freed
    }

    /// A batch was written in part or not at all: what it took up is ahead of the disk again.
    fn restore(&self, batch: Batch<'_>) {
        let mut meta = self.meta();
        meta.refs.lost(&batch.blocks);
        meta.refs.table_lost(&batch.table_out);
        let reached = batch.l1.keys();
        let reached = reached.filter(|index| !batch.new_tables.contains_key(index));
        meta.l1_stale.extend(reached);
        meta.freed.extend(&batch.freed);
        let slices = batch.slices.iter().map(|(slot, _)| slot.slice());
        meta.dirty.extend(slices);
    }

    /// Everything that was written, metadata and data, is durable after this.
    pub(crate) async fn sync(&self, io: &Io) -> Outcome {
        let (file, data) = (self.file(io)?, self.data(io)?);
        self.tell(io, BlkdebugEvent::FlushToDisk);
        if file == data {
            return sync_node(io, file).await;
        }
        let both: Vec<Local<'_, Outcome>> =
            vec![Box::pin(sync_node(io, data)), Box::pin(sync_node(io, file))];
        together(both).await
    }

    /// Writes refcounts that changed, so that memory for more is free. On disk they may be too high at any time.
    pub(crate) async fn commit_refcounts(&self, io: &Io) -> Outcome {
        let _turn = self.writer.commits.alone().await;
        let mut refcounts = RefcountsOut {
            image: self,
            blocks: {
                let mut meta = self.meta();
                if self.writer.gate() == Gate::Corrupt {
                    return Err(Errno::IO);
                }
                meta.refs.take_dirty()
            },
        };
        let patches = refcounts.blocks.iter().map(|block| Patch {
            at: block.at,
            bytes: block.bytes.clone(),
        });
        write_all(io, self.file(io)?, patches.collect()).await?;
        let blocks = std::mem::take(&mut refcounts.blocks);
        self.meta().refs.written(&blocks);
        Ok(())
    }
}

/// Refcount blocks being written. Dropped, they are dirty again.
struct RefcountsOut<'a> {
    image: &'a Qcow2,
    blocks: Vec<BlockOut>,
}

impl Drop for RefcountsOut<'_> {
    fn drop(&mut self) {
        self.image.meta().refs.lost(&self.blocks);
    }
}

fn new_l1_word(table: &NewTable) -> u64 {
    L1Entry::Table {
        at: table.at,
        copied: true,
    }
    .encode()
}

/// Writes patches of a phase, in any order.
pub(crate) async fn write_all(io: &Io, file: NodeId, patches: Vec<Patch>) -> Outcome {
    let writes = patches.into_iter().map(|patch| -> Local<'_, Outcome> {
        Box::pin(async move {
            let mem = Mem::zeroed(patch.bytes.len()).ok_or(Errno::NOMEM)?;
            mem.store(0, &patch.bytes);
            io.write(file, patch.at, &mem).await
        })
    });
    together(writes.collect()).await
}

/// What was written to a node is durable after this.
pub(crate) async fn sync_node(io: &Io, node: NodeId) -> Outcome {
    let nowhere = Span { at: 0, len: 0 };
    io.request(node, Request::plain(Kind::Flush, nowhere)).await
}
