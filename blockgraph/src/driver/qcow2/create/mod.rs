//! Makes new images: the work of `blockdev-create` for qcow2.
//!
//! The rule: the header is written last, after everything it points at is durable, so that half an image is none.

mod layout;
mod options;

pub use options::{CreateError, DataFile, Options};

use super::format::entry::{L1Entry, L2Entry, Layout as EntryLayout, Subclusters, Words};
use super::format::header::Header;
use super::image_file::{ImageFile, STEP_BYTES};
use crate::graph::Access;
use crate::io::Io;
use crate::node::{NodeId, Outcome};
use crate::request::{Prealloc, Unmap};
use layout::{Filled, Layout, refcounts_per_block};
use ring::Errno;

/// Makes `file` an image as `options` says; whatever it held is gone. Both `file` and the data file must be writable
/// and their size free to change. Errors: see [`CreateError`]; `file` then holds no image.
pub async fn create(io: &Io, file: NodeId, options: &Options) -> Result<(), CreateError> {
    let header = options.header()?;
    writable(io, file)?;
    if let Some(data) = &options.data_file {
        if data.node == file {
            return Err(CreateError::SameFile);
        }
        writable(io, data.node)?;
    }
    let new = NewImage::plan(io, file, options, header)?;
    new.lay_down(options).await
}

fn writable(io: &Io, node: NodeId) -> Result<(), CreateError> {
    match io.graph().node(node) {
        None => Err(CreateError::NoNode),
        Some(node) if node.common().access == Access::ReadOnly => Err(CreateError::ReadOnly),
        Some(_) => Ok(()),
    }
}

/// An image in the making.
struct NewImage {
    file: ImageFile,
    data: Option<ImageFile>,
    header: Header,
    layout: Layout,
    prealloc: Prealloc,
}

impl NewImage {
    fn plan(
        io: &Io,
        file: NodeId,
        options: &Options,
        mut header: Header,
    ) -> Result<NewImage, CreateError> {
        let prealloc = options.effective_prealloc();
        let filled = match (prealloc, &options.data_file) {
            (Prealloc::Off, _) => Filled::Nothing,
            (_, Some(_)) => Filled::Tables,
            (_, None) => Filled::TablesAndData,
        };
        let layout = Layout::new(&header, filled).ok_or(CreateError::TooManyRefcounts)?;
        header.l1 = layout.l1_table(&header);
        header.refcount_table.at = layout.refcount_table.at;
        header.refcount_table.count = layout.refcount_table.clusters as u32;
        Ok(NewImage {
            file: ImageFile::new(io, file),
            data: options
                .data_file
                .as_ref()
                .map(|data| ImageFile::new(io, data.node)),
            header,
            layout,
            prealloc,
        })
    }

    async fn lay_down(&self, options: &Options) -> Result<(), CreateError> {
        let header = self.header.encode().map_err(|_| options.does_not_fit())?;
        self.clear().await.map_err(CreateError::Resize)?;
        self.size_files(options)
            .await
            .map_err(CreateError::resize(self.prealloc))?;
        self.write_refcounts()
            .await
            .map_err(CreateError::Refcounts)?;
        self.write_l1().await.map_err(CreateError::L1)?;
        self.write_l2().await.map_err(CreateError::L2)?;
        self.file.flush().await.map_err(CreateError::Flush)?;
        self.file
            .write(0, &header)
            .await
            .map_err(CreateError::Header)?;
        self.file.flush().await.map_err(CreateError::Flush)
    }

    /// A file loses all it has. A device cannot: it loses its header, and what must read as zeroes is zeroed.
    async fn clear(&self) -> Outcome {
        self.file.set_size(0, Prealloc::Off).await?;
        if self.file.size_bytes() == 0 {
            return Ok(());
        }
        let end = self.layout.clusters * self.header.cluster_bytes();
        if self.file.size_bytes() < end {
            return Err(Errno::NOSPC);
        }
        self.file.zero(0, end, Unmap::Allow).await?;
        self.file.flush().await
    }

    async fn size_files(&self, options: &Options) -> Outcome {
        let end = self.layout.clusters * self.header.cluster_bytes();
        let space = match self.prealloc {
            Prealloc::Metadata => Prealloc::Off,
            other => other,
        };
        let Some(data) = &self.data else {
            return self.file.set_size(end, space).await;
        };
        self.file.set_size(end, Prealloc::Off).await?;
        let size = self.header.size_bytes;
        match options.effective_prealloc() {
            // QEMU makes the data file as long as the disk, and cuts it where it is longer.
            Prealloc::Off => data.set_size(size, Prealloc::Off).await?,
            _ if data.size_bytes() < size => data.set_size(size, space).await?,
            _ => {}
        }
        data.flush().await
    }

    async fn write_refcounts(&self) -> Outcome {
        let (table, blocks) = (self.layout.refcount_table, self.layout.refcount_blocks);
        let cluster = self.header.cluster_bytes();
        let offsets = (0..blocks.clusters).map(|n| blocks.at + n * cluster);
        self.write_words(table.at, offsets).await?;
        let counted = self.layout.clusters;
        let per_block = refcounts_per_block(&self.header);
        for n in 0..blocks.clusters {
            let ones = counted.saturating_sub(n * per_block).min(per_block);
            let block = refcount_ones(ones, self.header.refcount_order);
            self.file.write(blocks.at + n * cluster, &block).await?;
        }
        Ok(())
    }

    async fn write_l1(&self) -> Outcome {
        let l2 = self.layout.l2;
        let cluster = self.header.cluster_bytes();
        let entry = |n| L1Entry::Table {
            at: l2.at + n * cluster,
            copied: true,
        };
        let words = (0..l2.clusters).map(|n| entry(n).encode());
        self.write_words(self.layout.l1.at, words).await
    }

    async fn write_l2(&self) -> Outcome {
        if self.layout.l2.clusters == 0 {
            return Ok(());
        }
        let cluster = self.header.cluster_bytes();
        let clusters = self.header.size_bytes.div_ceil(cluster);
        let layout = self.header.entry_layout();
        let host = |guest: u64| match self.data {
            Some(_) => guest * cluster,
            None => self.layout.data.at + guest * cluster,
        };
        let words = (0..clusters).flat_map(|guest| {
            let words = layout.encode(preallocated(layout, host(guest)));
            words.into_iter().take(layout.words.count() as usize)
        });
        self.write_words(self.layout.l2.at, words).await
    }

    /// Writes table words one after the other, in large steps.
    async fn write_words(&self, at: u64, words: impl Iterator<Item = u64>) -> Outcome {
        let mut at = at;
        let mut step = Vec::with_capacity(STEP_BYTES);
        for word in words {
            step.extend_from_slice(&word.to_be_bytes());
            if step.len() >= STEP_BYTES {
                self.file.write(at, &step).await?;
                at += step.len() as u64;
                step.clear();
            }
        }
        match step.is_empty() {
            true => Ok(()),
            false => self.file.write(at, &step).await,
        }
    }
}

/// A cluster that has its space and nothing in it: as data of zeroes, or deferring where subclusters can say so.
fn preallocated(layout: EntryLayout, host: u64) -> L2Entry {
    let copied = true;
    match layout.words {
        Words::One => L2Entry::Data { host, copied },
        Words::Two => L2Entry::Split {
            host: Some(host),
            copied,
            subclusters: Subclusters::default(),
        },
    }
}

/// The beginning of a refcount block: `count` ones of 2^`order` bits.
fn refcount_ones(count: u64, order: u32) -> Vec<u8> {
    let bits = count << order;
    let mut block = vec![0u8; bits.div_ceil(8) as usize];
    match order {
        // Entries narrower than a byte begin at its least significant bit (qcow2.txt, "Host cluster management").
        0..=2 => {
            for n in 0..count {
                let bit = n << order;
                block[(bit / 8) as usize] |= 1 << (bit % 8);
            }
        }
        _ => {
            let bytes = 1usize << (order - 3);
            for entry in block.chunks_exact_mut(bytes) {
                entry[bytes - 1] = 1;
            }
        }
    }
    block
}
