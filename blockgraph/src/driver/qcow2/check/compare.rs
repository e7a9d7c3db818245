//! Refcounts as the image has them, beside the references that were counted; and set right where that is asked.

use super::counts::Counts;
use super::image::Image;
use super::walk::block_at;
use super::{Finding, Report};
use ring::Errno;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fix {
    /// Nothing.
    Nothing,
    /// Refcounts that are too high are lowered.
    Leaks,
    /// Refcounts that are too low are raised.
    Errors,
    /// Both.
    Both,
}

impl Fix {
    fn wanted(self, disk: u64, expected: u64) -> bool {
        match self {
            Fix::Nothing => false,
            Fix::Leaks => disk > expected,
            Fix::Errors => disk < expected,
            Fix::Both => true,
        }
    }
}

/// Compares the clusters that `counts` covers; `table` is the refcount table.
pub(super) async fn compare(
    image: &Image,
    counts: &Counts,
    table: &[u64],
    fix: Fix,
    report: &mut Report,
) -> Result<(), Errno> {
    let per_block = image.per_block();
    let cluster_bytes = image.header.cluster_bytes();
    for index in counts.from() / per_block..counts.end().div_ceil(per_block) {
        let word = table.get(index as usize).copied().unwrap_or(0);
        let at = block_at(word, cluster_bytes).ok().flatten();
        let at = at.filter(|at| *at < image.file_bytes);
        let mut block = match at {
            Some(at) => Some(image.file.read(at, cluster_bytes as usize).await?),
            None => None,
        };
        let changed = compare_block(image, counts, index, block.as_deref_mut(), fix, report);
        if let (true, Some(at), Some(block)) = (changed, at, block) {
            image.file.write(at, &block).await?;
        }
    }
    shared_blocks(counts, table, cluster_bytes, report);
    Ok(())
}

/// True if the block was changed.
fn compare_block(
    image: &Image,
    counts: &Counts,
    index: u64,
    mut block: Option<&mut [u8]>,
    fix: Fix,
    report: &mut Report,
) -> bool {
    let per_block = image.per_block();
    let first = index * per_block;
    let mut changed = false;
    for cluster in first.max(counts.from())..(first + per_block).min(counts.end()) {
        let within = (cluster - first) as usize;
        let disk = block
            .as_deref()
            .map_or(0, |block| image.width.get(block, within));
        let expected = counts.get(cluster);
        if disk > 0 || expected > 0 {
            report.image_end_clusters = report.image_end_clusters.max(cluster + 1);
        }
        if disk == expected {
            continue;
        }
        report.found(match disk < expected {
            true => Finding::TooLow {
                cluster,
                disk,
                expected,
            },
            false => Finding::Leak {
                cluster,
                disk,
                expected,
            },
        });
        match &mut block {
            Some(block) if fix.wanted(disk, expected) && expected <= image.width.max() => {
                image.width.set(block, within, expected);
                changed = true;
                if expected == 0 {
                    report.freed(cluster);
                }
            }
            Some(_) => {}
            None => report.needs_rebuild = true,
        }
    }
    changed
}

/// A refcount block that something else refers to as well cannot be written safely.
fn shared_blocks(counts: &Counts, table: &[u64], cluster_bytes: u64, report: &mut Report) {
    for (index, word) in (0..).zip(table) {
        let Ok(Some(at)) = block_at(*word, cluster_bytes) else {
            continue;
        };
        let cluster = at / cluster_bytes;
        let here = (counts.from()..counts.end()).contains(&cluster);
        if here && counts.get(cluster) != 1 {
            report.found(Finding::BlockShared(index, counts.get(cluster)));
        }
    }
}
