//! Quarantine: freed clusters are free once nothing durable refers to them and nobody still uses what it looked up.
//!
//! The rule: the host is told of a discard before the cluster can be handed out again, never after.

use super::Qcow2;
use super::meta::{Freed, Meta};
use super::refcount::Lack;
use crate::filter::blkdebug::BlkdebugEvent;
use crate::io::Io;
use crate::node::Outcome;
use crate::request::{Kind, Request};
use crate::units::Span;
use std::collections::VecDeque;

/// At most so many clusters are discarded at once.
const CLUSTERS_MAX: u64 = 4096;

/// What has not been given back. Dropped, it waits for the next commit.
struct Rest<'a> {
    image: &'a Qcow2,
    freed: VecDeque<Freed>,
}

impl Rest<'_> {
    /// The first span was given back up to `end` of the file.
    fn advance_to(&mut self, end: u64) {
        let Some(front) = self.freed.front_mut() else {
            return;
        };
        let done = end.saturating_sub(front.at);
        if done >= front.len {
            self.freed.pop_front();
            return;
        }
        front.at += done;
        front.len -= done;
    }
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        let freed = self.freed.drain(..);
        self.image.meta().freed.extend(freed);
    }
}

impl Qcow2 {
    /// Nothing durable refers to `freed` any more. What cannot be given back now waits for the next commit.
    pub(crate) async fn release(&self, io: &Io, freed: Vec<Freed>) {
        if freed.is_empty() {
            return;
        }
        let mut rest = Rest {
            image: self,
            freed: freed.into(),
        };
        io.grace().await;
        self.users.left().await;
        while let Some(span) = rest.freed.front().copied() {
            if self
                .give_back(io, self.first_clusters(span), &mut rest)
                .await
                .is_err()
            {
                return;
            }
        }
    }

    /// The whole clusters that a span begins with, or the part of one.
    fn first_clusters(&self, span: Freed) -> Freed {
        let cluster = self.geometry.cluster_bytes();
        let len = match self.geometry.within_cluster(span.at) {
            0 if span.len < cluster => span.len,
            0 => self
                .geometry
                .cluster_start(span.len.min(cluster * CLUSTERS_MAX)),
            within => span.len.min(cluster - within),
        };
        Freed { len, ..span }
    }

    /// One reference less for each cluster of `span`, after the host was told of those that become free.
    async fn give_back(&self, io: &Io, span: Freed, rest: &mut Rest<'_>) -> Outcome {
        self.tell(io, BlkdebugEvent::ClusterFree);
        let bits = self.geometry.cluster_bits();
        let clusters = (span.at >> bits)..(span.at + span.len).div_ceil(1 << bits);
        if self.writer.options.pass_discard.passes(span.why) {
            self.tell_host(io, clusters.clone()).await?;
        }
        for cluster in clusters {
            self.meet_loaded(io, |meta| drop_reference(meta, cluster))
                .await?;
            rest.advance_to((cluster + 1) << bits);
        }
        Ok(())
    }

    /// Discards those of the clusters to which there is only one reference left.
    async fn tell_host(&self, io: &Io, clusters: std::ops::Range<u64>) -> Outcome {
        let bits = self.geometry.cluster_bits();
        let mut next = clusters.start;
        while next < clusters.end {
            let first = next;
            while next < clusters.end && self.meet_loaded(io, |meta| is_last(meta, next)).await? {
                next += 1;
            }
            if first == next {
                next += 1;
                continue;
            }
            let span = Span::new(first << bits, (next - first) << bits);
            if let (Some(span), Ok(file)) = (span, self.file(io)) {
                // Advice: whatever the host makes of it, the clusters are free.
                let _ = io.request(file, Request::plain(Kind::Discard, span)).await;
            }
        }
        Ok(())
    }
}

/// True if there is one reference left; then nobody can add another.
fn is_last(meta: &mut Meta, cluster: u64) -> Result<bool, Lack> {
    let last = meta.refs.get(cluster)? == 1;
    if last {
        meta.alloc.stop_packing(cluster);
    }
    Ok(last)
}

fn drop_reference(meta: &mut Meta, cluster: u64) -> Result<(), Lack> {
    if meta.refs.decrement(cluster)? == 0 {
        meta.alloc.release(cluster);
    }
    Ok(())
}
