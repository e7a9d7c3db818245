//! The `virtio-driver` crate (by a QEMU block maintainer) as a client: only what its interface can say.

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::time::Instant;

use virtio_driver::{VhostUser, VirtioBlkQueue, VirtioBlkTransport, iovec};

use super::blk::{Done, IOERR, OK, Request, SECTOR, UNSUPP, kind};
use super::deadline;
use super::front::GUEST_FEATURES;
use super::memory::{HIGH, Memory};
use super::ring::readable;

const RING_SIZE: u16 = 128;
const DATA_BYTES: u64 = 4 << 20;

/// One queue of a disk driven by `virtio-driver`.
pub struct Driver {
    queue: VirtioBlkQueue<'static, u64>,
    // The queue points into memory that the transport owns, so the transport is dropped last.
    transport: Box<VirtioBlkTransport>,
    memory: Memory,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}

impl Driver {
    /// Connects, sets up one queue and maps a data region.
    pub fn connect(socket: &Path) -> io::Result<Driver> {
        let path = socket.to_str().ok_or(io::ErrorKind::InvalidInput)?;
        // It has no code for EVENT_IDX on vhost-user, nor for indirect tables: it takes what it can drive.
        let features = GUEST_FEATURES
            & !(super::front::feature::EVENT_IDX | super::front::feature::INDIRECT_DESC);
        let mut transport: Box<VirtioBlkTransport> = Box::new(VhostUser::new(path, features)?);
        let memory = Memory::with_regions(&[(HIGH, DATA_BYTES)])?;
        let region = memory.regions()[0];
        transport.map_mem_region(
            region.user as usize,
            region.len as usize,
            region.fd as RawFd,
            0,
        )?;
        let mut queues = VirtioBlkQueue::setup_queues(transport.as_mut(), 1, RING_SIZE)?;
        let queue = queues.pop().ok_or(io::ErrorKind::NotFound)?;
        Ok(Driver {
            queue,
            transport,
            memory,
        })
    }

    /// The features both sides took.
    pub fn features(&self) -> u64 {
        self.transport.get_features()
    }

    /// Runs a request, or `None` where the crate's interface has no words for it.
    pub fn run(&mut self, request: &Request) -> Option<io::Result<Done>> {
        self.queue(request)
            .map(|queued| queued.and_then(|()| self.finish(request)))
    }

    fn queue(&mut self, request: &Request) -> Option<io::Result<()>> {
        let layout = &request.layout;
        let plain =
            layout.out_cuts.is_none() && layout.in_cuts.is_none() && layout.out_len.is_none();
        let offset = request.sector.checked_mul(SECTOR)?;
        match request.kind {
            kind::IN if plain => {
                let iov = self.iov(request.in_len as usize, &[]);
                // SAFETY: the vector points into our mapping, which outlives the request.
                Some(unsafe { self.queue.readv(offset, &iov, count(iov), offset) })
            }
            kind::OUT if plain => {
                let iov = self.iov(request.payload.len(), &request.payload);
                // SAFETY: as above.
                Some(unsafe { self.queue.writev(offset, &iov, count(iov), offset) })
            }
            kind::FLUSH if plain && request.sector == 0 => Some(self.queue.flush(0)),
            kind::DISCARD | kind::WRITE_ZEROES if plain => self.queue_segment(request),
            _ => None,
        }
    }

    fn queue_segment(&mut self, request: &Request) -> Option<io::Result<()>> {
        let segment: &[u8; 16] = request.payload.as_slice().try_into().ok()?;
        let sector = u64::from_le_bytes(*segment.first_chunk()?);
        let tail: &[u8; 8] = segment.last_chunk()?;
        let (sectors, flags) = (
            u64::from_le_bytes(*tail) as u32,
            u64::from_le_bytes(*tail) >> 32,
        );
        let (offset, len) = (sector.checked_mul(SECTOR)?, u64::from(sectors) * SECTOR);
        match (request.kind, flags) {
            (kind::DISCARD, 0) => Some(self.queue.discard(offset, len, 0)),
            (kind::WRITE_ZEROES, 0 | 1) => {
                Some(self.queue.write_zeroes(offset, len, flags == 1, 0))
            }
            _ => None,
        }
    }

    fn iov(&self, len: usize, bytes: &[u8]) -> iovec {
        self.memory.write(HIGH, bytes);
        iovec {
            iov_base: self.memory.user(HIGH) as *mut libc::c_void,
            iov_len: len,
        }
    }

    fn finish(&mut self, request: &Request) -> io::Result<Done> {
        self.transport.get_submission_notifier(0).notify()?;
        let fd = self.transport.get_completion_fd(0);
        let until = deadline();
        loop {
            let completed = self.queue.completions().next();
            if let Some(completion) = completed {
                let data = self.memory.read(HIGH, request.in_len as usize);
                // The crate keeps used.len to itself; the table checks it with our own ring.
                return Ok(Done {
                    status: status(completion.ret)?,
                    used_len: request.in_bytes(),
                    data,
                });
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if readable(&*fd, left)? {
                fd.read()?;
            }
        }
    }
}

/// A driver sends no empty buffers.
fn count(iov: iovec) -> usize {
    usize::from(iov.iov_len > 0)
}

fn status(ret: i32) -> io::Result<u8> {
    match -ret {
        0 => Ok(OK),
        libc::EIO => Ok(IOERR),
        libc::ENOTSUP => Ok(UNSUPP),
        other => Err(io::Error::from_raw_os_error(other)),
    }
}
