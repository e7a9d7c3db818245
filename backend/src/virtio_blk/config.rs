//! The device's configuration space and feature bits (virtio 1.2, 5.2.3 and 5.2.4).

use super::disk::{Cache, Disk};
use super::{RANGE_SECTORS_MAX, RANGES_MAX, SECTOR_BYTES, SEG_MAX};
use virtio_bindings::virtio_blk as spec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

/// Bytes of the configuration space: the whole of the newest layout, zoned fields included (all zero).
pub const CONFIG_BYTES: usize = 96;
/// Where `writeback` lies in it.
const WRITEBACK_AT: u32 = 32;

/// `struct virtio_blk_config` up to `unused1` (virtio 1.2, 5.2.4).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Layout {
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    geometry: [u8; 4],
    blk_size: U32,
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: U16,
    opt_io_size: U32,
    writeback: u8,
    unused0: u8,
    num_queues: U16,
    max_discard_sectors: U32,
    max_discard_seg: U32,
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}

const _: () = assert!(size_of::<Layout>() == 60);

impl Disk {
    /// Feature bits of this device type; transport and ring bits are the session's.
    pub fn features(&self) -> u64 {
        // SIZE_MAX is left out: a segment may be as long as the request, and some drivers take 0 as a limit.
        let bits = [
            spec::VIRTIO_BLK_F_SEG_MAX,
            spec::VIRTIO_BLK_F_BLK_SIZE,
            spec::VIRTIO_BLK_F_TOPOLOGY,
            spec::VIRTIO_BLK_F_FLUSH,
            spec::VIRTIO_BLK_F_CONFIG_WCE,
            spec::VIRTIO_BLK_F_MQ,
            spec::VIRTIO_BLK_F_DISCARD,
            spec::VIRTIO_BLK_F_WRITE_ZEROES,
        ];
        let read_only = if self.writable {
            0
        } else {
            1 << spec::VIRTIO_BLK_F_RO
        };
        bits.iter().fold(read_only, |all, bit| all | 1 << bit)
    }

    /// The configuration space as a guest reads it now.
    pub fn config(&self) -> [u8; CONFIG_BYTES] {
        let logical = self.limits.logical_block_bytes;
        let blocks = |bytes: u32| bytes / logical;
        let discard = u64::from(self.limits.discard_bytes.max(logical));
        let layout = Layout {
            capacity: U64::new(self.sectors()),
            size_max: U32::ZERO,
            seg_max: U32::new(SEG_MAX),
            geometry: [0; 4],
            blk_size: U32::new(logical),
            physical_block_exp: blocks(self.limits.physical_block_bytes).max(1).ilog2() as u8,
            alignment_offset: 0,
            // In blocks: the physical block is what is written without reading first.
            min_io_size: U16::new(
                blocks(self.limits.physical_block_bytes).clamp(1, u32::from(u16::MAX)) as u16,
            ),
            opt_io_size: U32::new(blocks(self.limits.optimal_io_bytes)),
            writeback: u8::from(self.cache() == Cache::WriteBack),
            unused0: 0,
            num_queues: U16::new(self.queues),
            max_discard_sectors: U32::new(RANGE_SECTORS_MAX),
            max_discard_seg: U32::new(RANGES_MAX),
            discard_sector_alignment: U32::new((discard / SECTOR_BYTES) as u32),
            max_write_zeroes_sectors: U32::new(RANGE_SECTORS_MAX),
            max_write_zeroes_seg: U32::new(RANGES_MAX),
            write_zeroes_may_unmap: u8::from(self.may_unmap),
            unused1: [0; 3],
        };
        let mut bytes = [0; CONFIG_BYTES];
        bytes[..size_of::<Layout>()].copy_from_slice(layout.as_bytes());
        bytes
    }

    /// A driver's write to the configuration space. Only `writeback` may be changed (virtio 1.2, 5.2.5.2); bytes written
    /// as they are change nothing and are no error. Errors: the write leaves the space, or changes another field.
    pub fn set_config(&self, offset: u32, bytes: &[u8]) -> Result<(), ConfigRefused> {
        let now = self.config();
        let from = offset as usize;
        let end = from.checked_add(bytes.len()).ok_or(ConfigRefused)?;
        let current = now.get(from..end).ok_or(ConfigRefused)?;
        let mut wish = None;
        for (at, (&new, &old)) in (offset..).zip(bytes.iter().zip(current)) {
            if at == WRITEBACK_AT {
                wish = Some(new);
            } else if new != old {
                return Err(ConfigRefused);
            }
        }
        match wish {
            Some(0) => self.set_cache(Cache::WriteThrough),
            Some(1) => self.set_cache(Cache::WriteBack),
            Some(_) => return Err(ConfigRefused),
            None => {}
        }
        Ok(())
    }
}

/// A write to the configuration space that cannot be obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("only the write cache byte of the configuration space can be written, with 0 or 1")]
pub struct ConfigRefused;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio_blk::DiskOptions;
    use blockgraph::{Info, Limits, NodeId};

    fn disk() -> Disk {
        Disk::new(&DiskOptions {
            node: NodeId(0),
            info: Info {
                size_bytes: 64 << 20,
                limits: Limits {
                    physical_block_bytes: 4096,
                    discard_bytes: 4096,
                    ..Limits::PLAIN
                },
            },
            writable: true,
            cache: Cache::WriteBack,
            logical_block_bytes: None,
            serial: "a serial number that is too long".into(),
            queues: 4,
            may_unmap: true,
        })
    }

    #[test]
    fn the_configuration_space_tells_the_truth() {
        let disk = disk();
        let config = disk.config();
        assert_eq!(config[..8], 131072u64.to_le_bytes());
        assert_eq!(config[12..16], 126u32.to_le_bytes());
        assert_eq!(config[20..24], 512u32.to_le_bytes());
        assert_eq!(config[24], 3, "physical block of eight logical ones");
        assert_eq!(config[32], 1, "write back");
        assert_eq!(config[34..36], 4u16.to_le_bytes());
        assert_eq!(config[44..48], 8u32.to_le_bytes(), "discard alignment");
        assert_eq!(&disk.id, b"a serial number that");
    }

    #[test]
    fn only_the_cache_mode_can_be_written() {
        let disk = disk();
        assert_eq!(disk.set_config(32, &[0]), Ok(()));
        assert_eq!(disk.cache(), Cache::WriteThrough);
        assert_eq!(disk.config()[32], 0);
        assert_eq!(disk.set_config(32, &[2]), Err(ConfigRefused));
        assert_eq!(disk.set_config(0, &[1]), Err(ConfigRefused));
        assert_eq!(disk.set_config(96, &[0]), Err(ConfigRefused));
        assert_eq!(disk.set_config(u32::MAX, &[0; 8]), Err(ConfigRefused));
        let mut whole = disk.config();
        whole[32] = 1;
        assert_eq!(disk.set_config(0, &whole), Ok(()));
        assert_eq!(disk.cache(), Cache::WriteBack);
    }
}
