//! Messages no decent front end sends: each ends as this table says, and the door serves the next front end.

use super::super::message::RegionShape;
use super::*;

/// What comes of a message that asks for an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Refused with a reply; the session goes on.
    Nak,
    /// The session is over.
    Close,
    /// Accepted.
    Ack,
}
use Fate::{Ack, Close, Nak};

/// A message: code, body, descriptors.
type Say = (u32, Vec<u8>, Vec<RawFd>);

struct Fds {
    event: EventFd,
    pipe: std::io::PipeReader,
    zero: File,
    memory: File,
    socket: UnixStream,
}

fn none<T>() -> Vec<T> {
    Vec::new()
}

fn long(value: u64) -> Vec<u8> {
    value.to_ne_bytes().to_vec()
}

/// A region as messages describe it.
fn region(len_bytes: u64, queues: u16, queue_size: u16) -> Vec<u8> {
    let offset = 0;
    let shape = RegionShape {
        len_bytes,
        offset,
        queues,
        queue_size,
    };
    shape.to_bytes().to_vec()
}

fn config(offset: u32, size: u32, flags: u32, bytes: usize) -> Vec<u8> {
    let mut body = [offset, size, flags].map(u32::to_ne_bytes).concat();
    body.resize(12 + bytes, 0);
    body
}

fn address(index: u32, flags: u32, desc: u64, used: u64, avail: u64) -> Vec<u8> {
    let mut body = state(index, flags);
    body.extend([desc, used, avail, 0].map(u64::to_ne_bytes).concat());
    body
}

/// Messages to a session in which ring 0 runs.
#[rustfmt::skip]
fn cases(fds: &Fds) -> Vec<(&'static str, Fate, Say)> {
    let event = fds.event.as_raw_fd();
    let (pipe, zero, memory) = (fds.pipe.as_raw_fd(), fds.zero.as_raw_fd(), fds.memory.as_raw_fd());
    let socket = fds.socket.as_raw_fd();
    let user = SLOT.user;
    let end = SLOT.user + SLOT.len_bytes;
    let mut cases = vec![
        ("get features with a body",            Close, (1, long(0), none())),
        ("set features without a body",         Close, (2, none(), none())),
        ("set features with a descriptor",      Close, (2, long(all_features()), vec![event])),
        ("features that were not offered",      Nak,   (2, long(all_features() | 1 << 63), none())),
        ("other features while a ring runs",    Nak,   (2, long(1 << 32 | 1 << 30), none())),
        ("the same features while a ring runs", Ack,   (2, long(all_features()), none())),
        ("set owner twice",                     Ack,   (3, none(), none())),
        ("set owner with a body",               Close, (3, vec![0], none())),
        ("protocol features not offered",       Nak,   (16, long(1 << 1 | 1 << 3), none())),
        ("protocol features of the future",     Nak,   (16, long(1 << 63), none())),
        ("table shorter than its count",        Close, (5, long(2), vec![memory, memory])),
        ("table of four billion slots",         Close, (5, long(u64::from(u32::MAX)), vec![memory])),
        ("table of no slots",                   Nak,   (5, long(0), none())),
        ("table without its header",            Close, (5, vec![0; 4], none())),
        ("table with too few descriptors",      Close, (5, table(&[(SLOT, &fds.memory)]).0, none())),
        ("table with too many descriptors",     Close, (5, table(&[(SLOT, &fds.memory)]).0, vec![memory; 2])),
        ("table with very many descriptors",    Close, (5, table(&[(SLOT, &fds.memory)]).0, vec![memory; 200])),
        ("table with an eventfd",               Nak,   (5, table(&[(SLOT, &fds.memory)]).0, vec![event])),
        ("ring that does not exist",            Nak,   (8, state(4, 16), none())),
        ("ring index of 32 bits",               Nak,   (8, state(0x1_0000, 16), none())),
        ("ring index of all ones",              Nak,   (8, state(u32::MAX, 16), none())),
        ("ring of no entries",                  Nak,   (8, state(1, 0), none())),
        ("ring of 100 entries",                 Nak,   (8, state(1, 100), none())),
        ("ring larger than offered",            Nak,   (8, state(1, 512), none())),
        ("ring of 65536 entries",               Nak,   (8, state(1, 0x1_0000), none())),
        ("ring of 65552 entries",               Nak,   (8, state(1, 0x1_0010), none())),
        ("size of a running ring",              Nak,   (8, state(0, 32), none())),
        ("half a ring state",                   Close, (8, vec![0; 4], none())),
        ("base of a running ring",              Nak,   (10, state(0, 0), none())),
        ("base of more than 16 bits",           Nak,   (10, state(1, 0x1_0000), none())),
        ("base of no ring",                     Nak,   (10, state(77, 0), none())),
        ("get base of no ring",                 Nak,   (11, state(4, 0), none())),
        ("get base with a descriptor",          Close, (11, state(0, 0), vec![event])),
        ("ring outside memory",                 Nak,   (9, address(1, 0, user - 0x1000, user, user), none())),
        ("descriptors across the end",          Nak,   (9, address(0, 0, end - 0xf0, user, user), none())),
        ("used ring across the end",            Nak,   (9, address(0, 0, user, end - 0x84, user), none())),
        ("available ring across the end",       Nak,   (9, address(0, 0, user, user, end - 0x24), none())),
        ("addresses at the end of all",         Nak,   (9, address(1, 0, !15, user, user), none())),
        ("descriptors not aligned",             Nak,   (9, address(1, 0, user + 8, user, user), none())),
        ("used ring not aligned",               Nak,   (9, address(1, 0, user, user + 2, user), none())),
        ("available ring not aligned",          Nak,   (9, address(1, 0, user, user, user + 1), none())),
        ("a log of the used ring",              Nak,   (9, address(1, 1, user, user, user), none())),
        ("address flags unknown",               Nak,   (9, address(1, 0x80, user, user, user), none())),
        ("addresses of no ring",                Nak,   (9, address(4, 0, user, user, user), none())),
        ("addresses cut short",                 Close, (9, vec![0; 32], none())),
        ("kick of no ring",                     Nak,   (12, long(4), vec![event])),
        ("kick of ring 0 plus 256",             Nak,   (12, long(0x200), vec![event])),
        ("kick by polling",                     Nak,   (12, long(0x100), none())),
        ("kick without a descriptor",           Close, (12, long(0), none())),
        ("kick with NOFD and a descriptor",     Close, (12, long(0x100), vec![event])),
        ("kick with two descriptors",           Close, (12, long(0), vec![event, event])),
        ("/dev/zero as kick",                   Nak,   (12, long(0), vec![zero])),
        ("a pipe as kick",                      Nak,   (12, long(0), vec![pipe])),
        ("memory as call",                      Nak,   (13, long(0), vec![memory])),
        ("a socket as call",                    Nak,   (13, long(0), vec![socket])),
        ("call of no ring, without one",        Nak,   (13, long(0x100 | 4), none())),
        ("call with bits of the future",        Nak,   (13, long(1 << 32), vec![event])),
        ("a pipe as err",                       Nak,   (14, long(0), vec![pipe])),
        ("err of no ring",                      Nak,   (14, long(0xff), vec![event])),
        ("err removed",                         Ack,   (14, long(0x100), none())),
        ("enable of no ring",                   Nak,   (18, state(4, 1), none())),
        ("enable with 2",                       Nak,   (18, state(0, 2), none())),
        ("back end channel without a socket",   Close, (21, none(), none())),
        ("back end channel on a pipe",          Nak,   (21, none(), vec![pipe])),
        ("back end channel with two",           Close, (21, none(), vec![socket, socket])),
        ("set config shorter than it says",     Close, (25, config(0, 8, 0, 4), none())),
        ("set config longer than it says",      Close, (25, config(0, 4, 0, 8), none())),
        ("set config with flags unknown",       Nak,   (25, config(32, 1, 2, 1), none())),
        ("set config beyond the space",         Nak,   (25, config(96, 1, 0, 1), none())),
        ("set config wrapping around",          Nak,   (25, config(u32::MAX, 2, 0, 2), none())),
        ("set config of nothing",               Nak,   (25, config(0, 0, 0, 0), none())),
        ("set config of 257 bytes",             Close, (25, config(0, 257, 0, 257), none())),
        ("get config longer than it says",      Close, (24, config(0, 4, 0, 8), none())),
        ("get config without its header",       Close, (24, vec![0; 8], none())),
        ("get config of 4 GiB",                 Close, (24, config(0, u32::MAX, 0, 0), none())),
        ("add a slot without a descriptor",     Close, (37, single(SLOT), none())),
        ("add a slot with two descriptors",     Close, (37, single(SLOT), vec![memory, memory])),
        ("add a slot that is there",            Nak,   (37, single(SLOT), vec![memory])),
        ("add a slot cut short",                Close, (37, vec![0; 32], vec![memory])),
        ("remove a slot that is not there",     Nak,   (38, single(Slot { gpa: 0, ..SLOT }), none())),
        ("remove a slot of another size",       Nak,   (38, single(Slot { len_bytes: 1, ..SLOT }), none())),
        ("remove a slot of another user",       Nak,   (38, single(Slot { user: 0, ..SLOT }), none())),
        ("remove with two descriptors",         Close, (38, single(SLOT), vec![memory, memory])),
        ("message 0",                           Nak,   (0, none(), none())),
        ("an inflight region of no queue",      Nak,   (31, region(0, 0, 16), none())),
        ("an inflight region of rings of 0",    Nak,   (31, region(0, 1, 0), none())),
        ("an inflight region asked too shortly", Close, (31, long(0), none())),
        ("an inflight region while a ring runs", Nak,  (32, region(1 << 16, 1, 16), vec![memory])),
        ("an inflight region without memory",   Close, (32, region(1 << 16, 1, 16), none())),
        ("message of all ones",                 Nak,   (u32::MAX, none(), none())),
        ("unknown with descriptors",            Nak,   (200, long(0), vec![event, memory])),
        ("unknown with a long body",            Close, (200, vec![0; 269], none())),
    ];
    // Defined by vhost-user.rst, but their features are not on offer.
    let undefined = [6, 7, 19, 20, 22, 23, 26, 28, 29, 30, 33, 35, 39, 40, 41, 42, 43, 44];
    cases.extend(undefined.map(|code| ("not on offer", Nak, (code, long(0), none()))));
    cases
}

#[test]
fn a_malformed_message_is_refused_or_ends_the_session_and_nothing_else() {
    let fds = Fds {
        event: eventfd(),
        pipe: std::io::pipe().unwrap().0,
        zero: File::open("/dev/zero").unwrap(),
        memory: memory_file(SLOT.len_bytes),
        socket: UnixStream::pair().unwrap().0,
    };
    for (name, fate, (code, body, sent)) in cases(&fds) {
        let mut visit = Visit::running();
        let client = &mut visit.client;
        client.raw(code, NEED_REPLY, body.len() as u32, &body, &sent);
        let seen = match client.reply() {
            None => Close,
            Some((replied, value)) => {
                assert_eq!(replied, code, "{name}");
                let value: u64 = u64::from_ne_bytes(value.try_into().unwrap());
                assert!(value <= 1, "{name}");
                if value == 0 { Ack } else { Nak }
            }
        };
        assert_eq!(seen, fate, "{name} ({code})");
        match fate {
            Close => {
                assert!(matches!(visit.end(), End::Refused(_)), "{name}");
                assert_eq!(visit.rings.take_log(), ["stop 0"], "{name}");
            }
            Nak => {
                assert!(visit.rings.take_log().is_empty(), "{name}");
                client.fence();
                // Without an acknowledgement the front end would believe that it was obeyed: it is let go.
                client.raw(code, PLAIN, body.len() as u32, &body, &sent);
                assert!(
                    client.reply().is_none(),
                    "{name} ({code}) without need_reply"
                );
                assert!(matches!(visit.end(), End::Refused(_)), "{name}");
            }
            Ack => client.fence(),
        }
    }
}

#[test]
fn headers_that_are_not_of_a_request_end_the_session() {
    let flags = [0u32, 2, 3, 5, 4, 0x11, 0x8000_0001, 0xd];
    let sizes = [269u32, 0x1000, 0x1001, u32::MAX];
    let mut headers: Vec<(u32, u32)> = flags.map(|flags| (flags, 0)).to_vec();
    headers.extend(sizes.map(|size| (PLAIN, size)));
    for (flags, size) in headers {
        let mut visit = Visit::running();
        visit.client.raw(1, flags, size, &[], &[]);
        assert!(visit.client.reply().is_none(), "{flags:#x} {size}");
        assert!(matches!(visit.end(), End::Refused(_)));
    }
}

#[test]
fn a_session_cut_off_after_any_byte_ends_as_a_disconnect_or_in_mid_message() {
    let mut whole: Vec<u8> = [8u32, 1, 8].map(u32::to_ne_bytes).concat();
    whole.extend(state(1, 16));
    for cut in 0..whole.len() {
        let mut visit = Visit::running();
        visit.client.socket.write_all(&whole[..cut]).unwrap();
        visit
            .client
            .socket
            .shutdown(std::net::Shutdown::Write)
            .unwrap();
        let end = visit.end();
        assert_eq!(end == End::Disconnected, cut == 0, "{cut}: {end}");
        assert_eq!(visit.rings.take_log(), ["stop 0"]);
    }
}

#[test]
fn messages_may_arrive_byte_by_byte() {
    let mut visit = Visit::running();
    let mut whole: Vec<u8> = [8u32, NEED_REPLY, 8].map(u32::to_ne_bytes).concat();
    whole.extend(state(1, 16));
    for byte in whole {
        visit.client.socket.write_all(&[byte]).unwrap();
    }
    assert_eq!(visit.client.reply().unwrap().0, 8);
}

#[test]
fn descriptors_in_the_middle_of_a_message_end_the_session() {
    let mut visit = Visit::running();
    let event = eventfd();
    let header: Vec<u8> = [12u32, PLAIN, 8].map(u32::to_ne_bytes).concat();
    visit.client.socket.write_all(&header).unwrap();
    let body = 0u64.to_ne_bytes();
    visit
        .client
        .socket
        .send_with_fds(&[&body[..]], &[event.as_raw_fd()])
        .unwrap();
    assert!(matches!(visit.end(), End::Refused(_)));
}

#[test]
fn a_front_end_that_goes_on_being_refused_is_let_go() {
    let mut visit = Visit::prepared();
    let mut refused = 0;
    while visit
        .client
        .ack(FrontendReq::SET_VRING_NUM, &state(9, 0), &[])
        == Some(1)
    {
        refused += 1;
    }
    assert_eq!(refused, 16);
    assert!(matches!(visit.end(), End::Refused(_)));
}

#[test]
fn a_configuration_write_the_device_declines_costs_nothing() {
    let mut visit = Visit::prepared();
    let mut body = config(0, 1, 0, 1);
    body[12] = 0xee;
    for _ in 0..100 {
        visit
            .client
            .send(FrontendReq::SET_CONFIG, PLAIN, &body, &[]);
    }
    assert_eq!(
        visit.client.ack(FrontendReq::SET_CONFIG, &body, &[]),
        Some(1)
    );
    visit.client.fence();
}

#[test]
fn messages_before_their_features_are_acknowledged_are_refused() {
    // SET_VRING_ENABLE, GET_CONFIG, SET_CONFIG, and those of memory slots.
    for code in [18, 24, 25, 36, 37, 38] {
        let mut visit = Visit::new();
        let reply_ack = (1u64 << 3).to_ne_bytes();
        visit
            .client
            .send(FrontendReq::SET_PROTOCOL_FEATURES, PLAIN, &reply_ack, &[]);
        let body = if code == 18 { state(0, 1) } else { Vec::new() };
        visit
            .client
            .raw(code, NEED_REPLY, body.len() as u32, &body, &[]);
        let (replied, value) = visit.client.reply().unwrap();
        assert_eq!((replied, value), (code, long(1)));
    }
}

#[test]
fn a_front_end_that_reads_no_replies_cannot_hold_the_door() {
    let visit = Visit::running();
    let mut socket = visit.client.socket.try_clone().unwrap();
    socket.set_nonblocking(true).unwrap();
    let message: Vec<u8> = [1u32, PLAIN, 0].map(u32::to_ne_bytes).concat();
    // Until both directions are full; the session then waits for us to read.
    let mut full = 0;
    while full < 3 {
        match socket.write(&message).map(|sent| sent > 0) {
            Ok(more) => full = if more { 0 } else { full },
            Err(_) => {
                full += 1;
                std::thread::yield_now();
            }
        }
    }
    visit.door.stop(PATIENCE).unwrap();
    assert_eq!(visit.rings.take_log(), ["stop 0"]);
}
