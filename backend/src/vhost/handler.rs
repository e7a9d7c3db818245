//! The device as vhost-user-backend sees it.
//!
//! The rule: `queues_per_thread` is empty, so the crate starts no thread and no epoll of its own; what it learns goes
//! into the session.

use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::VhostUserBackend;
use vmm_sys_util::epoll::EventSet;

use super::link::describe;
use super::session::{Memory, Session};
use super::vring::Vring;
use super::{CONFIG_BYTES_MAX, CONFIG_SPACE_BYTES};

/// The handler of one session.
#[derive(Clone)]
pub(super) struct Handler {
    pub(super) session: Arc<Session>,
}

impl VhostUserBackend for Handler {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.session.device.queues().into()
    }

    fn max_queue_size(&self) -> usize {
        self.session.device.ring_size_max().into()
    }

    fn features(&self) -> u64 {
        self.session.features()
    }

    fn acked_features(&self, features: u64) {
        self.session.set_features(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.session.protocol()
    }

    fn reset_device(&self) {
        self.session.device.reset();
    }

    /// Known from the features.
    fn set_event_idx(&self, _enabled: bool) {}

    /// An empty answer is an error; the door has asked only for what there is.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let space = config_space(&*self.session.device);
        let part = space
            .get(offset as usize..)
            .and_then(|rest| rest.get(..size as usize));
        part.map(<[u8]>::to_vec).unwrap_or_default()
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        let mapped = self.session.set_memory(&memory);
        mapped.map_err(|error| io::Error::other(describe(&error)))
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        Vec::new()
    }

    fn stop_vring(&self, index: u32) -> io::Result<()> {
        let index = u16::try_from(index).map_err(io::Error::other)?;
        self.session.stop(index);
        Ok(())
    }

    /// Only a worker thread calls it, and there is none.
    fn handle_event(
        &self,
        _event: u16,
        _set: EventSet,
        _vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The device's configuration space, with zeroes after it as far as front ends ask.
pub(super) fn config_space(device: &dyn super::Device) -> Vec<u8> {
    let mut space = device.config();
    space.truncate(CONFIG_BYTES_MAX);
    space.resize(space.len().max(CONFIG_SPACE_BYTES), 0);
    space
}
