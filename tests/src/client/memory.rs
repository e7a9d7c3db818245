//! Guest memory: several memfds, mapped apart even where their guest addresses touch, so that buffers can cross them.
//!
//! The back end shares these pages, so every access goes through vm-memory's volatile copies or through [`Area`]'s atomics.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};

use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};

/// One region as a memory table announces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Guest physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
    /// The front end's own address of it, the unit of ring addresses.
    pub user: u64,
    /// Where it starts in its descriptor.
    pub fd_offset: u64,
    /// The memfd.
    pub fd: RawFd,
}

impl Region {
    /// The four words a memory table carries.
    pub fn words(&self) -> [u64; 4] {
        [self.gpa, self.len, self.user, self.fd_offset]
    }
}

/// Guest memory of several regions.
#[derive(Debug)]
pub struct Memory {
    map: GuestMemoryMmap<()>,
    regions: Vec<Region>,
    torn: AtomicBool,
}

/// Where the small first region ends and the second, adjacent one starts.
pub const BORDER: u64 = 0x20_0000;
/// Where the large region for data starts.
pub const HIGH: u64 = 0x1_0000_0000;

impl Memory {
    /// Two adjacent regions of 2 MiB below [`HIGH`] and one of `data_bytes` there.
    pub fn new(data_bytes: u64) -> io::Result<Memory> {
        Memory::with_regions(&[(0, BORDER), (BORDER, BORDER), (HIGH, data_bytes)])
    }

    /// Memory of the given `(guest address, length)` pairs, in ascending order.
    pub fn with_regions(plan: &[(u64, u64)]) -> io::Result<Memory> {
        let ranges: Vec<_> = plan
            .iter()
            .map(|&(gpa, len)| {
                Ok((
                    GuestAddress(gpa),
                    len as usize,
                    Some(FileOffset::new(memfd(len)?, 0)),
                ))
            })
            .collect::<io::Result<_>>()?;
        let map = GuestMemoryMmap::from_ranges_with_files(ranges).map_err(io::Error::other)?;
        let regions = map.iter().map(announce).collect();
        Ok(Memory {
            map,
            regions,
            torn: AtomicBool::new(false),
        })
    }

    /// Every region, ascending.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The front end's own address of a guest address.
    pub fn user(&self, gpa: u64) -> u64 {
        let region = self
            .regions
            .iter()
            .find(|r| gpa >= r.gpa && gpa - r.gpa < r.len);
        region
            .map(|r| r.user + (gpa - r.gpa))
            .expect("an address inside guest memory")
    }

    /// Copies into guest memory, across regions where needed.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        self.map
            .write_slice(bytes, GuestAddress(gpa))
            .expect("a range inside guest memory");
    }

    /// Copies out of guest memory.
    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.map
            .read_slice(&mut bytes, GuestAddress(gpa))
            .expect("a range inside guest memory");
        bytes
    }

    /// A second descriptor of a region's memfd.
    pub fn duplicate(&self, region: usize) -> io::Result<File> {
        let region = self.map.iter().nth(region).expect("a region");
        region.file_offset().expect("a memfd").file().try_clone()
    }

    /// Shortens (or lengthens) a region's memfd under its mapping. Touching the lost pages kills this process.
    pub fn truncate(&self, region: usize, len: u64) -> io::Result<()> {
        self.torn.store(true, Ordering::Relaxed);
        self.duplicate(region)?.set_len(len)
    }

    /// Whether a region was cut short: then nobody may use this memory for anything ordinary.
    pub fn is_torn(&self) -> bool {
        self.torn.load(Ordering::Relaxed)
    }

    /// A window for atomic access; it must lie inside one region.
    pub fn area(&self, gpa: u64, len: usize) -> Area {
        let base = self
            .map
            .get_host_address(GuestAddress(gpa))
            .expect("an address inside guest memory");
        self.map
            .get_slice(GuestAddress(gpa), len)
            .expect("a window inside one region");
        Area { base, len }
    }
}

fn announce(region: &impl GuestMemoryRegion) -> Region {
    let file = region.file_offset().expect("a memfd");
    Region {
        gpa: region.start_addr().0,
        len: region.len(),
        user: region
            .get_host_address(vm_memory::MemoryRegionAddress(0))
            .expect("a mapping") as u64,
        fd_offset: file.start(),
        fd: file.file().as_raw_fd(),
    }
}

/// A new memfd of `len` bytes.
pub fn memfd(len: u64) -> io::Result<File> {
    // SAFETY: the name is a constant C string.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    Ok(file)
}

/// A window into guest memory for atomic words. The holder keeps the [`Memory`] alive.
#[derive(Debug, Clone, Copy)]
pub struct Area {
    base: *mut u8,
    len: usize,
}

// SAFETY: every access through an area is atomic, and the memory is shared with another process anyway.
unsafe impl Send for Area {}
// SAFETY: as for Send.
unsafe impl Sync for Area {}

impl Area {
    fn at<T>(&self, offset: usize) -> *mut T {
        assert!(
            offset + size_of::<T>() <= self.len,
            "word at {offset} of {}",
            self.len
        );
        let word = self.base.wrapping_add(offset).cast::<T>();
        assert!(word.is_aligned(), "word at {offset} is not aligned");
        word
    }

    /// The 16-bit word at a byte offset.
    pub fn u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: `at` has checked bounds and alignment; the mapping lives as long as the holder keeps the memory.
        unsafe { AtomicU16::from_ptr(self.at(offset)) }
    }

    /// The 32-bit word at a byte offset.
    pub fn u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as in `u16`.
        unsafe { AtomicU32::from_ptr(self.at(offset)) }
    }

    /// The 64-bit word at a byte offset.
    pub fn u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `u16`.
        unsafe { AtomicU64::from_ptr(self.at(offset)) }
    }
}
