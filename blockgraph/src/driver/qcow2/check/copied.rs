//! The flag that says "my refcount is one": wrong, it makes a write change a snapshot.
//!
//! The rule: it is compared with the refcount on disk, as a writer would; set right only after those are.

use super::image::{Image, read_words};
use super::walk::{block_at, entry_words, merged};
use super::{Finding, Report};
use crate::driver::qcow2::format::entry::{DataIn, L1Entry, L2Entry};
use crate::driver::qcow2::format::header::TableAt;
use ring::Errno;

const COPIED: u64 = 1 << 63;
/// Refcount blocks remembered.
const BLOCKS_MAX: usize = 16;
/// Words of the L1 table that are read at once.
const STEP_WORDS: u64 = 1 << 17;

/// Is what is wrong written right?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flags {
    Told,
    Fixed,
}

/// Refcounts on disk, block by block; the last ones used come first.
struct Disk<'a> {
    image: &'a Image,
    table: Vec<u64>,
    blocks: Vec<(u64, Vec<u8>)>,
}

impl Disk<'_> {
    async fn refcount(&mut self, cluster: u64) -> Result<u64, Errno> {
        let per_block = self.image.per_block();
        let index = cluster / per_block;
        let within = (cluster % per_block) as usize;
        if let Some(found) = self.blocks.iter().position(|(at, _)| *at == index) {
            self.blocks[..=found].rotate_right(1);
        } else {
            let Some(block) = self.load(index).await? else {
                return Ok(0);
            };
            self.blocks.truncate(BLOCKS_MAX - 1);
            self.blocks.insert(0, (index, block));
        }
        let block = self.blocks.first();
        Ok(block.map_or(0, |(_, block)| self.image.width.get(block, within)))
    }

    async fn load(&self, index: u64) -> Result<Option<Vec<u8>>, Errno> {
        let word = self.table.get(index as usize).copied().unwrap_or(0);
        let cluster_bytes = self.image.header.cluster_bytes();
        match block_at(word, cluster_bytes) {
            Ok(Some(at)) => Ok(Some(
                self.image.file.read(at, cluster_bytes as usize).await?,
            )),
            _ => Ok(None),
        }
    }
}

/// Looks at the active tables, and at those that are to be.
pub(super) async fn check_flags(
    image: &Image,
    flags: Flags,
    report: &mut Report,
) -> Result<(), Errno> {
    check_tables(image, image.header.l1, flags, report).await?;
    for l1 in &image.extra.l1 {
        check_tables(image, *l1, flags, report).await?;
    }
    Ok(())
}

async fn check_tables(
    image: &Image,
    l1: TableAt,
    flags: Flags,
    report: &mut Report,
) -> Result<(), Errno> {
    let mut disk = Disk {
        image,
        table: image.refcount_table().await?,
        blocks: Vec::new(),
    };
    let mut done = 0;
    while done < u64::from(l1.count) {
        let step = (u64::from(l1.count) - done).min(STEP_WORDS);
        let at = l1.at + done * 8;
        let mut words = read_words(&image.file, at, step as usize).await?;
        let before = words.clone();
        let tables = l1_words(&mut disk, &mut words, flags, report).await?;
        if words != before {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            image.file.write(at, &bytes).await?;
        }
        for (at, _) in merged(tables) {
            l2_table(&mut disk, at, flags, report).await?;
        }
        done += step;
    }
    Ok(())
}

/// Looks at L1 entries, and says which tables they have.
async fn l1_words(
    disk: &mut Disk<'_>,
    words: &mut [u64],
    flags: Flags,
    report: &mut Report,
) -> Result<Vec<(u64, u32)>, Errno> {
    let mut tables = Vec::new();
    let bits = disk.image.header.cluster_bits;
    for word in words {
        let Ok(L1Entry::Table { at, copied }) = L1Entry::decode(*word, bits) else {
            continue;
        };
        if at >= disk.image.file_bytes {
            continue;
        }
        tables.push((at, 1));
        let refcount = disk.refcount(at >> bits).await?;
        if copied != (refcount == 1) {
            report.found(Finding::Copied { at, refcount });
            if flags == Flags::Fixed {
                *word ^= COPIED;
            }
        }
    }
    Ok(tables)
}

async fn l2_table(
    disk: &mut Disk<'_>,
    at: u64,
    flags: Flags,
    report: &mut Report,
) -> Result<(), Errno> {
    let image = disk.image;
    let layout = image.header.entry_layout();
    let mut bytes = image
        .file
        .read(at, image.header.cluster_bytes() as usize)
        .await?;
    let mut changed = false;
    for entry in bytes.chunks_exact_mut(8 * layout.words.count() as usize) {
        let Some((host, copied)) = entry_words(entry).and_then(|pair| match layout.decode(pair) {
            Ok(L2Entry::Data { host, copied } | L2Entry::ZeroPrealloc { host, copied }) => {
                Some((host, copied))
            }
            Ok(L2Entry::Split { host, copied, .. }) => Some((host?, copied)),
            _ => None,
        }) else {
            continue;
        };
        let refcount = match layout.data {
            DataIn::Image => disk.refcount(host >> layout.cluster_bits).await?,
            // Clusters of a data file have no refcounts, and are never shared.
            DataIn::DataFile => 1,
        };
        if copied != (refcount == 1) {
            report.found(Finding::Copied { at: host, refcount });
            if flags == Flags::Fixed {
                entry[0] ^= 0x80;
                changed = true;
            }
        }
    }
    if changed {
        image.file.write(at, &bytes).await?;
    }
    Ok(())
}
