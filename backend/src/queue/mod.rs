//! The queue threads: each owns one ring of the kernel and a set of virtqueues, and shares nothing with the others but
//! generations of the graph.
//!
//! The rule: a queue thread blocks in one place, the ring's turn, and never waits for a lock or for another thread.

mod alone;
mod crew;
mod data;
mod guest;
mod idle;
mod tenant;
mod worker;

pub use alone::run_alone;
pub use crew::{Crew, Team};
pub use idle::Polling;
pub use tenant::{Arrival, Need, Tenant};
pub use worker::{RingKey, WorkerOptions};
