//! Jobs in a transaction: made when their turn comes, started when nothing can fail any more.

use super::{Done, Step};
use crate::daemon::backup::{BackupWanted, DriveWanted};
use crate::daemon::executor::Daemon;
use crate::daemon::jobs::Group;

/// A job that was made.
#[derive(Debug)]
struct Made(String);

impl Step for Made {
    fn commit(self: Box<Self>, daemon: &mut Daemon) -> Option<String> {
        daemon.start_made_job(&self.0);
        Some(self.0)
    }

    fn abort(self: Box<Self>, daemon: &mut Daemon) {
        daemon.unmake_job(&self.0);
    }
}

impl Daemon {
    pub(super) fn backup_step(&mut self, wanted: BackupWanted, group: Option<Group>) -> Done {
        let id = self.make_backup(wanted, group)?;
        Ok(Box::new(Made(id)))
    }

    pub(super) fn drive_backup_step(&mut self, wanted: DriveWanted, group: Option<Group>) -> Done {
        let id = self.make_drive_backup(wanted, group)?;
        Ok(Box::new(Made(id)))
    }
}
