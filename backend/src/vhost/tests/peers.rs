//! The front end of the vhost crate, which cloud-hypervisor is built on, in its order of messages.

use super::*;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};

fn region(slot: Slot, file: &File) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: slot.gpa,
        memory_size: slot.len_bytes,
        userspace_addr: slot.user,
        mmap_offset: slot.offset,
        mmap_handle: file.as_raw_fd(),
    }
}

#[test]
fn the_vhost_crates_front_end_runs_a_ring_and_stops_it() {
    let visit = Visit::new();
    let socket = visit.client.socket.try_clone().unwrap();
    let mut front = Frontend::from_stream(socket, u64::from(QUEUES));
    front.set_owner().unwrap();
    let features = front.get_features().unwrap();
    let protocol = front.get_protocol_features().unwrap();
    front.set_protocol_features(protocol).unwrap();
    front.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
    assert_eq!(front.get_queue_num().unwrap(), u64::from(QUEUES));
    assert!(protocol.contains(VhostUserProtocolFeatures::CONFIG));
    let flags = VhostUserConfigFlags::WRITABLE;
    let (_, config) = front.get_config(0, 60, flags, &[0; 60]).unwrap();
    assert_eq!(config, (0..60).collect::<Vec<u8>>());
    front.set_config(32, flags, &[1]).unwrap();

    front.set_features(features).unwrap();
    let (high, low) = (memory_file(0x1000), memory_file(SLOT.len_bytes));
    let high_slot = Slot {
        gpa: 1 << 32,
        len_bytes: 0x1000,
        user: 1 << 40,
        offset: 0,
    };
    let regions = [region(high_slot, &high), region(SLOT, &low)];
    front.set_mem_table(&regions).unwrap();
    let (kick, call) = (eventfd(), eventfd());
    for index in 0..2 {
        let user = ring_user(index as u32);
        front.set_vring_num(index, RING_SIZE).unwrap();
        let config = VringConfigData {
            queue_max_size: RING_SIZE,
            queue_size: RING_SIZE,
            flags: 0,
            desc_table_addr: user,
            used_ring_addr: user + 0x2000,
            avail_ring_addr: user + 0x1000,
            log_addr: None,
        };
        front.set_vring_addr(index, &config).unwrap();
        front.set_vring_base(index, 9).unwrap();
        front.set_vring_call(index, &call).unwrap();
        front.set_vring_kick(index, &kick).unwrap();
        front.set_vring_enable(index, true).unwrap();
    }
    assert_eq!(visit.rings.take_log(), ["start 0 at 9", "start 1 at 9"]);

    let more = memory_file(0x1000);
    let more_slot = Slot {
        gpa: 2 << 32,
        user: 2 << 40,
        ..high_slot
    };
    front.add_mem_region(&region(more_slot, &more)).unwrap();
    front.remove_mem_region(&region(more_slot, &more)).unwrap();
    front.set_vring_enable(0, false).unwrap();
    *visit.rings.progress.lock().unwrap() = 1;
    assert_eq!(front.get_vring_base(0).unwrap(), 9);
    assert_eq!(front.get_vring_base(1).unwrap(), 10);
    front.reset_device().unwrap();
    drop(front);
}
