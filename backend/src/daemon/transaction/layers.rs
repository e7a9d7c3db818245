//! Snapshots in a transaction: overlays, and those within an image.

use super::{Done, Step};
use crate::daemon::executor::Daemon;
use crate::daemon::internal_snapshot::InternalSnapshot;
use crate::daemon::snapshot::{NewLayer, SnapshotSync};

impl Step for NewLayer {
    fn commit(self: Box<Self>, daemon: &mut Daemon) -> Option<String> {
        daemon.keep_layer(*self);
        None
    }

    fn abort(self: Box<Self>, daemon: &mut Daemon) {
        daemon.take_layer_off(*self);
    }
}

impl Step for InternalSnapshot {
    fn commit(self: Box<Self>, _: &mut Daemon) -> Option<String> {
        None
    }

    fn abort(self: Box<Self>, daemon: &mut Daemon) {
        daemon.forget_internal(*self);
    }
}

impl Daemon {
    pub(super) fn internal_snapshot_step(&mut self, device: &str, name: String) -> Done {
        Ok(Box::new(self.keep_internally(device, name)?))
    }

    pub(super) fn snapshot_step(&mut self, node: &str, overlay: &str) -> Done {
        Ok(Box::new(self.put_snapshot(node, overlay)?))
    }

    pub(super) fn snapshot_sync_step(&mut self, wanted: SnapshotSync) -> Done {
        Ok(Box::new(self.put_snapshot_sync(wanted)?))
    }
}
