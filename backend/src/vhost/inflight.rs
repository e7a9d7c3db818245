//! The inflight region: shared memory in which rings note what is in flight, so that the next process can begin it again
//! (vhost-user.rst, "Inflight I/O tracking").
//!
//! The rule: the front end keeps the memory and may write to it at any time; it is checked like guest memory. A process
//! takes a region over only after the kernel has done with all that the one before had under way: what is begun again
//! must not be overtaken by what was given up.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::vring::{self, GuestMap, MapError, RingError, SharedWords};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::Resource;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::fds::MemoryFile;
use super::map_log::{self, MapRegion};
use super::message::RegionShape;

/// The log of the disk's map begins behind the queues' parts, at a multiple of this.
const LOG_ALIGN_BYTES: u64 = 4096;
/// A queue's part begins at a multiple of this, as in libvhost-user.
const QUEUE_ALIGN_BYTES: u64 = 64;
/// So long the requests of an earlier process are waited for; then the front end has to come again.
const PATIENCE: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(2);

/// Why a region cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum InflightError {
    #[error("cannot make an inflight region")]
    Create(#[source] io::Error),
    #[error("cannot examine the file of the inflight region")]
    Examine(#[source] io::Error),
    #[error("the inflight region does not come with a regular file")]
    WrongKind,
    #[error(
        "an inflight region of {len_bytes:#x} bytes at {offset:#x} is too short, or beyond its file"
    )]
    Extent { len_bytes: u64, offset: u64 },
    #[error("cannot map the inflight region: {0}")]
    Mmap(String),
    #[error("the inflight region cannot be used")]
    Map(#[source] MapError),
    #[error("an earlier process still has requests under way")]
    Busy,
    #[error("queue {0} has no part of the inflight region")]
    Queue(u16),
    #[error("the inflight region cannot be used")]
    Ring(#[source] RingError),
}

/// A region taken over.
#[derive(Debug)]
pub(super) struct Region {
    map: Arc<GuestMap>,
    shape: RegionShape,
    guard: Arc<Guard>,
}

/// What one ring needs of a region.
#[derive(Debug)]
pub struct Tracking {
    /// Where it notes what is in flight.
    pub inflight: vring::Inflight,
    /// Kept as long as anything is under way.
    pub guard: Arc<Guard>,
}

/// Keeps other processes, and later sessions, from taking a region over. The lock is that of an open file, which ends when
/// the last descriptor is closed, those of the kernel's rings included.
#[derive(Debug)]
pub struct Guard(File);

impl AsFd for Guard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn queue_bytes(queue_size: u16) -> u64 {
    vring::Inflight::bytes(queue_size).next_multiple_of(QUEUE_ALIGN_BYTES)
}

fn queues_bytes(shape: &RegionShape) -> u64 {
    queue_bytes(shape.queue_size) * u64::from(shape.queues)
}

/// Where the log of the map begins.
fn log_at(shape: &RegionShape) -> u64 {
    queues_bytes(shape).next_multiple_of(LOG_ALIGN_BYTES)
}

/// May this process make regions for rings of that kind? Shared memory is a file to the kernel, and files may have a limit
/// (`ulimit -f`).
pub(super) fn may_be_made(queues: u16, queue_size: u16) -> bool {
    let shape = RegionShape {
        len_bytes: 0,
        offset: 0,
        queues,
        queue_size,
    };
    let limit = rustix::process::getrlimit(Resource::Fsize).current;
    limit.is_none_or(|limit| log_at(&shape) + map_log::BYTES <= limit)
}

/// A fresh region for so many queues, and what to tell of it. It cannot be made shorter behind the back of those who map it.
pub(super) fn create(asked: RegionShape) -> Result<(RegionShape, OwnedFd), InflightError> {
    let len_bytes = log_at(&asked) + map_log::BYTES;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = || -> io::Result<OwnedFd> {
        let fd = rustix::fs::memfd_create("virtioblkd-inflight", flags)?;
        rustix::fs::ftruncate(&fd, len_bytes)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(fd)
    };
    let shape = RegionShape {
        len_bytes,
        offset: 0,
        ..asked
    };
    Ok((shape, made().map_err(InflightError::Create)?))
}

impl Region {
    /// Takes over a region that a front end has kept, or has just been given. Waits until no other process, and nothing that
    /// one has left in the kernel, uses it; errors: that takes too long, or it is not what a region has to be.
    pub(super) fn take_over(shape: RegionShape, fd: OwnedFd) -> Result<Region, InflightError> {
        let file = MemoryFile::of(&fd).map_err(InflightError::Examine)?;
        let file = file.ok_or(InflightError::WrongKind)?;
        let used_bytes = match log_at(&shape) + map_log::BYTES {
            // One that another program made has the queues alone.
            all if shape.len_bytes < all => queues_bytes(&shape),
            all => all,
        };
        let end = shape.offset.checked_add(shape.len_bytes);
        let fits = end.is_some_and(|end| end <= file.len_bytes)
            && shape.offset.is_multiple_of(file.page_bytes)
            && shape.len_bytes >= used_bytes;
        if !fits {
            let (len_bytes, offset) = (shape.len_bytes, shape.offset);
            return Err(InflightError::Extent { len_bytes, offset });
        }
        let guard = Guard::take(&fd)?;
        Ok(Region {
            map: map(fd, shape.offset, used_bytes)?,
            shape,
            guard: Arc::new(guard),
        })
    }

    /// Where the disk's map may be logged, if there is room for that.
    pub(super) fn map_region(&self) -> Option<MapRegion> {
        let words = (map_log::BYTES / 8) as u32;
        let words = SharedWords::new(self.map.clone(), log_at(&self.shape), words);
        words.map(MapRegion::new)
    }

    /// The part of queue `index`.
    pub(super) fn tracking(&self, index: u16) -> Result<Tracking, InflightError> {
        if index >= self.shape.queues {
            return Err(InflightError::Queue(index));
        }
        let size = self.shape.queue_size;
        let at = queue_bytes(size) * u64::from(index);
        let inflight = vring::Inflight::new(self.map.clone(), at, size);
        Ok(Tracking {
            inflight: inflight.map_err(InflightError::Ring)?,
            guard: self.guard.clone(),
        })
    }
}

impl Guard {
    fn take(fd: &OwnedFd) -> Result<Guard, InflightError> {
        // An open file of our own: the descriptor's is the front end's too, and so would its lock be.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(InflightError::Examine)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Guard(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(STEP);
                }
                Err(TryLockError::WouldBlock) => return Err(InflightError::Busy),
                Err(TryLockError::Error(error)) => return Err(InflightError::Examine(error)),
            }
        }
    }
}

fn map(fd: OwnedFd, offset: u64, len_bytes: u64) -> Result<Arc<GuestMap>, InflightError> {
    let file = FileOffset::new(File::from(fd), offset);
    let range = (GuestAddress(0), len_bytes as usize, Some(file));
    let memory = GuestMemoryMmap::<()>::from_ranges_with_files([range]);
    let memory = memory.map_err(|error| InflightError::Mmap(error.to_string()))?;
    let region = memory.find_region(GuestAddress(0));
    let host = region.ok_or(InflightError::WrongKind)?.as_ptr();
    let region = vring::Region {
        gpa: 0,
        len_bytes,
        host,
    };
    // SAFETY: `memory` owns the mapping and is kept by the map; nothing else in this process uses it.
    let map = unsafe { GuestMap::new(vec![region], Box::new(memory)) };
    Ok(Arc::new(map.map_err(InflightError::Map)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> RegionShape {
        RegionShape {
            len_bytes: 0,
            offset: 0,
            queues: 2,
            queue_size: 128,
        }
    }

    #[test]
    fn a_region_is_taken_over_when_nothing_uses_it_any_more() {
        let (shape, fd) = create(shape()).expect("made");
        let again = fd.try_clone().expect("copied");
        let first = Region::take_over(shape, fd).expect("nobody has it");
        let tracking = first.tracking(1).expect("a part");
        assert!(first.tracking(2).is_err() && first.map_region().is_some());
        let second = std::thread::spawn(move || Region::take_over(shape, again));
        drop(first);
        // A ring has it still.
        std::thread::sleep(Duration::from_millis(50));
        assert!(!second.is_finished());
        drop(tracking);
        second.join().expect("no panic").expect("nobody has it");
    }

    #[test]
    fn a_region_is_kept_by_what_a_ring_has_under_way() {
        let Ok(mut ring) = ring::Ring::new(ring::Choice::Uring(None)) else {
            println!("skipped: no io_uring");
            return;
        };
        let (shape, fd) = create(shape()).expect("made");
        let again = fd.try_clone().expect("copied");
        let region = Region::take_over(shape, fd).expect("nobody has it");
        let held = ring.hold(region.guard.as_fd()).expect("room");
        drop(region);
        let second = std::thread::spawn(move || Region::take_over(shape, again));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!second.is_finished(), "the ring has it");
        ring.let_go(held);
        second.join().expect("no panic").expect("nobody has it");
    }

    #[test]
    fn regions_without_room_for_a_log_have_none() {
        let (mut shape, fd) = create(shape()).expect("made");
        shape.len_bytes -= 1;
        let region = Region::take_over(shape, fd).expect("nobody has it");
        assert!(region.map_region().is_none() && region.tracking(1).is_ok());
    }
}
