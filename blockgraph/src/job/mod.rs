//! Jobs: long work on the graph beside the guests, in states that clients follow and steer.
//!
//! The rule: what state may follow which, and what may be asked of a job in which state, is said in one place, `state.rs`. A job
//! works on its own thread (`worker.rs`), is told what is wanted (`steer.rs`), and says what happens in [`Word`]s; changes of the
//! graph are the control thread's.

mod backup;
pub mod copy;
mod errors;
mod mirror;
mod naming;
mod progress;
mod rate;
mod state;
mod steer;
mod stream;
mod worker;

pub use backup::{Backup, Layers};
pub use errors::{ErrorAction, Failure, IoStatus, OnError, Operation};
pub use mirror::{Mirror, Mirrored, Zeroing};
pub use naming::rename_backing;
pub use progress::Progress;
pub use rate::Rate;
pub use state::{JobState, JobVerb};
pub use steer::{Cancel, Steer, Wish};
pub use stream::Stream;
pub use worker::Worker;

use ring::Errno;

/// What a job at work has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It rests: nothing of it is under way.
    Paused,
    /// It goes on.
    Resumed,
    /// It could be completed now.
    Ready,
    /// A transfer failed, and this is done about it.
    Failed {
        /// Which way it went.
        operation: Operation,
        /// What is done.
        action: ErrorAction,
        /// How it failed.
        errno: Errno,
    },
}
