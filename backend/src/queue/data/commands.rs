//! What the control side asks of a queue thread: rings started and stopped, eventfds replaced.

use super::{DataLoop, KICK};
use crate::queue::guest::{Guest, Life};
use crate::queue::worker::{Command, RingKey};
use crate::vhost::{RingStart, RingStop};
use crate::virtio_blk::Disk;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;

impl DataLoop {
    /// Does what the control side asked for.
    pub(super) fn obey(&mut self, bell: &ring::Bell) {
        bell.hush();
        for command in self.inbox.take() {
            match command {
                Command::Start {
                    key,
                    ring,
                    disk,
                    done,
                } => {
                    let _ = done.send(self.start_guest(key, *ring, disk));
                }
                Command::Stop { key, done } => self.stop_guest(key, done),
                Command::SetCall { key, call } => self.set_call(key, call),
                Command::SetErr { key, err } => {
                    if let Some((_, guest)) = self.find(key) {
                        guest.set_err(err);
                    }
                }
                Command::SetKick { key, kick } => self.set_kick(key, kick),
                Command::Host(arrival) => {
                    if let Err(error) = self.tenants.let_in(arrival, &self.lane) {
                        tracing::warn!("a client cannot be served: {error}");
                    }
                }
                Command::Exit => self.exit = true,
            }
        }
    }

    pub(super) fn find(&mut self, key: RingKey) -> Option<(usize, &mut Guest)> {
        let guests = self.guests.iter_mut().enumerate();
        guests
            .filter_map(|(at, guest)| Some((at, guest.as_mut()?)))
            .find(|(_, guest)| guest.key == key)
    }

    pub(super) fn start_guest(
        &mut self,
        key: RingKey,
        start: RingStart,
        disk: Arc<Disk>,
    ) -> Result<(), String> {
        let mut guest = Guest::new(key, start, disk).map_err(|error| error.to_string())?;
        guest.hold_guard(self.lane.ring());
        let empty = self.guests.iter().position(Option::is_none);
        let at = empty.unwrap_or_else(|| {
            self.guests.push(None);
            self.poll_tokens.push(0);
            self.guests.len() - 1
        });
        self.guests[at] = Some(guest);
        self.arm(at);
        Ok(())
    }

    pub(super) fn arm(&mut self, at: usize) {
        self.kicks += 1;
        let token = KICK | self.kicks;
        self.poll_tokens[at] = token;
        if let Some(guest) = &mut self.guests[at] {
            guest.arm(self.lane.ring(), token);
            if !guest.is_armed() {
                guest.go_deaf();
            }
        }
    }

    pub(super) fn stop_guest(&mut self, key: RingKey, done: Sender<Option<RingStop>>) {
        match self.find(key) {
            Some((_, guest)) => guest.life = Life::Stopping(done),
            None => {
                let _ = done.send(None);
            }
        }
    }

    pub(super) fn set_call(&mut self, key: RingKey, call: Option<OwnedFd>) {
        let ring = self.lane.ring().clone();
        if let Some((_, guest)) = self.find(key) {
            let old = guest.set_call(call);
            guest.signal(&ring);
            self.old_calls.extend(old);
        }
    }

    pub(super) fn set_kick(&mut self, key: RingKey, kick: OwnedFd) {
        let ring = self.lane.ring().clone();
        let Some((at, guest)) = self.find(key) else {
            return;
        };
        let armed = guest.is_armed();
        let old = guest.disarm(&ring, Some(kick));
        if armed {
            let token = self.poll_tokens[at];
            self.retired.extend(old.map(|fd| (token, fd)));
        }
        self.arm(at);
    }
}
