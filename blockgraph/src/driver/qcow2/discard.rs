//! Discards: whole clusters are given back; what was in them reads as zeroes, never as what a backing file has.
//!
//! The rule: advice, but what is done of it is done in order: the guest's view changes first, and the host cluster is free
//! when that is durable (`release.rs`).

use super::Qcow2;
use super::format::entry::{DataIn, L2Entry, ZeroFlag};
use super::meta::Why;
use super::writer::Unref;
use super::zero::whole_zeroed;
use crate::io::Io;
use crate::node::Outcome;
use crate::request::{Kind, Request};
use crate::units::Span;
use ring::Durability;

impl Qcow2 {
    /// Gives back the whole clusters of `span`, which is within the disk.
    pub(super) async fn discard(&self, io: &Io, span: Span) -> Outcome {
        let Some(whole) = self.whole_clusters(span) else {
            return Ok(());
        };
        // "Clusters that are unallocated [...] are read from the backing file": without a zero flag there is no way to have
        // a cluster read as zeroes and take no space.
        let nothing_below = self.nothing_below(io);
        if self.geometry.layout().zero_flag == ZeroFlag::Unknown && !nothing_below {
            return Ok(());
        }
        self.open_for_writing(io).await?;
        let mut rest = whole;
        while !rest.is_empty() {
            let part = self.rest_of_slice(rest);
            self.discard_clusters(io, part, nothing_below).await?;
            self.keep_up(io).await?;
            rest = rest.after(part.len);
        }
        self.after_change(io, Durability::Cached).await
    }

    /// The whole clusters in `span`; one that the end of the disk cuts counts as whole.
    fn whole_clusters(&self, span: Span) -> Option<Span> {
        let cluster = self.geometry.cluster_bytes();
        let at = span.at.checked_next_multiple_of(cluster)?;
        let end = match span.end() == self.disk_bytes() {
            true => span.end(),
            false => self.geometry.cluster_start(span.end()),
        };
        (at < end).then(|| Span { at, len: end - at })
    }

    /// Clusters of one slice.
    async fn discard_clusters(&self, io: &Io, span: Span, nothing_below: bool) -> Outcome {
        let _hold = self
            .holds
            .hold(span.widened(self.geometry.cluster_bytes()))
            .await;
        let keep = self.writer.options.unref == Unref::Keep;
        let has_flag = self.geometry.layout().zero_flag == ZeroFlag::Known;
        let change = |old| match old {
            L2Entry::Unallocated if nothing_below => old,
            _ if has_flag => whole_zeroed(old, keep),
            _ => L2Entry::Unallocated,
        };
        self.edit(io, span, Why::Request, change).await?;
        if !self.writer.options.pass_discard.request {
            return Ok(());
        }
        match self.geometry.layout().data {
            DataIn::DataFile => self.tell_data_file(io, span).await,
            DataIn::Image if keep => self.tell_kept(io, span).await,
            DataIn::Image => Ok(()),
        }
    }

    /// A data file has no clusters to free: its bytes are discarded as they are.
    async fn tell_data_file(&self, io: &Io, span: Span) -> Outcome {
        let kind = match self.meta().header.autoclear.data_file_raw {
            // Read as it is, without this image, it has to read the same.
            true => Kind::WriteZeroes(crate::request::Unmap::Allow, Durability::Cached),
            false => Kind::Discard,
        };
        io.request(self.data(io)?, Request::plain(kind, span)).await
    }

    /// Host clusters that stay with their guest clusters: what they hold is of no use.
    async fn tell_kept(&self, io: &Io, span: Span) -> Outcome {
        let layout = self.geometry.layout();
        let first = self.geometry.entry_at(span.at);
        let last = self.geometry.entry_at(span.end() - 1).index;
        let hosts: Vec<u64> = {
            let slot = self.slice(io, first.slice).await?;
            let entries = (first.index..=last).filter_map(|n| layout.decode(slot.entry(n)).ok());
            let kept = entries.filter_map(|entry| match entry {
                L2Entry::ZeroPrealloc { host, copied: true } => Some(host),
                _ => None,
            });
            kept.collect()
        };
        let file = self.file(io)?;
        for run in hosts.chunk_by(|a, b| a + self.geometry.cluster_bytes() == *b) {
            let len = run.len() as u64 * self.geometry.cluster_bytes();
            if let Some(span) = run.first().and_then(|at| Span::new(*at, len)) {
                // Advice.
                let _ = io.request(file, Request::plain(Kind::Discard, span)).await;
            }
        }
        Ok(())
    }
}
