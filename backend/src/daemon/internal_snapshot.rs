//! `blockdev-snapshot-internal-sync`: a disk's content is kept within its image, under a name.
//!
//! The rule: only images have such snapshots, and only those that are written to.

use super::executor::Daemon;
use crate::process::error_text;
use blockgraph::driver::qcow2::format::snapshot_table::{NO_ICOUNT, Snapshot, Taken};
use blockgraph::driver::qcow2::snapshot::{NewSnapshot, SnapshotFailure};
use blockgraph::graph::{Access, Body, journals};
use blockgraph::report::SnapshotReport;
use blockgraph::{Driver, Io, NodeId};
use std::sync::Arc;
use std::time::SystemTime;

/// A snapshot that was made.
#[derive(Debug)]
pub(super) struct InternalSnapshot {
    image: NodeId,
    id: String,
}

impl Daemon {
    /// Keeps what is on the disk of a node. Errors: in QSD's words; nothing has changed then.
    pub(super) fn keep_internally(
        &mut self,
        device: &str,
        name: String,
    ) -> Result<InternalSnapshot, String> {
        let node = self.lookup(device)?;
        let graph = self.kept_graph();
        if !graph.is_root(node) {
            return Err("Need a root block node".to_owned());
        }
        self.check_free(device)?;
        let image = graph.skip_filters(node);
        let about = graph.node(node).ok_or("No medium")?;
        if about.common().access == Access::ReadOnly {
            return Err(format!("Device '{device}' is read only"));
        }
        let kind = graph.node(image).map_or("", |node| node.kind());
        let driver = match graph.node(image).map(|node| node.body()) {
            Some(Body::Driver(driver)) if driver.as_qcow2().is_some() => driver.clone(),
            _ => {
                return Err(format!(
                    "Block format '{kind}' used by device '{device}' does not support internal snapshots"
                ));
            }
        };
        drop(graph);
        if name.is_empty() {
            return Err("Name is empty".to_owned());
        }
        if self.has_snapshot(image, &driver, &name)? {
            return Err(format!(
                "Snapshot with name '{name}' already exists on device '{device}'"
            ));
        }
        let new = NewSnapshot {
            name: name.clone(),
            taken: now(),
        };
        let made = self.on_image(image, driver, async move |driver, io| {
            match driver.as_qcow2() {
                Some(image) => image.create_snapshot(&io, new).await,
                None => Err(SnapshotFailure::NotFound),
            }
        })?;
        let id = made.map_err(|error| {
            format!("Failed to create snapshot '{name}' on device '{device}': {error}")
        })?;
        Ok(InternalSnapshot { image, id })
    }

    /// Such a snapshot is forgotten.
    pub(super) fn forget_internal(&mut self, snapshot: InternalSnapshot) {
        let graph = self.kept_graph();
        let InternalSnapshot { image, id } = snapshot;
        let Some(Body::Driver(driver)) = graph.node(image).map(|node| node.body()) else {
            return;
        };
        let driver = driver.clone();
        drop(graph);
        let deleted = self.on_image(image, driver, async move |driver, io| {
            match driver.as_qcow2() {
                Some(image) => image.delete_snapshot(&io, &id).await,
                None => Err(SnapshotFailure::NotFound),
            }
        });
        let deleted = deleted.and_then(|done| done.map_err(|error| error.to_string()));
        if let Err(error) = deleted {
            tracing::error!("cannot delete a snapshot that came to nothing: {error}");
        }
    }

    /// Forgets what was kept, by its id, its name or both, and says what it was. Errors: in QSD's words; nothing has changed then.
    pub(crate) fn delete_internal(
        &mut self,
        device: &str,
        id: Option<&str>,
        name: Option<&str>,
    ) -> Result<SnapshotReport, String> {
        let node = self.lookup(device)?;
        let graph = self.kept_graph();
        if !graph.is_root(node) {
            return Err("Need a root block node".to_owned());
        }
        self.check_free(device)?;
        if (id, name) == (None, None) {
            return Err("Name or id must be provided".to_owned());
        }
        let image = graph.skip_filters(node);
        let driver = match graph.node(image).map(|node| node.body()) {
            Some(Body::Driver(driver)) if driver.as_qcow2().is_some() => driver.clone(),
            _ => return Err("Failed to get a snapshot list: Operation not supported".to_owned()),
        };
        let access = graph.node(node).map(|node| node.common().access);
        drop(graph);
        let all = self.snapshots_of(image, &driver)?;
        let is_it = |one: &&Snapshot| {
            id.is_none_or(|id| one.id == id.as_bytes())
                && name.is_none_or(|name| one.name == name.as_bytes())
        };
        let found = all.iter().find(is_it).ok_or_else(|| {
            let (id, name) = (id.unwrap_or("null"), name.unwrap_or("null"));
            format!("Snapshot with id '{id}' and name '{name}' does not exist on device '{device}'")
        })?;
        if access == Some(Access::ReadOnly) {
            return Err(format!("Device '{device}' is read only"));
        }
        let found = SnapshotReport::of(found);
        let which = found.id.clone();
        let deleted = self.on_image(image, driver, async move |driver, io| {
            match driver.as_qcow2() {
                Some(image) => image.delete_snapshot(&io, &which).await,
                None => Err(SnapshotFailure::NotFound),
            }
        })?;
        deleted.map_err(|error| error.to_string())?;
        Ok(found)
    }

    fn has_snapshot(
        &mut self,
        image: NodeId,
        driver: &Arc<dyn Driver>,
        name: &str,
    ) -> Result<bool, String> {
        let all = self.snapshots_of(image, driver)?;
        Ok(all.iter().any(|one| one.name == name.as_bytes()))
    }

    fn snapshots_of(
        &mut self,
        image: NodeId,
        driver: &Arc<dyn Driver>,
    ) -> Result<Vec<Snapshot>, String> {
        let all = self.on_image(image, driver.clone(), async |driver, io| {
            match driver.as_qcow2() {
                Some(image) => image.snapshots(&io).await,
                None => Ok(Vec::new()),
            }
        })?;
        all.map_err(|error| error.to_string())
    }

    /// Does something with an image, on this thread.
    fn on_image<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        image: NodeId,
        driver: Arc<dyn Driver>,
        work: impl FnOnce(Arc<dyn Driver>, Io) -> F + 'static,
    ) -> Result<T, String> {
        let graph = self.kept_graph();
        let change = move |io: Io| async move {
            journals::before_change(&io).await;
            work(driver, io.at(image)).await
        };
        let done = self.control.run(&graph, image, change);
        done.map_err(|error| error_text(&error))
    }
}

fn now() -> Taken {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or_default();
    Taken {
        sec: u32::try_from(since.as_secs()).unwrap_or(u32::MAX),
        nsec: since.subsec_nanos(),
        // There is no machine here whose clock this could be; QSD has the time of day.
        vm_clock_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
        icount: NO_ICOUNT,
    }
}
