//! A queue thread on its own, with what no front end is let through to give it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Read;

use blockgraph::driver::null::Reads;
use blockgraph::graph::Common;
use blockgraph::graph::open::{DriverSpec, NodeSpec, NullKind, NullSpec};
use ring::Choice;
use tests::client::thread::desk;

fn null() -> NodeSpec {
    NodeSpec {
        name: None,
        common: Common::default(),
        driver: DriverSpec::Null(NullSpec {
            kind: NullKind::Co,
            size_bytes: 1 << 20,
            reads: Reads::Zeroes,
            latency_ns: 0,
        }),
    }
}

/// A poll that ended with an error was taken for one of a ring that is gone: the ring ran on, deaf, and its guest hung.
#[test]
fn a_ring_whose_kicks_cannot_be_heard_ends_its_session_instead_of_going_deaf() {
    let mut desk = desk(Choice::Threads, null());
    // epoll takes no regular files, so listening to this one fails as listening to an eventfd would without memory.
    let deaf = tempfile::tempfile().unwrap();
    desk.start_with(deaf.into());
    desk.front
        .set_read_timeout(Some(tests::client::patience()))
        .unwrap();
    let read = desk.front.read(&mut [0; 1]);
    assert_eq!(read.unwrap(), 0, "the session was given up");
    assert!(desk.crew.stop(0).is_some(), "and drains as ever");
}
