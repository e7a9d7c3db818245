//! The control loop: signals, knocks at doors, and what the doors have to say.

use super::executor::Daemon;
use super::exports::{Export, ExportKey};
use crate::vhost::{Accepted, Door, DoorEvent};
use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use ring::sys::Signals;
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, RawFd};
use vmm_sys_util::epoll::EventSet;

/// How long a door that cannot let anybody in is left alone: out of descriptors is not mended by trying again at once.
const RETRY_MS: i32 = 250;
/// How often what is on its way out is looked at: whoever has it hears of nothing, and it is gone in a moment nearly always.
const REAP_MS: i32 = 50;

/// Why serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM, SIGINT or SIGHUP.
    Signal,
    /// A monitor's client said so.
    Quit,
    /// The last front end of a socket that was passed connected is gone.
    NobodyLeft,
}

/// What an event is about.
const SIGNAL: u32 = 0;
const NEWS: u32 = 1;
const DOOR: u32 = 2;
const MONITORS: u32 = 3;
const JOBS: u32 = 4;
const NOTICES: u32 = 5;

struct Control<'a> {
    daemon: &'a mut Daemon,
    signals: Signals,
    ending: Option<Ending>,
    /// Doors to look at again in a while.
    retry: Vec<ExportKey>,
    /// Doors that let nobody in the last time: that is said once, not at every try.
    shut: BTreeSet<ExportKey>,
    /// Doors whose listeners are polled. Held, so that a listener is not closed, and its number not used again, before it is
    /// polled no more.
    polled: Vec<(ExportKey, Door)>,
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
        let control = manager.subscriber_mut(id)?;
        control.daemon.reap();
        let retry = std::mem::take(&mut control.retry);
        let journals = control.daemon.tend_journals();
        control.daemon.follow_images();
        let waits = [
            journals.map(|left| i32::try_from(left.as_millis()).unwrap_or(i32::MAX)),
            (!retry.is_empty()).then_some(RETRY_MS),
            (!control.daemon.leaving.is_empty()).then_some(REAP_MS),
        ];
        match waits.into_iter().flatten().min() {
            None => manager.run()?,
            Some(wait_ms) => manager.run_with_timeout(wait_ms)?,
        };
        for export in retry {
            if let Some(listen) = manager.subscriber_mut(id)?.knock(export) {
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
    fn export(&self, key: ExportKey) -> Option<&Export> {
        self.daemon.exports.iter().find(|export| export.key == key)
    }

    fn door(&self, key: ExportKey) -> Option<&Door> {
        self.export(key).and_then(Export::door)
    }

    /// Lets somebody in, or notes when to try again. Returns a listener to poll from now on.
    fn knock(&mut self, key: ExportKey) -> Option<RawFd> {
        let accepted = self.door(key)?.accept_ready();
        match accepted {
            Ok(accepted) => {
                self.shut.remove(&key);
                match accepted {
                    Accepted::Nobody => self.poll(key),
                    Accepted::Began | Accepted::Busy => None,
                }
            }
            Err(error) => {
                if self.shut.insert(key) {
                    let id = self.export(key).map_or("", |export| &export.id);
                    tracing::warn!("export {id} cannot let a front end in: {error}");
                }
                self.retry.push(key);
                None
            }
        }
    }

    /// A listener that is not polled yet.
    fn poll(&mut self, key: ExportKey) -> Option<RawFd> {
        if self.polled.iter().any(|(polled, _)| *polled == key) {
            return None;
        }
        let door = self.door(key)?.clone();
        let fd = door.listener()?.as_raw_fd();
        self.polled.push((key, door));
        Some(fd)
    }

    /// Executes what clients of monitors want, in the order in which it came, until nothing is left or one said `quit`.
    fn execute_requests(&mut self, ops: &mut EventOps<'_>) {
        self.daemon.monitors.hush();
        while !self.daemon.quitting
            && let Some(request) = self.daemon.monitors.next()
        {
            let (session, answer) = self.daemon.execute_request(request);
            // Whoever reads the answer may kill us.
            self.daemon.follow_images();
            // Whoever reads the answer finds what was removed closed.
            self.forget_doors(ops);
            self.poll_doors(ops);
            self.daemon.monitors.answer(session, answer);
        }
        if self.daemon.quitting {
            self.ending = Some(Ending::Quit);
        }
    }

    /// Polls the listeners of exports that are new.
    fn poll_doors(&mut self, ops: &mut EventOps<'_>) {
        let keys: Vec<ExportKey> = self.daemon.exports.iter().map(|e| e.key).collect();
        for key in keys {
            // One whose front end is in has nobody else let in, and is polled again once that has left.
            if self.door(key).is_some_and(|door| !door.is_busy())
                && let Some(fd) = self.poll(key)
            {
                add(ops, fd, DOOR);
            }
        }
    }

    /// Stops polling listeners whose exports are gone, or on their way out.
    fn forget_doors(&mut self, ops: &mut EventOps<'_>) {
        let gone = |key: &ExportKey| self.export(*key).is_none();
        let keys = self.polled.iter().map(|(key, _)| *key);
        let keys: Vec<ExportKey> = keys.filter(gone).collect();
        for key in keys {
            self.unpoll(key, ops);
        }
        let exports = &self.daemon.exports;
        let is_there = |key: &ExportKey| exports.iter().any(|export| export.key == *key);
        self.shut.retain(is_there);
        self.retry.retain(is_there);
    }

    /// Stops polling the listener of an export.
    fn unpoll(&mut self, key: ExportKey, ops: &mut EventOps<'_>) {
        let Some(at) = self.polled.iter().position(|(polled, _)| *polled == key) else {
            return;
        };
        let (_, door) = self.polled.swap_remove(at);
        if let Some(listener) = door.listener()
            && let Err(error) = ops.remove(Events::empty_raw(listener.as_raw_fd()))
        {
            tracing::error!("cannot stop listening for events: {error}");
        }
    }

    /// What a door had to say of an export that is gone is said to nobody.
    fn hear(&mut self, key: ExportKey, event: DoorEvent, ops: &mut EventOps<'_>) {
        let Some(id) = self.export(key).map(|export| &export.id) else {
            return;
        };
        match event {
            DoorEvent::Connected => {
                tracing::info!("export {id}: a front end connected");
                self.unpoll(key, ops);
            }
            DoorEvent::Ended(end) => {
                tracing::info!("export {id}: {end}");
                self.leave(key);
            }
            DoorEvent::Listening => {
                if let Some(fd) = self.poll(key) {
                    add(ops, fd, DOOR);
                }
            }
            DoorEvent::Exhausted => self.retry.push(key),
        }
    }

    /// A front end is gone. An export that has no listener is over with it, and so is the process with its last export,
    /// unless somebody could still ask for another.
    fn leave(&mut self, key: ExportKey) {
        if self.door(key).is_none_or(|door| door.listener().is_some()) {
            return;
        }
        let exports = &mut self.daemon.exports;
        if let Some(at) = exports.iter().position(|export| export.key == key) {
            let export = exports.remove(at);
            self.daemon.say_deleted(export);
        }
        let is_needed = self.daemon.nbd.is_running() || self.daemon.monitors.bell().is_some();
        if self.daemon.exports.is_empty() && !is_needed {
            self.ending = Some(Ending::NobodyLeft);
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
                self.daemon.take_notes();
                while let Some((key, event)) = self.daemon.news.pop() {
                    self.hear(key, event, ops);
                }
            }
            MONITORS => self.execute_requests(ops),
            JOBS => self.daemon.hear_jobs(),
            NOTICES => self.daemon.pass_notices_on(),
            _ => {
                let fd = events.fd();
                let is_it = |door: &Door| door.listener().is_some_and(|l| l.as_raw_fd() == fd);
                let knocked = self.polled.iter().find(|(_, door)| is_it(door));
                if let Some(key) = knocked.map(|(key, _)| *key) {
                    // One front end at a time: the next waits in the listener's queue.
                    self.unpoll(key, ops);
                    if let Some(fd) = self.knock(key) {
                        add(ops, fd, DOOR);
                    }
                }
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        add(ops, self.signals.as_raw_fd(), SIGNAL);
        add(ops, self.daemon.news.bell.as_raw_fd(), NEWS);
        add(ops, self.daemon.jobs.bell().as_raw_fd(), JOBS);
        add(ops, self.daemon.noticed.as_raw_fd(), NOTICES);
        if let Some(bell) = self.daemon.monitors.bell() {
            add(ops, bell.as_raw_fd(), MONITORS);
        }
        self.poll_doors(ops);
    }
}
