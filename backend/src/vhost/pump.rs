//! The front door: takes one message after the other from the front end, checks it, and hands it on.
//!
//! The rule: one request is in the house at a time. What is forwarded always asks the handler for a reply, so that when
//! the door turns back to the front end, everything the message asked for has happened; whether the front end hears of
//! it is for its own flags to say. Exactly one reply, or none.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures as Protocol};

use super::channel::Channel;
use super::handler::config_space;
use super::inflight::{self, InflightError, Region};
use super::link::{End, Link, describe};
use super::memory::Table;
use super::message::{Answered, ConfigRange, Malformed, RegionShape, Request, Spec, spec_of};
use super::session::{Session, SessionError, Unreachable};
use super::wire::{self, Header, Message};

/// How many messages of one session may be refused before it ends, so that a front end cannot fill the log.
const REFUSALS_MAX: u32 = 16;

/// The door of one session.
pub(super) struct Pump<'a> {
    front: &'a UnixStream,
    back: &'a UnixStream,
    session: Arc<Session>,
    link: Link,
    /// Protocol features the front end has acknowledged.
    protocol: Protocol,
    owned: bool,
    refusals: u32,
    declined: u32,
}

/// How a request went.
enum Outcome {
    /// Done; an acknowledgement says so if one is asked for.
    Done,
    /// The body of its own reply.
    Reply(Vec<u8>),
    /// It was answered already.
    Replied,
}

/// How a request failed.
enum Failure {
    /// Nothing happened; the session may go on.
    Refused(String),
    /// The device does not take it; the session goes on in any case.
    Declined(String),
    /// The session is over.
    Over(End),
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Failure {
        Failure::Refused(describe(&error))
    }
}

impl From<InflightError> for Failure {
    fn from(error: InflightError) -> Failure {
        Failure::Refused(describe(&error))
    }
}

impl From<super::memory::MemoryError> for Failure {
    fn from(error: super::memory::MemoryError) -> Failure {
        Failure::Refused(describe(&error))
    }
}

impl<'a> Pump<'a> {
    /// The door between a front end and the handler of its session.
    pub(super) fn new(
        front: &'a UnixStream,
        back: &'a UnixStream,
        session: Arc<Session>,
        link: Link,
    ) -> Pump<'a> {
        Pump {
            front,
            back,
            session,
            link,
            protocol: Protocol::empty(),
            owned: false,
            refusals: 0,
            declined: 0,
        }
    }

    /// Serves the front end until it leaves or must leave. Rings may still run afterwards.
    pub(super) fn run(mut self) -> End {
        if let Err(end) = self.open_handler() {
            return end;
        }
        loop {
            if let Err(end) = self.turn() {
                return end;
            }
        }
    }

    /// Has the handler acknowledge every message, whatever the front end negotiates later.
    fn open_handler(&mut self) -> Result<(), End> {
        let opened = self
            .forward(FrontendReq::GET_FEATURES, Answered::Reply, &[], &[])
            .and_then(|_| self.acknowledge_all());
        match opened {
            Ok(_) => Ok(()),
            Err(Failure::Over(end)) => Err(end),
            Err(Failure::Refused(reason) | Failure::Declined(reason)) => Err(End::Failed(reason)),
        }
    }

    fn turn(&mut self) -> Result<(), End> {
        let mut message = wire::receive(self.front)?;
        let header = message.header;
        let Some(spec) = spec_of(header.code) else {
            let unknown = Malformed::Unknown { code: header.code };
            return self.refuse(&header, describe(&unknown));
        };
        if let Some(needed) = spec.needs.filter(|bit| !self.protocol.contains(*bit)) {
            let name = spec.name;
            return self.refuse(&header, format!("message {name} without {needed:?}"));
        }
        let request = match spec.parse(&mut message, self.session.device.queues()) {
            Ok(request) => request,
            Err(malformed) if malformed.is_fatal() => {
                return Err(End::Refused(describe(&malformed)));
            }
            Err(malformed) => return self.refuse(&header, describe(&malformed)),
        };
        match self.serve(spec, &message, request) {
            Ok(outcome) => self.answer(spec, &header, outcome),
            Err(Failure::Refused(reason)) => {
                self.refuse(&header, format!("message {}: {reason}", spec.name))
            }
            Err(Failure::Declined(reason)) => self.decline(&header, &reason),
            Err(Failure::Over(end)) => Err(end),
        }
    }

    fn answer(&self, spec: &Spec, header: &Header, outcome: Outcome) -> Result<(), End> {
        match (spec.answered, outcome) {
            (Answered::Reply, Outcome::Reply(body)) => self.reply(header.code, &body),
            (_, Outcome::Replied) => Ok(()),
            _ if self.wants_ack(header) => self.reply(header.code, &0u64.to_ne_bytes()),
            _ => Ok(()),
        }
    }

    // vhost-user.rst, VHOST_USER_PROTOCOL_F_REPLY_ACK: zero acknowledges, anything else refuses. Who waits for that hears
    // of the refusal and stays; who does not would go on as if it had been obeyed, and is let go.
    fn refuse(&mut self, header: &Header, reason: String) -> Result<(), End> {
        self.refusals += 1;
        if !self.wants_ack(header) || self.refusals > REFUSALS_MAX {
            return Err(End::Refused(reason));
        }
        tracing::warn!("vhost-user: refused {reason}");
        self.reply(header.code, &1u64.to_ne_bytes())
    }

    // virtio 1.2, 2.5.1: what a driver writes to read-only fields is its own affair; it must not cost it the device.
    fn decline(&mut self, header: &Header, reason: &str) -> Result<(), End> {
        if self.declined < REFUSALS_MAX {
            self.declined += 1;
            tracing::warn!("vhost-user: the device declined a configuration write: {reason}");
        }
        match self.wants_ack(header) {
            true => self.reply(header.code, &1u64.to_ne_bytes()),
            false => Ok(()),
        }
    }

    fn wants_ack(&self, header: &Header) -> bool {
        header.wants_ack() && self.protocol.contains(Protocol::REPLY_ACK)
    }

    fn reply(&self, code: u32, body: &[u8]) -> Result<(), End> {
        let header = Header::reply(code, body.len() as u32);
        wire::send(self.front, header, body, &[])
            .map_err(|error| End::Refused(format!("cannot reply: {error}")))
    }

    /// Checks a request against the session, carries it out or has it carried out, and lets the rings follow.
    fn serve(
        &mut self,
        spec: &Spec,
        message: &Message,
        request: Request,
    ) -> Result<Outcome, Failure> {
        match request {
            Request::SetOwner if self.owned => return Ok(Outcome::Done),
            Request::SetOwner => self.owned = true,
            Request::ResetOwner => {
                self.session.disable_all();
                return Ok(Outcome::Done);
            }
            Request::SetFeatures(features) => self.session.check_features(features)?,
            Request::SetProtocolFeatures(features) => return self.set_protocol(features),
            Request::SetMemTable(slots) => return self.set_table(slots),
            Request::AddMemReg(slot, fd) => {
                let (table, mapped) = self.session.table().add(slot, &fd)?;
                let body = single(mapped);
                return self.change_table(table, spec.code, &body, &[fd], Unreachable::Wait);
            }
            Request::RemMemReg(slot) => {
                let (table, mapped) = self.session.table().remove(slot)?;
                let body = single(mapped);
                return self.change_table(table, spec.code, &body, &[], Unreachable::Wait);
            }
            Request::SetVringNum { index, size } => self.session.check_size(index, size)?,
            Request::SetVringBase { index } => self.session.check_stopped(index)?,
            Request::SetVringAddr { index, at } => {
                self.session.check_address(index, &at)?;
                self.forward(spec.code, spec.answered, &message.body, &[])?;
                self.session.set_address(index, at);
                return self.settle(Unreachable::Refuse);
            }
            Request::SetVringEnable => self.session.check_enable()?,
            Request::SetVringKick(fd) => return self.forward_fd(spec, message, Some(fd)),
            Request::SetVringCall(fd) | Request::SetVringErr(fd) => {
                if let Some(fd) = &fd {
                    never_blocks(fd)?;
                }
                return self.forward_fd(spec, message, fd);
            }
            Request::SetBackendReqFd(fd) => {
                let channel = Channel::new(fd);
                let channel = channel.map_err(|error| Failure::Refused(error.to_string()))?;
                self.link.set_channel(channel);
                return Ok(Outcome::Done);
            }
            Request::GetInflightFd(shape) => return self.get_inflight(spec, shape),
            Request::SetInflightFd(shape, fd) => {
                return self.set_inflight(shape, fd);
            }
            Request::GetConfig(range) => return self.get_config(range, &message.body),
            Request::SetConfig { range, bytes } => return self.set_config(range, &bytes),
            Request::ResetDevice => self.session.reset(),
            Request::GetFeatures
            | Request::GetProtocolFeatures
            | Request::GetQueueNum
            | Request::GetMaxMemSlots
            | Request::GetVringBase => {}
        }
        let outcome = self.forward(spec.code, spec.answered, &message.body, &[])?;
        self.settle(Unreachable::Refuse)?;
        Ok(outcome)
    }

    fn forward_fd(
        &self,
        spec: &Spec,
        message: &Message,
        fd: Option<OwnedFd>,
    ) -> Result<Outcome, Failure> {
        let fds: Vec<OwnedFd> = fd.into_iter().collect();
        self.forward(spec.code, spec.answered, &message.body, &fds)?;
        self.settle(Unreachable::Refuse)
    }

    /// A fresh region, which the front end is to keep; nothing of it is kept here.
    fn get_inflight(&self, spec: &Spec, shape: RegionShape) -> Result<Outcome, Failure> {
        let (shape, fd) = inflight::create(shape)?;
        let body = shape.to_bytes();
        let header = Header::reply(spec.code.into(), body.len() as u32);
        let sent = wire::send(self.front, header, &body, &[fd]);
        sent.map_err(|error| Failure::Over(End::Refused(format!("cannot reply: {error}"))))?;
        Ok(Outcome::Replied)
    }

    fn set_inflight(&self, shape: RegionShape, fd: OwnedFd) -> Result<Outcome, Failure> {
        self.session.drop_inflight()?;
        let region = Region::take_over(shape, fd)?;
        if let Some(log) = region.map_region() {
            let taken_up = self.session.device.take_up(log);
            taken_up.map_err(Failure::Refused)?;
        }
        self.session.set_inflight(region);
        Ok(Outcome::Done)
    }

    fn set_protocol(&mut self, features: u64) -> Result<Outcome, Failure> {
        let wanted = Protocol::from_bits(features)
            .filter(|wanted| self.session.protocol().contains(*wanted));
        let Some(wanted) = wanted else {
            return Err(SessionError::Features { features }.into());
        };
        // The handler has been told all of them: it acknowledges to us whatever the front end wants.
        self.protocol = wanted;
        Ok(Outcome::Done)
    }

    fn acknowledge_all(&self) -> Result<Outcome, Failure> {
        let code = FrontendReq::SET_PROTOCOL_FEATURES;
        let all = self.session.protocol().bits().to_ne_bytes();
        self.forward(code, Answered::Ack, &all, &[])
    }

    fn set_table(&self, slots: Vec<(super::memory::Slot, OwnedFd)>) -> Result<Outcome, Failure> {
        let (table, mapped, fds) = Table::replace(slots)?;
        let mut body = (mapped.len() as u64).to_ne_bytes().to_vec();
        mapped.iter().for_each(|slot| body.extend(slot.to_bytes()));
        let code = FrontendReq::SET_MEM_TABLE;
        self.change_table(table, code, &body, &fds, Unreachable::Refuse)
    }

    /// Stops the rings, has the memory mapped anew, and starts them again on it.
    fn change_table(
        &self,
        table: Table,
        code: FrontendReq,
        body: &[u8],
        fds: &[OwnedFd],
        unreachable: Unreachable,
    ) -> Result<Outcome, Failure> {
        self.session.expect_table(table);
        self.forward(code, Answered::Ack, body, fds)?;
        self.settle(unreachable)
    }

    fn get_config(&self, range: ConfigRange, body: &[u8]) -> Result<Outcome, Failure> {
        let limit_bytes = config_space(&*self.session.device).len();
        if !range.is_within(limit_bytes) {
            // As qemu-storage-daemon: a reply without a body is an error.
            return Ok(Outcome::Reply(Vec::new()));
        }
        let mut asked = body.to_vec();
        // The crate knows two flags and would close the connection over others; they mean nothing to a read.
        set_config_flags(&mut asked, 0);
        let code = FrontendReq::GET_CONFIG;
        match self.forward(code, Answered::Reply, &asked, &[])? {
            Outcome::Reply(mut answer) => {
                set_config_flags(&mut answer, range.flags);
                Ok(Outcome::Reply(answer))
            }
            other => Ok(other),
        }
    }

    /// Done here: a refusal by the device must not cost the connection, as one by the handler would.
    fn set_config(&self, range: ConfigRange, bytes: &[u8]) -> Result<Outcome, Failure> {
        let device = &*self.session.device;
        if !range.is_within(config_space(device).len()) {
            let end = range.offset.saturating_add(range.len_bytes);
            return Err(Failure::Refused(format!(
                "the configuration ends before {end}"
            )));
        }
        match device.set_config(range.offset, bytes) {
            Ok(()) => Ok(Outcome::Done),
            Err(refused) => Err(Failure::Declined(refused.to_string())),
        }
    }

    /// After a message has gone through, failing to follow it cannot be undone: the session ends.
    fn settle(&self, unreachable: Unreachable) -> Result<Outcome, Failure> {
        match self.session.settle(unreachable) {
            Ok(()) => Ok(Outcome::Done),
            Err(error) => Err(Failure::Over(End::Refused(describe(&error)))),
        }
    }

    /// Has the handler serve a message, and waits until it has.
    fn forward(
        &self,
        code: FrontendReq,
        answered: Answered,
        body: &[u8],
        fds: &[OwnedFd],
    ) -> Result<Outcome, Failure> {
        let name = code;
        let code = u32::from(code);
        let header = match answered {
            Answered::Reply => Header::request(code, body.len() as u32),
            Answered::Ack => Header::request_with_ack(code, body.len() as u32),
        };
        let failed = |why: String| {
            Failure::Over(End::Refused(format!(
                "the handler failed at {name:?}: {why}"
            )))
        };
        wire::send(self.back, header, body, fds).map_err(|error| failed(error.to_string()))?;
        let reply =
            wire::receive_reply(self.back, code).map_err(|error| failed(describe(&error)))?;
        match answered {
            Answered::Reply => Ok(Outcome::Reply(reply)),
            Answered::Ack if reply == 0u64.to_ne_bytes() => Ok(Outcome::Done),
            Answered::Ack => {
                let fault = self.session.take_fault();
                Err(failed(fault.unwrap_or_else(|| "refused".to_owned())))
            }
        }
    }
}

/// A full eventfd must cost a signal, never a queue thread.
fn never_blocks(fd: &OwnedFd) -> Result<(), Failure> {
    use std::os::fd::AsFd;
    ring::sock::set_nonblocking(fd.as_fd()).map_err(|error| Failure::Refused(error.to_string()))
}

/// The body of ADD_MEM_REG and REM_MEM_REG: padding, then the slot.
fn single(slot: super::memory::Slot) -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend(slot.to_bytes());
    body
}

fn set_config_flags(body: &mut [u8], flags: u32) {
    if let Some(field) = body.get_mut(8..12) {
        field.copy_from_slice(&flags.to_ne_bytes());
    }
}
