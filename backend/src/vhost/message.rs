//! Requests of a front end, typed: one table says which messages there are and what each may carry.
//!
//! The rule: whatever a request's own bytes can tell is checked here, so that a [`Request`] has the right length, the
//! right descriptors and fields within their types. What depends on the session is checked in `session` and `memory`.

use std::os::fd::{AsFd, OwnedFd};

use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures as Protocol};

use ring::vring::RING_SIZE_MAX;

use super::CONFIG_BYTES_MAX;
use super::fds::is_eventfd;
use super::memory::Slot;
use super::wire::Message;

/// What a front end asks, as far as the door has to look at it; the rest of the body is checked and goes on as it is.
#[derive(Debug)]
pub(super) enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<(Slot, OwnedFd)>),
    SetVringNum { index: u16, size: u16 },
    SetVringAddr { index: u16, at: RingAddress },
    SetVringBase { index: u16 },
    GetVringBase,
    SetVringKick(OwnedFd),
    SetVringCall(Option<OwnedFd>),
    SetVringErr(Option<OwnedFd>),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable,
    SetBackendReqFd(OwnedFd),
    GetConfig(ConfigRange),
    SetConfig { range: ConfigRange, bytes: Vec<u8> },
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg(Slot, OwnedFd),
    RemMemReg(Slot),
    GetInflightFd(RegionShape),
    SetInflightFd(RegionShape, OwnedFd),
}

/// The inflight region as messages describe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RegionShape {
    pub(super) len_bytes: u64,
    /// Where it begins in its file.
    pub(super) offset: u64,
    pub(super) queues: u16,
    /// Entries of each queue.
    pub(super) queue_size: u16,
}

impl RegionShape {
    /// As it is on the wire: a C struct, so that its end is padded to 24 bytes.
    pub(super) fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[0..8].copy_from_slice(&self.len_bytes.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_ne_bytes());
        bytes[16..18].copy_from_slice(&self.queues.to_ne_bytes());
        bytes[18..20].copy_from_slice(&self.queue_size.to_ne_bytes());
        bytes
    }
}

/// Where the front end says a ring lies, in its own addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RingAddress {
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
}

/// A part of the configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConfigRange {
    pub(super) offset: u32,
    pub(super) len_bytes: u32,
    pub(super) flags: u32,
}

impl ConfigRange {
    /// True if it lies within the first `limit_bytes`.
    pub(super) fn is_within(&self, limit_bytes: usize) -> bool {
        let end = u64::from(self.offset) + u64::from(self.len_bytes);
        self.len_bytes > 0 && end <= limit_bytes as u64
    }
}

/// What is wrong with a message. Fatal ones leave doubt about what the peer means by the next bytes.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error("unknown message {code}")]
    Unknown { code: u32 },
    #[error("message {name} with a body of {body_bytes} bytes")]
    Length {
        name: &'static str,
        body_bytes: usize,
    },
    #[error("message {name} with {count} descriptors")]
    Fds { name: &'static str, count: usize },
    #[error("message {name} with a descriptor of the wrong kind")]
    FdKind { name: &'static str },
    #[error("message {name} with a value out of range: {value:#x}")]
    Value { name: &'static str, value: u64 },
}

impl Malformed {
    /// True if the connection must end even where the front end waits for an acknowledgement.
    pub(super) fn is_fatal(&self) -> bool {
        matches!(self, Malformed::Length { .. } | Malformed::Fds { .. })
    }
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Exact(usize),
    /// A count, padding, and that many memory slots.
    Table,
    /// A configuration range and as many bytes as it says.
    Config,
}

/// How many descriptors come along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fds {
    Exact(usize),
    AtMost(usize),
    /// One, or none where the NOFD bit of the body says so.
    UnlessNofd,
    /// As many as the body has slots.
    PerSlot,
}

/// How a message is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answered {
    /// With a reply of its own, always.
    Reply,
    /// With an acknowledgement if asked for.
    Ack,
}

/// One message there is.
#[derive(Debug)]
pub(super) struct Spec {
    pub(super) code: FrontendReq,
    pub(super) name: &'static str,
    pub(super) body: Body,
    pub(super) fds: Fds,
    pub(super) answered: Answered,
    /// The protocol feature that must have been negotiated. For MQ, BACKEND_REQ and RESET_DEVICE vhost-user.rst only
    /// asks that they be on offer, which they always are.
    pub(super) needs: Option<Protocol>,
}

macro_rules! spec {
    ($code:ident, $body:expr, $fds:expr, $answered:ident, $needs:expr) => {
        Spec {
            code: FrontendReq::$code,
            name: stringify!($code),
            body: $body,
            fds: $fds,
            answered: Answered::$answered,
            needs: $needs,
        }
    };
}

const U64: Body = Body::Exact(8);
const STATE: Body = Body::Exact(8);
const EMPTY: Body = Body::Exact(0);
const NONE: Fds = Fds::Exact(0);

/// Every message the door lets in. All others are unknown, defined by vhost-user.rst or not: their features are not on
/// offer.
#[rustfmt::skip]
pub(super) const SPECS: &[Spec] = &[
    spec!(GET_FEATURES,          EMPTY,           NONE,            Reply, None),
    spec!(SET_FEATURES,          U64,             NONE,            Ack,   None),
    spec!(SET_OWNER,             EMPTY,           NONE,            Ack,   None),
    spec!(RESET_OWNER,           EMPTY,           NONE,            Ack,   None),
    spec!(SET_MEM_TABLE,         Body::Table,     Fds::PerSlot,    Ack,   None),
    spec!(SET_VRING_NUM,         STATE,           NONE,            Ack,   None),
    spec!(SET_VRING_ADDR,        Body::Exact(40), NONE,            Ack,   None),
    spec!(SET_VRING_BASE,        STATE,           NONE,            Ack,   None),
    spec!(GET_VRING_BASE,        STATE,           NONE,            Reply, None),
    spec!(SET_VRING_KICK,        U64,             Fds::UnlessNofd, Ack,   None),
    spec!(SET_VRING_CALL,        U64,             Fds::UnlessNofd, Ack,   None),
    spec!(SET_VRING_ERR,         U64,             Fds::UnlessNofd, Ack,   None),
    spec!(GET_PROTOCOL_FEATURES, EMPTY,           NONE,            Reply, None),
    spec!(SET_PROTOCOL_FEATURES, U64,             NONE,            Ack,   None),
    spec!(GET_QUEUE_NUM,         EMPTY,           NONE,            Reply, None),
    spec!(SET_VRING_ENABLE,      STATE,           NONE,            Ack,   None),
    spec!(SET_BACKEND_REQ_FD,    EMPTY,           Fds::Exact(1),   Ack,   None),
    spec!(GET_CONFIG,            Body::Config,    NONE,            Reply, Some(Protocol::CONFIG)),
    spec!(SET_CONFIG,            Body::Config,    NONE,            Ack,   Some(Protocol::CONFIG)),
    spec!(GET_INFLIGHT_FD,       Body::Exact(24), NONE,            Reply, Some(Protocol::INFLIGHT_SHMFD)),
    spec!(SET_INFLIGHT_FD,       Body::Exact(24), Fds::Exact(1),   Ack,   Some(Protocol::INFLIGHT_SHMFD)),
    spec!(RESET_DEVICE,          EMPTY,           NONE,            Ack,   None),
    spec!(GET_MAX_MEM_SLOTS,     EMPTY,           NONE,            Reply, Some(Protocol::CONFIGURE_MEM_SLOTS)),
    spec!(ADD_MEM_REG,           Body::Exact(40), Fds::Exact(1),   Ack,   Some(Protocol::CONFIGURE_MEM_SLOTS)),
    // vhost-user.rst, VHOST_USER_REM_MEM_REG: one descriptor may come along from old front ends; it is only closed.
    spec!(REM_MEM_REG,           Body::Exact(40), Fds::AtMost(1),  Ack,   Some(Protocol::CONFIGURE_MEM_SLOTS)),
];

/// vhost-user.rst, "Memory region description": without CONFIGURE_MEM_SLOTS a front end has at most 8.
pub(super) const TABLE_SLOTS_MAX: usize = 8;

const CONFIG_HEADER_BYTES: usize = 12;
const TABLE_HEADER_BYTES: usize = 8;
const SLOT_BYTES: usize = 32;
/// Bits 0-7 of the body of KICK, CALL and ERR: the ring.
const VRING_INDEX: u64 = 0xff;
/// Bit 8: no descriptor comes along.
const VRING_NOFD: u64 = 0x100;

/// The message with that code.
pub(super) fn spec_of(code: u32) -> Option<&'static Spec> {
    SPECS.iter().find(|spec| u32::from(spec.code) == code)
}

impl Spec {
    /// Checks a message's form and makes a request of it. `queues` bounds every ring index.
    pub(super) fn parse(&self, message: &mut Message, queues: u16) -> Result<Request, Malformed> {
        self.check_length(&message.body)?;
        self.check_fds(message)?;
        let fds = std::mem::take(&mut message.fds);
        let parser = Parser {
            name: self.name,
            body: &message.body,
            queues,
        };
        parser.request(self.code, fds)
    }

    fn check_length(&self, body: &[u8]) -> Result<(), Malformed> {
        let right = match self.body {
            Body::Exact(len) => body.len() == len,
            Body::Table => {
                body.len() >= TABLE_HEADER_BYTES
                    && body.len() == TABLE_HEADER_BYTES + word(body, 0) as usize * SLOT_BYTES
            }
            Body::Config => {
                body.len() >= CONFIG_HEADER_BYTES
                    && body.len() == CONFIG_HEADER_BYTES + word(body, 4) as usize
            }
        };
        let body_bytes = body.len();
        let name = self.name;
        right
            .then_some(())
            .ok_or(Malformed::Length { name, body_bytes })
    }

    fn check_fds(&self, message: &Message) -> Result<(), Malformed> {
        let count = message.fds.len();
        let right = match self.fds {
            Fds::Exact(exact) => count == exact,
            Fds::AtMost(most) => count <= most,
            Fds::UnlessNofd => count == usize::from(long(&message.body, 0) & VRING_NOFD == 0),
            Fds::PerSlot => count == word(&message.body, 0) as usize,
        };
        let name = self.name;
        right.then_some(()).ok_or(Malformed::Fds { name, count })
    }
}

/// Reads the fields of one message.
struct Parser<'a> {
    name: &'static str,
    body: &'a [u8],
    queues: u16,
}

impl Parser<'_> {
    fn request(&self, code: FrontendReq, mut fds: Vec<OwnedFd>) -> Result<Request, Malformed> {
        Ok(match code {
            FrontendReq::GET_FEATURES => Request::GetFeatures,
            FrontendReq::SET_FEATURES => Request::SetFeatures(long(self.body, 0)),
            FrontendReq::SET_OWNER => Request::SetOwner,
            FrontendReq::RESET_OWNER => Request::ResetOwner,
            FrontendReq::SET_MEM_TABLE => self.table(fds)?,
            FrontendReq::SET_VRING_NUM => Request::SetVringNum {
                index: self.index(word(self.body, 0).into())?,
                size: self.short(word(self.body, 4))?,
            },
            FrontendReq::SET_VRING_ADDR => self.ring_address()?,
            FrontendReq::SET_VRING_BASE => self.base()?,
            FrontendReq::GET_VRING_BASE => {
                self.index(word(self.body, 0).into())?;
                Request::GetVringBase
            }
            FrontendReq::SET_VRING_KICK => self.kick(fds.pop())?,
            FrontendReq::SET_VRING_CALL => Request::SetVringCall(self.eventfd(fds.pop())?),
            FrontendReq::SET_VRING_ERR => Request::SetVringErr(self.eventfd(fds.pop())?),
            FrontendReq::GET_PROTOCOL_FEATURES => Request::GetProtocolFeatures,
            FrontendReq::SET_PROTOCOL_FEATURES => Request::SetProtocolFeatures(long(self.body, 0)),
            FrontendReq::GET_QUEUE_NUM => Request::GetQueueNum,
            FrontendReq::SET_VRING_ENABLE => self.enable()?,
            FrontendReq::SET_BACKEND_REQ_FD => Request::SetBackendReqFd(self.one(fds)?),
            FrontendReq::GET_CONFIG => Request::GetConfig(self.config_range()),
            FrontendReq::SET_CONFIG => self.set_config()?,
            FrontendReq::RESET_DEVICE => Request::ResetDevice,
            FrontendReq::GET_MAX_MEM_SLOTS => Request::GetMaxMemSlots,
            // The single slot of these two follows eight bytes of padding.
            FrontendReq::ADD_MEM_REG => Request::AddMemReg(slot(self.body, 8), self.one(fds)?),
            FrontendReq::REM_MEM_REG => Request::RemMemReg(slot(self.body, 8)),
            FrontendReq::GET_INFLIGHT_FD => Request::GetInflightFd(self.region()?),
            FrontendReq::SET_INFLIGHT_FD => Request::SetInflightFd(self.region()?, self.one(fds)?),
            other => return Err(Malformed::Unknown { code: other.into() }),
        })
    }

    fn value<T>(&self, value: u64) -> Result<T, Malformed> {
        let name = self.name;
        Err(Malformed::Value { name, value })
    }

    fn index(&self, value: u64) -> Result<u16, Malformed> {
        match u16::try_from(value) {
            Ok(index) if index < self.queues => Ok(index),
            _ => self.value(value),
        }
    }

    fn short(&self, value: u32) -> Result<u16, Malformed> {
        u16::try_from(value).or_else(|_| self.value(value.into()))
    }

    fn base(&self) -> Result<Request, Malformed> {
        let index = self.index(word(self.body, 0).into())?;
        // A split ring's index has 16 bits.
        self.short(word(self.body, 4))?;
        Ok(Request::SetVringBase { index })
    }

    fn region(&self) -> Result<RegionShape, Malformed> {
        let half = |at: usize| u16::from_ne_bytes([self.body[at], self.body[at + 1]]);
        let shape = RegionShape {
            len_bytes: long(self.body, 0),
            offset: long(self.body, 8),
            queues: half(16),
            queue_size: half(18),
        };
        if shape.queues == 0 || shape.queues > self.queues {
            return self.value(shape.queues.into());
        }
        match shape.queue_size {
            0 => self.value(0),
            size if size > RING_SIZE_MAX => self.value(size.into()),
            _ => Ok(shape),
        }
    }

    fn one(&self, mut fds: Vec<OwnedFd>) -> Result<OwnedFd, Malformed> {
        let name = self.name;
        fds.pop().ok_or(Malformed::Fds { name, count: 0 })
    }

    /// The descriptor of a KICK, CALL or ERR, whose body names the ring.
    fn eventfd(&self, fd: Option<OwnedFd>) -> Result<Option<OwnedFd>, Malformed> {
        let value = long(self.body, 0);
        if value & !(VRING_INDEX | VRING_NOFD) != 0 {
            return self.value(value);
        }
        self.index(value & VRING_INDEX)?;
        match fd {
            Some(fd) if !is_eventfd(fd.as_fd()) => Err(Malformed::FdKind { name: self.name }),
            fd => Ok(fd),
        }
    }

    fn kick(&self, fd: Option<OwnedFd>) -> Result<Request, Malformed> {
        // NOFD would ask us to poll the ring: a ring without a kick never sleeps. Better refused than dead.
        let Some(fd) = self.eventfd(fd)? else {
            return self.value(long(self.body, 0));
        };
        Ok(Request::SetVringKick(fd))
    }

    fn enable(&self) -> Result<Request, Malformed> {
        self.index(word(self.body, 0).into())?;
        match word(self.body, 4) {
            0 | 1 => Ok(Request::SetVringEnable),
            other => self.value(other.into()),
        }
    }

    fn ring_address(&self) -> Result<Request, Malformed> {
        let index = self.index(word(self.body, 0).into())?;
        let at = RingAddress {
            desc: long(self.body, 8),
            used: long(self.body, 16),
            avail: long(self.body, 24),
        };
        // The only flag asks for a log of writes to the used ring, which is not on offer.
        match word(self.body, 4) {
            0 => {}
            flags => return self.value(flags.into()),
        }
        // virtio 1.2, 2.7: alignments of the parts.
        for (part, align) in [(at.desc, 16), (at.avail, 2), (at.used, 4)] {
            if !part.is_multiple_of(align) {
                return self.value(part);
            }
        }
        Ok(Request::SetVringAddr { index, at })
    }

    fn table(&self, fds: Vec<OwnedFd>) -> Result<Request, Malformed> {
        let count = fds.len();
        // No slot at all is refused: there is nothing a ring could run on.
        if !(1..=TABLE_SLOTS_MAX).contains(&count) {
            return self.value(count as u64);
        }
        let slots = (0..count).map(|at| slot(self.body, TABLE_HEADER_BYTES + at * SLOT_BYTES));
        Ok(Request::SetMemTable(slots.zip(fds).collect()))
    }

    fn config_range(&self) -> ConfigRange {
        ConfigRange {
            offset: word(self.body, 0),
            len_bytes: word(self.body, 4),
            flags: word(self.body, 8),
        }
    }

    fn set_config(&self) -> Result<Request, Malformed> {
        let range = self.config_range();
        // QEMU's FRONTEND is 0 and its MIGRATION 1; rust-vmm's WRITABLE is 1. Both mean a write.
        if range.flags > 1 {
            return self.value(range.flags.into());
        }
        if !range.is_within(CONFIG_BYTES_MAX) {
            return self.value(range.offset.into());
        }
        let bytes = self.body[CONFIG_HEADER_BYTES..].to_vec();
        Ok(Request::SetConfig { range, bytes })
    }
}

fn slot(body: &[u8], at: usize) -> Slot {
    Slot {
        gpa: long(body, at),
        len_bytes: long(body, at + 8),
        user: long(body, at + 16),
        offset: long(body, at + 24),
    }
}

/// Four bytes of a body; zero beyond its end, which `check_length` has excluded.
fn word(body: &[u8], at: usize) -> u32 {
    let bytes = body.get(at..at + 4).and_then(|part| part.try_into().ok());
    bytes.map_or(0, u32::from_ne_bytes)
}

/// Eight bytes of a body, as `word`.
fn long(body: &[u8], at: usize) -> u64 {
    let bytes = body.get(at..at + 8).and_then(|part| part.try_into().ok());
    bytes.map_or(0, u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::super::bits;
    use super::*;

    #[test]
    fn the_table_is_in_order_of_codes_and_every_message_is_found() {
        let codes: Vec<u32> = SPECS.iter().map(|spec| spec.code.into()).collect();
        assert!(codes.is_sorted_by(|a, b| a < b));
        for code in 0..300 {
            let found = spec_of(code).map(|spec| u32::from(spec.code));
            assert_eq!(found, codes.contains(&code).then_some(code));
        }
    }

    #[test]
    fn no_message_needs_a_feature_that_is_not_on_offer() {
        for spec in SPECS {
            let needs = spec.needs.unwrap_or(Protocol::empty());
            assert!(bits::PROTOCOL.contains(needs), "{}", spec.name);
        }
    }

    #[test]
    fn only_questions_have_replies_of_their_own() {
        for spec in SPECS {
            let asks = spec.name.starts_with("GET_");
            assert_eq!(spec.answered == Answered::Reply, asks, "{}", spec.name);
        }
    }

    #[test]
    fn a_part_of_the_configuration_is_within_it_or_not_without_overflow() {
        let range = |offset, len_bytes| ConfigRange {
            offset,
            len_bytes,
            flags: 0,
        };
        assert!(range(0, 96).is_within(96));
        assert!(range(95, 1).is_within(96));
        for (offset, len) in [
            (0, 97),
            (96, 1),
            (96, 0),
            (u32::MAX, u32::MAX),
            (1, u32::MAX),
        ] {
            assert!(!range(offset, len).is_within(96), "{len} at {offset}");
        }
    }
}
