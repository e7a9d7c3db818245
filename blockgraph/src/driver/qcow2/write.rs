//! Writes that a lookup alone cannot place: clusters are set aside, the data is written, then the L2 words in memory say so.
//!
//! The rule: whoever changes the words of a guest cluster holds it. Until the words are set nothing refers to what was set
//! aside, so a request that fails or is given up on the way leaves everything as it was.

use super::Qcow2;
use super::alloc::{Content, Run, Want};
use super::cache::{Miss, Slot};
use super::edge::{self, Around};
use super::extent::extent;
use super::format::entry::{DataIn, L2Entry, Malformed, Part};
use super::map_log::Change;
use super::meta::{Meta, Why};
use super::writer::Prepared;
use crate::filter::blkdebug::BlkdebugEvent;
use crate::io::Io;
use crate::node::Outcome;
use crate::request::Kind;
use crate::units::Span;
use ring::{Durability, Errno, Mem};

/// A slice is waited for at most this often while commits make room for it.
const ROOM_TRIES_MAX: u32 = 64;

/// How a write begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// As if it had been mapped.
    InPlace,
    /// Into the host cluster that the guest cluster has already, parts of which are not in use.
    Fill {
        /// Where it is.
        host: u64,
    },
    /// Into so many new host clusters.
    New(u64),
}

impl Qcow2 {
    /// Every request but a read.
    pub(super) async fn change(&self, io: &Io, kind: Kind, span: Span, mem: Mem) -> Outcome {
        let _pass = self.traffic.enter().await;
        // The disk may have become smaller while the request was on its way.
        if span.end() > self.disk_bytes() {
            return Err(Errno::INVAL);
        }
        match kind {
            Kind::Read => self.read(io, span, mem).await,
            Kind::Write(durability) => self.write(io, span, &mem, durability).await,
            Kind::WriteCompressed => self.write_compressed(io, span, &mem).await,
            Kind::WriteZeroes(unmap, durability) => {
                self.write_zeroes(io, span, unmap, durability).await
            }
            Kind::Discard => self.discard(io, span).await,
            Kind::Flush => self.flush(io).await,
        }
    }

    /// Writes `mem` to `span`, which is as long and within the disk.
    pub(super) async fn write(
        &self,
        io: &Io,
        span: Span,
        mem: &Mem,
        durability: Durability,
    ) -> Outcome {
        self.open_for_writing(io).await?;
        self.write_all(io, span, mem).await?;
        self.after_change(io, durability).await
    }

    /// The same, but for what comes before and after every change.
    pub(super) async fn write_all(&self, io: &Io, span: Span, mem: &Mem) -> Outcome {
        let mut rest = span;
        while !rest.is_empty() {
            let part = self.rest_of_slice(rest);
            let mem = mem.slice((rest.at - span.at) as usize, part.len as usize);
            let done = self.write_some(io, part, &mem).await?;
            rest = rest.after(done);
        }
        Ok(())
    }

    /// Something was changed: makes it durable if that is asked, and else only when too much has piled up.
    pub(super) async fn after_change(&self, io: &Io, durability: Durability) -> Outcome {
        match durability {
            Durability::Through => self.flush(io).await,
            Durability::Cached => {
                if self.is_full() {
                    // What could not be committed stays in memory; the next flush tries again and tells the guest.
                    let _ = self.commit(io).await;
                }
                Ok(())
            }
        }
    }

    /// A slice, cached for as long as the answer lives, which is not across an await.
    pub(super) async fn slice(&self, io: &Io, slice: u64) -> Result<Slot<'_>, Errno> {
        for _ in 0..ROOM_TRIES_MAX {
            match self.l2.load(io, slice, || self.locate(io, slice)).await {
                Ok(slot) => return Ok(slot),
                Err(Miss::Failed(errno)) => return Err(errno),
                Err(Miss::Crowded) => self.commit(io).await?,
            }
        }
        Err(Errno::NOMEM)
    }

    /// Writes the beginning of `span`, which lies in one slice; returns how much. 0 means that things have changed
    /// meanwhile.
    async fn write_some(&self, io: &Io, span: Span, mem: &Mem) -> Result<u64, Errno> {
        let at = self.geometry.entry_at(span.at);
        let (run, user) = {
            let slot = self.slice(io, at.slice).await?;
            let user = self.users.enter();
            (
                extent(&self.geometry, span, |index| slot.entry(index)),
                user,
            )
        };
        match run {
            Ok((Part::Data { host, copied: true }, len)) => {
                let mem = mem.slice(0, len as usize);
                self.check_write(io, host, len).await?;
                self.tell(io, BlkdebugEvent::WriteAio);
                io.write(self.data(io)?, host, &mem).await?;
                Ok(len)
            }
            Ok(_) => {
                drop(user);
                self.write_held(io, span, mem).await
            }
            Err(malformed) => Err(self.malformed(io, malformed).await),
        }
    }

    /// The same where clusters have to be set aside or changed.
    async fn write_held(&self, io: &Io, span: Span, mem: &Mem) -> Result<u64, Errno> {
        // Only what needs it is held: who writes to clusters of their own behind it need not wait.
        let span = match self.job(io, span).await? {
            Job::InPlace => return Ok(0),
            job => self.covered(span, job),
        };
        let cluster = self.geometry.cluster_bytes();
        let _hold = self.holds.hold(span.widened(cluster)).await;
        self.write_owned(io, span, mem).await
    }

    /// The same for a caller who holds the clusters.
    pub(super) async fn write_owned(&self, io: &Io, span: Span, mem: &Mem) -> Result<u64, Errno> {
        let job = self.job(io, span).await?;
        let span = self.covered(span, job);
        let mem = mem.slice(0, span.len as usize);
        match job {
            Job::InPlace => Ok(0),
            Job::Fill { host } => self.fill(io, span, host, &mem).await,
            Job::New(count) => self.write_new(io, span, count, &mem).await,
        }
    }

    fn covered(&self, span: Span, job: Job) -> Span {
        let clusters = match job {
            Job::New(count) => count,
            Job::InPlace | Job::Fill { .. } => 1,
        };
        let bytes = clusters << self.geometry.cluster_bits();
        span.first(bytes - self.geometry.within_cluster(span.at))
    }

    /// How to write the beginning of `span`.
    pub(super) async fn job(&self, io: &Io, span: Span) -> Result<Job, Errno> {
        let at = self.geometry.entry_at(span.at);
        let job = {
            let slot = self.slice(io, at.slice).await?;
            self.plan(span, |index| slot.entry(at.index + index))
        };
        match job {
            Ok(job) => Ok(job),
            Err(malformed) => Err(self.malformed(io, malformed).await),
        }
    }

    fn plan(&self, span: Span, words: impl Fn(usize) -> [u64; 2]) -> Result<Job, Malformed> {
        let layout = self.geometry.layout();
        let bits = self.geometry.cluster_bits();
        let clusters = ((span.end() - 1) >> bits) - (span.at >> bits) + 1;
        for n in 0..clusters {
            let entry = layout.decode(words(n as usize))?;
            let job = self.cluster_job(
                entry,
                if n == 0 {
                    self.geometry.within_cluster(span.at)
                } else {
                    0
                },
            );
            match job {
                Job::New(_) => {}
                _ if n > 0 => return Ok(Job::New(n)),
                job => return Ok(job),
            }
        }
        Ok(Job::New(clusters))
    }

    /// How to write a cluster from byte `within` of it.
    fn cluster_job(&self, entry: L2Entry, within: u64) -> Job {
        let (part, _) = entry.part(within, self.geometry.cluster_bits());
        match (part, entry) {
            (Part::Data { copied: true, .. }, _) => Job::InPlace,
            // In a data file there is one host cluster for each guest cluster, and it is its own.
            _ if self.geometry.layout().data == DataIn::DataFile => Job::New(1),
            (
                _,
                L2Entry::ZeroPrealloc { host, copied: true }
                | L2Entry::Split {
                    host: Some(host),
                    copied: true,
                    ..
                },
            ) => Job::Fill { host },
            _ => Job::New(1),
        }
    }

    /// Writes within one cluster that has a host cluster of its own.
    async fn fill(&self, io: &Io, span: Span, host: u64, mem: &Mem) -> Result<u64, Errno> {
        let at = self.geometry.entry_at(span.at);
        self.own_table(io, self.geometry.l1_index(at.slice)).await?;
        let run = Run {
            first: host >> self.geometry.cluster_bits(),
            count: 1,
            content: Content::Stale,
        };
        self.check_run(io, run).await?;
        self.write_run(io, span, run, None, mem).await
    }

    /// Writes to new host clusters, `count` or fewer.
    async fn write_new(&self, io: &Io, span: Span, count: u64, mem: &Mem) -> Result<u64, Errno> {
        let at = self.geometry.entry_at(span.at);
        self.own_table(io, self.geometry.l1_index(at.slice)).await?;
        if self.geometry.layout().data == DataIn::DataFile {
            let run = Run {
                first: span.at >> self.geometry.cluster_bits(),
                count,
                content: Content::Stale,
            };
            return self.write_run(io, span, run, None, mem).await;
        }
        let (run, prepared) = self.allocate(io, Want::UpTo(count)).await?;
        self.write_run(io, span, run, Some(prepared), mem).await
    }

    /// Writes the beginning of `span` to a run of host clusters, with what has to be around it, and sets the words.
    async fn write_run(
        &self,
        io: &Io,
        span: Span,
        run: Run,
        prepared: Option<Prepared<'_>>,
        mem: &Mem,
    ) -> Result<u64, Errno> {
        let bits = self.geometry.cluster_bits();
        let within = self.geometry.within_cluster(span.at);
        let span = span.first((run.count << bits) - within);
        let host = (run.first << bits) + within;
        let (first, last) = self.outer_entries(io, span).await?;
        let mut head = edge::head(&self.geometry, first, span);
        let mut tail = edge::tail(&self.geometry, last, span);
        let wide = Span {
            at: span.at - head.len,
            len: head.len + span.len + tail.len,
        };
        self.choose_fill(io, &mut head, first, run.content).await?;
        self.choose_fill(io, &mut tail, last, run.content).await?;
        let mem = mem.slice(0, span.len as usize);
        self.put(
            io,
            Around {
                head,
                tail,
                span,
                host,
            },
            &mem,
        )
        .await?;
        self.publish(io, wide, run, prepared).await?;
        Ok(span.len)
    }

    /// The entries of the first and the last cluster of `span`.
    async fn outer_entries(&self, io: &Io, span: Span) -> Result<(L2Entry, L2Entry), Errno> {
        let first = self.geometry.entry_at(span.at);
        let last = self.geometry.entry_at(span.end() - 1);
        let layout = self.geometry.layout();
        let decoded = {
            let slot = self.slice(io, first.slice).await?;
            let first = layout.decode(slot.entry(first.index));
            first.and_then(|first| Ok((first, layout.decode(slot.entry(last.index))?)))
        };
        match decoded {
            Ok(entries) => Ok(entries),
            Err(malformed) => Err(self.malformed(io, malformed).await),
        }
    }

    /// Sets the words of the clusters that `wide` touches: its bytes are in `run` from now on.
    pub(super) async fn publish(
        &self,
        io: &Io,
        wide: Span,
        run: Run,
        prepared: Option<Prepared<'_>>,
    ) -> Outcome {
        let bits = self.geometry.cluster_bits();
        let at = self.geometry.entry_at(wide.at);
        let slot = self.slice(io, at.slice).await?;
        let mut meta = self.meta();
        for n in 0..run.count {
            let guest = Span {
                at: self.geometry.cluster_start(wide.at) + (n << bits),
                len: self.geometry.cluster_bytes(),
            };
            if guest.at >= wide.end() {
                break;
            }
            let host = (run.first + n) << bits;
            let mask = edge::mask(&self.geometry, guest, wide);
            let change = |old| edge::written(&self.geometry, old, host, mask);
            // A commit is what takes up a slice's changes, and none does while this lock is held.
            self.replace(&mut meta, &slot, at.index + n as usize, Why::Unused, change)
                .map_err(|_| Errno::IO)?;
        }
        meta.dirty.insert(at.slice);
        drop(meta);
        if let Some(prepared) = prepared {
            prepared.keep();
        }
        Ok(())
    }

    /// Changes an entry, and frees what it does not refer to any more. The caller notes that the slice is dirty.
    pub(super) fn replace(
        &self,
        meta: &mut Meta,
        slot: &Slot<'_>,
        index: usize,
        why: Why,
        change: impl FnOnce(L2Entry) -> L2Entry,
    ) -> Result<(), Malformed> {
        let layout = self.geometry.layout();
        let old = layout.decode(slot.entry(index))?;
        let new = change(old);
        if new == old {
            return Ok(());
        }
        let words = layout.encode(new);
        slot.set(index, words);
        let cluster = slot.slice() * self.geometry.slice_entries() + index as u64;
        meta.log(Change { cluster, words });
        let keeps = old.host_cluster().is_some() && old.host_cluster() == new.host_cluster();
        if layout.data == DataIn::Image && !keeps {
            meta.free_entry(old, why);
        }
        Ok(())
    }
}
