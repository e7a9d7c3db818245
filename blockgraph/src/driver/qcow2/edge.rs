//! What lies around a write in the clusters, or subclusters, that it touches in part: copied along, or zeroes.
//!
//! The rule: edges never reach beyond the unit that becomes data with the write: the subcluster, or the whole cluster where
//! what was there before is left behind.

use super::Qcow2;
use super::alloc::Content;
use super::format::entry::{L2Entry, Part, SUBCLUSTERS, Subclusters, Words};
use super::geometry::Geometry;
use super::together::together;
use crate::filter::blkdebug::BlkdebugEvent;
use crate::graph::Role;
use crate::io::Io;
use crate::node::{Local, NodeId, Outcome};
use crate::status;
use crate::units::Span;
use ring::{Errno, Mem};

/// Writes with edges up to this length are put together and written at once, in bytes.
const WHOLE_BYTES_MAX: u64 = 256 << 10;

/// How an edge gets its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    /// It has it: zeroes, in clusters that read as zeroes.
    There,
    /// Zeroes are written.
    Zeroes,
    /// It is read from where it was and written.
    Copy,
}

/// Guest bytes right before or right after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edge {
    /// The first guest byte.
    pub(crate) at: u64,
    /// How many.
    pub(crate) len: u64,
    /// How they get their content.
    pub(crate) fill: Fill,
}

/// A write and its edges.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Around {
    pub(crate) head: Edge,
    pub(crate) tail: Edge,
    /// What the guest writes.
    pub(crate) span: Span,
    /// Where `span` begins in the node that has the data.
    pub(crate) host: u64,
}

/// What becomes data at once, in bytes: more than a subcluster if data would be left behind in another host cluster.
fn unit_bytes(geometry: &Geometry, entry: L2Entry) -> u64 {
    match entry {
        L2Entry::Data { .. } | L2Entry::Compressed { .. } => geometry.cluster_bytes(),
        L2Entry::Split {
            copied: false,
            subclusters,
            ..
        } if subclusters.data != 0 => geometry.cluster_bytes(),
        _ => geometry.subcluster_bytes(),
    }
}

/// Is the byte in a subcluster that is data and stays where it is?
fn stays(geometry: &Geometry, entry: L2Entry, guest: u64) -> bool {
    let within = geometry.within_cluster(guest);
    let (part, _) = entry.part(within, geometry.cluster_bits());
    matches!(part, Part::Data { copied: true, .. })
}

/// What lies before `span` in the unit that it begins in.
pub(crate) fn head(geometry: &Geometry, entry: L2Entry, span: Span) -> Edge {
    let unit = unit_bytes(geometry, entry);
    let len = match stays(geometry, entry, span.at) {
        true => 0,
        false => span.at & (unit - 1),
    };
    let (at, fill) = (span.at - len, Fill::Copy);
    Edge { at, len, fill }
}

/// What lies behind `span` in the unit that it ends in.
pub(crate) fn tail(geometry: &Geometry, entry: L2Entry, span: Span) -> Edge {
    let unit = unit_bytes(geometry, entry);
    let (at, fill) = (span.end(), Fill::Copy);
    let len = match stays(geometry, entry, at - 1) {
        true => 0,
        false => at.wrapping_neg() & (unit - 1),
    };
    Edge { at, len, fill }
}

/// Which subclusters of the guest cluster `guest` are touched by `span`; all of them where there are none.
pub(crate) fn mask(geometry: &Geometry, guest: Span, span: Span) -> u32 {
    let unit = geometry.subcluster_bytes();
    let from = span.at.max(guest.at) - guest.at;
    let to = span.end().min(guest.end()) - guest.at;
    if unit == guest.len {
        return u32::MAX;
    }
    let (from, to) = (from / unit, to.div_ceil(unit));
    let up_to = |n: u64| u32::MAX.checked_shr(SUBCLUSTERS - n as u32).unwrap_or(0);
    up_to(to) & !up_to(from)
}

/// What the subclusters of an entry are.
pub(crate) fn subclusters(entry: L2Entry) -> Subclusters {
    let (data, zero) = match entry {
        L2Entry::Unallocated | L2Entry::Compressed { .. } => (0, 0),
        L2Entry::Zero | L2Entry::ZeroPrealloc { .. } => (0, u32::MAX),
        L2Entry::Data { .. } => (u32::MAX, 0),
        L2Entry::Split { subclusters, .. } => return subclusters,
    };
    Subclusters { data, zero }
}

/// The entry once the subclusters of `mask` are data in the host cluster `host`.
pub(crate) fn written(geometry: &Geometry, old: L2Entry, host: u64, mask: u32) -> L2Entry {
    let copied = true;
    if geometry.layout().words == Words::One || mask == u32::MAX {
        return L2Entry::Data { host, copied };
    }
    let before = subclusters(old);
    let stays = match old.host_cluster() == Some(host) {
        true => before.data,
        false => 0,
    };
    let data = stays | mask;
    let zero = before.zero & !mask;
    if data == u32::MAX {
        return L2Entry::Data { host, copied };
    }
    L2Entry::Split {
        host: Some(host),
        copied,
        subclusters: Subclusters { data, zero },
    }
}

impl Qcow2 {
    /// Finds out how an edge in the cluster of `entry` gets its content, in a host cluster that reads as `content`.
    pub(super) async fn choose_fill(
        &self,
        io: &Io,
        edge: &mut Edge,
        entry: L2Entry,
        content: Content,
    ) -> Outcome {
        if edge.len == 0 {
            return Ok(());
        }
        let (at, len) = (edge.at, edge.len);
        edge.fill = match (self.reads_zero(io, entry, Span { at, len }).await?, content) {
            (true, Content::Zeroes) => Fill::There,
            (true, Content::Stale) => Fill::Zeroes,
            (false, _) => Fill::Copy,
        };
        Ok(())
    }

    /// True if `span`, of the cluster of `entry`, is known to read as zeroes.
    async fn reads_zero(&self, io: &Io, entry: L2Entry, span: Span) -> Result<bool, Errno> {
        let mut rest = span.first(self.disk_bytes().saturating_sub(span.at));
        while !rest.is_empty() {
            let within = self.geometry.within_cluster(rest.at);
            let (part, len) = entry.part(within, self.geometry.cluster_bits());
            match part {
                Part::Zero { .. } => {}
                Part::Below { .. } => {
                    if !self.backing_reads_zero(io, rest.first(len)).await? {
                        return Ok(false);
                    }
                }
                Part::Data { .. } | Part::Compressed { .. } => return Ok(false),
            }
            rest = rest.after(len);
        }
        Ok(true)
    }

    /// True if nothing below, or nothing but zeroes, stands behind `span`.
    pub(super) async fn backing_reads_zero(&self, io: &Io, span: Span) -> Result<bool, Errno> {
        let Ok(backing) = io.child(Role::Cow) else {
            return Ok(true);
        };
        let size = io.graph().info(backing).ok_or(Errno::IO)?.size_bytes;
        let mut rest = span.first(size.saturating_sub(span.at));
        while !rest.is_empty() {
            let known = io.status(backing, rest).await?;
            if known.content != status::Content::Zero || known.len == 0 {
                return Ok(false);
            }
            rest = rest.after(known.len);
        }
        Ok(true)
    }

    /// Writes what the guest writes, and what its edges are filled with: at once where that is short, and else the outer
    /// clusters apart from those between.
    pub(super) async fn put(&self, io: &Io, around: Around, mem: &Mem) -> Outcome {
        let node = self.data(io)?;
        let Around {
            head,
            tail,
            span,
            host,
        } = around;
        let before = around.before();
        let after = around.after();
        if before == 0 && after == 0 {
            self.tell(io, BlkdebugEvent::WriteAio);
            return io.write(node, host, mem).await;
        }
        if before + span.len + after <= WHOLE_BYTES_MAX.max(self.geometry.cluster_bytes()) {
            return self.put_together(io, node, around, mem).await;
        }
        let cluster = self.geometry.cluster_bytes();
        let first_end = match before {
            0 => span.at,
            _ => (self.geometry.cluster_start(span.at) + cluster).min(span.end()),
        };
        let last_start = match after {
            0 => span.end(),
            _ => self.geometry.cluster_start(span.end() - 1).max(first_end),
        };
        let none = |at| Edge {
            at,
            len: 0,
            fill: Fill::There,
        };
        let parts = [
            (span.at, first_end, head, none(first_end)),
            (first_end, last_start, none(first_end), none(last_start)),
            (last_start, span.end(), none(last_start), tail),
        ];
        let mut writes: Vec<Local<'_, Outcome>> = Vec::with_capacity(parts.len());
        for (from, to, head, tail) in parts {
            let mem = mem.slice((from - span.at) as usize, (to - from) as usize);
            let part = Around {
                head,
                tail,
                span: Span {
                    at: from,
                    len: to - from,
                },
                host: host + (from - span.at),
            };
            if from < to {
                writes.push(Box::pin(async move {
                    self.put_together(io, node, part, &mem).await
                }));
            }
        }
        together(writes).await
    }

    /// In one write; with a buffer if there are edges.
    async fn put_together(&self, io: &Io, node: NodeId, around: Around, mem: &Mem) -> Outcome {
        let (before, after) = (around.before(), around.after());
        if before == 0 && after == 0 {
            self.tell(io, BlkdebugEvent::WriteAio);
            return io.write(node, around.host, mem).await;
        }
        let len = before + around.span.len + after;
        let all = Mem::zeroed(len as usize).ok_or(Errno::NOMEM)?;
        let part = |from: u64, len: u64| all.slice(from as usize, len as usize);
        self.fill_edge(io, around.head, part(0, before)).await?;
        self.fill_edge(io, around.tail, part(before + around.span.len, after))
            .await?;
        part(before, around.span.len).copy_from(mem);
        // Both are in one write.
        self.tell(io, BlkdebugEvent::WriteAio);
        self.tell(io, BlkdebugEvent::CowWrite);
        io.write(node, around.host - before, &all).await
    }

    /// What an edge reads as, into zeroed memory; zeroes past the end of the disk.
    async fn fill_edge(&self, io: &Io, edge: Edge, mem: Mem) -> Outcome {
        let there = self
            .disk_bytes()
            .saturating_sub(edge.at)
            .min(mem.len() as u64);
        if edge.fill != Fill::Copy || there == 0 {
            return Ok(());
        }
        let (at, len) = (edge.at, there);
        let mem = mem.slice(0, there as usize);
        self.tell(io, BlkdebugEvent::CowRead);
        self.read(io, Span { at, len }, mem).await
    }
}

impl Around {
    /// Bytes of the head that are written.
    fn before(&self) -> u64 {
        written_bytes(self.head)
    }

    /// Bytes of the tail that are written.
    fn after(&self) -> u64 {
        written_bytes(self.tail)
    }
}

fn written_bytes(edge: Edge) -> u64 {
    match edge.fill {
        Fill::There => 0,
        Fill::Zeroes | Fill::Copy => edge.len,
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::entry::{DataIn, Layout, ZeroFlag};
    use super::*;

    const EXTENDED: Layout = Layout {
        cluster_bits: 16,
        words: Words::Two,
        data: DataIn::Image,
        zero_flag: ZeroFlag::Known,
    };
    const SPAN: Span = Span {
        at: 65536 + 3000,
        len: 4000,
    };

    fn edges(words: Words, entry: L2Entry) -> (u64, u64) {
        let geometry = Geometry::new(Layout { words, ..EXTENDED }, 12);
        (
            head(&geometry, entry, SPAN).len,
            tail(&geometry, entry, SPAN).len,
        )
    }

    fn split(copied: bool, data: u32) -> L2Entry {
        let zero = 0;
        L2Entry::Split {
            host: Some(0x50000),
            copied,
            subclusters: Subclusters { data, zero },
        }
    }

    #[test]
    fn edges_reach_to_the_subcluster_or_to_the_cluster_that_is_left_behind() {
        assert_eq!(
            edges(Words::One, L2Entry::Unallocated),
            (3000, 65536 - 7000)
        );
        // Subclusters of 2 KiB.
        assert_eq!(edges(Words::Two, L2Entry::Unallocated), (952, 1192));
        let shared = L2Entry::Data {
            host: 0x50000,
            copied: false,
        };
        assert_eq!(edges(Words::Two, shared), (3000, 65536 - 7000));
        assert_eq!(
            edges(Words::Two, split(false, 1 << 20)),
            (3000, 65536 - 7000)
        );
        assert_eq!(edges(Words::Two, split(false, 0)), (952, 1192));
        assert_eq!(edges(Words::Two, split(true, 1 << 1)), (0, 1192));
        assert_eq!(edges(Words::Two, split(true, 1 << 3)), (952, 0));
    }

    #[test]
    fn the_mask_is_of_the_subclusters_that_are_touched() {
        let geometry = Geometry::new(EXTENDED, 12);
        let guest = Span {
            at: 65536,
            len: 65536,
        };
        assert_eq!(mask(&geometry, guest, SPAN), 0b1110);
        assert_eq!(mask(&geometry, guest, guest), u32::MAX);
        let all = Span {
            at: 0,
            len: 1 << 20,
        };
        assert_eq!(mask(&geometry, guest, all), u32::MAX);
    }

    #[test]
    fn what_is_written_is_data_and_the_rest_is_as_it_was() {
        let geometry = Geometry::new(EXTENDED, 12);
        let entry = |host, data, zero| L2Entry::Split {
            host: Some(host),
            copied: true,
            subclusters: Subclusters { data, zero },
        };
        let old = entry(0x50000, 0b1, 0b110);
        assert_eq!(
            written(&geometry, old, 0x50000, 0b10),
            entry(0x50000, 0b11, 0b100)
        );
        assert_eq!(
            written(&geometry, old, 0x60000, 0b10),
            entry(0x60000, 0b10, 0b100)
        );
        let (host, copied) = (0x50000, true);
        let rest = written(&geometry, old, host, !0b1);
        assert_eq!(rest, L2Entry::Data { host, copied });
    }
}
