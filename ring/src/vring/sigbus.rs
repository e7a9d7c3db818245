//! A guest memfd truncated while we run must not kill the process.
//!
//! The rule: only a fault inside a registered range is survived, by a page of zeroes and a mark on its map; any other
//! SIGBUS kills as if this file did not exist. The handler touches nothing but statics, `mmap` and `sigaction`.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::map::{MapError, Region};

/// Most ranges of all maps together: four sessions of 509 slots, each with its next table beside the old one.
const RANGES_MAX: usize = 4096;

static TABLE: [Entry; RANGES_MAX] = [const { Entry::empty() }; RANGES_MAX];
/// The mark of a map lies at the index of its first range.
static POISON: [AtomicBool; RANGES_MAX] = [const { AtomicBool::new(false) }; RANGES_MAX];
/// Guards changes of the table; the handler never takes it.
static CHANGES: Mutex<()> = Mutex::new(());
static PAGE_BYTES: AtomicUsize = AtomicUsize::new(4096);

/// One range, readable at any moment: `version` is odd while the rest changes.
struct Entry {
    version: AtomicU32,
    start: AtomicUsize,
    /// Zero if the entry is free.
    end: AtomicUsize,
    mark: AtomicUsize,
}

impl Entry {
    const fn empty() -> Entry {
        Entry {
            version: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            mark: AtomicUsize::new(0),
        }
    }

    fn is_free(&self) -> bool {
        self.end.load(Ordering::Relaxed) == 0
    }

    /// Under `CHANGES`.
    fn write(&self, start: usize, end: usize, mark: usize) {
        let version = self.version.load(Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.mark.store(mark, Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(2), Ordering::Release);
    }

    /// Its end and mark if it covers `addr`. An entry in change covers nothing: the range of a thread that faults does
    /// not change, as a map outlives its users.
    fn covers(&self, addr: usize) -> Option<(usize, usize)> {
        let version = self.version.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Relaxed);
        let end = self.end.load(Ordering::Relaxed);
        let mark = self.mark.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let same = self.version.load(Ordering::Relaxed) == version;
        let stable = same && version.is_multiple_of(2);
        (stable && start <= addr && addr < end).then_some((end, mark))
    }
}

/// The ranges of one map in the table; dropping it takes them out.
#[derive(Debug)]
pub(super) struct Guard {
    entries: Vec<usize>,
    mark: &'static AtomicBool,
}

impl Guard {
    /// Puts the regions into the table; installs the handler the first time.
    pub(super) fn register(regions: &[Region]) -> Result<Guard, MapError> {
        install().map_err(MapError::Guard)?;
        let _changes = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
        let free = TABLE.iter().enumerate().filter(|(_, e)| e.is_free());
        let entries: Vec<usize> = free.map(|(at, _)| at).take(regions.len()).collect();
        let (Some(&first), true) = (entries.first(), entries.len() == regions.len()) else {
            return Err(MapError::TooMany { max: RANGES_MAX });
        };
        POISON[first].store(false, Ordering::Relaxed);
        for (region, &at) in regions.iter().zip(&entries) {
            let start = region.host.addr();
            // Cannot overflow: the map checked its regions.
            TABLE[at].write(start, start + region.len_bytes as usize, first);
        }
        Ok(Guard {
            entries,
            mark: &POISON[first],
        })
    }

    #[inline]
    pub(super) fn poisoned(&self) -> bool {
        self.mark.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _changes = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
        for &at in &self.entries {
            TABLE[at].write(0, 0, 0);
        }
    }
}

/// Installs the handler once for the process.
fn install() -> io::Result<()> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        // SAFETY: a plain query.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        PAGE_BYTES.store(usize::try_from(page).unwrap_or(4096), Ordering::Relaxed);
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
        // On the alternate stack, as the standard library's own handler: a fault may come with little stack left.
        act(handler as usize, libc::SA_SIGINFO | libc::SA_ONSTACK)
            .map_err(|error| error.raw_os_error().unwrap_or(libc::EINVAL))
    });
    done.map_err(io::Error::from_raw_os_error)
}

/// Sets what SIGBUS does. Safe to call from a signal handler.
fn act(handler: usize, flags: i32) -> io::Result<()> {
    // SAFETY: all zeroes is a valid `sigaction`: default action, empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: `action` is initialised; the handler, if not the default, has the signature SA_SIGINFO asks for.
    match unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_sigbus(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: always valid; belongs to this thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { *errno };
    // SAFETY: the kernel passes a valid `siginfo_t`, ours alone, to an SA_SIGINFO handler.
    let info = unsafe { &*info };
    // A code above zero is the kernel's: a fault with an address. Others were sent by someone.
    if info.si_code <= 0 {
        let _ = act(libc::SIG_DFL, 0);
        // SAFETY: pending until this handler returns, then it kills.
        unsafe { libc::raise(libc::SIGBUS) };
    } else {
        // SAFETY: a SIGBUS of the kernel carries an address.
        let addr = unsafe { info.si_addr() }.addr();
        if rescue(addr).is_err() {
            // The access is tried again on return and kills where it stands.
            let _ = act(libc::SIG_DFL, 0);
        }
    }
    // SAFETY: as above.
    unsafe { *errno = before };
}

/// The fault is not ours, or cannot be mended.
struct Fatal;

fn rescue(addr: usize) -> Result<(), Fatal> {
    let mut range_end = None;
    for (end, mark) in TABLE.iter().filter_map(|entry| entry.covers(addr)) {
        // A range may be in two maps while a memory table changes: all of them lost it.
        if let Some(mark) = POISON.get(mark) {
            mark.store(true, Ordering::SeqCst);
        }
        range_end = Some(end);
    }
    replace(addr, range_end.ok_or(Fatal)?)
}

/// Puts zeroes where `addr` is: one page of whatever size the mapping has.
fn replace(addr: usize, range_end: usize) -> Result<(), Fatal> {
    // Huge pages cannot be replaced in part: the kernel says EINVAL, which with these arguments means only that.
    for page_bytes in [PAGE_BYTES.load(Ordering::Relaxed), 2 << 20, 1 << 30] {
        let start = addr - addr % page_bytes;
        match map_zeroes(start, page_bytes) {
            Ok(()) => return Ok(()),
            Err(libc::EINVAL) => continue,
            // Too many mappings: the rest of the range goes at once, which never takes more than two.
            Err(_) => return map_zeroes(start, range_end - start).map_err(|_| Fatal),
        }
    }
    Err(Fatal)
}

fn map_zeroes(start: usize, len_bytes: usize) -> Result<(), i32> {
    // SAFETY: replaces pages of a registered range, which by the contract of `GuestMap::new` nothing but guest data
    // lives in. On Linux `mmap` is a bare system call, fit for a signal handler.
    let page = unsafe {
        libc::mmap(
            std::ptr::with_exposed_provenance_mut(start),
            len_bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if page != libc::MAP_FAILED {
        return Ok(());
    }
    // SAFETY: always valid; belongs to this thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    Err(unsafe { *errno })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::sync::Arc;

    use super::*;
    use crate::vring::{Chain, GuestMap, Layout, RingError, RingFeatures, Vring};

    const PAGES: u64 = 16;
    const LEN: u64 = PAGES * 4096;

    /// A memfd of that length, mapped and never unmapped; none if the machine has no such pages.
    fn mapped(flags: u32, len_bytes: u64) -> Option<(File, Region)> {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC | flags) };
        assert!(fd >= 0);
        // SAFETY: just opened, and ours.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len_bytes).unwrap();
        let (len, prot) = (len_bytes as usize, libc::PROT_READ | libc::PROT_WRITE);
        let (any, shared) = (std::ptr::null_mut(), libc::MAP_SHARED);
        // SAFETY: a new mapping somewhere.
        let host = unsafe { libc::mmap(any, len, prot, shared, file.as_raw_fd(), 0) };
        let host = host.cast();
        let gpa = 0;
        let region = Region {
            gpa,
            len_bytes,
            host,
        };
        (host.cast() != libc::MAP_FAILED).then_some((file, region))
    }

    fn memfd() -> (File, Region) {
        mapped(0, LEN).unwrap()
    }

    #[test]
    fn a_huge_page_is_replaced_whole() {
        let huge_bytes = 2 << 20;
        let flags = libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
        let Some((file, region)) = mapped(flags, 2 * huge_bytes) else {
            println!("not tested: no free huge pages of 2 MiB on this machine");
            return;
        };
        let map = map(region);
        map.contiguous(0, 1).unwrap().store(&[7]);
        file.set_len(huge_bytes).unwrap();
        let mut bytes = [1; 2];
        map.contiguous(0, 2).unwrap().load(&mut bytes);
        assert_eq!((bytes, map.poisoned()), ([7, 0], false));
        let gone = map.contiguous(huge_bytes + 12345, 2).unwrap();
        gone.load(&mut bytes);
        assert_eq!((bytes, map.poisoned()), ([0, 0], true));
        map.contiguous(0, 2).unwrap().load(&mut bytes);
        assert_eq!(bytes, [7, 0]);
    }

    fn map(region: Region) -> Arc<GuestMap> {
        // SAFETY: mapped for ever, and referred to by nothing.
        Arc::new(unsafe { GuestMap::new(vec![region], Box::new(())) }.unwrap())
    }

    #[test]
    fn a_truncated_memfd_reads_as_zeroes_and_poisons_its_own_map_only() {
        let ((file, region), (_other_file, other)) = (memfd(), memfd());
        let (ours, next, other) = (map(region), map(region), map(other));
        let whole = ours.contiguous(0, LEN as u32).unwrap();
        whole.store(&[0xaa; LEN as usize]);
        file.set_len(4096 * 2).unwrap();
        assert!(!ours.poisoned());
        let mut bytes = [1; LEN as usize];
        whole.load(&mut bytes);
        assert!(bytes[..8192].iter().all(|&byte| byte == 0xaa));
        assert!(bytes[8192..].iter().all(|&byte| byte == 0));
        assert!(ours.poisoned() && next.poisoned() && !other.poisoned());
        whole.store(&[0xbb; LEN as usize]);
        drop((ours, next));
        assert!(!map(region).poisoned());
    }

    #[test]
    fn a_ring_whose_memory_vanished_stops() {
        let (file, region) = memfd();
        let map = map(region);
        let layout = Layout {
            size: 8,
            desc: 0x4000,
            avail: 0x5000,
            used: 0x6000,
        };
        let features = RingFeatures::default();
        let mut ring = Vring::new(Arc::clone(&map), &layout, features, 0).unwrap();
        file.set_len(0).unwrap();
        assert_eq!(ring.pop(&mut Chain::new()), Err(RingError::Poisoned));
        let again = Vring::new(map, &layout, features, 0).map(|_| ());
        assert_eq!(again, Err(RingError::Poisoned));
    }

    #[test]
    fn maps_come_and_go_while_others_fault() {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..300).for_each(|_| drop(map(memfd_like()))));
            }
            for _ in 0..50 {
                let (file, region) = memfd();
                let map = map(region);
                file.set_len(0).unwrap();
                let mut byte = [1];
                map.contiguous(0, 1).unwrap().load(&mut byte);
                assert!(map.poisoned());
            }
        });
    }

    /// A region that is registered but never touched.
    fn memfd_like() -> Region {
        let host = std::ptr::without_provenance_mut(1 << 40);
        let (gpa, len_bytes) = (0, 4096);
        Region {
            gpa,
            len_bytes,
            host,
        }
    }

    /// Runs one ignored test of this file in a process of its own; the signal that killed it, if any.
    fn killed_by(test: &str) -> Option<i32> {
        let program = std::env::current_exe().unwrap();
        let test = format!("vring::sigbus::tests::{test}");
        let mut command = Command::new(program);
        command.args(["--exact", &test, "--ignored", "--test-threads=1"]);
        let output = command.output().unwrap();
        let status = output.status;
        assert!(status.success() || status.signal().is_some(), "{output:?}");
        status.signal()
    }

    #[test]
    fn other_faults_kill_as_before() {
        assert_eq!(killed_by("child_faults_elsewhere"), Some(libc::SIGBUS));
        assert_eq!(killed_by("child_faults_too_late"), Some(libc::SIGBUS));
        assert_eq!(killed_by("child_is_sent_the_signal"), Some(libc::SIGBUS));
    }

    #[test]
    fn a_full_table_is_an_error() {
        assert_eq!(killed_by("child_fills_the_table"), None);
    }

    #[test]
    fn more_lost_pages_than_a_process_may_have_mappings_are_survived() {
        assert_eq!(killed_by("child_loses_every_second_page"), None);
    }

    #[test]
    #[ignore = "takes all mappings of a process: run by the test above it"]
    fn child_loses_every_second_page() {
        let most = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
        let pages = 4 * most.trim().parse::<u64>().unwrap().min(1 << 18);
        let (file, region) = mapped(0, pages * 4096).unwrap();
        let map = map(region);
        file.set_len(0).unwrap();
        // From both ends, so that the rest of the range is replaced more than once.
        for page in (0..pages / 2).step_by(2) {
            for at in [page, pages - 1 - page] {
                let mut byte = [1];
                map.contiguous(at * 4096, 1).unwrap().load(&mut byte);
                assert_eq!(byte, [0]);
            }
        }
        assert!(map.poisoned());
    }

    #[test]
    #[ignore = "dies on purpose: run by other_faults_kill_as_before"]
    fn child_faults_elsewhere() {
        let ((_file, guarded), (file, region)) = (memfd(), memfd());
        let _map = map(guarded);
        file.set_len(0).unwrap();
        // SAFETY: mapped, although the page is gone.
        unsafe { region.host.read_volatile() };
    }

    #[test]
    #[ignore = "dies on purpose: run by other_faults_kill_as_before"]
    fn child_faults_too_late() {
        let (file, region) = memfd();
        drop(map(region));
        file.set_len(0).unwrap();
        // SAFETY: mapped, although the page is gone.
        unsafe { region.host.read_volatile() };
    }

    #[test]
    #[ignore = "dies on purpose: run by other_faults_kill_as_before"]
    fn child_is_sent_the_signal() {
        let _map = map(memfd().1);
        // SAFETY: no memory is involved.
        unsafe { libc::raise(libc::SIGBUS) };
    }

    #[test]
    #[ignore = "fills a table of the process: run by a_full_table_is_an_error"]
    fn child_fills_the_table() {
        let regions = |count: usize| -> Vec<Region> {
            let gpa = (0..count as u64).map(|at| at * 8192);
            gpa.map(|gpa| Region {
                gpa,
                ..memfd_like()
            })
            .collect()
        };
        // SAFETY: never touched.
        let most = unsafe { GuestMap::new(regions(RANGES_MAX - 1), Box::new(())) }.unwrap();
        // SAFETY: never touched.
        let more = unsafe { GuestMap::new(regions(2), Box::new(())) };
        assert!(matches!(more, Err(MapError::TooMany { max: RANGES_MAX })));
        drop(most);
        // SAFETY: never touched.
        assert!(unsafe { GuestMap::new(regions(RANGES_MAX), Box::new(())) }.is_ok());
    }
}
