//! A tenant that has a thread and a ring to itself.
//!
//! The rule: the thread blocks in one place, the ring's turn, and ends with its tenant.

use super::tenant::{Arrival, TENANT, Tenants};
use blockgraph::{Event, Lane};
use ring::Op;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// The token of the poll of the ring's bell.
const BELL: u64 = 1 << 61;

/// Runs a tenant on this thread until it ends. Errors: its own, and the ring's.
pub fn run_alone(arrival: Arrival, lane: Lane) -> io::Result<()> {
    let mut tenants = Tenants::default();
    // Dropped first, so that polls are over before what they poll is closed.
    let mut lane = lane;
    tenants.let_in(arrival, &lane)?;
    let bell = lane.ring().borrow_mut().bell();
    listen(&lane, bell.as_raw_fd());
    loop {
        // A newer generation of the graph is for the requests that come now.
        lane.begin_batch();
        lane.end_batch();
        tenants.turn(&mut lane);
        if tenants.is_empty() {
            return Ok(());
        }
        lane.turn(tenants.patience())?;
        while let Some(event) = lane.take() {
            match event {
                Event::Signal { token, result } if token & TENANT == TENANT => {
                    tenants.hear(token, result.into(), &lane);
                }
                Event::Signal { result, .. } => {
                    bell.hush();
                    if result.is_err() {
                        listen(&lane, bell.as_raw_fd());
                    }
                }
                Event::Finished { .. } => {}
            }
        }
    }
}

fn listen(lane: &Lane, fd: RawFd) {
    let mut ring = lane.ring().borrow_mut();
    ring.start(Op::Poll { fd }, &[], 0, 0, BELL);
}
