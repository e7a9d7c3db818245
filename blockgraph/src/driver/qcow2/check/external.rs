//! Entries of an image with an external data file: each has to be where the guest sees it.
//!
//! The rule: it is told and never set right, since nothing says which of the two places has the guest's bytes. (QEMU's own
//! check does not look; its reads mark the image corrupt when they meet such an entry.)

use super::image::{Image, read_words};
use super::walk::entry_words;
use super::{Finding, Report};
use crate::driver::qcow2::format::entry::{DataIn, L1Entry};
use ring::Errno;

/// Words of the L1 table that are read at once.
const STEP_WORDS: u64 = 1 << 17;

/// Looks at the active tables: there are no snapshots with a data file.
pub(super) async fn check_offsets(image: &Image, report: &mut Report) -> Result<(), Errno> {
    if image.header.entry_layout().data == DataIn::Image {
        return Ok(());
    }
    let l1 = image.header.l1;
    let mut done = 0;
    while done < u64::from(l1.count) {
        let step = (u64::from(l1.count) - done).min(STEP_WORDS);
        let words = read_words(&image.file, l1.at + done * 8, step as usize).await?;
        for (index, word) in (done..).zip(words) {
            if let Ok(L1Entry::Table { at, .. }) = L1Entry::decode(word, image.header.cluster_bits)
                && at < image.file_bytes
            {
                check_table(image, index, at, report).await?;
            }
        }
        done += step;
    }
    Ok(())
}

async fn check_table(image: &Image, index: u64, at: u64, report: &mut Report) -> Result<(), Errno> {
    let layout = image.header.entry_layout();
    let cluster = image.header.cluster_bytes();
    let bytes = image.file.read(at, cluster as usize).await?;
    let words = layout.words.count();
    let mut guest = index
        .saturating_mul(cluster / 8 / words)
        .saturating_mul(cluster);
    for entry in bytes.chunks_exact(8 * words as usize) {
        let entry = entry_words(entry).and_then(|pair| layout.decode(pair).ok());
        // What cannot be read is told by who counts references.
        let host = entry.and_then(|entry| entry.host_cluster());
        if let Some(host) = host.filter(|host| *host != guest) {
            report.found(Finding::Moved { host, guest });
        }
        guest = guest.saturating_add(cluster);
    }
    Ok(())
}
