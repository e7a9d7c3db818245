//! New refcounts from what refers to what, where the old ones cannot be written any more.
//!
//! The rule: table and blocks are new, past the end of the file, and durable before the header points at them; until then
//! the image is as it was.

use super::CheckError;
use super::counts::Counts;
use super::image::Image;
use super::walk::{Refcounts, Walk};
use super::{Report, WINDOW_CLUSTERS};
use crate::driver::qcow2::format::header::REFCOUNT_TABLE_BYTES_MAX;
use ring::Errno;
use std::collections::BTreeSet;

/// Where the new structures go: the table, then the blocks in order.
struct Place {
    /// First cluster.
    from: u64,
    /// One past the last cluster.
    end: u64,
    table_clusters: u64,
    /// Which blocks there are.
    blocks: BTreeSet<u64>,
}

/// Counts one window, the refcount structures left out.
async fn count(image: &Image, from: u64) -> Result<Counts, Errno> {
    let counts = Counts::window(from, image.clusters()).ok_or(Errno::NOMEM)?;
    let mut unheard = Report::default();
    let walk = Walk::new(image, counts, &mut unheard);
    walk.run(Refcounts::Ignored).await
}

/// Writes new refcounts and switches to them.
pub(super) async fn rebuild(image: &Image) -> Result<(), CheckError> {
    let per_block = image.per_block();
    let mut used = BTreeSet::new();
    for from in (0..image.clusters()).step_by(WINDOW_CLUSTERS as usize) {
        let counts = count(image, from).await?;
        for index in counts.from() / per_block..counts.end().div_ceil(per_block) {
            let mut clusters = index * per_block..(index + 1) * per_block;
            if clusters.any(|cluster| counts.get(cluster) > 0) {
                used.insert(index);
            }
        }
    }
    let place = place(image, used).ok_or(CheckError::TooManyRefcounts)?;
    write_blocks(image, &place).await?;
    write_table(image, &place).await?;
    image.file.flush().await?;
    switch(image, &place).await?;
    Ok(())
}

/// The new structures count themselves too; each round adds what the last one needs.
fn place(image: &Image, used: BTreeSet<u64>) -> Option<Place> {
    let (per_block, cluster) = (image.per_block(), image.header.cluster_bytes());
    let mut place = Place {
        from: image.clusters(),
        end: image.clusters(),
        table_clusters: 1,
        blocks: used,
    };
    loop {
        let last = place.blocks.last().copied().unwrap_or(0);
        let table_bytes = (last + 1) * 8;
        if table_bytes > REFCOUNT_TABLE_BYTES_MAX {
            return None;
        }
        place.table_clusters = table_bytes.div_ceil(cluster);
        let end = place.from + place.table_clusters + place.blocks.len() as u64;
        if end == place.end {
            return Some(place);
        }
        place.end = end;
        place
            .blocks
            .extend(place.from / per_block..end.div_ceil(per_block));
    }
}

async fn write_blocks(image: &Image, place: &Place) -> Result<(), CheckError> {
    let per_block = image.per_block();
    let cluster_bytes = image.header.cluster_bytes();
    let mut counts = count(image, 0).await?;
    for (number, index) in (0..).zip(&place.blocks) {
        let first = index * per_block;
        if !(counts.from()..counts.end()).contains(&first) && first < image.clusters() {
            counts = count(image, first - first % WINDOW_CLUSTERS).await?;
        }
        let mut block = vec![0; cluster_bytes as usize];
        for within in 0..per_block {
            let cluster = first + within;
            let refcount = match (place.from..place.end).contains(&cluster) {
                true => 1,
                false => counts.get(cluster),
            };
            if refcount > image.width.max() {
                return Err(CheckError::RefcountTooLarge { cluster, refcount });
            }
            image.width.set(&mut block, within as usize, refcount);
        }
        let at = (place.from + place.table_clusters + number) * cluster_bytes;
        image.file.write(at, &block).await?;
    }
    Ok(())
}

async fn write_table(image: &Image, place: &Place) -> Result<(), Errno> {
    let cluster_bytes = image.header.cluster_bytes();
    let mut table = vec![0; (place.table_clusters * cluster_bytes) as usize];
    for (number, index) in (0..).zip(&place.blocks) {
        let at = (place.from + place.table_clusters + number) * cluster_bytes;
        let word = *index as usize * 8;
        if let Some(word) = table.get_mut(word..word + 8) {
            word.copy_from_slice(&at.to_be_bytes());
        }
    }
    image.file.write(place.from * cluster_bytes, &table).await
}

/// The header's two fields lie together in one sector.
async fn switch(image: &Image, place: &Place) -> Result<(), Errno> {
    let at = place.from * image.header.cluster_bytes();
    let mut fields = at.to_be_bytes().to_vec();
    fields.extend_from_slice(&(place.table_clusters as u32).to_be_bytes());
    image.file.write(48, &fields).await?;
    image.file.flush().await
}
