//! The `vhost` crate's front end (what cloud-hypervisor is built on) behind [`FrontEnd`].

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight,
    VhostUserProtocolFeatures as Protocol,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::front::{FrontEnd, Inflight, RingAddresses, protocol};
use super::memory::Region;
use super::patience;

/// `vhost::vhost_user::Frontend`, with a deadline on its socket.
pub struct CrateFront {
    front: Frontend,
    sizes: Vec<u16>,
}

impl fmt::Debug for CrateFront {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CrateFront")
            .field("fd", &self.front.as_raw_fd())
            .finish_non_exhaustive()
    }
}

const QUEUES_MAX: usize = 64;

impl CrateFront {
    /// Connects; nothing is said yet.
    pub fn connect(path: &Path) -> io::Result<CrateFront> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(patience()))?;
        let front = Frontend::from_stream(socket, QUEUES_MAX as u64);
        Ok(CrateFront {
            front,
            sizes: vec![0; QUEUES_MAX],
        })
    }
}

fn told(error: vhost::Error) -> io::Error {
    io::Error::other(error)
}

fn info(region: &Region) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: region.gpa,
        memory_size: region.len,
        userspace_addr: region.user,
        mmap_offset: region.fd_offset,
        mmap_handle: region.fd,
    }
}

impl FrontEnd for CrateFront {
    fn get_features(&mut self) -> io::Result<u64> {
        self.front.get_features().map_err(told)
    }

    fn set_features(&mut self, features: u64) -> io::Result<()> {
        self.front.set_features(features).map_err(told)
    }

    fn get_protocol_features(&mut self) -> io::Result<u64> {
        self.front
            .get_protocol_features()
            .map(|f| f.bits())
            .map_err(told)
    }

    fn set_protocol_features(&mut self, features: u64) -> io::Result<()> {
        self.front
            .set_protocol_features(Protocol::from_bits_truncate(features))
            .map_err(told)?;
        if features & protocol::REPLY_ACK != 0 {
            self.front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        Ok(())
    }

    fn set_owner(&mut self) -> io::Result<()> {
        self.front.set_owner().map_err(told)
    }

    fn get_queue_num(&mut self) -> io::Result<u64> {
        self.front.get_queue_num().map_err(told)
    }

    fn get_max_mem_slots(&mut self) -> io::Result<u64> {
        self.front.get_max_mem_slots().map_err(told)
    }

    fn set_mem_table(&mut self, regions: &[Region]) -> io::Result<()> {
        let regions: Vec<_> = regions.iter().map(info).collect();
        self.front.set_mem_table(&regions).map(drop).map_err(told)
    }

    fn add_mem_reg(&mut self, region: &Region) -> io::Result<()> {
        self.front
            .add_mem_region(&info(region))
            .map(drop)
            .map_err(told)
    }

    fn rem_mem_reg(&mut self, region: &Region) -> io::Result<()> {
        self.front.remove_mem_region(&info(region)).map_err(told)
    }

    fn set_vring_num(&mut self, queue: u32, size: u16) -> io::Result<()> {
        self.sizes[queue as usize] = size;
        self.front.set_vring_num(queue as usize, size).map_err(told)
    }

    fn set_vring_addr(&mut self, queue: u32, at: RingAddresses) -> io::Result<()> {
        let size = self.sizes[queue as usize];
        let config = VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr: at.desc,
            used_ring_addr: at.used,
            avail_ring_addr: at.avail,
            log_addr: None,
        };
        self.front
            .set_vring_addr(queue as usize, &config)
            .map_err(told)
    }

    fn set_vring_base(&mut self, queue: u32, base: u16) -> io::Result<()> {
        self.front
            .set_vring_base(queue as usize, base)
            .map_err(told)
    }

    fn get_vring_base(&mut self, queue: u32) -> io::Result<u32> {
        self.front.get_vring_base(queue as usize).map_err(told)
    }

    fn set_vring_kick(&mut self, queue: u32, fd: &EventFd) -> io::Result<()> {
        self.front.set_vring_kick(queue as usize, fd).map_err(told)
    }

    fn set_vring_call(&mut self, queue: u32, fd: &EventFd) -> io::Result<()> {
        self.front.set_vring_call(queue as usize, fd).map_err(told)
    }

    fn set_vring_err(&mut self, queue: u32, fd: &EventFd) -> io::Result<()> {
        self.front.set_vring_err(queue as usize, fd).map_err(told)
    }

    fn set_vring_enable(&mut self, queue: u32, on: u32) -> io::Result<()> {
        self.front
            .set_vring_enable(queue as usize, on != 0)
            .map_err(told)
    }

    fn get_config(&mut self, len: u32) -> io::Result<Vec<u8>> {
        let asked = vec![0; len as usize];
        let reply = self
            .front
            .get_config(0, len, VhostUserConfigFlags::WRITABLE, &asked);
        reply.map(|(_, bytes)| bytes).map_err(told)
    }

    fn set_config(&mut self, offset: u32, flags: u32, bytes: &[u8]) -> io::Result<()> {
        let flags = VhostUserConfigFlags::from_bits_truncate(flags);
        self.front.set_config(offset, flags, bytes).map_err(told)
    }

    fn set_backend_req_fd(&mut self, fd: RawFd) -> io::Result<()> {
        // SAFETY: the caller holds the descriptor open for the length of this call.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        self.front.set_backend_request_fd(&fd).map_err(told)
    }

    fn reset_device(&mut self) -> io::Result<()> {
        self.front.reset_device().map_err(told)
    }

    fn get_inflight(&mut self, queues: u16, size: u16) -> io::Result<Inflight> {
        let asked = VhostUserInflight::new(0, 0, queues, size);
        let (shape, file) = self.front.get_inflight_fd(&asked).map_err(told)?;
        let shape = (
            shape.mmap_size,
            shape.mmap_offset,
            shape.num_queues,
            shape.queue_size,
        );
        let fd = file.into();
        Ok(Inflight { shape, fd })
    }

    fn set_inflight(&mut self, inflight: &Inflight) -> io::Result<()> {
        let (len, offset, queues, size) = inflight.shape;
        let shape = VhostUserInflight::new(len, offset, queues, size);
        let fd = inflight.fd.as_raw_fd();
        self.front.set_inflight_fd(&shape, fd).map_err(told)
    }
}
