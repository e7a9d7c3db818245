//! Drivers: nodes that know where their bytes live. A new one starts as a copy of `null.rs`.

pub mod file;
pub mod nbd;
pub mod null;
pub mod qcow2;
pub mod raw;
pub mod snapshot_access;

/// What a disk's size is counted in.
pub const SECTOR_BYTES: u64 = 512;

/// The largest size of any disk: file offsets are signed, and the last sector must end below the sign.
pub const SIZE_BYTES_MAX: u64 = i64::MAX as u64 & !(SECTOR_BYTES - 1);

/// `bytes` rounded up to whole sectors, as QEMU counts the size of every node.
pub(crate) fn whole_sectors(bytes: u64) -> u64 {
    bytes.min(SIZE_BYTES_MAX).next_multiple_of(SECTOR_BYTES)
}
