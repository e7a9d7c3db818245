//! A simulated disk behind the same interface as the kernel's ring, for tests. (To be filled in.)

use crate::engine::{QueueFull, Report, Step};
use crate::wait::Wait;
use std::sync::{Arc, Mutex};

/// A disk in memory, shared by the rings that use it.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<Vec<u8>>>);

/// One ring's operations on it.
#[derive(Debug)]
pub(crate) struct Queue {
    _disk: Disk,
    ended: Vec<Report>,
}

impl Queue {
    pub(crate) fn new(disk: Disk) -> Queue {
        Queue {
            _disk: disk,
            ended: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, _step: Step<'_>, user_data: u64) -> Result<(), QueueFull> {
        self.ended.push(Report {
            user_data,
            result: -libc::EIO,
            more: false,
        });
        Ok(())
    }

    pub(crate) fn turn(&mut self, _wait: Wait, out: &mut Vec<Report>) -> std::io::Result<()> {
        out.append(&mut self.ended);
        Ok(())
    }

    pub(crate) fn has_news(&mut self) -> bool {
        !self.ended.is_empty()
    }
}
