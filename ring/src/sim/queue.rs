//! One ring's way to the disk: its operations, its timers on virtual time, its polls on real descriptors.

use super::Disk;
use super::flight::Standing;
use super::rules::{Kind, Seen};
use crate::engine::watch::Watch;
use crate::engine::{NOBODY, QueueFull, Report, Space, Step, Target};
use crate::file::FileId;
use crate::seg::{self, Seg};
use crate::sys;
use crate::wait::{Bell, Wait};
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Virtual time one turn takes.
const TURN_NS: u64 = 1000;

/// One ring's operations on a disk.
#[derive(Debug)]
pub(crate) struct Queue {
    disk: Disk,
    number: u32,
    turn: u64,
    now_ns: u64,
    entries_left: u32,
    entries: u32,
    timers: Vec<(u64, u64)>,
    polls: Watch,
    /// Rung when the disk lets something go.
    bell: Bell,
    ended: Vec<Report>,
}

impl Queue {
    /// Errors: out of descriptors.
    pub(crate) fn new(disk: Disk) -> io::Result<Queue> {
        let bell = Bell::new()?;
        let mut state = disk.state();
        let (number, entries) = (state.bells.len() as u32, state.entries);
        state.bells.push(bell.clone());
        drop(state);
        Ok(Queue {
            disk,
            number,
            turn: 0,
            now_ns: 0,
            entries_left: entries,
            entries,
            timers: Vec::new(),
            polls: Watch::new()?,
            bell,
            ended: Vec::new(),
        })
    }

    pub(crate) fn push(&mut self, step: Step<'_>, user_data: u64) -> Result<(), QueueFull> {
        self.entries_left = self.entries_left.checked_sub(1).ok_or(QueueFull)?;
        match step {
            Step::Read { file, at, segs } => self.transfer(Kind::Read, file, at, segs, user_data),
            Step::Write {
                file,
                at,
                segs,
                through,
            } => {
                let kind = if through {
                    Kind::WriteThrough
                } else {
                    Kind::Write
                };
                self.transfer(kind, file, at, segs, user_data);
            }
            Step::Sync { file, .. } => self.transfer(Kind::Sync, file, 0, &[], user_data),
            Step::Space {
                file,
                how,
                at,
                len_bytes,
            } => {
                let kind = match how {
                    Space::Punch => Kind::Punch,
                    Space::Zero => Kind::Zero,
                };
                self.submit(kind, file.id, (at, len_bytes), Vec::new(), user_data);
            }
            Step::Truncate { file, len_bytes } => {
                self.submit(
                    Kind::Truncate,
                    file.id,
                    (len_bytes, 0),
                    Vec::new(),
                    user_data,
                );
            }
            Step::Poll { fd } => {
                if let Err(error) = self.polls.add(user_data, fd) {
                    self.report(user_data, -error.raw_os_error().unwrap_or(libc::EIO));
                }
            }
            Step::Signal { fd } => {
                sys::signal(fd);
                self.report(user_data, 0);
            }
            Step::Timeout { ns, .. } => self
                .timers
                .push((self.now_ns.saturating_add(ns), user_data)),
            Step::Cancel { target } => {
                self.cancel(target);
                self.report(user_data, 0);
            }
        }
        Ok(())
    }

    fn transfer(&mut self, kind: Kind, file: Target, at: u64, segs: &[Seg], user_data: u64) {
        let span = (at, seg::len_bytes(segs) as u64);
        self.submit(kind, file.id, span, segs.to_vec(), user_data);
    }

    fn submit(
        &mut self,
        kind: Kind,
        file: FileId,
        (at, len_bytes): (u64, u64),
        segs: Vec<Seg>,
        user_data: u64,
    ) {
        let seen = Seen {
            number: 0,
            queue: self.number,
            kind,
            file,
            at,
            len_bytes,
        };
        self.disk.state().submit(seen, user_data, segs, self.turn);
    }

    fn report(&mut self, user_data: u64, result: i32) {
        if user_data != NOBODY {
            self.ended.push(Report {
                user_data,
                result,
                more: false,
            });
        }
    }

    fn cancel(&mut self, target: u64) {
        let timers = self.timers.len();
        self.timers.retain(|&(_, user_data)| user_data != target);
        if self.polls.remove(target) || timers != self.timers.len() {
            self.report(target, -libc::ECANCELED);
        } else {
            self.disk.state().cancel(self.number, target);
        }
    }

    /// As every engine's. What cannot end by itself any more is waited for in earnest; a wait that nothing in the world
    /// could end is an error, so that a test says so instead of hanging.
    pub(crate) fn turn(&mut self, wait: Wait, out: &mut Vec<Report>) -> io::Result<()> {
        self.entries_left = self.entries;
        let before = out.len();
        let (want, until_ns) = match wait {
            Wait::Not => (0, None),
            Wait::One => (1, None),
            Wait::AtMost(ns) => (1, Some(self.now_ns.saturating_add(ns))),
            Wait::Batch { count, patience_ns } => {
                (count.max(1), Some(self.now_ns.saturating_add(patience_ns)))
            }
        };
        loop {
            let standing = self.once(out);
            let got = out.len() - before;
            let late = until_ns.is_some_and(|until| self.now_ns >= until);
            let enough = match wait {
                Wait::Batch { .. } => got >= want as usize || (late && got > 0),
                _ => got >= want as usize || late,
            };
            if enough {
                return Ok(());
            }
            if standing == Standing::Moving {
                continue;
            }
            self.idle(standing, until_ns.filter(|_| !late))?;
        }
    }

    /// One round: whatever can happen by itself.
    fn once(&mut self, out: &mut Vec<Report>) -> Standing {
        self.turn += 1;
        self.now_ns += TURN_NS;
        out.append(&mut self.ended);
        self.polls.take(out);
        self.fire(out);
        let mut state = self.disk.state();
        state.step(self.number, self.turn, out);
        state.standing(self.number)
    }

    fn fire(&mut self, out: &mut Vec<Report>) {
        let now_ns = self.now_ns;
        self.timers.sort_unstable();
        let due = self.timers.partition_point(|&(at, _)| at <= now_ns);
        out.extend(self.timers.drain(..due).map(|(_, user_data)| Report {
            user_data,
            result: -libc::ETIME,
            more: false,
        }));
    }

    /// Nothing can happen by itself: time passes, or somebody outside does something.
    fn idle(&mut self, standing: Standing, until_ns: Option<u64>) -> io::Result<()> {
        let next = self.timers.iter().map(|&(at, _)| at).chain(until_ns).min();
        if let Some(next) = next {
            // Other threads get their chance first, though not much of it.
            std::thread::yield_now();
            if !self.outside(Some(Duration::ZERO))? {
                self.now_ns = self.now_ns.max(next);
            }
            return Ok(());
        }
        if standing == Standing::Idle && self.polls.is_empty() {
            return Err(io::Error::other(
                "this wait would never end: nothing is in flight",
            ));
        }
        self.outside(None)?;
        Ok(())
    }

    /// Waits for a descriptor or for the disk to let something go.
    fn outside(&mut self, limit: Option<Duration>) -> io::Result<bool> {
        let pollfd = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut fds = [
            pollfd(self.bell.as_raw_fd()),
            pollfd(self.polls.as_raw_fd()),
        ];
        let ready = match sys::poll(&mut fds, limit) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        self.bell.hush();
        Ok(ready > 0)
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.now_ns
    }

    pub(crate) fn has_news(&mut self) -> bool {
        !self.ended.is_empty()
    }
}
