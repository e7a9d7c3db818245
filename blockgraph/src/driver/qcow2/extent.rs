//! Runs of guest bytes that are of one kind, and next to each other in the file: what mapping, reading and status share.
//!
//! The rule: a run never leaves the slice its words come from.

use super::format::entry::{DataIn, L2Entry, Malformed, Part};
use super::geometry::Geometry;
use crate::units::Span;

/// What `span` begins with, and for how many bytes (at least one; `span` is not empty). `words` answers the words of an entry
/// of the slice in which `span` begins.
#[inline]
pub(crate) fn extent(
    geometry: &Geometry,
    span: Span,
    words: impl Fn(usize) -> [u64; 2],
) -> Result<(Part, u64), Malformed> {
    let index = geometry.entry_at(span.at).index;
    let (first, len) = part(geometry, span.at, words(index))?;
    // A run that ends within its cluster ends there, and most requests do.
    let len = match len < span.len && geometry.within_cluster(span.at + len) == 0 {
        true => run(geometry, span, index, (first, len), words),
        false => len,
    };
    Ok((first, len.min(span.len)))
}

/// How long a run is of which the beginning is known, up to the end of a cluster.
#[inline(never)]
fn run(
    geometry: &Geometry,
    span: Span,
    mut index: usize,
    (first, mut len): (Part, u64),
    words: impl Fn(usize) -> [u64; 2],
) -> u64 {
    let entries = geometry.slice_entries() as usize;
    while len < span.len && geometry.within_cluster(span.at + len) == 0 {
        index += 1;
        if index == entries {
            break;
        }
        // What is wrong with the next cluster is told to whoever asks for it.
        let Ok((next, more)) = part(geometry, span.at + len, words(index)) else {
            break;
        };
        if !goes_on(first, len, next) {
            break;
        }
        len += more;
    }
    len
}

/// What one entry says, from guest byte `guest` on. It is in every lookup, and small where a glance is enough.
#[inline(always)]
fn part(geometry: &Geometry, guest: u64, words: [u64; 2]) -> Result<(Part, u64), Malformed> {
    let layout = geometry.layout();
    let entry = match layout.glance(words) {
        Some(entry) => entry,
        None => decode(geometry, guest, words)?,
    };
    Ok(entry.part(geometry.within_cluster(guest), layout.cluster_bits))
}

#[inline(never)]
fn decode(geometry: &Geometry, guest: u64, words: [u64; 2]) -> Result<L2Entry, Malformed> {
    let layout = geometry.layout();
    let entry = layout.decode(words)?;
    // qcow2.txt, incompatible features, bit 2: "The offset field in the Standard Cluster Descriptor must match the guest
    // offset".
    if layout.data == DataIn::DataFile
        && let Some(host) = entry.host_cluster()
        && host != geometry.cluster_start(guest)
    {
        return Err(Malformed::Moved(words[0]));
    }
    Ok(entry)
}

/// Is `next`, `len` bytes after `first`, more of the same?
#[inline]
fn goes_on(first: Part, len: u64, next: Part) -> bool {
    let follows = |a: Option<u64>, b: Option<u64>| a.map(|a| a.saturating_add(len)) == b;
    match (first, next) {
        (Part::Below { host: a }, Part::Below { host: b }) => follows(a, b),
        (Part::Zero { host: a }, Part::Zero { host: b }) => follows(a, b),
        (
            Part::Data { host: a, copied },
            Part::Data {
                host: b,
                copied: also,
            },
        ) => copied == also && follows(Some(a), Some(b)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::entry::{Layout, Words, ZeroFlag};
    use super::*;

    const CLUSTER: u64 = 65536;

    fn run(entries: &[L2Entry], at: u64, len: u64) -> (Part, u64) {
        let layout = Layout {
            cluster_bits: 16,
            words: Words::One,
            data: DataIn::Image,
            zero_flag: ZeroFlag::Known,
        };
        let geometry = Geometry::new(layout, 12);
        let words = |index: usize| {
            let entry = entries.get(index).copied();
            layout.encode(entry.unwrap_or(L2Entry::Unallocated))
        };
        extent(&geometry, Span { at, len }, words).expect("well formed")
    }

    fn data(host: u64, copied: bool) -> L2Entry {
        L2Entry::Data { host, copied }
    }

    #[test]
    fn neighbours_are_one_run_and_strangers_are_not() {
        let entries = [
            data(CLUSTER * 5, true),
            data(CLUSTER * 6, true),
            data(CLUSTER * 7, false),
            data(CLUSTER * 9, false),
            L2Entry::Zero,
            L2Entry::Zero,
        ];
        let (host, copied) = (CLUSTER * 5 + 512, true);
        let part = Part::Data { host, copied };
        assert_eq!(run(&entries, 512, 1 << 30), (part, 2 * CLUSTER - 512));
        assert_eq!(run(&entries, 512, 1000), (part, 1000));
        assert_eq!(run(&entries, 2 * CLUSTER, 1 << 30).1, CLUSTER);
        let zero = Part::Zero { host: None };
        assert_eq!(run(&entries, 4 * CLUSTER, 1 << 30), (zero, 2 * CLUSTER));
        let below = Part::Below { host: None };
        // The slice ends after 512 entries.
        assert_eq!(
            run(&entries, 6 * CLUSTER, 1 << 30),
            (below, (512 - 6) * CLUSTER)
        );
    }

    #[test]
    fn compressed_clusters_stay_apart() {
        let packed = |host| L2Entry::Compressed {
            host,
            len_bytes: 512,
        };
        let entries = [packed(CLUSTER), packed(CLUSTER + 512)];
        assert_eq!(run(&entries, 100, 1 << 20).1, CLUSTER - 100);
    }
}
