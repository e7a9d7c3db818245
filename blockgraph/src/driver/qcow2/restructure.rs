//! Changes of the image as a whole, which no commit could make: another L1 table, another snapshot table.
//!
//! The rule: no request changes anything meanwhile. What is new is written past the end of the file; refcounts are raised to
//! cover it as well; the header, in one sector, is switched to it; only then are they lowered to what is left. So the image
//! is sound before and after the switch, with leaks at worst; and in version 3 the dirty bit has even those repaired.

use super::Qcow2;
use super::check::{CheckError, Extra, raise, read_header, settle};
use super::format::header::{Header, TableAt, Version};
use super::image_file::ImageFile;
use super::meta::{Meta, Why};
use super::traffic::Stopped;
use super::writer::Gate;
use crate::filter::blkdebug::BlkdebugEvent;
use crate::hold::Hold;
use crate::io::Io;
use crate::units::Span;
use ring::Errno;
use std::sync::atomic::Ordering;

/// How long, and how often, readers are waited for that look at a slice just now.
const CLEAR_WAIT_NS: u64 = 100_000;
const CLEAR_TRIES_MAX: u32 = 100_000;
/// What the header leads to is taken up at most so often.
const SETTLE_TRIES_MAX: u32 = 3;

/// Nothing changes the image while this lives.
#[derive(Debug)]
pub(super) struct Still<'a> {
    _stopped: Stopped<'a>,
    _all: Hold<'a>,
}

/// What a change of the image is a change of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touched {
    /// What the guest sees.
    Disk,
    /// Nothing that it sees.
    Metadata,
}

/// What is to be.
#[derive(Debug)]
pub(super) struct Plan {
    /// What is written first: offsets past the end of the file, and bytes.
    blobs: Vec<(u64, Vec<u8>)>,
    extra: Extra,
    next: u64,
    cluster_bytes: u64,
    /// Offset in the header, and what it shall say there.
    switch: (u64, Vec<u8>),
    /// What the image file is told before the first of that, and before the last.
    events: [Option<BlkdebugEvent>; 2],
    /// What clusters that are free afterwards were freed for.
    frees: Why,
}

impl Plan {
    /// An L1 table of these words, which need not be full clusters.
    pub(super) fn l1(&mut self, words: &[u64]) -> TableAt {
        let bytes = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        let count = words.len() as u32;
        let at = if words.is_empty() {
            0
        } else {
            self.blob(bytes)
        };
        let table = TableAt { at, count };
        self.extra.l1.push(table);
        table
    }

    /// Bytes that are no L1 table.
    pub(super) fn region(&mut self, bytes: Vec<u8>) -> u64 {
        if bytes.is_empty() {
            return 0;
        }
        let len = bytes.len() as u64;
        let at = self.blob(bytes);
        self.extra.regions.push((at, len));
        at
    }

    fn blob(&mut self, mut bytes: Vec<u8>) -> u64 {
        let at = self.next;
        bytes.resize(bytes.len().next_multiple_of(self.cluster_bytes as usize), 0);
        self.next += bytes.len() as u64;
        self.blobs.push((at, bytes));
        at
    }

    /// What the header is to say at `at`, all in one sector.
    pub(super) fn switch(&mut self, at: u64, bytes: Vec<u8>) {
        debug_assert!(at as usize + bytes.len() <= 512);
        self.switch = (at, bytes);
    }

    /// Told before the bytes are written, and before the header is.
    pub(super) fn tells(&mut self, events: [Option<BlkdebugEvent>; 2]) {
        self.events = events;
    }
}

impl Qcow2 {
    /// Stops all changes, and brings the disk to where memory is, refcounts included.
    pub(super) async fn still(&self, io: &Io, touched: Touched) -> Result<Still<'_>, Errno> {
        match touched {
            Touched::Disk => self.open_for_writing(io).await?,
            Touched::Metadata => self.open_for_metadata(io).await?,
        }
        let stopped = self.traffic.stop().await;
        let everything = Span {
            at: 0,
            len: i64::MAX as u64,
        };
        let all = self.holds.hold(everything).await;
        // Mapped writes that were let pass before the hold.
        io.grace().await;
        if self.writer.gate() == Gate::Corrupt {
            return Err(Errno::IO);
        }
        self.write_everything(io).await?;
        self.cut_file(io).await?;
        Ok(Still {
            _stopped: stopped,
            _all: all,
        })
    }

    /// A plan to be filled in.
    pub(super) fn new_plan(&self, io: &Io, frees: Why) -> Result<Plan, Errno> {
        let file = ImageFile::new(io, self.file(io)?);
        let cluster_bytes = self.geometry.cluster_bytes();
        Ok(Plan {
            blobs: Vec::new(),
            extra: Extra::default(),
            next: file.size_bytes().next_multiple_of(cluster_bytes),
            cluster_bytes,
            switch: (0, Vec::new()),
            events: [None, None],
            frees,
        })
    }

    /// Carries the plan out, and takes up what the image is then. Errors leave the image as it was, or as it is to be.
    pub(super) async fn restructure(
        &self,
        io: &Io,
        _still: &Still<'_>,
        plan: Plan,
    ) -> Result<(), CheckError> {
        let frees = plan.frees;
        let done = self.carry_out(io, plan).await;
        // Also after a failure: what was raised is lowered again.
        let settled = self.take_up(io, frees).await;
        if settled.is_err() {
            // Memory and disk may differ.
            self.shut();
        }
        done.and(settled)
    }

    /// Lowers refcounts to what the header leads to, and takes up what the image is. A disk that fails once does not end
    /// the image's life: whatever was done of it, it can be done again.
    async fn take_up(&self, io: &Io, frees: Why) -> Result<(), CheckError> {
        let mut settled = Ok(());
        for _ in 0..SETTLE_TRIES_MAX {
            settled = self.take_up_once(io, frees).await;
            if settled.is_ok() {
                break;
            }
        }
        settled
    }

    async fn take_up_once(&self, io: &Io, frees: Why) -> Result<(), CheckError> {
        let file = self.file(io)?;
        let freed = settle(io, file).await?;
        self.reload(io).await?;
        if self.writer.options.pass_discard.passes(frees) {
            let bits = self.geometry.cluster_bits();
            let file = ImageFile::new(io, file);
            for run in freed {
                // Advice. Nobody reads there any more, and nobody is given it before the image may change again.
                let _ = file
                    .discard(run.start << bits, (run.end - run.start) << bits)
                    .await;
            }
        }
        Ok(())
    }

    async fn carry_out(&self, io: &Io, plan: Plan) -> Result<(), CheckError> {
        let file = ImageFile::new(io, self.file(io)?);
        if self.meta().header.version == Version::V3 {
            self.set_dirty_bit(io).await?;
        }
        let [before, switch] = plan.events;
        before.into_iter().for_each(|event| self.tell(io, event));
        for (at, bytes) in &plan.blobs {
            file.write(*at, bytes).await?;
        }
        file.flush().await?;
        raise(&file, &plan.extra).await?;
        let (at, bytes) = &plan.switch;
        switch.into_iter().for_each(|event| self.tell(io, event));
        file.write(*at, bytes).await?;
        Ok(file.flush().await?)
    }

    /// Memory is made anew from disk.
    async fn reload(&self, io: &Io) -> Result<(), CheckError> {
        let file = ImageFile::new(io, self.file(io)?);
        let header = read_header(&file).await?;
        let l1 = self.l1_words(&file, &header).await?;
        let size_bytes = header.size_bytes;
        {
            let mut meta = self.meta();
            let logs = std::mem::take(&mut meta.logs);
            *meta = Meta::new(header, l1);
            meta.logs = logs;
        }
        self.load_refcount_table(io).await?;
        self.load_overlaps(io).await?;
        self.writer.set_lazy(false);
        self.size_bytes.store(size_bytes, Ordering::Release);
        self.quiet(io).await;
        for _ in 0..CLEAR_TRIES_MAX {
            if self.l2.clear() {
                return Ok(());
            }
            io.sleep(CLEAR_WAIT_NS).await;
        }
        Err(Errno(libc::EBUSY).into())
    }

    async fn l1_words(&self, file: &ImageFile, header: &Header) -> Result<Vec<u64>, Errno> {
        // At most 32 MiB: the header is checked.
        let bytes = file
            .read(header.l1.at, header.l1.count as usize * 8)
            .await?;
        let words = bytes.as_chunks().0.iter();
        Ok(words.map(|word| u64::from_be_bytes(*word)).collect())
    }
}
