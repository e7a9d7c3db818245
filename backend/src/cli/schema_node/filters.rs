//! The filters with few options: copy-on-read, copy-before-write, throttle, compress, preallocate.

use super::{Checks, child, file_child, not_negative};
use crate::cli::error::Refusal;
use crate::cli::options::{
    CompressOptions, CopyBeforeWriteOptions, CopyOnReadOptions, NodeBitmap, NodeCommon, OnCbwError,
    PreallocateOptions, ThrottleOptions,
};
use crate::cli::visit::Object;

/// QEMU's defaults: where an allocation ends is a multiple of the one, and it goes that much further than asked.
const PREALLOC_ALIGN_BYTES: u64 = 1 << 20;
const PREALLOC_SIZE_BYTES: u64 = 128 << 20;
/// `prealloc-align` is whole sectors.
const SECTOR_LEN_BYTES: u64 = 512;

const ON_CBW_ERROR: &[(&str, OnCbwError)] = &[
    ("break-guest-write", OnCbwError::BreakGuestWrite),
    ("break-snapshot", OnCbwError::BreakSnapshot),
];

pub(super) fn copy_before_write(
    o: &mut Object,
    common: &NodeCommon,
    checks: &mut Checks,
) -> Result<CopyBeforeWriteOptions, Refusal> {
    let file = file_child(o, common, checks)?;
    let target = child(o, "target", &common.for_child(), &mut checks.own)?;
    let bitmap = o.object("bitmap")?.map(bitmap).transpose()?;
    let on_error = o.word("on-cbw-error", ON_CBW_ERROR)?;
    Ok(CopyBeforeWriteOptions {
        file,
        target,
        bitmap,
        on_error: on_error.unwrap_or(OnCbwError::BreakGuestWrite),
        timeout_s: o.uint32("cbw-timeout")?.unwrap_or(0),
        min_cluster_bytes: o.size("min-cluster-size")?.unwrap_or(0),
    })
}

fn bitmap(mut o: Object) -> Result<NodeBitmap, Refusal> {
    let node = o.required_string("node")?;
    let name = o.required_string("name")?;
    o.finish()?;
    Ok(NodeBitmap { node, name })
}

pub(super) fn copy_on_read(
    o: &mut Object,
    common: &NodeCommon,
    checks: &mut Checks,
) -> Result<CopyOnReadOptions, Refusal> {
    Ok(CopyOnReadOptions {
        file: file_child(o, common, checks)?,
        bottom: o.string("bottom")?,
    })
}

pub(super) fn throttle(
    o: &mut Object,
    common: &NodeCommon,
    checks: &mut Checks,
) -> Result<ThrottleOptions, Refusal> {
    Ok(ThrottleOptions {
        group: o.required_string("throttle-group")?,
        file: file_child(o, common, checks)?,
    })
}

pub(super) fn compress(
    o: &mut Object,
    common: &NodeCommon,
    checks: &mut Checks,
) -> Result<CompressOptions, Refusal> {
    Ok(CompressOptions {
        file: file_child(o, common, checks)?,
    })
}

pub(super) fn preallocate(
    o: &mut Object,
    common: &NodeCommon,
    checks: &mut Checks,
) -> Result<PreallocateOptions, Refusal> {
    let file = file_child(o, common, checks)?;
    let later = &mut checks.own;
    let align_bytes = not_negative(o, "prealloc-align", later)?.unwrap_or(PREALLOC_ALIGN_BYTES);
    let size_bytes = not_negative(o, "prealloc-size", later)?.unwrap_or(PREALLOC_SIZE_BYTES);
    later.check(align_bytes.is_multiple_of(SECTOR_LEN_BYTES), || {
        Refusal::new(format!(
            "prealloc-align parameter of preallocate filter is not aligned to {SECTOR_LEN_BYTES}"
        ))
    });
    Ok(PreallocateOptions {
        file,
        align_bytes,
        size_bytes,
    })
}
