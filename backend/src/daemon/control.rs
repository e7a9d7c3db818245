//! The control loop: signals, knocks at doors, and what the doors have to say.

use super::executor::{Daemon, Export};
use crate::vhost::{Accepted, Door, DoorEvent};
use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use ring::sys::Signals;
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, RawFd};
use vmm_sys_util::epoll::EventSet;

/// How long a door that cannot let anybody in is left alone: out of descriptors is not mended by trying again at once.
const RETRY_MS: i32 = 250;

/// Why serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM, SIGINT or SIGHUP.
    Signal,
    /// The last front end of a socket that was passed connected is gone.
    NobodyLeft,
}

/// What an event is about.
const SIGNAL: u32 = 0;
const NEWS: u32 = 1;
const DOOR: u32 = 2;

struct Control<'a> {
    daemon: &'a mut Daemon,
    signals: Signals,
    ending: Option<Ending>,
    /// Doors to look at again in a while, by export id.
    retry: Vec<String>,
    /// Doors that let nobody in the last time: that is said once, not at every try.
    shut: BTreeSet<String>,
    /// Listeners being polled, by export id.
    polled: Vec<(String, RawFd)>,
}

/// Serves until a signal says otherwise. Errors: epoll is not to be had.
pub fn serve(daemon: &mut Daemon, signals: Signals) -> Result<Ending, event_manager::Error> {
    let mut manager = EventManager::new()?;
    let id = manager.add_subscriber(Control {
        daemon,
        signals,
        ending: None,
        retry: Vec::new(),
        shut: BTreeSet::new(),
        polled: Vec::new(),
    });
    loop {
        let retry = std::mem::take(&mut manager.subscriber_mut(id)?.retry);
        if retry.is_empty() {
            manager.run()?;
        } else {
            manager.run_with_timeout(RETRY_MS)?;
        }
        for export in retry {
            if let Some(listen) = manager.subscriber_mut(id)?.knock(&export) {
                add(&mut manager.event_ops(id)?, listen, DOOR);
            }
        }
        if let Some(ending) = manager.subscriber_mut(id)?.ending {
            return Ok(ending);
        }
    }
}

fn add(ops: &mut EventOps<'_>, fd: RawFd, what: u32) {
    if let Err(error) = ops.add(Events::with_data_raw(fd, what, EventSet::IN)) {
        tracing::error!("cannot listen for events: {error}");
    }
}

impl Control<'_> {
    fn export(&self, id: &str) -> Option<&Export> {
        self.daemon.exports.iter().find(|export| export.id == id)
    }

    fn door(&self, id: &str) -> Option<&Door> {
        self.export(id).map(|export| export.blk.door())
    }

    /// Lets somebody in, or notes when to try again. Returns a listener to poll from now on.
    fn knock(&mut self, id: &str) -> Option<RawFd> {
        let accepted = self.door(id)?.accept_ready();
        match accepted {
            Ok(accepted) => {
                self.shut.remove(id);
                match accepted {
                    Accepted::Nobody => self.poll(id),
                    Accepted::Began | Accepted::Busy => None,
                }
            }
            Err(error) => {
                if self.shut.insert(id.to_owned()) {
                    tracing::warn!("export {id} cannot let a front end in: {error}");
                }
                self.retry.push(id.to_owned());
                None
            }
        }
    }

    /// A listener that is not polled yet.
    fn poll(&mut self, id: &str) -> Option<RawFd> {
        let fd = self.door(id)?.listener()?.as_raw_fd();
        if self.polled.iter().any(|(_, polled)| *polled == fd) {
            return None;
        }
        self.polled.push((id.to_owned(), fd));
        Some(fd)
    }

    /// Stops polling the listener of an export.
    fn unpoll(&mut self, id: &str, ops: &mut EventOps<'_>) {
        let Some(at) = self.polled.iter().position(|(polled, _)| polled == id) else {
            return;
        };
        let (_, fd) = self.polled.swap_remove(at);
        if let Err(error) = ops.remove(Events::empty_raw(fd)) {
            tracing::error!("cannot stop listening for events: {error}");
        }
    }

    fn hear(&mut self, id: &str, event: DoorEvent, ops: &mut EventOps<'_>) {
        match event {
            DoorEvent::Connected => {
                tracing::info!("export {id}: a front end connected");
                self.unpoll(id, ops);
            }
            DoorEvent::Ended(end) => {
                tracing::info!("export {id}: {end}");
                self.leave(id);
            }
            DoorEvent::Listening => {
                if let Some(fd) = self.poll(id) {
                    add(ops, fd, DOOR);
                }
            }
            DoorEvent::Exhausted => self.retry.push(id.to_owned()),
        }
    }

    /// A front end is gone. An export that has no listener is over with it, and so is the process with its last export.
    fn leave(&mut self, id: &str) {
        if self.door(id).is_some_and(|door| door.listener().is_none()) {
            self.daemon.exports.retain(|export| export.id != id);
            if self.daemon.exports.is_empty() && !self.daemon.nbd.is_running() {
                self.ending = Some(Ending::NobodyLeft);
            }
        }
    }
}

impl MutEventSubscriber for Control<'_> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            SIGNAL => {
                if let Some(signal) = self.signals.take() {
                    tracing::info!("signal {signal}: stopping");
                    self.ending = Some(Ending::Signal);
                }
            }
            NEWS => {
                self.daemon.news.bell.hush();
                while let Some((id, event)) = self.daemon.news.pop() {
                    self.hear(&id, event, ops);
                }
            }
            _ => {
                let fd = events.fd();
                let knocked = self.polled.iter().find(|(_, polled)| *polled == fd);
                if let Some((id, _)) = knocked.cloned() {
                    // One front end at a time: the next waits in the listener's queue.
                    self.unpoll(&id, ops);
                    if let Some(fd) = self.knock(&id) {
                        add(ops, fd, DOOR);
                    }
                }
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        add(ops, self.signals.as_raw_fd(), SIGNAL);
        add(ops, self.daemon.news.bell.as_raw_fd(), NEWS);
        let ids: Vec<String> = self.daemon.exports.iter().map(|e| e.id.clone()).collect();
        for id in ids {
            if let Some(fd) = self.poll(&id) {
                add(ops, fd, DOOR);
            }
        }
    }
}
