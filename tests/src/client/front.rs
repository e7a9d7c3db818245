//! The messages one by one ([`FrontEnd`]), our own sender of them ([`Speaker`]), and the order two VMMs send them in.
//!
//! `vhost`'s front end implements the same trait in [`super::crate_front`], so every table runs over both.

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::memory::Region;
use super::wire::{NEED_REPLY, Wire, config_payload, req, words32, words64};

/// Virtio and vhost-user feature bits, by number.
#[allow(missing_docs, reason = "the names are the specification's own")]
pub mod feature {
    pub const SIZE_MAX: u64 = 1 << 1;
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
}

/// Protocol feature bits, by number.
#[allow(missing_docs, reason = "the names are the specification's own")]
pub mod protocol {
    pub const MQ: u64 = 1 << 0;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
}

/// What a guest driver takes when it is offered.
pub const GUEST_FEATURES: u64 = feature::SEG_MAX
    | feature::RO
    | feature::BLK_SIZE
    | feature::FLUSH
    | feature::TOPOLOGY
    | feature::CONFIG_WCE
    | feature::MQ
    | feature::DISCARD
    | feature::WRITE_ZEROES
    | feature::INDIRECT_DESC
    | feature::EVENT_IDX
    | feature::VERSION_1;

/// What a VMM takes when it is offered.
pub const VMM_PROTOCOL: u64 = protocol::MQ
    | protocol::REPLY_ACK
    | protocol::BACKEND_REQ
    | protocol::CONFIG
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::INFLIGHT_SHMFD;

/// Ring addresses in the front end's own address space, as SET_VRING_ADDR carries them.
#[derive(Debug, Clone, Copy)]
pub struct RingAddresses {
    /// Descriptor table.
    pub desc: u64,
    /// Used ring.
    pub used: u64,
    /// Available ring.
    pub avail: u64,
}

/// The inflight region that a front end keeps for its back ends.
#[derive(Debug)]
pub struct Inflight {
    /// Its length and where it begins, in bytes; queues, and entries of each.
    pub shape: (u64, u64, u16, u16),
    /// The memory.
    pub fd: OwnedFd,
}

/// The body of GET_INFLIGHT_FD and SET_INFLIGHT_FD.
pub fn inflight_payload((len, offset, queues, size): (u64, u64, u16, u16)) -> Vec<u8> {
    let mut payload = words64(&[len, offset]);
    payload.extend(words32(&[u32::from(queues) | u32::from(size) << 16, 0]));
    payload
}

/// One method per message. An error is a NAK, a closed connection or a deadline passed.
#[allow(missing_docs, reason = "each method is the message of its name")]
pub trait FrontEnd: Debug + Send {
    fn get_features(&mut self) -> io::Result<u64>;
    fn set_features(&mut self, features: u64) -> io::Result<()>;
    fn get_protocol_features(&mut self) -> io::Result<u64>;
    fn set_protocol_features(&mut self, features: u64) -> io::Result<()>;
    fn set_owner(&mut self) -> io::Result<()>;
    fn get_queue_num(&mut self) -> io::Result<u64>;
    fn get_max_mem_slots(&mut self) -> io::Result<u64>;
    fn set_mem_table(&mut self, regions: &[Region]) -> io::Result<()>;
    fn add_mem_reg(&mut self, region: &Region) -> io::Result<()>;
    fn rem_mem_reg(&mut self, region: &Region) -> io::Result<()>;
    fn set_vring_num(&mut self, queue: u32, size: u16) -> io::Result<()>;
    fn set_vring_addr(&mut self, queue: u32, at: RingAddresses) -> io::Result<()>;
    fn set_vring_base(&mut self, queue: u32, base: u16) -> io::Result<()>;
    fn get_vring_base(&mut self, queue: u32) -> io::Result<u32>;
    fn set_vring_kick(&mut self, queue: u32, fd: &EventFd) -> io::Result<()>;
    fn set_vring_call(&mut self, queue: u32, fd: &EventFd) -> io::Result<()>;
    fn set_vring_err(&mut self, queue: u32, fd: &EventFd) -> io::Result<()>;
    fn set_vring_enable(&mut self, queue: u32, on: u32) -> io::Result<()>;
    fn get_config(&mut self, len: u32) -> io::Result<Vec<u8>>;
    fn set_config(&mut self, offset: u32, flags: u32, bytes: &[u8]) -> io::Result<()>;
    fn set_backend_req_fd(&mut self, fd: RawFd) -> io::Result<()>;
    fn reset_device(&mut self) -> io::Result<()>;
    fn get_inflight(&mut self, queues: u16, size: u16) -> io::Result<Inflight>;
    fn set_inflight(&mut self, inflight: &Inflight) -> io::Result<()>;
    /// The connection itself, where one can get at it.
    fn wire(&self) -> Option<&Wire> {
        None
    }
}

/// Whose habits to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habits {
    /// QEMU 10: protocol features before the owner, acknowledgements only where QEMU asks for them.
    Qemu,
    /// cloud-hypervisor: owner first, every message acknowledged, SET_CONFIG with flags 1.
    CloudHypervisor,
}

impl Habits {
    /// The SET_CONFIG flags this VMM sends when a guest writes to config space.
    pub fn config_flags(self) -> u32 {
        match self {
            Habits::Qemu => 0,
            Habits::CloudHypervisor => 1,
        }
    }
}

/// Our own front end over [`Wire`].
#[derive(Debug)]
pub struct Speaker {
    /// The connection, for whoever wants to say something else.
    pub wire: Wire,
    habits: Habits,
    acks: bool,
}

impl Speaker {
    /// Connects; nothing is said yet.
    pub fn connect(path: &Path, habits: Habits) -> io::Result<Speaker> {
        Ok(Speaker {
            wire: Wire::connect(path)?,
            habits,
            acks: false,
        })
    }

    /// Whether the other side closes within `patience`.
    pub fn closed_within(&self, patience: Duration) -> bool {
        self.wire.closed_within(patience)
    }

    fn ask(&mut self, request: u32, payload: &[u8]) -> io::Result<super::wire::Reply> {
        self.wire.send(request, 0, payload, &[])?;
        let reply = self.wire.recv()?;
        if reply.request != request {
            return Err(io::Error::other(format!(
                "asked {request}, answered {}",
                reply.request
            )));
        }
        Ok(reply)
    }

    /// Sends and, when REPLY_ACK was negotiated and this VMM would, waits for the acknowledgement.
    fn tell(&mut self, request: u32, payload: &[u8], fds: &[RawFd]) -> io::Result<()> {
        if !(self.acks && asks_for_ack(self.habits, request)) {
            return self.wire.send(request, 0, payload, fds);
        }
        self.tell_acked(request, payload, fds)
    }

    /// Sends with NEED_REPLY and waits for the acknowledgement; a NAK is an error of kind `InvalidInput`.
    pub fn tell_acked(&mut self, request: u32, payload: &[u8], fds: &[RawFd]) -> io::Result<()> {
        self.wire.send(request, NEED_REPLY, payload, fds)?;
        let reply = self.wire.recv()?;
        match (reply.request == request, reply.u64()?) {
            (true, 0) => Ok(()),
            (true, code) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("NAK {code} to {request}"),
            )),
            (false, _) => Err(io::Error::other(format!(
                "asked {request}, answered {}",
                reply.request
            ))),
        }
    }
}

/// QEMU asks for acknowledgements where it must not run ahead; cloud-hypervisor always.
fn asks_for_ack(habits: Habits, request: u32) -> bool {
    let by_qemu = [
        req::SET_MEM_TABLE,
        req::ADD_MEM_REG,
        req::REM_MEM_REG,
        req::SET_CONFIG,
        req::SET_VRING_ENABLE,
    ];
    habits == Habits::CloudHypervisor || by_qemu.contains(&request)
}

impl FrontEnd for Speaker {
    fn get_features(&mut self) -> io::Result<u64> {
        self.ask(req::GET_FEATURES, &[])?.u64()
    }

    fn set_features(&mut self, features: u64) -> io::Result<()> {
        self.tell(req::SET_FEATURES, &words64(&[features]), &[])
    }

    fn get_protocol_features(&mut self) -> io::Result<u64> {
        self.ask(req::GET_PROTOCOL_FEATURES, &[])?.u64()
    }

    fn set_protocol_features(&mut self, features: u64) -> io::Result<()> {
        self.wire
            .send(req::SET_PROTOCOL_FEATURES, 0, &words64(&[features]), &[])?;
        self.acks = features & protocol::REPLY_ACK != 0;
        Ok(())
    }

    fn set_owner(&mut self) -> io::Result<()> {
        self.tell(req::SET_OWNER, &[], &[])
    }

    fn get_queue_num(&mut self) -> io::Result<u64> {
        self.ask(req::GET_QUEUE_NUM, &[])?.u64()
    }

    fn get_max_mem_slots(&mut self) -> io::Result<u64> {
        self.ask(req::GET_MAX_MEM_SLOTS, &[])?.u64()
    }

    fn set_mem_table(&mut self, regions: &[Region]) -> io::Result<()> {
        let mut payload = words32(&[regions.len() as u32, 0]);
        regions
            .iter()
            .for_each(|r| payload.extend(words64(&r.words())));
        let fds: Vec<RawFd> = regions.iter().map(|r| r.fd).collect();
        self.tell(req::SET_MEM_TABLE, &payload, &fds)
    }

    fn add_mem_reg(&mut self, region: &Region) -> io::Result<()> {
        let [gpa, len, user, offset] = region.words();
        self.tell(
            req::ADD_MEM_REG,
            &words64(&[0, gpa, len, user, offset]),
            &[region.fd],
        )
    }

    fn rem_mem_reg(&mut self, region: &Region) -> io::Result<()> {
        let [gpa, len, user, offset] = region.words();
        self.tell(
            req::REM_MEM_REG,
            &words64(&[0, gpa, len, user, offset]),
            &[],
        )
    }

    fn set_vring_num(&mut self, queue: u32, size: u16) -> io::Result<()> {
        self.tell(req::SET_VRING_NUM, &words32(&[queue, size.into()]), &[])
    }

    fn set_vring_addr(&mut self, queue: u32, at: RingAddresses) -> io::Result<()> {
        let mut payload = words32(&[queue, 0]);
        payload.extend(words64(&[at.desc, at.used, at.avail, 0]));
        self.tell(req::SET_VRING_ADDR, &payload, &[])
    }

    fn set_vring_base(&mut self, queue: u32, base: u16) -> io::Result<()> {
        self.tell(req::SET_VRING_BASE, &words32(&[queue, base.into()]), &[])
    }

    fn get_vring_base(&mut self, queue: u32) -> io::Result<u32> {
        let reply = self.ask(req::GET_VRING_BASE, &words32(&[queue, 0]))?;
        Ok((reply.u64()? >> 32) as u32)
    }

    fn set_vring_kick(&mut self, queue: u32, fd: &EventFd) -> io::Result<()> {
        self.tell(
            req::SET_VRING_KICK,
            &words64(&[queue.into()]),
            &[fd.as_raw_fd()],
        )
    }

    fn set_vring_call(&mut self, queue: u32, fd: &EventFd) -> io::Result<()> {
        self.tell(
            req::SET_VRING_CALL,
            &words64(&[queue.into()]),
            &[fd.as_raw_fd()],
        )
    }

    fn set_vring_err(&mut self, queue: u32, fd: &EventFd) -> io::Result<()> {
        self.tell(
            req::SET_VRING_ERR,
            &words64(&[queue.into()]),
            &[fd.as_raw_fd()],
        )
    }

    fn set_vring_enable(&mut self, queue: u32, on: u32) -> io::Result<()> {
        self.tell(req::SET_VRING_ENABLE, &words32(&[queue, on]), &[])
    }

    fn get_config(&mut self, len: u32) -> io::Result<Vec<u8>> {
        let reply = self.ask(
            req::GET_CONFIG,
            &config_payload(0, 0, &vec![0; len as usize]),
        )?;
        match reply
            .payload
            .get(12..)
            .filter(|bytes| bytes.len() == len as usize)
        {
            Some(bytes) => Ok(bytes.to_vec()),
            None => Err(io::Error::other(format!(
                "config reply of {} bytes",
                reply.payload.len()
            ))),
        }
    }

    fn set_config(&mut self, offset: u32, flags: u32, bytes: &[u8]) -> io::Result<()> {
        self.tell(req::SET_CONFIG, &config_payload(offset, flags, bytes), &[])
    }

    fn set_backend_req_fd(&mut self, fd: RawFd) -> io::Result<()> {
        self.tell(req::SET_BACKEND_REQ_FD, &[], &[fd])
    }

    fn reset_device(&mut self) -> io::Result<()> {
        self.tell(req::RESET_DEVICE, &[], &[])
    }

    fn get_inflight(&mut self, queues: u16, size: u16) -> io::Result<Inflight> {
        let payload = inflight_payload((0, 0, queues, size));
        self.wire.send(req::GET_INFLIGHT_FD, 0, &payload, &[])?;
        let (reply, fd) = self.wire.recv_with_fd()?;
        let long = |at: usize| u64::from_le_bytes(*reply.payload[at..].first_chunk().unwrap());
        if reply.request != req::GET_INFLIGHT_FD || reply.payload.len() != 24 {
            return Err(io::Error::other(format!("answered {reply:?}")));
        }
        let counts = long(16);
        Ok(Inflight {
            shape: (long(0), long(8), counts as u16, (counts >> 16) as u16),
            fd: fd.ok_or_else(|| io::Error::other("no descriptor"))?,
        })
    }

    fn set_inflight(&mut self, inflight: &Inflight) -> io::Result<()> {
        let payload = inflight_payload(inflight.shape);
        let fds = [inflight.fd.as_raw_fd()];
        self.tell(req::SET_INFLIGHT_FD, &payload, &fds)
    }

    fn wire(&self) -> Option<&Wire> {
        Some(&self.wire)
    }
}

/// What was offered and taken.
#[derive(Debug, Clone, Copy)]
pub struct Agreed {
    /// Features the back end offered.
    pub offered: u64,
    /// Features in force.
    pub features: u64,
    /// Protocol features offered.
    pub protocol_offered: u64,
    /// Protocol features in force.
    pub protocol: u64,
    /// Queues the back end has.
    pub queues: u64,
}

/// Says hello the way a VMM does, taking `guest` features where offered. SET_FEATURES of QEMU comes later, at start.
pub fn negotiate(front: &mut dyn FrontEnd, habits: Habits, guest: u64) -> io::Result<Agreed> {
    let features_of = |offered: u64| offered & (guest | feature::PROTOCOL_FEATURES);
    let mut agreed = Agreed {
        offered: 0,
        features: 0,
        protocol_offered: 0,
        protocol: 0,
        queues: 1,
    };
    match habits {
        Habits::Qemu => {
            agreed.offered = front.get_features()?;
            agreed.protocol_offered = front.get_protocol_features()?;
            agreed.protocol = agreed.protocol_offered & VMM_PROTOCOL;
            front.set_protocol_features(agreed.protocol)?;
            agreed.queues = front.get_queue_num()?;
            front.get_max_mem_slots()?;
            front.set_owner()?;
            agreed.offered = front.get_features()?;
            agreed.features = features_of(agreed.offered);
        }
        Habits::CloudHypervisor => {
            front.set_owner()?;
            agreed.offered = front.get_features()?;
            agreed.features = features_of(agreed.offered);
            front.set_features(agreed.features)?;
            agreed.protocol_offered = front.get_protocol_features()?;
            agreed.protocol = agreed.protocol_offered & VMM_PROTOCOL;
            front.set_protocol_features(agreed.protocol)?;
            agreed.queues = front.get_queue_num()?;
            front.get_max_mem_slots()?;
        }
    }
    Ok(agreed)
}
