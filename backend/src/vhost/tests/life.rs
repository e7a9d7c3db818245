//! A session from its first message to its last.

use super::*;
use ring::vring::{EventIdx, Indirect};
use std::os::unix::net::UnixListener;

#[test]
fn the_offer_is_exactly_what_is_served() {
    let mut visit = Visit::new();
    let features = visit.client.get(FrontendReq::GET_FEATURES, &[]);
    // VERSION_1, PROTOCOL_FEATURES, EVENT_IDX, INDIRECT_DESC, and the device's own.
    let expected: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | DEVICE_FEATURES;
    assert_eq!(features, expected.to_ne_bytes());
    let protocol = visit.client.get(FrontendReq::GET_PROTOCOL_FEATURES, &[]);
    // MQ 0, REPLY_ACK 3, BACKEND_REQ 5, CONFIG 9, INFLIGHT_SHMFD 12, RESET_DEVICE 13, CONFIGURE_MEM_SLOTS 15.
    let expected: u64 = 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 15;
    assert_eq!(protocol, expected.to_ne_bytes());
}

#[test]
fn queues_and_slots_are_told_once_their_features_are_acknowledged() {
    let mut visit = Visit::new();
    visit.client.negotiate();
    let queues = visit.client.get(FrontendReq::GET_QUEUE_NUM, &[]);
    assert_eq!(queues, u64::from(QUEUES).to_ne_bytes());
    let slots = visit.client.get(FrontendReq::GET_MAX_MEM_SLOTS, &[]);
    assert_eq!(slots, 509u64.to_ne_bytes());
    let acked = format!("acked {:#x}", all_features() & !(1 << 30));
    // A session begins with a device as at its export.
    let log = visit.device.log.lock().unwrap();
    assert_eq!(log[..], ["reset".to_owned(), acked]);
}

#[test]
fn a_ring_starts_where_it_was_told_and_stops_where_it_got() {
    let mut visit = Visit::prepared();
    visit.client.configure_ring(1, 65530);
    visit.client.kick(1);
    visit.client.call(1);
    assert!(visit.rings.take_log().is_empty(), "not enabled yet");
    visit.client.enable(1, 1);
    assert_eq!(visit.rings.take_log(), ["start 1 at 65530"]);
    visit.rings.with(1, |start| {
        assert_eq!(start.layout.size, RING_SIZE);
        assert_eq!(start.layout.desc, SLOT.gpa + 0x3000);
        assert_eq!(start.layout.avail, SLOT.gpa + 0x4000);
        assert_eq!(start.layout.used, SLOT.gpa + 0x5000);
        assert_eq!(start.features.event_idx, EventIdx::On);
        assert_eq!(start.features.indirect, Indirect::On);
        assert!(start.call.is_some() && start.err.is_none());
    });
    *visit.rings.progress.lock().unwrap() = 10;
    let base = visit.client.get(FrontendReq::GET_VRING_BASE, &state(1, 0));
    assert_eq!(base, state(1, 4), "indexes wrap at 65536");
    assert_eq!(visit.rings.take_log(), ["stop 1"]);
    // Stopped for good: enabling it does not start it, a new kick does.
    visit.client.enable(1, 0);
    visit.client.enable(1, 1);
    assert!(visit.rings.take_log().is_empty());
    visit.client.kick(1);
    assert_eq!(visit.rings.take_log(), ["start 1 at 4"]);
}

#[test]
fn a_ring_that_never_ran_tells_the_base_it_was_given() {
    let mut visit = Visit::prepared();
    visit.client.configure_ring(2, 77);
    let base = visit.client.get(FrontendReq::GET_VRING_BASE, &state(2, 0));
    assert_eq!(base, state(2, 77));
    assert!(visit.rings.take_log().is_empty());
}

#[test]
fn without_protocol_features_a_kick_is_enough() {
    let mut visit = Visit::new();
    visit.client.get(FrontendReq::GET_FEATURES, &[]);
    let features = (1u64 << 32).to_ne_bytes();
    visit
        .client
        .send(FrontendReq::SET_FEATURES, PLAIN, &features, &[]);
    let file = memory_file(SLOT.len_bytes);
    let (body, fds) = table(&[(SLOT, &file)]);
    visit
        .client
        .send(FrontendReq::SET_MEM_TABLE, PLAIN, &body, &fds);
    let kick = eventfd();
    let messages = [
        (FrontendReq::SET_VRING_NUM, state(0, 16), vec![]),
        (FrontendReq::SET_VRING_ADDR, ring_at(0, SLOT.user), vec![]),
        (FrontendReq::SET_VRING_BASE, state(0, 3), vec![]),
        (
            FrontendReq::SET_VRING_KICK,
            vec![0; 8],
            vec![kick.as_raw_fd()],
        ),
    ];
    for (code, body, fds) in messages {
        visit.client.send(code, PLAIN, &body, &fds);
    }
    visit.client.fence();
    assert_eq!(visit.rings.take_log(), ["start 0 at 3"]);
    visit.rings.with(0, |start| {
        assert_eq!(start.features.event_idx, EventIdx::Off)
    });
}

#[test]
fn disabling_a_ring_stops_it_and_keeps_its_set_up() {
    let mut visit = Visit::running();
    *visit.rings.progress.lock().unwrap() = 5;
    visit.client.enable(0, 0);
    visit.client.enable(0, 1);
    visit.client.enable(0, 1);
    assert_eq!(visit.rings.take_log(), ["stop 0", "start 0 at 5"]);
}

#[test]
fn descriptors_may_be_replaced_while_a_ring_runs() {
    let mut visit = Visit::running();
    visit.client.kick(0);
    visit.client.call(0);
    let err = eventfd();
    visit
        .client
        .ok(FrontendReq::SET_VRING_ERR, &[0; 8], &[err.as_raw_fd()]);
    let nofd = 0x100u64.to_ne_bytes();
    visit.client.ok(FrontendReq::SET_VRING_CALL, &nofd, &[]);
    let told = ["kick 0", "call 0 true", "err 0 true", "call 0 false"];
    assert_eq!(visit.rings.take_log(), told);
}

#[test]
fn call_and_err_never_block_whatever_the_front_end_made_them() {
    let mut visit = Visit::prepared();
    let call = EventFd::new(0).unwrap();
    visit
        .client
        .ok(FrontendReq::SET_VRING_CALL, &[0; 8], &[call.as_raw_fd()]);
    // A blocking eventfd would wait here for a signal.
    assert_eq!(
        call.read().unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock
    );
}

#[test]
fn a_ring_set_up_elsewhere_while_it_runs_goes_on_there() {
    let mut visit = Visit::running();
    visit
        .client
        .ok(FrontendReq::SET_VRING_ADDR, &ring_at(0, SLOT.user), &[]);
    assert!(visit.rings.take_log().is_empty(), "the same place");
    *visit.rings.progress.lock().unwrap() = 2;
    visit.client.ok(
        FrontendReq::SET_VRING_ADDR,
        &ring_at(0, SLOT.user + 0x8000),
        &[],
    );
    assert_eq!(visit.rings.take_log(), ["stop 0", "start 0 at 2"]);
    visit
        .rings
        .with(0, |start| assert_eq!(start.layout.desc, SLOT.gpa + 0x8000));
}

#[test]
fn a_device_reset_drains_the_rings_and_forgets_them() {
    let mut visit = Visit::running();
    visit.client.ok(FrontendReq::RESET_DEVICE, &[], &[]);
    assert_eq!(visit.rings.take_log(), ["stop 0"]);
    assert_eq!(visit.device.log.lock().unwrap().last().unwrap(), "reset");
    assert_eq!(
        visit.client.get(FrontendReq::GET_VRING_BASE, &state(0, 0)),
        state(0, 0)
    );
    let features = all_features().to_ne_bytes();
    visit.client.ok(FrontendReq::SET_FEATURES, &features, &[]);
    visit.client.enable(0, 1);
    assert!(visit.rings.take_log().is_empty(), "nothing to run on");
    // Enabled already, so the kick starts it, and the call that follows is told.
    visit.client.start_ring(0);
    assert_eq!(visit.rings.take_log(), ["start 0 at 0", "call 0 true"]);
}

#[test]
fn reset_owner_drains_the_rings_and_leaves_the_connection_usable() {
    let mut visit = Visit::running();
    visit.client.ok(FrontendReq::RESET_OWNER, &[], &[]);
    assert_eq!(visit.rings.take_log(), ["stop 0"]);
    visit.client.ok(FrontendReq::SET_OWNER, &[], &[]);
    visit.client.enable(0, 1);
    assert_eq!(visit.rings.take_log(), ["start 0 at 0"]);
}

#[test]
fn a_hang_up_stops_the_rings_before_it_is_told() {
    let visit = Visit::running();
    visit
        .client
        .socket
        .shutdown(std::net::Shutdown::Both)
        .unwrap();
    assert_eq!(visit.end(), End::Disconnected);
    assert_eq!(visit.rings.take_log(), ["stop 0"]);
}

#[test]
fn a_queue_thread_can_end_the_session() {
    let mut visit = Visit::running();
    let link = visit.rings.with(0, |start| start.link.clone());
    link.fail("guest memory vanished");
    link.fail("and more");
    assert_eq!(visit.end(), End::Failed("guest memory vanished".to_owned()));
    assert!(visit.client.is_closed());
    link.fail("nobody hears this");
    visit.door.fail("nor this");
}

#[test]
fn stop_ends_a_session_that_is_stuck_in_half_a_message() {
    let mut visit = Visit::running();
    visit.client.socket.write_all(&[1, 0, 0]).unwrap();
    visit.door.stop(PATIENCE).unwrap();
    assert_eq!(visit.end(), End::Stopped);
    assert_eq!(visit.rings.take_log(), ["stop 0"]);
    assert!(visit.client.is_closed());
}

#[test]
fn a_ring_that_does_not_start_ends_the_session() {
    let mut visit = Visit::prepared();
    *visit.rings.refuse.lock().unwrap() = true;
    visit.client.configure_ring(0, 0);
    visit.client.kick(0);
    assert_eq!(
        visit
            .client
            .ack(FrontendReq::SET_VRING_ENABLE, &state(0, 1), &[]),
        None
    );
    let End::Refused(reason) = visit.end() else {
        panic!("not refused")
    };
    assert_eq!(reason, "ring 0 does not start: no");
}

#[test]
fn there_is_one_reply_to_what_asks_for_one_and_none_else() {
    let mut visit = Visit::prepared();
    let client = &mut visit.client;
    // Three without, one with, one that replies by itself whatever its flags.
    client.send(FrontendReq::SET_VRING_NUM, PLAIN, &state(0, 16), &[]);
    client.send(FrontendReq::SET_VRING_BASE, PLAIN, &state(0, 0), &[]);
    client.send(FrontendReq::SET_OWNER, PLAIN, &[], &[]);
    client.send(FrontendReq::SET_VRING_NUM, NEED_REPLY, &state(1, 16), &[]);
    client.send(FrontendReq::GET_QUEUE_NUM, NEED_REPLY, &[], &[]);
    client.send(FrontendReq::GET_FEATURES, PLAIN, &[], &[]);
    let codes: Vec<u32> = (0..3).map(|_| client.reply().unwrap().0).collect();
    assert_eq!(codes, [8, 17, 1]);
    client.socket.set_nonblocking(true).unwrap();
    let error = client.socket.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn need_reply_means_nothing_before_it_is_negotiated() {
    let mut visit = Visit::new();
    visit
        .client
        .send(FrontendReq::SET_OWNER, NEED_REPLY, &[], &[]);
    visit
        .client
        .send(FrontendReq::GET_FEATURES, PLAIN, &[], &[]);
    assert_eq!(visit.client.reply().unwrap().0, 1);
}

#[test]
fn the_configuration_is_read_in_any_part_and_with_any_flags() {
    let mut visit = Visit::prepared();
    let config = |offset: u32, size: u32, flags: u32| {
        let mut body = [offset, size, flags].map(u32::to_ne_bytes).concat();
        body.resize(12 + size as usize, 0);
        body
    };
    let mut whole = config(0, 96, 0);
    (0..60).for_each(|at| whole[12 + at as usize] = at);
    assert_eq!(
        visit.client.get(FrontendReq::GET_CONFIG, &config(0, 96, 0)),
        whole
    );
    let mut part = config(32, 4, 7);
    part[12..].copy_from_slice(&[32, 33, 34, 35]);
    assert_eq!(
        visit.client.get(FrontendReq::GET_CONFIG, &config(32, 4, 7)),
        part
    );
    // Beyond the space: a reply without a body.
    for (offset, size) in [(0, 97), (95, 2), (96, 1), (u32::MAX, 4), (0, 256), (0, 0)] {
        let reply = visit
            .client
            .get(FrontendReq::GET_CONFIG, &config(offset, size, 0));
        assert!(reply.is_empty(), "{size} at {offset}");
    }
}

#[test]
fn the_configuration_is_written_with_either_flag() {
    let mut visit = Visit::prepared();
    visit.device.log.lock().unwrap().clear();
    for flags in [0u32, 1] {
        let mut body = [32u32, 1, flags].map(u32::to_ne_bytes).concat();
        body.push(flags as u8);
        visit.client.ok(FrontendReq::SET_CONFIG, &body, &[]);
    }
    let told = ["config 32 [0]", "config 32 [1]"];
    assert_eq!(visit.device.log.lock().unwrap()[..], told);
}

#[test]
fn a_changed_configuration_is_told_over_the_back_ends_channel() {
    let mut visit = Visit::prepared();
    visit.door.config_changed();
    let (mut here, there) = UnixStream::pair().unwrap();
    here.set_read_timeout(Some(PATIENCE)).unwrap();
    visit
        .client
        .ok(FrontendReq::SET_BACKEND_REQ_FD, &[], &[there.as_raw_fd()]);
    drop(there);
    visit.door.config_changed();
    let mut message = [0; 12];
    here.read_exact(&mut message).unwrap();
    assert_eq!(
        message.to_vec(),
        [2u32, 1, 0].map(u32::to_ne_bytes).concat()
    );
    // A front end that never reads it costs nothing, and one that closed it costs one line.
    (0..100_000).for_each(|_| visit.door.config_changed());
    drop(here);
    visit.door.config_changed();
    visit.client.fence();
}

#[test]
fn front_ends_come_one_after_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let rings = Arc::new(FakeRings::default());
    let device = Arc::new(FakeDevice::default());
    let (tell, events) = channel();
    let send = Arc::new(move |event| tell.send(event).unwrap_or_default());
    let listener = UnixListener::bind(&path).unwrap();
    let door = Door::listen(listener, device, rings, send).unwrap();
    assert_eq!(door.accept_ready().unwrap(), crate::vhost::Accepted::Nobody);

    let mut first = Client::new(UnixStream::connect(&path).unwrap());
    let mut second = Client::new(UnixStream::connect(&path).unwrap());
    assert_eq!(door.accept_ready().unwrap(), crate::vhost::Accepted::Began);
    assert_eq!(door.accept_ready().unwrap(), crate::vhost::Accepted::Busy);
    first.fence();
    second.send(FrontendReq::GET_FEATURES, PLAIN, &[], &[]);
    drop(first);
    assert_eq!(second.reply().unwrap().0, 1, "its turn");
    drop(second);
    let expected = [
        DoorEvent::Connected,
        DoorEvent::Ended(End::Disconnected),
        DoorEvent::Connected,
        DoorEvent::Ended(End::Disconnected),
        DoorEvent::Listening,
    ];
    for event in expected {
        assert_eq!(events.recv_timeout(PATIENCE), Ok(event));
    }
    let mut third = Client::new(UnixStream::connect(&path).unwrap());
    assert_eq!(door.accept_ready().unwrap(), crate::vhost::Accepted::Began);
    third.fence();
    door.stop(PATIENCE).unwrap();
    assert!(third.is_closed());
    assert_eq!(door.accept_ready().unwrap(), crate::vhost::Accepted::Busy);
}
