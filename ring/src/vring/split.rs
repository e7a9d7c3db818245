//! The split virtqueue of one queue, device side.
//!
//! The rule: every popped head is given back exactly once, by `push` or `abandon`. Used entries become visible with one
//! index store per batch, in `publish`; the guest's memory is written by `push`, `publish`, `hush` and `listen` alone.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::area::Area;
use super::bits::Bits;
use super::chain::Chain;
use super::inflight::Inflight;
use super::map::GuestMap;
use super::walk::{Places, Walk};
use super::{EventIdx, Layout, RingError, RingFeatures, need_event};

// virtio 1.2, 2.7.6: VIRTQ_AVAIL_F_NO_INTERRUPT.
const AVAIL_F_NO_INTERRUPT: u16 = 1;
// virtio 1.2, 2.7.8: VIRTQ_USED_F_NO_NOTIFY.
const USED_F_NO_NOTIFY: u16 = 1;

/// What `pop` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Popped {
    /// The next chain; its head is in flight now.
    Chain,
    /// Nothing available.
    Empty,
}

/// Whether the driver is to be told of used chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Notify {
    /// Signal the call eventfd.
    Signal,
    /// The driver does not want to hear.
    Quiet,
}

/// Whether chains arrived before kicks were on again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Pending {
    /// Pop again: no kick may come for them.
    More,
    /// Safe to sleep: the next chain brings a kick.
    Nothing,
}

/// Whether the next publish must signal whatever the driver asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    /// An earlier device may have published without telling.
    Signal,
    Nothing,
}

/// A running split ring. Owned by one thread; it may be moved between threads.
///
/// Dropped with chains in flight it leaks its memory map on purpose: lost memory is better than a late write into memory
/// that is something else by then.
#[derive(Debug)]
pub struct Vring {
    area: Area,
    places: Places,
    features: RingFeatures,
    /// Next slot of the available ring to look at.
    next_avail: u16,
    /// The driver's index as last read.
    avail_seen: u16,
    /// Next slot of the used ring to fill.
    next_used: u16,
    /// The used index as the driver sees it.
    published: u16,
    owed: Owed,
    in_flight: u16,
    heads: Bits,
    /// Where the front end keeps what is in flight, if it does.
    inflight: Option<Inflight>,
    /// Heads that an earlier process had in flight, to be popped before any other; the first one last.
    again: Vec<u16>,
    layout: Layout,
    map: Arc<GuestMap>,
}

// SAFETY: the raw pointers lead into the map, which is shared by threads and kept alive by `map`.
unsafe impl Send for Vring {}

impl Vring {
    /// The ring at `layout`, to go on at `next_avail`; the used index is the one in guest memory.
    ///
    /// Chains may be waiting already: pop before the first `listen`.
    ///
    /// # Errors
    /// `Size`, `Align` or `Extent` if the layout is not usable, `Poisoned` if the memory is gone.
    pub fn new(
        map: Arc<GuestMap>,
        layout: &Layout,
        features: RingFeatures,
        next_avail: u16,
    ) -> Result<Vring, RingError> {
        let area = Area::new(&map, layout)?;
        let next_used = area.used_idx();
        if map.poisoned() {
            return Err(RingError::Poisoned);
        }
        Ok(Vring {
            heads: Bits::new(layout.size),
            area,
            places: Places::default(),
            features,
            next_avail,
            avail_seen: next_avail,
            next_used,
            published: next_used,
            owed: Owed::Signal,
            in_flight: 0,
            inflight: None,
            again: Vec::new(),
            layout: *layout,
            map,
        })
    }

    /// Keeps what is in flight in `inflight` from now on. If it is an earlier process's of this ring, what that had in flight
    /// is popped again, first, and the ring goes on where that had got to. Before the first pop.
    ///
    /// # Errors
    /// `Untracked` if the ring is larger than the region.
    pub fn track(&mut self, mut inflight: Inflight) -> Result<(), RingError> {
        let size = self.area.size();
        if size > inflight.size() {
            return Err(RingError::Untracked { size });
        }
        let found = inflight.take_over(size, self.next_used);
        if found.used_before {
            // All that was popped was either answered or is in flight. As many as there are entries at the most.
            let count = found.again.len() as u16;
            self.next_avail = self.next_used.wrapping_add(count);
            self.avail_seen = self.next_avail;
        }
        self.again = found.again;
        self.again.reverse();
        self.inflight = Some(inflight);
        Ok(())
    }

    /// Keeps what is in flight no longer; if that is nothing, the next ring begins where it is told to.
    pub fn untrack(&mut self) {
        if let Some(inflight) = self.inflight.take()
            && self.in_flight == 0
            && self.again.is_empty()
        {
            inflight.end();
        }
    }

    /// Takes the next chain into `chain`, whose earlier content is lost.
    ///
    /// # Errors
    /// Any [`RingError`]: the ring is broken. Nothing was taken, `chain` is empty; drain, then drop the ring.
    #[inline]
    pub fn pop(&mut self, chain: &mut Chain) -> Result<Popped, RingError> {
        chain.clear();
        if !self.again.is_empty() {
            return self.pop_again(chain);
        }
        if self.next_avail == self.avail_seen && self.look()? == Pending::Nothing {
            return Ok(Popped::Empty);
        }
        let head = self.area.avail_head(self.next_avail);
        self.take(head, chain)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Popped::Chain)
    }

    /// What an earlier process had in flight; it is marked so already.
    #[cold]
    fn pop_again(&mut self, chain: &mut Chain) -> Result<Popped, RingError> {
        if self.map.poisoned() {
            return Err(RingError::Poisoned);
        }
        if let Some(&head) = self.again.last() {
            self.take(head, chain)?;
            self.again.pop();
        }
        Ok(Popped::Chain)
    }

    #[inline]
    fn take(&mut self, head: u16, chain: &mut Chain) -> Result<(), RingError> {
        self.check_head(head)?;
        chain.head = head;
        let walk = Walk {
            map: &self.map,
            area: &self.area,
            places: &mut self.places,
            indirect: self.features.indirect,
            head,
            chain: &mut *chain,
        };
        if let Err(error) = walk.run() {
            chain.clear();
            return Err(error);
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.began(head);
        }
        self.heads.set(head);
        self.in_flight += 1;
        Ok(())
    }

    /// Gives a chain back with what the device wrote into it; the driver sees it after the next `publish`.
    ///
    /// A head that is not in flight is a mistake of the caller: asserted in debug builds, else ignored.
    #[inline]
    pub fn push(&mut self, head: u16, written_bytes: u32) {
        if self.release(head) {
            self.area.set_used_elem(self.next_used, head, written_bytes);
            if let Some(inflight) = &self.inflight {
                inflight.pushed(head);
            }
            self.next_used = self.next_used.wrapping_add(1);
        }
    }

    /// Gives a chain up without telling the driver: for a ring that is broken or whose memory is gone.
    pub fn abandon(&mut self, head: u16) {
        self.release(head);
    }

    /// Shows the driver what was pushed, with one index store, and says whether to notify it. Once per batch.
    #[inline]
    pub fn publish(&mut self) -> Notify {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return Notify::Quiet;
        }
        self.area.set_used_idx(new);
        if let Some(inflight) = &self.inflight {
            inflight.answered(new.wrapping_sub(old), new);
        }
        self.published = new;
        // The index must be visible before the driver's wish is read: else both sides may miss the other's store
        // (virtio 1.2, 2.7.13.4.1 shows the same barrier on the driver's side).
        fence(Ordering::SeqCst);
        let wanted = match self.features.event_idx {
            // virtio 1.2, 2.7.7.2: with the feature the flags are ignored.
            EventIdx::On => need_event(self.area.used_event(), new, old),
            EventIdx::Off => self.area.avail_flags() & AVAIL_F_NO_INTERRUPT == 0,
        };
        let owed = std::mem::replace(&mut self.owed, Owed::Nothing);
        if wanted || owed == Owed::Signal {
            Notify::Signal
        } else {
            Notify::Quiet
        }
    }

    /// Asks for no kicks: a hint, one may still come.
    #[inline]
    pub fn hush(&mut self) {
        // virtio 1.2, 2.7.10.1: with EVENT_IDX the flags stay 0. The event index is left where the driver has passed it,
        // or will once.
        if self.features.event_idx == EventIdx::Off {
            self.area.set_used_flags(USED_F_NO_NOTIFY);
        }
    }

    /// Asks for a kick with the next chain, and says whether one came already. Call it before sleeping.
    #[inline]
    pub fn listen(&mut self) -> Pending {
        match self.features.event_idx {
            EventIdx::On => self.area.set_avail_event(self.next_avail),
            EventIdx::Off => self.area.set_used_flags(0),
        }
        // The wish must be visible before the index is read: a driver that did not see it has stored its index before.
        fence(Ordering::SeqCst);
        if self.has_work() {
            Pending::More
        } else {
            Pending::Nothing
        }
    }

    /// True if there are chains to pop: one load, for polling.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.area.avail_idx() != self.next_avail || !self.again.is_empty()
    }

    /// The next slot of the available ring: what GET_VRING_BASE answers once nothing is in flight.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// The next slot of the used ring, pushed chains included.
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// Chains popped and not given back.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.area.size()
    }

    /// Where the ring lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The memory it works on.
    pub fn map(&self) -> &Arc<GuestMap> {
        &self.map
    }

    /// Goes on in another map, at the same guest addresses.
    ///
    /// # Errors
    /// `InFlight` if not drained; `Align` or `Extent` if the ring is not in the new map. The ring is as it was then.
    pub fn remap(&mut self, map: Arc<GuestMap>) -> Result<(), RingError> {
        if self.in_flight > 0 {
            let count = self.in_flight;
            return Err(RingError::InFlight { count });
        }
        self.area = Area::new(&map, &self.layout)?;
        self.places = Places::default();
        self.avail_seen = self.next_avail;
        self.map = map;
        Ok(())
    }

    /// Reads the driver's index. Once per batch, so the place to notice that memory vanished.
    #[inline]
    fn look(&mut self) -> Result<Pending, RingError> {
        let (idx, next, size) = (self.area.avail_idx(), self.next_avail, self.area.size());
        if self.map.poisoned() || self.inflight.as_ref().is_some_and(Inflight::poisoned) {
            return Err(RingError::Poisoned);
        }
        if idx.wrapping_sub(next) > size {
            return Err(RingError::AvailIndex { idx, next, size });
        }
        self.avail_seen = idx;
        Ok(if idx == next {
            Pending::Nothing
        } else {
            Pending::More
        })
    }

    #[inline]
    fn check_head(&self, head: u16) -> Result<(), RingError> {
        let size = self.area.size();
        if head >= size {
            return Err(RingError::Head { head, size });
        }
        if self.heads.has(head) {
            return Err(RingError::HeadInFlight { head });
        }
        Ok(())
    }

    /// Takes a head out of flight; false if it was not in flight.
    #[inline]
    fn release(&mut self, head: u16) -> bool {
        let found = self.heads.has(head);
        debug_assert!(found, "head {head} is not in flight");
        if found {
            self.heads.clear(head);
            self.in_flight -= 1;
        }
        found
    }
}

impl Drop for Vring {
    fn drop(&mut self) {
        if self.in_flight > 0 {
            std::mem::forget(Arc::clone(&self.map));
        }
    }
}
