//! What a guest is told: a status byte at the very end of what it gave us to write to, and an honest used length.

use ring::vring::Chain;
use ring::{Errno, Seg};

/// The status byte (virtio 1.2, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// VIRTIO_BLK_S_OK
    Ok = 0,
    /// VIRTIO_BLK_S_IOERR
    IoErr = 1,
    /// VIRTIO_BLK_S_UNSUPP
    Unsupported = 2,
}

impl From<Result<(), Errno>> for Status {
    fn from(outcome: Result<(), Errno>) -> Status {
        match outcome {
            Ok(()) => Status::Ok,
            Err(Errno(libc::EOPNOTSUPP)) => Status::Unsupported,
            Err(_) => Status::IoErr,
        }
    }
}

/// Where the answer goes.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    /// The last device-writable byte (virtio 1.2, 5.2.6: "The final status byte is written by the device").
    status: Option<Seg>,
    /// Device-writable bytes before it.
    data_bytes: u64,
}

impl Reply {
    /// Where the answer to `chain` goes; nowhere if it has no device-writable byte.
    pub fn of(chain: &Chain) -> Reply {
        let last = chain.writable.last();
        Reply {
            status: last.map(|seg| seg.part(seg.len() - 1, 1)),
            data_bytes: chain.writable_bytes.saturating_sub(1),
        }
    }

    /// True if there is a status byte to write.
    pub fn has_status(&self) -> bool {
        self.status.is_some()
    }

    /// Device-writable bytes before the status byte.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Writes the status; returns the used length, given that so many bytes of the data were written: they and the status
    /// byte, never more than we wrote (virtio 1.2, 2.7.8: "Total length of the descriptor chain which was written to").
    pub fn finish(&self, status: Status, written_bytes: u64) -> u32 {
        let Some(byte) = self.status else {
            return 0;
        };
        byte.store(&[status as u8]);
        let len_bytes = written_bytes.min(self.data_bytes) + 1;
        u32::try_from(len_bytes).unwrap_or(u32::MAX)
    }
}
