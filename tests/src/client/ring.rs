//! The driver's half of a split virtqueue (virtio 1.2, 2.7), with every field within reach.
//!
//! The polite way in is [`Ring::add`], [`Ring::publish`], [`Ring::kick`] and [`Ring::pop`]; the hostile way is
//! [`Ring::set_desc`] and [`Ring::offer`], which write what they are told.

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::memory::{Area, Memory};

/// Descriptor flag: the chain goes on at `next`.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device may write here.
pub const WRITE: u16 = 2;
/// Descriptor flag: this is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Bytes of a descriptor.
pub const DESC_BYTES: usize = 16;

/// One descriptor as the device reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Desc {
    /// Guest physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// The next descriptor's index.
    pub next: u16,
}

impl Desc {
    /// Its sixteen bytes.
    pub fn bytes(&self) -> [u8; DESC_BYTES] {
        let mut bytes = [0; DESC_BYTES];
        bytes[..8].copy_from_slice(&self.gpa.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A buffer of a chain before it has a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// An entry of the used ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// The chain's head.
    pub id: u32,
    /// Bytes the device says it wrote.
    pub len: u32,
}

/// Where the three parts of a ring are in guest memory.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
}

impl Place {
    /// The three parts one after another from `gpa`, and the address behind them.
    pub fn packed_at(gpa: u64, size: u16) -> (Place, u64) {
        let size = u64::from(size);
        let avail = gpa + size * DESC_BYTES as u64;
        let used = (avail + 6 + size * 2).next_multiple_of(4);
        let end = (used + 6 + size * 8).next_multiple_of(64);
        (
            Place {
                desc: gpa,
                avail,
                used,
            },
            end,
        )
    }
}

/// Whether EVENT_IDX was negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suppression {
    /// The flag words.
    Flags,
    /// VIRTIO_F_EVENT_IDX.
    EventIdx,
}

/// One queue as its driver sees it.
#[derive(Debug)]
pub struct Ring {
    /// Queue index.
    pub index: u32,
    /// Number of descriptors.
    pub size: u16,
    /// Guest addresses.
    pub place: Place,
    /// Written by us when there is something to do.
    pub kick_fd: EventFd,
    /// Written by the device when something is done.
    pub call_fd: EventFd,
    /// Written by the device when the ring is broken.
    pub err_fd: EventFd,
    /// Signals taken out of the call eventfd so far.
    pub calls: Cell<u64>,
    desc: Area,
    avail: Area,
    used: Area,
    free: Vec<u16>,
    chains: Vec<u16>,
    avail_idx: u16,
    published: u16,
    last_used: u16,
    suppression: Suppression,
    /// Keeps the areas mapped.
    _memory: Arc<Memory>,
}

impl Ring {
    /// A fresh ring at `place`, all zeroes.
    pub fn new(memory: &Arc<Memory>, index: u32, size: u16, place: Place) -> io::Result<Ring> {
        let event_fd = || EventFd::new(EFD_NONBLOCK);
        let n = usize::from(size);
        let mut ring = Ring {
            index,
            size,
            place,
            kick_fd: event_fd()?,
            call_fd: event_fd()?,
            err_fd: event_fd()?,
            calls: Cell::new(0),
            desc: memory.area(place.desc, n * DESC_BYTES),
            avail: memory.area(place.avail, 6 + n * 2),
            used: memory.area(place.used, 6 + n * 8),
            free: Vec::new(),
            chains: Vec::new(),
            avail_idx: 0,
            published: 0,
            last_used: 0,
            suppression: Suppression::Flags,
            _memory: Arc::clone(memory),
        };
        ring.clear();
        Ok(ring)
    }

    /// Forgets everything: what a driver does when it resets its device.
    pub fn clear(&mut self) {
        let n = usize::from(self.size);
        (0..n * 2).for_each(|i| self.desc.u64(i * 8).store(0, Ordering::Relaxed));
        (0..n + 3).for_each(|i| self.avail.u16(i * 2).store(0, Ordering::Relaxed));
        (0..n * 4 + 3).for_each(|i| self.used.u16(i * 2).store(0, Ordering::Relaxed));
        self.free = (0..self.size).rev().collect();
        self.chains = vec![0; n];
        (self.avail_idx, self.published, self.last_used) = (0, 0, 0);
    }

    /// Chooses how notifications are held back, as negotiated.
    pub fn set_suppression(&mut self, suppression: Suppression) {
        self.suppression = suppression;
    }

    /// Free descriptors.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Where the device has got to, as far as we have looked.
    pub fn last_used(&self) -> u16 {
        self.last_used
    }

    /// Writes a descriptor of the ring's table, whatever it says.
    pub fn set_desc(&self, index: u16, desc: Desc) {
        let at = usize::from(index) * DESC_BYTES;
        self.desc.u64(at).store(desc.gpa, Ordering::Relaxed);
        let rest = u64::from(desc.len) | u64::from(desc.flags) << 32 | u64::from(desc.next) << 48;
        self.desc.u64(at + 8).store(rest, Ordering::Relaxed);
    }

    /// The descriptor table, for a hostile thread that flips its words.
    pub fn desc_area(&self) -> Area {
        self.desc
    }

    /// Puts a head into the available ring without publishing it.
    pub fn offer(&mut self, head: u16) {
        let slot = usize::from(self.avail_idx % self.size);
        self.avail.u16(4 + slot * 2).store(head, Ordering::Relaxed);
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// Sets the available index to what it is told.
    pub fn set_avail_idx(&mut self, idx: u16) {
        self.avail_idx = idx;
    }

    /// Builds a direct chain and offers it. `None` where descriptors are short.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if buffers.is_empty() || self.free.len() < buffers.len() {
            return None;
        }
        let at = self.free.len() - buffers.len();
        let indexes = self.free.split_off(at);
        for (i, buffer) in buffers.iter().enumerate() {
            let next = indexes.get(i + 1).copied();
            self.set_desc(indexes[i], describe(*buffer, next));
            self.chains[usize::from(indexes[i])] = next.unwrap_or(u16::MAX);
        }
        self.offer(indexes[0]);
        Some(indexes[0])
    }

    /// Offers a chain of `first` and then one descriptor that points at a table of `entries` descriptors at `table`.
    pub fn add_then_indirect(
        &mut self,
        first: &[Buffer],
        table: u64,
        entries: usize,
    ) -> Option<u16> {
        let len = (entries * DESC_BYTES) as u32;
        let mut buffers = first.to_vec();
        buffers.push(Buffer {
            gpa: table,
            len,
            writable: false,
        });
        let head = self.add(&buffers)?;
        let mut last = head;
        while self.chains[usize::from(last)] != u16::MAX {
            last = self.chains[usize::from(last)];
        }
        self.set_desc(
            last,
            Desc {
                gpa: table,
                len,
                flags: INDIRECT,
                next: 0,
            },
        );
        Some(head)
    }

    /// Makes everything offered visible. Returns whether the device asked to be told.
    pub fn publish(&mut self) -> bool {
        let old = self.published;
        self.published = self.avail_idx;
        self.avail.u16(2).store(self.avail_idx, Ordering::Release);
        // The device's wish must be read after our index is visible to it (virtio 1.2, 2.7.13.4.1).
        fence(Ordering::SeqCst);
        match self.suppression {
            Suppression::Flags => self.used.u16(0).load(Ordering::Relaxed) & 1 == 0,
            Suppression::EventIdx => {
                let event = self
                    .used
                    .u16(4 + usize::from(self.size) * 8)
                    .load(Ordering::Relaxed);
                need_event(event, self.avail_idx, old)
            }
        }
    }

    /// Kicks, asked or not.
    pub fn kick(&self) {
        let _ = self.kick_fd.write(1);
    }

    /// Publishes, and kicks when asked to.
    pub fn submit(&mut self) {
        if self.publish() {
            self.kick();
        }
    }

    /// Asks for no interrupts, or says after how many more completions one is wanted.
    pub fn want_call(&self, after: Option<u16>) {
        match self.suppression {
            Suppression::Flags => self
                .avail
                .u16(0)
                .store(u16::from(after.is_none()), Ordering::Relaxed),
            Suppression::EventIdx => {
                let event = self
                    .last_used
                    .wrapping_add(after.map_or(u16::MAX, |n| n.saturating_sub(1)));
                self.avail
                    .u16(4 + usize::from(self.size) * 2)
                    .store(event, Ordering::Relaxed);
            }
        }
        fence(Ordering::SeqCst);
    }

    /// The device's used index as it stands in memory.
    pub fn used_idx(&self) -> u16 {
        self.used.u16(2).load(Ordering::Acquire)
    }

    /// Takes the next completion and frees its descriptors.
    pub fn pop(&mut self) -> Option<Used> {
        let used = self.peek_pop()?;
        self.release(used.id as u16);
        Some(used)
    }

    /// Takes the next completion and frees nothing: for chains that were not built by [`Ring::add`].
    pub fn peek_pop(&mut self) -> Option<Used> {
        if self.used_idx() == self.last_used {
            return None;
        }
        let at = 4 + usize::from(self.last_used % self.size) * 8;
        self.last_used = self.last_used.wrapping_add(1);
        let id = self.used.u32(at).load(Ordering::Relaxed);
        Some(Used {
            id,
            len: self.used.u32(at + 4).load(Ordering::Relaxed),
        })
    }

    fn release(&mut self, head: u16) {
        assert!(head < self.size, "used head {head} of {}", self.size);
        let mut at = head;
        while at != u16::MAX {
            self.free.push(at);
            at = self.chains[usize::from(at)];
        }
    }

    /// Waits until something is in the used ring beyond what was taken, by the call eventfd.
    pub fn wait(&self, until: Instant) -> io::Result<()> {
        self.want_call(Some(1));
        while self.used_idx() == self.last_used {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("queue {} is silent", self.index),
                ));
            }
            if readable(&self.call_fd, left)? {
                self.take_calls();
            }
        }
        Ok(())
    }

    /// Empties the call eventfd, which counts the signals since it was last emptied.
    pub fn take_calls(&self) {
        self.calls
            .set(self.calls.get() + self.call_fd.read().unwrap_or(0));
    }

    /// Whether the err eventfd was signalled within `patience`.
    pub fn broken_within(&self, patience: Duration) -> bool {
        readable(&self.err_fd, patience).unwrap_or(false)
    }
}

fn describe(buffer: Buffer, next: Option<u16>) -> Desc {
    let flags = if next.is_some() { NEXT } else { 0 } | if buffer.writable { WRITE } else { 0 };
    Desc {
        gpa: buffer.gpa,
        len: buffer.len,
        flags,
        next: next.unwrap_or(0),
    }
}

/// The descriptors of an indirect table that holds `buffers`.
pub fn table_of(buffers: &[Buffer]) -> Vec<Desc> {
    let last = buffers.len().wrapping_sub(1);
    let next = |i: usize| (i != last).then_some(i as u16 + 1);
    buffers
        .iter()
        .enumerate()
        .map(|(i, buffer)| describe(*buffer, next(i)))
        .collect()
}

/// virtio 1.2, 2.7.7.2: whether an index moving from `old` to `new` passed `event`.
fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Whether a descriptor becomes readable within `patience`.
pub fn readable(fd: &impl AsRawFd, patience: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let timeout_ms = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one valid pollfd on this stack.
    let ready = unsafe { libc::poll(&mut poll, 1, timeout_ms) };
    match ready {
        0 => Ok(false),
        n if n > 0 => Ok(true),
        _ => match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::Interrupted => Ok(false),
            e => Err(e),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_index_is_passed_once_also_across_the_wrap() {
        assert!(need_event(0, 1, 0));
        assert!(!need_event(1, 1, 0));
        assert!(need_event(4, 32, 0));
        assert!(need_event(u16::MAX, 2, 65530));
        assert!(!need_event(5, 2, 65530));
    }

    #[test]
    fn a_table_links_its_entries_and_ends() {
        let buffer = Buffer {
            gpa: 4096,
            len: 16,
            writable: true,
        };
        let table = table_of(&[buffer; 3]);
        let flags: Vec<u16> = table.iter().map(|d| d.flags).collect();
        assert_eq!(flags, [NEXT | WRITE, NEXT | WRITE, WRITE]);
        assert_eq!((table[0].next, table[1].next), (1, 2));
    }

    #[test]
    fn chains_are_given_back_in_any_order() {
        let memory = Arc::new(Memory::new(1 << 20).unwrap());
        let (place, _) = Place::packed_at(0, 8);
        let mut ring = Ring::new(&memory, 0, 8, place).unwrap();
        let buffer = Buffer {
            gpa: 4096,
            len: 16,
            writable: false,
        };
        let first = ring.add(&[buffer; 3]).unwrap();
        let second = ring.add(&[buffer; 5]).unwrap();
        assert_eq!(ring.add(&[buffer]), None);
        ring.release(second);
        assert_eq!(ring.room(), 5);
        ring.release(first);
        assert_eq!(ring.room(), 8);
    }
}
