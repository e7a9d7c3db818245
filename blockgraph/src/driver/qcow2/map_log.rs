//! A log of the map's changes that are in memory alone, kept where it outlives this process.
//!
//! The rule: a change is in the log before the request that made it is done, and leaves it when it is durable. So after a
//! `kill -9` the disk and the log together (`replay.rs`) are the disk that the guest saw; flushes cost what they always did.

use super::Qcow2;
use crate::io::Io;
use crate::node::Outcome;
use ring::Errno;
use std::fmt::Debug;
use std::sync::Arc;

/// What an L2 entry became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Index of the guest cluster.
    pub cluster: u64,
    /// The entry, as in memory; the second word counts where entries have two.
    pub words: [u64; 2],
}

/// Where changes are kept. Calls come under a lock: none may wait, nor call back.
pub trait MapLog: Debug + Send + Sync {
    /// Adds one. If there is no room it is left out, and the log says so to whoever reads it, until all is durable.
    fn append(&self, change: Change);

    /// Where the next one comes: as many as ever were added, those left out among them.
    fn position(&self) -> u64;

    /// All before `position` are durable.
    fn settle(&self, position: u64);

    /// Should what is in it be made durable soon?
    fn is_filling(&self) -> bool;

    /// Nothing is added any more, and nobody shall find anything in it.
    fn give_up(&self);
}

/// What a commit makes durable of a log.
pub(super) type Settled = Vec<(Arc<dyn MapLog>, u64)>;

impl Qcow2 {
    /// Keeps changes in `log`, too, from now on. Errors: those of a flush, which makes durable what is not in it. EBUSY if
    /// there is one already: two logs, done again one after the other while the image goes on, would undo each other, so it
    /// has none from now on.
    pub async fn keep_log(&self, io: &Io, log: Arc<dyn MapLog>) -> Outcome {
        let others = {
            let mut meta = self.meta();
            match meta.logs.is_empty() {
                true => meta.logs.push(log.clone()),
                false => log.give_up(),
            }
            meta.logs.clone()
        };
        if !others.iter().any(|kept| Arc::ptr_eq(kept, &log)) {
            others.iter().for_each(|log| log.give_up());
            return Err(Errno(libc::EBUSY));
        }
        let flushed = self.flush(io).await;
        if flushed.is_err() {
            self.drop_log(&log);
        }
        flushed
    }

    /// Keeps changes there no longer.
    pub fn drop_log(&self, log: &Arc<dyn MapLog>) {
        self.meta().logs.retain(|kept| !Arc::ptr_eq(kept, log));
    }

    /// Are changes kept anywhere but in memory?
    pub(super) fn is_logged(&self) -> bool {
        !self.meta().logs.is_empty()
    }
}
