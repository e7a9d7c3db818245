//! What a server's export is, checked once: a size, what it can do, which transfers it takes.

use super::error::ClientError;
use crate::driver::nbd::wire::{BlockSizes, ExportHead, Form};
use crate::driver::{SECTOR_BYTES, SIZE_BYTES_MAX, whole_sectors};
use crate::node::{Info, Limits, Zeroing};

/// One request carries no more, whatever the server allows: what is in flight is bounded by this times the slots.
const PIECE_BYTES_MAX: u64 = 2 << 20;
/// One range is no longer; more are under way at once.
const RANGE_BYTES_MAX: u64 = 1 << 30;
/// What a server that says nothing takes ("a default ... maximum block size of 32 MiB").
const MAXIMUM_BYTES: u32 = 32 << 20;
/// Larger minimum blocks than any server has ("SHOULD NOT be larger than 65536").
const MINIMUM_BYTES_MAX: u32 = 64 << 10;

/// An export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Export {
    /// To the byte; a multiple of `minimum_bytes`.
    pub(super) size_bytes: u64,
    /// Offsets and lengths are multiples of this power of two.
    pub(super) minimum_bytes: u64,
    /// The longest payload asked for or sent, a multiple of `minimum_bytes`.
    pub(super) piece_bytes: u64,
    /// The longest range that is zeroed, trimmed or asked about at once, a multiple of `minimum_bytes`.
    pub(super) range_bytes: u64,
    /// How requests and replies look.
    pub(super) form: Form,
    preferred_bytes: u32,
    head: ExportHead,
}

impl Export {
    /// Errors: values that no export can have.
    pub(super) fn new(
        head: ExportHead,
        sizes: Option<BlockSizes>,
        form: Form,
    ) -> Result<Export, ClientError> {
        let refuse = |text: String| Err(ClientError::Malformed(text));
        let size_bytes = head.size_bytes;
        if size_bytes > SIZE_BYTES_MAX {
            return refuse(format!("export length {size_bytes} is too large"));
        }
        let sizes = sizes.unwrap_or(BlockSizes {
            minimum_bytes: match size_bytes.is_multiple_of(SECTOR_BYTES) {
                true => 512,
                false => 1,
            },
            preferred_bytes: 4096,
            maximum_bytes: MAXIMUM_BYTES,
        });
        let (minimum, preferred) = (sizes.minimum_bytes, sizes.preferred_bytes);
        if !minimum.is_power_of_two() || minimum > MINIMUM_BYTES_MAX {
            return refuse(format!(
                "server minimum block size {minimum} is not a power of two up to 65536"
            ));
        }
        if !preferred.is_power_of_two() || preferred < minimum {
            return refuse(format!(
                "server preferred block size {preferred} is not a power of two of at least {minimum}"
            ));
        }
        if sizes.maximum_bytes < minimum {
            return refuse(format!(
                "server maximum block size {} is less than its minimum {minimum}",
                sizes.maximum_bytes
            ));
        }
        let minimum_bytes = u64::from(minimum);
        if !size_bytes.is_multiple_of(minimum_bytes) {
            return refuse(format!(
                "export length {size_bytes} is not multiple of minimum block size {minimum}"
            ));
        }
        let maximum = u64::from(sizes.maximum_bytes);
        let largest = PIECE_BYTES_MAX.min(maximum);
        // Only with extended headers is a server sure to zero more at once than it would take as data.
        let longest = match form {
            Form::Extended => RANGE_BYTES_MAX,
            Form::Simple | Form::Structured => maximum.min(u64::from(MAXIMUM_BYTES)),
        };
        Ok(Export {
            size_bytes,
            minimum_bytes,
            piece_bytes: largest - largest % minimum_bytes,
            range_bytes: longest - longest % minimum_bytes,
            form,
            preferred_bytes: preferred,
            head,
        })
    }

    /// Has it that transmission flag?
    pub(super) fn can(&self, flag: u16) -> bool {
        self.head.has(flag)
    }

    /// May this one, found after a reconnection, stand in for `first`? Errors: what is missing.
    pub(super) fn stands_in_for(&self, first: &Export) -> Result<(), String> {
        const NEEDED: [(u16, &str); 5] = [
            (ExportHead::SEND_FLUSH, "flush"),
            (ExportHead::SEND_FUA, "FUA"),
            (ExportHead::SEND_TRIM, "trim"),
            (ExportHead::SEND_WRITE_ZEROES, "write zeroes"),
            (ExportHead::SEND_FAST_ZERO, "fast zero"),
        ];
        if self.size_bytes != first.size_bytes {
            return Err(format!(
                "its size is {} bytes and was {}",
                self.size_bytes, first.size_bytes
            ));
        }
        if self.can(ExportHead::READ_ONLY) && !first.can(ExportHead::READ_ONLY) {
            return Err("it has become read-only".to_owned());
        }
        if self.minimum_bytes > first.minimum_bytes || self.piece_bytes < first.piece_bytes {
            return Err("it takes fewer block sizes than before".to_owned());
        }
        if self.form < first.form {
            return Err("it speaks an older form of the protocol".to_owned());
        }
        let lost = NEEDED
            .iter()
            .find(|(flag, _)| first.can(*flag) && !self.can(*flag));
        lost.map_or(Ok(()), |(_, name)| Err(format!("it no longer has {name}")))
    }

    /// Without NBD_FLAG_SEND_FAST_ZERO the server may well write all the zeroes; without NBD_FLAG_SEND_WRITE_ZEROES we do.
    pub(super) fn zeroing(&self) -> Zeroing {
        let fast = self.can(ExportHead::SEND_WRITE_ZEROES) && self.can(ExportHead::SEND_FAST_ZERO);
        match fast {
            true => Zeroing::Fast,
            false => Zeroing::Written,
        }
    }

    /// What the node says of itself.
    pub(super) fn info(&self) -> Info {
        let minimum = self.minimum_bytes as u32;
        let logical = minimum.max(512);
        let preferred = self.preferred_bytes.max(logical);
        Info {
            size_bytes: whole_sectors(self.size_bytes),
            limits: Limits {
                logical_block_bytes: logical,
                // A server's wish for large transfers is no reason for a guest to think of large sectors.
                physical_block_bytes: preferred.min(4096).max(logical),
                discard_bytes: match self.can(ExportHead::SEND_TRIM) {
                    true => preferred.min(4096).max(logical),
                    false => 0,
                },
                optimal_io_bytes: match preferred > 4096 {
                    true => preferred,
                    false => 0,
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(size_bytes: u64) -> ExportHead {
        let flags = ExportHead::HAS_FLAGS | ExportHead::SEND_TRIM;
        ExportHead { size_bytes, flags }
    }

    fn sizes(minimum_bytes: u32, preferred_bytes: u32, maximum_bytes: u32) -> Option<BlockSizes> {
        Some(BlockSizes {
            minimum_bytes,
            preferred_bytes,
            maximum_bytes,
        })
    }

    #[test]
    fn values_no_export_has_are_refused() {
        let max = u32::MAX;
        for (size, sizes) in [
            (u64::MAX, None),
            (1 << 63, None),
            (4096, sizes(0, 4096, max)),
            (4096, sizes(3, 4096, max)),
            (1 << 30, sizes(1 << 17, 1 << 17, max)),
            (1 << 32, sizes(1 << 31, 1 << 31, max)),
            (4096, sizes(512, 256, max)),
            (4096, sizes(512, 1000, max)),
            (4096, sizes(512, 0, max)),
            (4096, sizes(512, 512, 511)),
            (4096, sizes(512, 512, 0)),
            (4097, sizes(512, 512, max)),
        ] {
            Export::new(head(size), sizes, Form::Simple).expect_err("refused");
        }
    }

    #[test]
    fn limits_follow_the_blocks() {
        let plain = Export::new(head(1 << 20), None, Form::Simple)
            .expect("an export")
            .info();
        assert_eq!(plain.limits.logical_block_bytes, 512);
        assert_eq!(plain.limits.physical_block_bytes, 4096);
        let large = sizes(65536, 1 << 20, (1 << 20) + 1);
        let large = Export::new(head(1 << 20), large, Form::Extended).expect("an export");
        assert_eq!(large.piece_bytes, 1 << 20);
        assert_eq!(large.info().limits.physical_block_bytes, 65536);
        assert_eq!(large.info().limits.optimal_io_bytes, 1 << 20);
        let odd = Export::new(head(1000), None, Form::Simple).expect("an export");
        assert_eq!((odd.minimum_bytes, odd.info().size_bytes), (1, 1024));
    }

    #[test]
    fn zeroes_are_fast_only_where_the_server_says_that_it_does_not_write_them() {
        let (zeroes, fast) = (ExportHead::SEND_WRITE_ZEROES, ExportHead::SEND_FAST_ZERO);
        for (flags, zeroing) in [
            (0, Zeroing::Written),
            (zeroes, Zeroing::Written),
            (fast, Zeroing::Written),
            (zeroes | fast, Zeroing::Fast),
        ] {
            let flags = flags | ExportHead::HAS_FLAGS;
            let size_bytes = 4096;
            let head = ExportHead { size_bytes, flags };
            let export = Export::new(head, None, Form::Structured).expect("an export");
            assert_eq!(export.zeroing(), zeroing, "{flags:#x}");
        }
    }

    #[test]
    fn who_comes_back_with_less_is_not_taken() {
        let first =
            Export::new(head(4096), sizes(512, 512, 1 << 20), Form::Structured).expect("an export");
        assert_eq!(first.stands_in_for(&first), Ok(()));
        let mut shorter = first;
        shorter.size_bytes = 2048;
        let mut coarser = first;
        coarser.minimum_bytes = 4096;
        let mut mute = first;
        mute.head.flags = ExportHead::HAS_FLAGS;
        let mut frozen = first;
        frozen.head.flags |= ExportHead::READ_ONLY;
        let mut older = first;
        older.form = Form::Simple;
        for other in [shorter, coarser, mute, frozen, older] {
            other.stands_in_for(&first).expect_err("not the same");
        }
        assert_eq!(first.stands_in_for(&mute), Ok(()));
    }
}
