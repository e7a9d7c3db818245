//! `raw`, `snapshot-access`, the two null drivers and our own delay: what has hardly any options.

use super::{Checks, file_child, not_negative};
use crate::cli::error::{Later, Refusal};
use crate::cli::options::{
    DelayOptions, NodeCommon, NullOptions, RawOptions, SnapshotAccessOptions,
};
use crate::cli::visit::Object;

/// The default size of `null-co` and `null-aio`.
const NULL_SIZE_BYTES: u64 = 1 << 30;
/// Sizes of images are whole sectors.
const SECTOR_LEN_BYTES: u64 = 512;

pub(super) fn raw(
    o: &mut Object,
    common: &NodeCommon,
    checks: &mut Checks,
) -> Result<RawOptions, Refusal> {
    let file = file_child(o, common, checks)?;
    let later = &mut checks.own;
    let offset_bytes = not_negative(o, "offset", later)?.unwrap_or(0);
    let size_bytes = not_negative(o, "size", later)?;
    later.check(size_bytes.unwrap_or(0) % SECTOR_LEN_BYTES == 0, || {
        Refusal::new("Specified size is not multiple of 512")
    });
    Ok(RawOptions {
        file,
        offset_bytes,
        size_bytes,
        bitmap_journal: o.string("x-bitmap-journal")?,
    })
}

pub(super) fn null(o: &mut Object, later: &mut Later) -> Result<NullOptions, Refusal> {
    Ok(NullOptions {
        size_bytes: not_negative(o, "size", later)?.unwrap_or(NULL_SIZE_BYTES),
        latency_ns: latency_ns(o, later)?,
        read_zeroes: o.boolean("read-zeroes")?.unwrap_or(false),
    })
}

pub(super) fn delay(
    o: &mut Object,
    common: &NodeCommon,
    checks: &mut Checks,
) -> Result<DelayOptions, Refusal> {
    Ok(DelayOptions {
        file: file_child(o, common, checks)?,
        latency_ns: latency_ns(o, &mut checks.own)?,
    })
}

pub(super) fn snapshot_access(
    o: &mut Object,
    common: &NodeCommon,
    checks: &mut Checks,
) -> Result<SnapshotAccessOptions, Refusal> {
    Ok(SnapshotAccessOptions {
        file: file_child(o, common, checks)?,
    })
}

fn latency_ns(o: &mut Object, later: &mut Later) -> Result<u64, Refusal> {
    let latency_ns = o.uint64("latency-ns")?.unwrap_or(0);
    later.check(i64::try_from(latency_ns).is_ok(), || {
        Refusal::new("latency-ns is invalid")
    });
    Ok(latency_ns)
}
