//! The few system calls std does not have, each behind one safe function.

pub mod disk;
pub mod lock;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A new eventfd: counter zero, non-blocking, closed on exec. Errors: EMFILE, ENFILE, ENOMEM.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has a write beyond RLIMIT_FSIZE fail with EFBIG. The default of SIGXFSZ is to kill the whole process.
pub fn survive_file_size_limit() {
    // SAFETY: ignoring a signal needs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Waits until a descriptor is ready or `timeout_ms` (-1: for ever) has passed; fills in `revents`.
pub fn poll(fds: &mut [libc::pollfd], timeout: Option<std::time::Duration>) -> io::Result<usize> {
    let spec = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs().min(i64::MAX as u64) as libc::time_t,
        tv_nsec: i64::from(t.subsec_nanos()) as _,
    });
    let spec_ptr = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let (ptr, len) = (fds.as_mut_ptr(), fds.len() as libc::nfds_t);
    // SAFETY: `fds` and `spec` outlive the call, and their lengths are what is passed.
    let ready = unsafe { libc::ppoll(ptr, len, spec_ptr, std::ptr::null()) };
    usize::try_from(ready).map_err(|_| io::Error::last_os_error())
}

/// Takes an eventfd's counter without ever blocking, whatever its flags say; false if there was nothing to take.
pub fn take_counter(fd: RawFd) -> bool {
    let mut counter = 0u64;
    let iov = libc::iovec {
        iov_base: std::ptr::from_mut(&mut counter).cast(),
        iov_len: 8,
    };
    // SAFETY: one iovec that points to eight bytes of ours; offset -1 means the descriptor's own position.
    let got = unsafe { libc::preadv2(fd, &raw const iov, 1, -1, libc::RWF_NOWAIT) };
    got == 8
}

/// Adds one to an eventfd if that would not block; a full counter's reader is awake anyway.
pub fn signal(fd: RawFd) {
    let mut ready = [libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    }];
    let writable = poll(&mut ready, Some(std::time::Duration::ZERO)).is_ok();
    if writable && ready[0].revents & libc::POLLOUT != 0 {
        let one = 1u64;
        // SAFETY: eight bytes of ours.
        unsafe { libc::write(fd, std::ptr::from_ref(&one).cast(), 8) };
    }
}

/// A new epoll set. Errors: EMFILE, ENFILE, ENOMEM.
pub(crate) fn epoll() -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds `fd` to the set, edge-triggered, for reading. Errors: EPERM for what cannot be polled, EBADF, EEXIST, ENOMEM.
pub(crate) fn epoll_add(epoll: &OwnedFd, fd: RawFd, data: u64) -> io::Result<()> {
    let mut event = libc::epoll_event {
        events: (libc::EPOLLIN | libc::EPOLLET) as u32,
        u64: data,
    };
    epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event)
}

/// Takes `fd` out of the set. Errors: ENOENT, EBADF.
pub(crate) fn epoll_remove(epoll: &OwnedFd, fd: RawFd) -> io::Result<()> {
    epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut())
}

fn epoll_ctl(epoll: &OwnedFd, op: i32, fd: RawFd, event: *mut libc::epoll_event) -> io::Result<()> {
    // SAFETY: the event, if any, is a live local of the caller; the kernel checks the descriptors.
    let done = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), op, fd, event) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What is ready in the set, without waiting: fills in the beginning of `events` and returns how many.
pub(crate) fn epoll_take(epoll: &OwnedFd, events: &mut [libc::epoll_event]) -> io::Result<usize> {
    let (ptr, len) = (events.as_mut_ptr(), events.len().min(1024) as i32);
    // SAFETY: `events` outlives the call and has `len` elements.
    let ready = unsafe { libc::epoll_wait(epoll.as_raw_fd(), ptr, len, 0) };
    usize::try_from(ready).map_err(|_| io::Error::last_os_error())
}

/// How many CPUs the machine has running; 1 if it does not say.
pub fn cpus_online() -> usize {
    // SAFETY: no pointer is passed.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(count).unwrap_or(1).max(1)
}

/// Signals as a descriptor to poll instead of handlers.
#[derive(Debug)]
pub struct Signals(std::fs::File);

impl Signals {
    /// Blocks `signals` in the calling thread, and so in every thread it starts later, and collects them. Errors: EMFILE,
    /// ENFILE, ENOMEM.
    pub fn collect(signals: &[i32]) -> io::Result<Signals> {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the set is ours; sigemptyset makes it a value.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        for &signal in signals {
            // SAFETY: the set is a value since sigemptyset.
            unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
        }
        // SAFETY: the set is a value, and the old mask is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: -1 asks for a new descriptor, and the set is a value.
        let fd = unsafe { libc::signalfd(-1, set.as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Signals(std::fs::File::from(fd)))
    }

    /// The number of a signal that has come; `None` if none has.
    pub fn take(&mut self) -> Option<u32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        io::Read::read_exact(&mut self.0, &mut info).ok()?;
        // signalfd(2): `ssi_signo` comes first.
        let number = info.first_chunk::<4>()?;
        Some(u32::from_ne_bytes(*number))
    }
}

impl std::os::fd::AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
