//! Writes of zeroes: a flag where whole units are meant, data where parts of them are.
//!
//! The rule: a unit is a subcluster, or a cluster where there are none; version 2 has no flag and so no units.

use super::Qcow2;
use super::edge::{mask, subclusters};
use super::extent::extent;
use super::format::entry::{L2Entry, Part, Subclusters, Words, ZeroFlag};
use super::meta::Why;
use super::writer::Unref;
use crate::graph::Role;
use crate::io::Io;
use crate::node::Outcome;
use crate::request::{Kind, Request, Unmap};
use crate::units::Span;
use ring::{Durability, Errno, Mem};

/// Who holds the clusters that are changed?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Nobody yet.
    Not,
    /// The caller does.
    ByCaller,
}

/// Zeroes that have to be written are written in pieces of this, in bytes.
const PIECE_BYTES: u64 = 1 << 20;

impl Qcow2 {
    /// Makes `span`, within the disk, read as zeroes.
    pub(super) async fn write_zeroes(
        &self,
        io: &Io,
        span: Span,
        unmap: Unmap,
        durability: Durability,
    ) -> Outcome {
        self.open_for_writing(io).await?;
        let whole = self.whole_units(span);
        let mut rest = span;
        while !rest.is_empty() {
            let in_slice = self.rest_of_slice(rest);
            let part = match whole {
                Some(whole) if rest.at < whole.at => in_slice.first(whole.at - rest.at),
                Some(whole) if rest.at < whole.end() => in_slice.first(whole.end() - rest.at),
                _ => in_slice,
            };
            let is_whole = whole.is_some_and(|whole| whole.overlaps(part));
            let part = self.rest_of_kind(part, is_whole);
            match is_whole {
                true => self.zero_units(io, part, unmap).await?,
                false => self.zero_part(io, part, unmap, Held::Not).await?,
            }
            rest = rest.after(part.len);
        }
        self.after_change(io, durability).await
    }

    /// The whole units in `span`; one that the end of the disk cuts counts as whole.
    fn whole_units(&self, span: Span) -> Option<Span> {
        if self.geometry.layout().zero_flag == ZeroFlag::Unknown {
            return None;
        }
        let unit = self.geometry.subcluster_bytes();
        let at = span.at.checked_next_multiple_of(unit)?;
        let end = match span.end() == self.disk_bytes() {
            true => span.end(),
            false => span.end() & !(unit - 1),
        };
        (at < end).then(|| Span { at, len: end - at })
    }

    /// With extended entries a cluster that is zeroed in part is handled by itself.
    fn rest_of_kind(&self, part: Span, is_whole: bool) -> Span {
        let cluster = self.geometry.cluster_bytes();
        let within = self.geometry.within_cluster(part.at);
        if !is_whole || self.geometry.layout().words == Words::One {
            return part;
        }
        match self.geometry.cluster_start(part.len) {
            _ if within != 0 => part.first(cluster - within),
            0 => part,
            whole => part.first(whole),
        }
    }

    /// Whole units of one slice: of any number of whole clusters, or of one in part.
    async fn zero_units(&self, io: &Io, span: Span, unmap: Unmap) -> Outcome {
        let cluster = self.geometry.cluster_bytes();
        let guest = Span {
            at: self.geometry.cluster_start(span.at),
            len: cluster,
        };
        let part = mask(&self.geometry, guest, self.rounded(span));
        let hold = self.holds.hold(span.widened(cluster)).await;
        // Only now: a write that was under way may have compressed it.
        if part != u32::MAX && self.is_compressed(io, span).await? {
            drop(hold);
            return self.zero_part(io, span, unmap, Held::Not).await;
        }
        self.zero_data_file(io, span, unmap).await?;
        let (unref, nothing_below) = (self.writer.options.unref, self.nothing_below(io));
        let change = |old| match old {
            L2Entry::Unallocated if nothing_below => old,
            _ => zeroed(old, part, unmap, unref),
        };
        self.edit(io, span, Why::Request, change).await?;
        self.keep_up(io).await
    }

    /// `span` as far as units reach that the end of the disk cuts.
    fn rounded(&self, span: Span) -> Span {
        let unit = self.geometry.subcluster_bytes();
        let len = span.len.next_multiple_of(unit);
        Span { at: span.at, len }
    }

    /// Is it a compressed cluster, of which no part can be changed alone?
    async fn is_compressed(&self, io: &Io, span: Span) -> Result<bool, Errno> {
        let at = self.geometry.entry_at(span.at);
        let slot = self.slice(io, at.slice).await?;
        let entry = self.geometry.layout().decode(slot.entry(at.index));
        Ok(matches!(entry, Ok(L2Entry::Compressed { .. })))
    }

    /// "The external data file can be read as a consistent standalone raw image without looking at the qcow2 metadata":
    /// what is zero is zero there too.
    pub(super) async fn zero_data_file(&self, io: &Io, span: Span, unmap: Unmap) -> Outcome {
        if !self.meta().header.autoclear.data_file_raw {
            return Ok(());
        }
        let kind = Kind::WriteZeroes(unmap, Durability::Cached);
        io.request(self.data(io)?, Request::plain(kind, span)).await
    }

    /// What is no whole unit: zeroes are data there.
    pub(super) async fn zero_part(&self, io: &Io, span: Span, unmap: Unmap, held: Held) -> Outcome {
        let mut rest = span;
        while !rest.is_empty() {
            let part = self.rest_of_slice(rest);
            let done = self.zero_some(io, part, unmap, held).await?;
            rest = rest.after(done);
        }
        Ok(())
    }

    async fn zero_some(&self, io: &Io, span: Span, unmap: Unmap, held: Held) -> Result<u64, Errno> {
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
            Err(malformed) => Err(self.malformed(io, malformed).await),
            Ok((Part::Zero { .. }, len)) => Ok(len),
            Ok((Part::Data { host, copied: true }, len)) => {
                let span = Span::new(host, len).ok_or(Errno::IO)?;
                self.check_span(io, span).await?;
                let kind = Kind::WriteZeroes(unmap, Durability::Cached);
                io.request(self.data(io)?, Request::plain(kind, span))
                    .await?;
                Ok(len)
            }
            Ok((Part::Below { .. }, len)) if self.below_is_zero(io, span.first(len)).await? => {
                Ok(len)
            }
            Ok((_, len)) => {
                drop(user);
                let piece = span.first(len.min(PIECE_BYTES));
                let zeroes = Mem::zeroed(piece.len as usize).ok_or(Errno::NOMEM)?;
                if held == Held::ByCaller {
                    return self.write_owned(io, piece, &zeroes).await;
                }
                self.write_all(io, piece, &zeroes).await?;
                Ok(piece.len)
            }
        }
    }

    /// Will what is deferred in `span` read as zeroes, whoever opens the image?
    async fn below_is_zero(&self, io: &Io, span: Span) -> Result<bool, Errno> {
        match io.child(Role::Cow) {
            Ok(_) => self.backing_reads_zero(io, span).await,
            Err(_) => Ok(self.nothing_below(io)),
        }
    }

    /// True if there is no backing file, nor one named that was left out here.
    pub(super) fn nothing_below(&self, io: &Io) -> bool {
        io.child(Role::Cow).is_err() && self.meta().header.backing.is_none()
    }

    /// Changes the entries of the clusters of `span`, which lies in one slice and is held by the caller.
    pub(super) async fn edit(
        &self,
        io: &Io,
        span: Span,
        why: Why,
        change: impl Fn(L2Entry) -> L2Entry,
    ) -> Outcome {
        let at = self.geometry.entry_at(span.at);
        let last = self.geometry.entry_at(span.end() - 1).index;
        let layout = self.geometry.layout();
        let changes = {
            let slot = self.slice(io, at.slice).await?;
            let entries = (at.index..=last).map(|index| layout.decode(slot.entry(index)));
            let mut changes = entries.map(|old| old.map(|old| change(old) != old));
            changes.find(|change| *change != Ok(false))
        };
        match changes {
            None => return Ok(()),
            Some(Err(malformed)) => return Err(self.malformed(io, malformed).await),
            Some(Ok(_)) => {}
        }
        self.own_table(io, self.geometry.l1_index(at.slice)).await?;
        let slot = self.slice(io, at.slice).await?;
        let mut meta = self.meta();
        meta.dirty.insert(at.slice);
        for index in at.index..=last {
            // One that is malformed stays as it is; whoever meets it first tells.
            self.replace(&mut meta, &slot, index, why, &change)
                .map_err(|_| Errno::IO)?;
        }
        Ok(())
    }

    /// Between the steps of a long change: commits if too much has piled up.
    pub(super) async fn keep_up(&self, io: &Io) -> Outcome {
        match self.is_full() {
            true => self.commit(io).await,
            false => Ok(()),
        }
    }
}

/// The entry once the subclusters of `part` (all of them where there are none) read as zeroes.
fn zeroed(old: L2Entry, part: u32, unmap: Unmap, unref: Unref) -> L2Entry {
    let keep = unmap == Unmap::Keep || unref == Unref::Keep;
    if part == u32::MAX {
        return whole_zeroed(old, keep);
    }
    let before = subclusters(old);
    let data = before.data & !part;
    let zero = before.zero | part;
    let (host, copied) = match old {
        L2Entry::Data { host, copied } | L2Entry::ZeroPrealloc { host, copied } => {
            (Some(host), copied)
        }
        L2Entry::Split { host, copied, .. } => (host, copied),
        L2Entry::Unallocated | L2Entry::Zero | L2Entry::Compressed { .. } => (None, false),
    };
    if zero == u32::MAX {
        return whole_zeroed(old, true);
    }
    L2Entry::Split {
        host,
        copied,
        subclusters: Subclusters { data, zero },
    }
}

/// The entry once all of the cluster reads as zeroes; `keep`: with the host cluster it has.
pub(super) fn whole_zeroed(old: L2Entry, keep: bool) -> L2Entry {
    match old {
        L2Entry::Data { host, copied }
        | L2Entry::ZeroPrealloc { host, copied }
        | L2Entry::Split {
            host: Some(host),
            copied,
            ..
        } if keep => L2Entry::ZeroPrealloc { host, copied },
        _ => L2Entry::Zero,
    }
}
