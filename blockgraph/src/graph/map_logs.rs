//! Logs of the maps of images, as those see them who keep them: which image a node's writes go to, what is done again of its
//! log, and when one is begun and ended.
//!
//! The rule: an image whose log is given up is flushed first. Whoever may not wait for a disk says until when he does.

use super::{Body, Control, Graph};
use crate::driver::qcow2::Qcow2;
use crate::io::Io;
use crate::node::{Driver, FileIdentity, NodeId, Outcome};
use ring::Errno;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

pub use crate::driver::qcow2::{Change, MapLog, ReplayError};

/// An image that has a map, in a file of this machine.
#[derive(Clone, Debug)]
pub struct MappedImage {
    id: NodeId,
    driver: Arc<dyn Driver>,
    /// The file it is in.
    pub file: FileIdentity,
    /// When that was last written to before it was opened, if that is known.
    pub written: Option<SystemTime>,
}

/// It is the same image as long as nobody opened it anew.
impl PartialEq for MappedImage {
    fn eq(&self, other: &MappedImage) -> bool {
        is(&self.driver, &other.driver)
    }
}

fn is(one: &Arc<dyn Driver>, other: &Arc<dyn Driver>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(other))
}

impl MappedImage {
    /// The one that writes to `node` go to, if there is one.
    pub fn of(graph: &Graph, node: NodeId) -> Option<MappedImage> {
        let id = graph.mapping_image(node)?;
        let Body::Driver(driver) = graph.node(id)?.body().clone() else {
            return None;
        };
        let origin = graph.file_origin(id)?;
        Some(MappedImage {
            id,
            driver,
            file: origin.identity,
            written: origin.written,
        })
    }

    /// Does again what an earlier process had in memory; says how many clusters were behind. Errors: see [`ReplayError`].
    pub fn replay(
        &self,
        control: &mut Control,
        graph: &Arc<Graph>,
        changes: Vec<Change>,
    ) -> Result<usize, ReplayError> {
        let work = async move |image: &Qcow2, io: &Io| image.replay(io, &changes).await;
        self.with(control, graph, self.id, None, work)?
    }

    /// Has changes kept in `log`, too, from now on. Errors: EBUSY where there is one already, which is given up; those of a
    /// flush; ETIMEDOUT. They are not kept then.
    pub fn keep(
        &self,
        control: &mut Control,
        graph: &Arc<Graph>,
        log: &Arc<dyn MapLog>,
        deadline: Option<Instant>,
    ) -> Outcome {
        let its = log.clone();
        let work = async move |image: &Qcow2, io: &Io| image.keep_log(io, its).await;
        let kept = self.with(control, graph, self.id, deadline, work);
        if kept.is_err() {
            self.drop_log(log);
        }
        kept?
    }

    /// Makes durable what is logged; one that is no node any more was flushed as it was closed. Errors: those of the flush,
    /// ETIMEDOUT.
    pub fn flush(
        &self,
        control: &mut Control,
        graph: &Arc<Graph>,
        deadline: Option<Instant>,
    ) -> Outcome {
        let its = graph.nodes().find(|(_, node)| match node.body() {
            Body::Driver(driver) => is(driver, &self.driver),
            Body::Filter(_) => false,
        });
        let Some((id, _)) = its else {
            return Ok(());
        };
        let work = async |image: &Qcow2, io: &Io| image.flush(io).await;
        self.with(control, graph, id, deadline, work)?
    }

    /// Has changes kept there no longer.
    pub fn drop_log(&self, log: &Arc<dyn MapLog>) {
        if let Some(image) = self.driver.as_qcow2() {
            image.drop_log(log);
        }
    }

    fn with<T: 'static>(
        &self,
        control: &mut Control,
        graph: &Arc<Graph>,
        id: NodeId,
        deadline: Option<Instant>,
        work: impl AsyncFnOnce(&Qcow2, &Io) -> T + 'static,
    ) -> Result<T, Errno> {
        let driver = self.driver.clone();
        let ran = control.run_until(graph, id, deadline, move |io| async move {
            match driver.as_qcow2() {
                Some(image) => Ok(work(image, &io).await),
                None => Err(Errno::NOTSUP),
            }
        });
        ran.map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno))?
    }
}
