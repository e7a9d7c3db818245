//! The guest's side of vhost-user-blk: our own front end and driver, low level enough to lie.
//!
//! From below: [`wire`] sends any bytes and descriptors, [`memory`] is guest memory, [`ring`] is the driver's half of a
//! split virtqueue, [`front`] says the messages in a VMM's order, [`blk`] builds requests, [`guest`] puts them together.
//! The one rule: nothing here waits without a deadline, so a hung daemon is a failed test and never a hung one.
#![allow(
    clippy::unwrap_used,
    reason = "a test harness stops where it is surprised"
)]

pub mod blk;
pub mod crate_front;
pub mod driver;
pub mod front;
pub mod guest;
pub mod memory;
pub mod pattern;
pub mod ring;
pub mod starter;
pub mod thread;
pub mod trace;
pub mod wire;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long anything may take before it counts as hung: half a minute, or `TEST_PATIENCE_MS`. Generous, because it is
/// never an assertion about speed.
pub fn patience() -> Duration {
    static PATIENCE: OnceLock<Duration> = OnceLock::new();
    let from_env = || {
        std::env::var("TEST_PATIENCE_MS")
            .ok()?
            .parse()
            .ok()
            .map(Duration::from_millis)
    };
    *PATIENCE.get_or_init(|| from_env().unwrap_or(Duration::from_secs(30)))
}

/// The moment at which [`patience`] ends.
pub fn deadline() -> Instant {
    Instant::now() + patience()
}
