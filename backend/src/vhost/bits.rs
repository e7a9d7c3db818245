//! Feature bits of vhost-user and of virtio's transport, as this device offers them.

use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use ring::vring::{EventIdx, Indirect, RingFeatures};

/// VHOST_USER_F_PROTOCOL_FEATURES.
pub(super) const PROTOCOL_FEATURES: u64 = 1 << 30;

/// What the rings and the transport offer, whatever the device.
///
/// VIRTIO_F_RING_RESET is not among them: QEMU's vhost-user-blk does not tell the back end of a queue reset, so a driver
/// that used it would find the old ring still running.
pub(super) const TRANSPORT: u64 = PROTOCOL_FEATURES
    | 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX;

/// The protocol features on offer; every bit here has its messages in `message`.
pub(super) const PROTOCOL: Protocol = Protocol::MQ
    .union(Protocol::CONFIG)
    .union(Protocol::REPLY_ACK)
    .union(Protocol::CONFIGURE_MEM_SLOTS)
    .union(Protocol::RESET_DEVICE)
    .union(Protocol::BACKEND_REQ)
    .union(Protocol::INFLIGHT_SHMFD);

/// What acknowledged features mean for a ring.
pub(super) fn ring_features(acked: u64) -> RingFeatures {
    RingFeatures {
        event_idx: match acked & (1 << VIRTIO_RING_F_EVENT_IDX) {
            0 => EventIdx::Off,
            _ => EventIdx::On,
        },
        indirect: match acked & (1 << VIRTIO_RING_F_INDIRECT_DESC) {
            0 => Indirect::Off,
            _ => Indirect::On,
        },
    }
}
