//! A connection's own thread: sends what is asked, hands out what is answered, and gets the connection back when it is
//! lost.
//!
//! The rule: a request is answered exactly once, whatever becomes of the connection. While there is none, requests wait
//! as long as `reconnect-delay` says, counted from the loss, then fail; those in flight at the loss are sent again, in
//! the order they were asked. A server that breaks the protocol is not called again.

use super::dial::{Attempt, Backoff, Number, doze};
use super::link::{Call, Link, Order};
use super::session::{Broken, End, Session};
use super::slots::Slots;
use super::transport::Woken;
use crate::driver::nbd::wire::{Command, Form, RequestHead};
use ring::Errno;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long taking leave may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Whether there is a connection.
#[derive(Debug)]
enum Phase {
    /// There is.
    Up(Box<Session>),
    /// There is none, but there will be.
    Down(Outage),
    /// There will be none any more.
    Over,
}

/// A time without connection.
#[derive(Debug)]
struct Outage {
    since: Instant,
    /// How long requests wait, from its beginning on.
    patience: Duration,
    /// In the order they were asked.
    waiting: VecDeque<Call>,
    attempt: Option<Attempt>,
    next_attempt: Instant,
    /// What was wrong with an attempt is said once.
    complained: bool,
}

impl Outage {
    /// Until when the first of them waits.
    fn first_deadline(&self) -> Option<Instant> {
        let deadlines = self.waiting.iter().map(|call| self.deadline(call));
        deadlines.min()
    }

    fn deadline(&self, call: &Call) -> Instant {
        self.since + self.patience.saturating_sub(call.waited)
    }
}

/// The thread's.
#[derive(Debug)]
pub(super) struct Worker {
    link: Arc<Link>,
    number: Number,
    patience: Duration,
    slots: Slots,
    phase: Phase,
    backoff: Backoff,
    ends: Vec<End>,
    first: super::export::Export,
}

impl Worker {
    pub(super) fn new(
        link: Arc<Link>,
        number: Number,
        session: Session,
        patience: Duration,
    ) -> Worker {
        Worker {
            link,
            number,
            patience,
            first: session.export,
            slots: Slots::new(),
            phase: Phase::Up(Box::new(session)),
            backoff: Backoff::NEW,
            ends: Vec::new(),
        }
    }

    /// Until somebody says stop.
    pub(super) fn run(mut self) {
        let mut calls = VecDeque::new();
        loop {
            self.link.bell.hush();
            match self.link.take(&mut calls) {
                Order::Hurry if matches!(self.phase, Phase::Down(_)) => {
                    calls.drain(..).for_each(|call| self.fail(call));
                    self.cancel();
                }
                Order::Go | Order::Hurry => {}
                Order::Cancel => {
                    calls.drain(..).for_each(|call| self.fail(call));
                    self.cancel();
                }
                Order::Stop => {
                    calls.drain(..).for_each(|call| self.fail(call));
                    return self.stop();
                }
            }
            let turned = match &mut self.phase {
                Phase::Up(_) => self.turn_up(&mut calls),
                Phase::Down(_) => self.turn_down(&mut calls),
                Phase::Over => {
                    calls.drain(..).for_each(|call| self.fail(call));
                    self.sleep(None)
                }
            };
            if let Err(error) = turned {
                // poll(2) itself fails: there is no waiting for anything any more.
                tracing::error!("NBD connection to {}: {error}", self.number.server);
                self.lose_for_good();
                return;
            }
        }
    }

    fn fail(&self, call: Call) {
        self.link.finish(call, Err(Errno::IO));
    }

    fn hand_out(&mut self) {
        for (call, result) in self.ends.drain(..) {
            self.backoff = Backoff::NEW;
            self.link.finish(call, result);
        }
    }

    fn turn_up(&mut self, calls: &mut VecDeque<Call>) -> std::io::Result<()> {
        let Phase::Up(session) = &mut self.phase else {
            return Ok(());
        };
        let moved = exchange(session, &mut self.slots, calls, &mut self.ends);
        let wants_send = session.wants_send();
        self.hand_out();
        match moved {
            Ok(true) => Ok(()),
            Ok(false) => self.sleep_on_socket(wants_send),
            Err(broken) => {
                self.lose(&broken, calls);
                Ok(())
            }
        }
    }

    fn sleep_on_socket(&self, wants_send: bool) -> std::io::Result<()> {
        let Phase::Up(session) = &self.phase else {
            return Ok(());
        };
        if !self.link.may_sleep() {
            return Ok(());
        }
        let woken: Woken = session.transport.wait(wants_send, &self.link.bell, None)?;
        debug_assert_eq!(woken, Woken::Maybe, "nothing else ends this wait");
        Ok(())
    }

    fn sleep(&self, deadline: Option<Instant>) -> std::io::Result<()> {
        match self.link.may_sleep() {
            true => doze(&self.link.bell, deadline),
            false => Ok(()),
        }
    }

    /// The connection is lost, or has to be given up.
    fn lose(&mut self, broken: &Broken, calls: &mut VecDeque<Call>) {
        let server = &self.number.server;
        let again = matches!(broken, Broken::Lost(_)) && server.can_reconnect();
        match again {
            true => tracing::warn!("NBD connection to {server} is lost ({broken}); reconnecting"),
            false => tracing::error!("NBD connection to {server} is lost for good: {broken}"),
        }
        let mut waiting = VecDeque::from(self.slots.drain());
        waiting.append(calls);
        self.phase = match again {
            true => Phase::Down(self.outage(self.patience, waiting)),
            false => {
                waiting.drain(..).for_each(|call| self.fail(call));
                Phase::Over
            }
        };
    }

    fn outage(&self, patience: Duration, waiting: VecDeque<Call>) -> Outage {
        let now = Instant::now();
        Outage {
            since: now,
            patience,
            waiting,
            attempt: None,
            next_attempt: now,
            complained: false,
        }
    }

    /// Ends everything under way. Replies to it may still come, so the connection goes with it.
    fn cancel(&mut self) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        let waiting = match &mut self.phase {
            Phase::Down(outage) => std::mem::take(&mut outage.waiting),
            _ => self.slots.drain().into(),
        };
        waiting.into_iter().for_each(|call| self.fail(call));
        self.phase = match self.number.server.can_reconnect() {
            true => Phase::Down(self.outage(Duration::ZERO, VecDeque::new())),
            false => Phase::Over,
        };
    }

    fn turn_down(&mut self, calls: &mut VecDeque<Call>) -> std::io::Result<()> {
        let Phase::Down(outage) = &mut self.phase else {
            return Ok(());
        };
        outage.waiting.append(calls);
        if let Some(session) = next_session(
            outage,
            &self.number,
            &self.first,
            &mut self.backoff,
            &self.link,
        )? {
            let mut waiting = std::mem::take(&mut outage.waiting);
            let lasted = outage.since.elapsed();
            waiting.iter_mut().for_each(|call| call.waited += lasted);
            tracing::warn!("NBD connection to {} is back", self.number.server);
            *calls = waiting;
            self.phase = Phase::Up(session);
            return Ok(());
        }
        let now = Instant::now();
        let (late, waiting) = std::mem::take(&mut outage.waiting)
            .into_iter()
            .partition::<VecDeque<Call>, _>(|call| outage.deadline(call) <= now);
        outage.waiting = waiting;
        let attempt = outage.attempt.is_none().then_some(outage.next_attempt);
        let deadline = [attempt, outage.first_deadline()]
            .into_iter()
            .flatten()
            .min();
        late.into_iter().for_each(|call| self.fail(call));
        self.sleep(deadline)
    }

    fn stop(mut self) {
        if let Phase::Up(session) = &mut self.phase {
            // The server sees to it that this is fair to it: it may be gone.
            let _ = farewell(session, &self.link);
        }
        self.lose_for_good();
    }

    fn lose_for_good(&mut self) {
        if let Phase::Down(outage) = &mut self.phase {
            let waiting = std::mem::take(&mut outage.waiting);
            waiting.into_iter().for_each(|call| self.fail(call));
        }
        self.slots
            .drain()
            .into_iter()
            .for_each(|call| self.fail(call));
        self.phase = Phase::Over;
        self.link.end();
    }
}

/// Sends and receives what can be now; true if there may be more.
fn exchange(
    session: &mut Session,
    slots: &mut Slots,
    calls: &mut VecDeque<Call>,
    ends: &mut Vec<End>,
) -> Result<bool, Broken> {
    while let Some(call) = calls.pop_front() {
        match slots.insert(call) {
            Ok(slot) => session.enqueue(slots, slot)?,
            Err(call) => {
                calls.push_front(call);
                break;
            }
        }
    }
    session.send(slots)?;
    session.receive(slots, ends)
}

/// Sees to the attempts of an outage; a session if one has succeeded.
fn next_session(
    outage: &mut Outage,
    number: &Number,
    first: &super::export::Export,
    backoff: &mut Backoff,
    link: &Link,
) -> std::io::Result<Option<Box<Session>>> {
    if let Some(attempt) = &outage.attempt {
        let Some(result) = attempt.take() else {
            return Ok(None);
        };
        outage.attempt = None;
        outage.next_attempt = Instant::now() + backoff.next();
        let complaint = match result {
            Ok(session) => match session.export.stands_in_for(first) {
                Ok(()) => return Ok(Some(Box::new(session))),
                Err(why) => format!("another export is there now: {why}"),
            },
            Err(error) => error.to_string(),
        };
        if !outage.complained {
            tracing::warn!(
                "NBD connection to {} cannot be had: {complaint}",
                number.server
            );
            outage.complained = true;
        }
    }
    if outage.attempt.is_none() && Instant::now() >= outage.next_attempt {
        match Attempt::begin(number, &link.bell) {
            Ok(attempt) => outage.attempt = Some(attempt),
            Err(_) => outage.next_attempt = Instant::now() + backoff.next(),
        }
    }
    Ok(None)
}

/// NBD_CMD_DISC, after whatever was being sent, and the end of TLS. Errors: the server does not listen.
fn farewell(session: &mut Session, link: &Link) -> std::io::Result<()> {
    let deadline = Instant::now() + FAREWELL;
    let head = RequestHead {
        flags: Default::default(),
        command: Command::Disconnect,
        cookie: 0,
        at: 0,
        len: 0,
    };
    let bytes = match session.export.form {
        Form::Extended => head.encode_extended().to_vec(),
        Form::Simple | Form::Structured => head
            .encode_compact()
            .map_err(std::io::Error::other)?
            .to_vec(),
    };
    let mut rest = &bytes[..];
    // In the middle of a request there is no saying it.
    while !session.wants_send() && !rest.is_empty() {
        match session.transport.send(&[IoSlice::new(rest)])? {
            0 => {
                link.bell.hush();
                if session.transport.wait(true, &link.bell, Some(deadline))? == Woken::Late {
                    break;
                }
            }
            sent => rest = rest.get(sent..).unwrap_or_default(),
        }
    }
    session.transport.close();
    Ok(())
}
