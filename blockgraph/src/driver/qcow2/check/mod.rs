//! Checks an image and repairs it, in the way of `qemu-img check`: what refers to a host cluster is counted, and compared
//! with what its refcount says.
//!
//! The rule: nobody else writes the image meanwhile, and memory is bounded whatever the image says.

mod compare;
mod copied;
mod counts;
mod external;
mod image;
mod rebuild;
mod report;
mod walk;

pub(crate) use image::{Extra, read_header, read_snapshots};
pub use report::{Finding, Report};

use super::format::bitmap_dir::BitmapError;
use super::format::features::Incompatible;
use super::format::header::HeaderError;
use super::format::snapshot_table::SnapshotError;
use super::image_file::ImageFile;
use crate::graph::errno_text;
use crate::io::Io;
use crate::node::NodeId;
use compare::{Fix, compare};
use copied::{Flags, check_flags};
use counts::{Counts, WINDOW_CLUSTERS};
use image::Image;
use ring::Errno;
use std::ops::Range;
use walk::{Refcounts, Walk};

/// A repair is tried at most so often, each time on what the last one left.
const ROUNDS_MAX: u32 = 8;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nothing: the image is only looked at.
    Nothing,
    /// Space that nothing uses is freed.
    Leaks,
    /// All that can be set right.
    Everything,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// The header.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The snapshot table.
    #[error(transparent)]
    Snapshots(#[from] SnapshotError),
    /// The bitmap directory.
    #[error(transparent)]
    Bitmaps(#[from] BitmapError),
    /// The file.
    #[error("{}", errno_text(&(*.0).into()))]
    File(#[from] Errno),
    /// New refcounts would not fit the largest table.
    #[error("the image has more clusters than its refcounts can count")]
    TooManyRefcounts,
    /// A cluster that is referred to too often.
    #[error("cluster {cluster} has {refcount} references, more than the refcount width allows")]
    RefcountTooLarge {
        /// Which host cluster.
        cluster: u64,
        /// How often.
        refcount: u64,
    },
    /// Its references cannot all be read.
    #[error("the image is damaged; check it first")]
    Unsound,
    /// Left dirty, and not to be repaired.
    #[error("Could not repair dirty image")]
    NotRepaired,
}

/// Checks the image in `file`, and repairs it as `repair` says. Errors: see [`CheckError`].
pub async fn check(io: &Io, file: NodeId, repair: Repair) -> Result<Report, CheckError> {
    let file = ImageFile::new(io, file);
    let image = Image::read(file.clone()).await?;
    let before = look(&image, Fix::Nothing).await?;
    if repair == Repair::Nothing {
        return Ok(before);
    }
    let (mut image, mut after) = (image, before.clone());
    let mut freed = Vec::new();
    // Damage may hide damage: a table that another was written over is only told apart once one of them has moved.
    for _ in 0..ROUNDS_MAX {
        let found = after;
        freed.extend(set_right(&image, &found, repair).await?);
        file.flush().await?;
        image = Image::read(file.clone()).await?;
        after = look(&image, Fix::Nothing).await?;
        // As many of them may be others: only what is left as it was will stay so.
        if after.is_clean() || after == found {
            break;
        }
    }
    after.corruptions_fixed = before.corruptions.saturating_sub(after.corruptions);
    after.freed = freed;
    after.leaks_fixed = before.leaks.saturating_sub(after.leaks);
    if repair == Repair::Everything && after.is_writable() {
        mark_clean(&image).await?;
    }
    Ok(after)
}

/// Raises refcounts to what they will have to be when the header leads to `extra` as well; flags follow. Nothing is lowered,
/// so the image is right before and after the header changes. Errors: a refcount that cannot be so high, an image that is
/// not sound.
pub(crate) async fn raise(file: &ImageFile, extra: &Extra) -> Result<(), CheckError> {
    let mut image = Image::read(file.clone()).await?;
    image.extra = extra.clone();
    let found = look(&image, Fix::Nothing).await?;
    if found.unreadable > 0 {
        return Err(CheckError::Unsound);
    }
    if found.needs_rebuild {
        rebuild::rebuild(&image).await?;
        image = Image::read(file.clone()).await?;
        image.extra = extra.clone();
    } else {
        look(&image, Fix::Errors).await?;
    }
    file.flush().await?;
    let risen = look(&image, Fix::Nothing).await?;
    for finding in &risen.findings {
        if let Finding::TooLow {
            cluster, expected, ..
        } = *finding
        {
            let refcount = expected;
            return Err(CheckError::RefcountTooLarge { cluster, refcount });
        }
    }
    check_flags(&image, Flags::Fixed, &mut Report::default()).await?;
    Ok(file.flush().await?)
}

/// Lowers refcounts to what the header leads to; flags follow, and the dirty bit goes. Answers which host clusters are free
/// since, as far as there is room to remember them.
pub(crate) async fn settle(io: &Io, file: NodeId) -> Result<Vec<Range<u64>>, CheckError> {
    Ok(repair_dirty(io, file).await?.freed)
}

/// Makes an image that was left dirty fit to be written: its refcounts are set right and its dirty bit cleared. Errors:
/// `NotRepaired` if that cannot be done.
pub async fn repair_dirty(io: &Io, file: NodeId) -> Result<Report, CheckError> {
    let report = check(io, file, Repair::Everything).await?;
    match report.is_writable() {
        true => Ok(report),
        false => Err(CheckError::NotRepaired),
    }
}

async fn look(image: &Image, fix: Fix) -> Result<Report, CheckError> {
    let mut report = Report {
        total_clusters: image
            .header
            .size_bytes
            .div_ceil(image.header.cluster_bytes()),
        ..Report::default()
    };
    let table = image.refcount_table().await?;
    for from in (0..image.clusters()).step_by(WINDOW_CLUSTERS as usize) {
        let counts = Counts::window(from, image.clusters()).ok_or(Errno::NOMEM)?;
        let walk = Walk::new(image, counts, &mut report);
        let counts = walk.run(Refcounts::Counted).await?;
        compare(image, &counts, &table, fix, &mut report).await?;
    }
    if fix == Fix::Nothing {
        external::check_offsets(image, &mut report).await?;
        check_flags(image, Flags::Told, &mut report).await?;
    }
    report.image_end_offset = report.image_end_clusters * image.header.cluster_bytes();
    Ok(report)
}

/// Where a reference could not be read, nothing is freed: it may be what the reference means to keep. Answers what was.
async fn set_right(
    image: &Image,
    found: &Report,
    repair: Repair,
) -> Result<Vec<Range<u64>>, CheckError> {
    let mut freed = Vec::new();
    match (repair, found.unreadable) {
        _ if found.is_clean() => return Ok(freed),
        (Repair::Nothing, _) => return Ok(freed),
        (Repair::Leaks, 0) => return Ok(look(image, Fix::Leaks).await?.freed),
        (Repair::Leaks, _) => return Ok(freed),
        (Repair::Everything, 0) if found.needs_rebuild => rebuild::rebuild(image).await?,
        (Repair::Everything, 0) => freed = look(image, Fix::Both).await?.freed,
        (Repair::Everything, _) => {
            look(image, Fix::Errors).await?;
        }
    }
    image.file.flush().await?;
    let image = Image::read(image.file.clone()).await?;
    check_flags(&image, Flags::Fixed, &mut Report::default()).await?;
    Ok(freed)
}

async fn mark_clean(image: &Image) -> Result<(), Errno> {
    let had = image.header.incompatible;
    let clean = Incompatible {
        dirty: false,
        corrupt: false,
        ..had
    };
    if clean == had {
        return Ok(());
    }
    image.file.write(72, &clean.bits().to_be_bytes()).await?;
    image.file.flush().await
}
