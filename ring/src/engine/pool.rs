//! The same interface on a pool of threads, where io_uring is refused (a container's default seccomp profile does that).
//!
//! The rule: a job's memory is vouched for by the ring's slot until its report has been taken, so the pool waits for its
//! threads before it goes.

use super::watch::Watch;
use super::{NOBODY, QueueFull, Report, Space, Step};
use crate::op::SyncLevel;
use crate::seg::Seg;
use crate::sys;
use crate::wait::{Bell, Wait};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Threads of one ring at most; they are made as they are needed.
const THREADS_MAX: usize = 16;

/// What a thread does. `segs` points into a slot that waits for the report.
#[derive(Debug)]
enum Work {
    Read {
        at: u64,
        segs: SegList,
    },
    Write {
        at: u64,
        segs: SegList,
        through: bool,
    },
    Sync(SyncLevel),
    Space {
        how: Space,
        at: u64,
        len_bytes: u64,
    },
    Truncate {
        len_bytes: u64,
    },
}

#[derive(Debug)]
struct SegList {
    first: *const Seg,
    count: usize,
}

// SAFETY: the list lies in a slot of the ring, which neither moves nor frees it until the job's report was taken.
unsafe impl Send for SegList {}

#[derive(Debug)]
struct Job {
    user_data: u64,
    fd: RawFd,
    work: Work,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
    reports: Mutex<Vec<Report>>,
    done: Bell,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    closing: bool,
}

#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    polls: Watch,
    timers: Vec<(Instant, u64)>,
    /// Reports made on this thread (cancelled polls, failed starts).
    own: Vec<Report>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Errors: out of descriptors.
    pub(crate) fn new() -> io::Result<Pool> {
        Ok(Pool {
            shared: Arc::new(Shared {
                queue: Mutex::default(),
                more: Condvar::new(),
                reports: Mutex::default(),
                done: Bell::new()?,
            }),
            threads: Vec::new(),
            polls: Watch::new()?,
            timers: Vec::new(),
            own: Vec::new(),
        })
    }

    pub(crate) fn push(&mut self, step: Step<'_>, user_data: u64) -> Result<(), QueueFull> {
        let list = |segs: &[Seg]| SegList {
            first: segs.as_ptr(),
            count: segs.len(),
        };
        let (fd, work) = match step {
            Step::Read { file, at, segs } => {
                let segs = list(segs);
                (file.fd, Work::Read { at, segs })
            }
            Step::Write {
                file,
                at,
                segs,
                through,
            } => {
                let segs = list(segs);
                (file.fd, Work::Write { at, segs, through })
            }
            Step::Sync { file, level } => (file.fd, Work::Sync(level)),
            Step::Space {
                file,
                how,
                at,
                len_bytes,
            } => (file.fd, Work::Space { how, at, len_bytes }),
            Step::Truncate { file, len_bytes } => (file.fd, Work::Truncate { len_bytes }),
            Step::Poll { fd } => {
                if let Err(error) = self.polls.add(user_data, fd) {
                    self.report(user_data, -error.raw_os_error().unwrap_or(libc::EIO));
                }
                return Ok(());
            }
            Step::Signal { fd } => {
                sys::signal(fd);
                self.report(user_data, 0);
                return Ok(());
            }
            Step::Timeout { ns, .. } => {
                self.timers
                    .push((Instant::now() + Duration::from_nanos(ns), user_data));
                return Ok(());
            }
            Step::Cancel { target } => {
                self.cancel(target);
                self.report(user_data, 0);
                return Ok(());
            }
        };
        self.submit(Job {
            user_data,
            fd,
            work,
        });
        Ok(())
    }

    fn report(&mut self, user_data: u64, result: i32) {
        if user_data != NOBODY {
            self.own.push(Report {
                user_data,
                result,
                more: false,
            });
        }
    }

    /// Polls and timers end at once; a job a thread has not begun ends too, one it has runs on.
    fn cancel(&mut self, target: u64) {
        let timers = self.timers.len();
        self.timers.retain(|(_, user_data)| *user_data != target);
        let mut removed = self.polls.remove(target) || timers != self.timers.len();
        let mut queue = lock(&self.shared.queue);
        let jobs = queue.jobs.len();
        queue.jobs.retain(|job| job.user_data != target);
        removed |= jobs != queue.jobs.len();
        drop(queue);
        if removed {
            self.report(target, -libc::ECANCELED);
        }
    }

    fn submit(&mut self, job: Job) {
        let mut queue = lock(&self.shared.queue);
        queue.jobs.push_back(job);
        let short = queue.idle < queue.jobs.len();
        drop(queue);
        if short && self.threads.len() < THREADS_MAX {
            let shared = self.shared.clone();
            let spawned = std::thread::Builder::new()
                .name("io".to_owned())
                .spawn(move || work(&shared));
            match spawned {
                Ok(thread) => self.threads.push(thread),
                // With no thread at all nobody would ever do the job: it is done here, slowly.
                Err(_) if self.threads.is_empty() => self.do_one_here(),
                Err(_) => {}
            }
        }
        self.shared.more.notify_one();
    }

    fn do_one_here(&mut self) {
        let job = lock(&self.shared.queue).jobs.pop_front();
        if let Some(job) = job {
            let result = run(&job);
            self.report(job.user_data, result);
        }
    }

    pub(crate) fn turn(&mut self, wait: Wait, out: &mut Vec<Report>) -> io::Result<()> {
        let before = out.len();
        self.collect(out);
        let limit = match wait {
            _ if out.len() > before => Some(Duration::ZERO),
            Wait::Not => Some(Duration::ZERO),
            Wait::One | Wait::Batch { .. } => None,
            Wait::AtMost(ns) => Some(Duration::from_nanos(ns)),
        };
        self.poll_fds(limit, out)?;
        self.collect(out);
        Ok(())
    }

    fn collect(&mut self, out: &mut Vec<Report>) {
        out.append(&mut self.own);
        out.append(&mut lock(&self.shared.reports));
        if self.timers.is_empty() {
            return;
        }
        let now = Instant::now();
        self.timers.retain(|&(at, user_data)| {
            if at <= now {
                out.push(Report {
                    user_data,
                    result: -libc::ETIME,
                    more: false,
                });
            }
            at > now
        });
    }

    fn poll_fds(&mut self, limit: Option<Duration>, out: &mut Vec<Report>) -> io::Result<()> {
        let pollfd = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let next = self.timers.iter().map(|(at, _)| *at).min();
        let next = next.map(|at| at.saturating_duration_since(Instant::now()));
        let limit = match (limit, next) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let mut fds = [
            pollfd(self.shared.done.as_raw_fd()),
            pollfd(self.polls.as_raw_fd()),
        ];
        match sys::poll(&mut fds, limit) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        if fds[0].revents != 0 {
            self.shared.done.hush();
        }
        if fds[1].revents != 0 {
            self.polls.take(out);
        }
        Ok(())
    }

    pub(crate) fn has_news(&mut self) -> bool {
        !self.own.is_empty() || !lock(&self.shared.reports).is_empty()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.queue).closing = true;
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing left to wait for.
            let _ = thread.join();
        }
    }
}

/// A thread of the pool: takes jobs until the pool closes and none is left.
fn work(shared: &Shared) {
    let mut queue = lock(&shared.queue);
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            let result = run(&job);
            lock(&shared.reports).push(Report {
                user_data: job.user_data,
                result,
                more: false,
            });
            shared.done.ring();
            queue = lock(&shared.queue);
        } else if queue.closing {
            return;
        } else {
            queue.idle += 1;
            queue = shared
                .more
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }
}

fn run(job: &Job) -> i32 {
    let result = match &job.work {
        Work::Read { at, segs } => {
            let (list, count) = (segs.first.cast(), segs.count as i32);
            // SAFETY: the list and the memory it names are valid until the report is taken (see `SegList`).
            unsafe { libc::preadv(job.fd, list, count, *at as i64) }
        }
        Work::Write { at, segs, through } => {
            let (list, count) = (segs.first.cast(), segs.count as i32);
            let flags = if *through { libc::RWF_DSYNC } else { 0 };
            // SAFETY: as above.
            unsafe { libc::pwritev2(job.fd, list, count, *at as i64, flags) }
        }
        // SAFETY: no pointer is passed; the file is kept open by the ring.
        Work::Sync(SyncLevel::Data) => unsafe { libc::fdatasync(job.fd) as isize },
        // SAFETY: as above.
        Work::Sync(SyncLevel::All) => unsafe { libc::fsync(job.fd) as isize },
        // SAFETY: as above.
        Work::Space { how, at, len_bytes } => unsafe {
            libc::fallocate(job.fd, how.mode(), *at as i64, *len_bytes as i64) as isize
        },
        // SAFETY: as above.
        Work::Truncate { len_bytes } => unsafe {
            libc::ftruncate(job.fd, *len_bytes as i64) as isize
        },
    };
    if result < 0 {
        return -io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO);
    }
    result.min(i32::MAX as isize) as i32
}
