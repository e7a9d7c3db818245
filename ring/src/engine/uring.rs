//! The kernel's io_uring, one per thread.
//!
//! The rule: one `io_uring_enter` both submits a burst and waits. Which set-up flags win is measured, see `FLAVOURS`.

use super::{NOBODY, QueueFull, Report, Space, Step, Target};
use crate::op::SyncLevel;
use crate::wait::Wait;
use io_uring::types::{Fd, Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use std::io;
use std::os::fd::RawFd;
use std::sync::OnceLock;

/// Entries of the submission queue.
const SUBMISSION_ENTRIES: u32 = 256;
/// Entries of the completion queue: as many as there are slots, so it cannot overflow but for polls.
const COMPLETION_ENTRIES: u32 = 4096;
/// Places in the kernel's table of registered files; further files go by descriptor.
const FIXED_FILES: u32 = 64;

/// How a ring is set up. The first that the kernel takes is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Completions are processed when this thread asks for them (Linux 6.1).
    DeferTaskrun,
    /// Completions never interrupt this thread (Linux 5.19).
    CoopTaskrun,
    /// Any kernel with io_uring.
    Plain,
}

/// In order of preference; the choice is this one line.
const FLAVOURS: [Flavour; 3] = [Flavour::DeferTaskrun, Flavour::CoopTaskrun, Flavour::Plain];

/// Longer than anybody waits for an end; a wait that does end then is just made again.
const FOR_EVER_NS: u64 = 3_600_000_000_000;

/// The flavour this kernel takes, found by the first ring of the process.
static PROBED: OnceLock<Flavour> = OnceLock::new();

/// Does this kernel's ring have IORING_OP_FTRUNCATE (Linux 6.9)? Asked when the first file is truncated.
static TRUNCATES: OnceLock<bool> = OnceLock::new();

/// What an eventfd is written to signal it once.
static ONE: u64 = 1;

pub(crate) struct Uring {
    ring: IoUring,
    fixed_next: u32,
    /// Places below that one which are free again.
    fixed_free: Vec<u32>,
    flavour: Flavour,
    min_wait: bool,
    /// For steps nobody waits for: no completion, where the kernel can do that (Linux 5.17).
    silent: squeue::Flags,
    /// For signals: without it each signal to a full counter stays in the kernel until somebody reads the counter, as
    /// many as a hostile guest likes. Eventfds take it since Linux 5.8.
    signal_flags: i32,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Uring({:?})", self.flavour)
    }
}

fn build(flavour: Flavour) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(COMPLETION_ENTRIES).setup_clamp();
    match flavour {
        Flavour::DeferTaskrun => builder
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all(),
        Flavour::CoopTaskrun => builder
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all(),
        Flavour::Plain => &mut builder,
    };
    builder.build(SUBMISSION_ENTRIES)
}

/// The first flavour the kernel takes. Only EINVAL means "unknown flag"; anything else is io_uring refused altogether.
fn first_that_works(flavours: &[Flavour]) -> io::Result<(IoUring, Flavour)> {
    let mut refused = io::Error::from_raw_os_error(libc::ENOSYS);
    for &flavour in flavours {
        match build(flavour) {
            Ok(ring) => return Ok((ring, flavour)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

impl Uring {
    /// Errors: EPERM or ENOSYS where io_uring is refused, ENOMEM.
    pub(crate) fn new(only: Option<Flavour>) -> io::Result<Uring> {
        let (ring, flavour) = match only.or_else(|| PROBED.get().copied()) {
            Some(flavour) => (build(flavour)?, flavour),
            None => {
                let (ring, flavour) = first_that_works(&FLAVOURS)?;
                (ring, *PROBED.get_or_init(|| flavour))
            }
        };
        let min_wait = ring.params().is_feature_min_timeout();
        let (silent, signal_flags) = match ring.params().is_feature_skip_cqe_on_success() {
            true => (squeue::Flags::SKIP_SUCCESS, libc::RWF_NOWAIT),
            false => (squeue::Flags::empty(), 0),
        };
        let mut uring = Uring {
            ring,
            fixed_next: 0,
            fixed_free: Vec::new(),
            flavour,
            min_wait,
            silent,
            signal_flags,
        };
        if uring
            .ring
            .submitter()
            .register_files_sparse(FIXED_FILES)
            .is_err()
        {
            uring.fixed_next = FIXED_FILES;
        }
        // Saves the kernel a descriptor lookup per call; an older kernel goes without.
        let _ = uring.ring.submitter().register_ring_fd();
        Ok(uring)
    }

    pub(crate) fn flavour(&self) -> Flavour {
        self.flavour
    }

    pub(crate) fn can_truncate(&self) -> bool {
        *TRUNCATES.get_or_init(|| {
            let mut probe = io_uring::Probe::new();
            let asked = self.ring.submitter().register_probe(&mut probe);
            asked.is_ok() && probe.is_supported(opcode::Ftruncate::CODE)
        })
    }

    pub(crate) fn fix(&mut self, fd: RawFd) -> Option<u32> {
        let used_before = self.fixed_free.last().copied();
        let at = used_before.unwrap_or(self.fixed_next);
        if at >= FIXED_FILES {
            return None;
        }
        let done = self.ring.submitter().register_files_update(at, &[fd]);
        done.ok().filter(|&count| count == 1)?;
        match used_before {
            Some(_) => drop(self.fixed_free.pop()),
            None => self.fixed_next += 1,
        }
        Some(at)
    }

    pub(crate) fn unfix(&mut self, at: u32) {
        // A place the kernel would not empty is not used again; its file is closed with the ring.
        let done = self.ring.submitter().register_files_update(at, &[-1]);
        if matches!(done, Ok(1)) {
            self.fixed_free.push(at);
        }
    }

    #[inline]
    pub(crate) fn push(&mut self, step: Step<'_>, user_data: u64) -> Result<(), QueueFull> {
        let mut entry = entry(step, self.signal_flags).user_data(user_data);
        if user_data == NOBODY {
            entry = entry.flags(self.silent);
        }
        let mut queue = self.ring.submission();
        // SAFETY: what the entry points to (segments, their list, a timespec) stays valid until its completion: the
        // ring's slot owns or vouches for it, and is freed only when the completion has been seen.
        unsafe { queue.push(&entry) }.map_err(|_| QueueFull)
    }

    #[inline]
    pub(crate) fn turn(&mut self, wait: Wait, out: &mut Vec<Report>) -> io::Result<()> {
        let have = !self.ring.completion().is_empty();
        let entered = self.enter(if have { Wait::Not } else { wait });
        match entered.as_ref().err().and_then(io::Error::raw_os_error) {
            // ETIME: the wait was over first. EINTR: a signal. EAGAIN, EBUSY: the kernel is short of memory or wants
            // completions reaped first; what was not submitted stays queued for the next turn.
            None | Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => {}
            Some(_) => return entered,
        }
        for cqe in self.ring.completion() {
            if cqe.user_data() != NOBODY {
                out.push(Report {
                    user_data: cqe.user_data(),
                    result: cqe.result(),
                    more: io_uring::cqueue::more(cqe.flags()),
                });
            }
        }
        Ok(())
    }

    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        let submitter = self.ring.submitter();
        match wait {
            Wait::Not => {
                let mut queue = self.ring.submission();
                queue.sync();
                if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
                    return Ok(());
                }
                drop(queue);
                self.ring.submitter().submit()
            }
            Wait::One => submitter.submit_and_wait(1),
            Wait::AtMost(ns) => {
                let spec = timespec(ns);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&spec))
            }
            Wait::Batch { count, patience_ns } if self.min_wait && count > 1 => {
                let patience_us = (patience_ns / 1000).clamp(1, u64::from(u32::MAX)) as u32;
                // Without a longer timeout beside it, the kernel takes the patience for the whole wait.
                let spec = timespec(FOR_EVER_NS);
                let args = SubmitArgs::new().min_wait_usec(patience_us).timespec(&spec);
                submitter.submit_with_args(count as usize, &args)
            }
            Wait::Batch { .. } => submitter.submit_and_wait(1),
        }
        .map(drop)
    }

    pub(crate) fn has_unsubmitted(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    pub(crate) fn has_news(&mut self) -> bool {
        if !self.ring.completion().is_empty() {
            return true;
        }
        self.ring.submission().taskrun()
    }
}

pub(crate) fn timespec(ns: u64) -> Timespec {
    Timespec::new()
        .sec(ns / 1_000_000_000)
        .nsec((ns % 1_000_000_000) as u32)
}

/// `opcode` on a registered file where there is one, by descriptor otherwise.
macro_rules! on_file {
    ($file:expr, |$target:ident| $build:expr) => {
        match $file.fixed {
            Some(index) => {
                let $target = Fixed(index);
                $build
            }
            None => {
                let $target = Fd($file.fd);
                $build
            }
        }
    };
}

#[inline]
fn entry(step: Step<'_>, signal_flags: i32) -> squeue::Entry {
    match step {
        Step::Read { file, at, segs } => read(file, at, segs),
        Step::Write {
            file,
            at,
            segs,
            through,
        } => write(file, at, segs, if through { libc::RWF_DSYNC } else { 0 }),
        Step::Sync { file, level } => {
            let flags = match level {
                SyncLevel::Data => FsyncFlags::DATASYNC,
                SyncLevel::All => FsyncFlags::empty(),
            };
            on_file!(file, |f| opcode::Fsync::new(f).flags(flags).build())
        }
        Step::Space {
            file,
            how,
            at,
            len_bytes,
        } => fallocate(file, how, at, len_bytes),
        Step::Truncate { file, len_bytes } => {
            on_file!(file, |f| opcode::Ftruncate::new(f, len_bytes).build())
        }
        Step::Poll { fd } => opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32)
            .multi(true)
            .build(),
        Step::Signal { fd } => opcode::Write::new(Fd(fd), (&raw const ONE).cast(), 8)
            .rw_flags(signal_flags)
            .build(),
        Step::Timeout { spec, .. } => opcode::Timeout::new(spec).build(),
        Step::Cancel { target } => opcode::AsyncCancel::new(target).build(),
    }
}

#[inline]
fn read(file: Target, at: u64, segs: &[crate::Seg]) -> squeue::Entry {
    match segs {
        [seg] => on_file!(file, |f| opcode::Read::new(f, seg.host(), seg.len() as u32)
            .offset(at)
            .build()),
        _ => {
            let (list, count) = (segs.as_ptr().cast(), segs.len() as u32);
            on_file!(file, |f| opcode::Readv::new(f, list, count)
                .offset(at)
                .build())
        }
    }
}

#[inline]
fn write(file: Target, at: u64, segs: &[crate::Seg], rw_flags: i32) -> squeue::Entry {
    match segs {
        [seg] => on_file!(file, |f| opcode::Write::new(
            f,
            seg.host(),
            seg.len() as u32
        )
        .offset(at)
        .rw_flags(rw_flags)
        .build()),
        _ => {
            let (list, count) = (segs.as_ptr().cast(), segs.len() as u32);
            on_file!(file, |f| opcode::Writev::new(f, list, count)
                .offset(at)
                .rw_flags(rw_flags)
                .build())
        }
    }
}

fn fallocate(file: Target, how: Space, at: u64, len_bytes: u64) -> squeue::Entry {
    on_file!(file, |f| opcode::Fallocate::new(f, len_bytes)
        .offset(at)
        .mode(how.mode())
        .build())
}
