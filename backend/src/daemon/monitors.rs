//! Character devices and monitors as the daemon has them.

use super::chardevs::{self, Held};
use super::executor::Daemon;
use crate::chardev::Ringbuf;
use crate::cli::{ChardevBackend, ChardevOptions, MonitorMode, MonitorOptions};
use crate::qmp::{EventKind, Hub, Pretty, Request, SessionId};
use ring::Bell;
use serde_json::Value;
use std::os::fd::RawFd;

/// What of the daemon is about monitors.
#[derive(Debug, Default)]
pub(super) struct Monitors {
    /// There once there is a monitor.
    hub: Option<Hub>,
    chardevs: Vec<Held>,
    /// Readable once nobody is to be waited for any more.
    stop: Option<RawFd>,
}

/// A character device as clients see it.
#[derive(Debug)]
pub struct ChardevShown<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its address and what is known of the other end.
    pub filename: String,
    /// Does a monitor have it?
    pub frontend_open: bool,
}

impl Monitors {
    /// Rings when [`Monitors::next`] has something.
    pub(super) fn bell(&self) -> Option<&Bell> {
        self.hub.as_ref().map(Hub::bell)
    }

    pub(super) fn hush(&self) {
        if let Some(bell) = self.bell() {
            bell.hush();
        }
    }

    /// The next request of any client.
    pub(super) fn next(&self) -> Option<Request> {
        self.hub.as_ref()?.next()
    }

    pub(super) fn answer(&self, session: SessionId, answer: Value) {
        if let Some(hub) = &self.hub {
            hub.answer(session, answer);
        }
    }

    /// Nobody can connect from now on, and nothing is left behind.
    pub(super) fn unlink(&mut self) {
        self.chardevs.iter_mut().for_each(Held::unlink);
    }
}

impl Daemon {
    /// Waiting for clients at start-up ends when `fd` is readable.
    pub fn stop_waiting_for_clients_on(&mut self, fd: RawFd) {
        self.monitors.stop = Some(fd);
    }

    /// Errors: the id is taken; what is wrong with the address.
    pub(super) fn add_chardev(&mut self, options: ChardevOptions) -> Result<(), String> {
        let is_stdio = matches!(options.backend, ChardevBackend::Stdio { .. });
        if is_stdio && self.monitors.chardevs.iter().any(Held::is_stdio) {
            return Err("cannot use stdio by multiple character devices".to_owned());
        }
        let held = chardevs::open(&options, &mut self.inherited, self.monitors.stop)?;
        // QEMU finds that out last.
        if self
            .monitors
            .chardevs
            .iter()
            .any(|held| held.id == options.id)
        {
            let id = options.id;
            return Err(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            ));
        }
        self.monitors.chardevs.push(held);
        Ok(())
    }

    /// Errors: no such character device, or another monitor has it.
    pub(super) fn add_monitor(&mut self, options: MonitorOptions) -> Result<(), String> {
        let id = &options.chardev;
        let mut chardevs = self.monitors.chardevs.iter_mut();
        let held = chardevs.find(|held| held.id == *id);
        let held = held.ok_or_else(|| format!("chardev \"{id}\" not found"))?;
        if options.mode == MonitorMode::Readline {
            return Err("Only QMP is supported".to_owned());
        }
        let taken = || format!("chardev '{id}' is already in use");
        let chardev = held.device.take().ok_or_else(taken)?;
        let hub = match self.monitors.hub.take() {
            Some(hub) => hub,
            None => Hub::start().map_err(|e| format!("cannot start the monitors' thread: {e}"))?,
        };
        let pretty = match options.pretty {
            true => Pretty::Yes,
            false => Pretty::No,
        };
        let name = options.id.as_ref().unwrap_or(id);
        tracing::info!("monitor {name} is there, on character device {id}");
        hub.add(chardev, crate::qmp::MonitorOptions { pretty });
        self.monitors.hub = Some(hub);
        Ok(())
    }

    /// Every character device, in the order in which they were made.
    pub(crate) fn chardevs(&self) -> impl Iterator<Item = ChardevShown<'_>> {
        self.monitors.chardevs.iter().map(|held| ChardevShown {
            id: &held.id,
            filename: held.shown.get(),
            frontend_open: held.device.is_none(),
        })
    }

    /// A ring buffer by id. Errors: there is none, or it is something else.
    pub(crate) fn ringbuf(&self, id: &str) -> Result<Ringbuf, String> {
        let held = self.monitors.chardevs.iter().find(|held| held.id == id);
        let held = held.ok_or_else(|| format!("Device '{id}' not found"))?;
        let ringbuf = held.ringbuf.clone();
        ringbuf.ok_or_else(|| format!("{id} is not a ringbuf device"))
    }

    /// Tells every client of every monitor.
    pub(crate) fn event(&self, kind: &EventKind, data: Value) {
        if let Some(hub) = &self.monitors.hub {
            hub.event(kind, data);
        }
    }

    /// The process is to end, in order, once the answer to this is on its way.
    pub(crate) fn quit(&mut self) {
        self.quitting = true;
    }
}
