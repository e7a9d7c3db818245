//! New bodies for nodes whose old ones cannot do what is asked now.
//!
//! The rule: a body that can go on does. A file is the same file opened in another way; an image is brought to disk by its
//! old body and read by the new one, while nothing else is under way on it.

use super::super::open::qcow2::{repair_wanted, rights};
use super::super::open::{DriverSpec, FilterSpec, Qcow2Spec, asked};
use super::super::{Access, Body, Common, Node, Role};
use super::{Change, ReopenError, Reopening};
use crate::driver::file::{self, FileDriver, FileError, FileOptions};
use crate::driver::qcow2::check::repair_dirty;
use crate::driver::qcow2::{Image, Qcow2Error};
use crate::driver::raw::{Raw, Window};
use crate::filter::delay::Delay;
use crate::filter::throttle::Throttle;
use crate::io::Io;
use crate::node::{Driver, Info, NodeId};
use crate::request::{Kind, Request};
use crate::units::Span;
use ring::{Errno, File};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// What was told to end ends within this.
const LAST_CALL: Duration = Duration::from_secs(5);

/// A body that was made.
struct Remade {
    body: Body,
    files: Vec<Arc<File>>,
}

impl From<Body> for Remade {
    fn from(body: Body) -> Remade {
        let files = Vec::new();
        Remade { body, files }
    }
}

impl Reopening<'_> {
    /// What can be opened while requests still run.
    pub(super) fn open_files(&mut self) -> Result<(), ReopenError> {
        for at in 0..self.changes.len() {
            let (id, common) = (self.changes[at].id, self.changes[at].spec.common);
            let (access, remade) =
                self.open_file(&self.changes[at].spec.driver.clone(), id, common)?;
            let common = Common { access, ..common };
            let spec = Arc::new(self.changes[at].spec.clone());
            self.edit.set_options(id, common, spec);
            if let Some(Remade { body, files }) = remade {
                self.edit.give_body(id, body, files);
            }
        }
        Ok(())
    }

    fn open_file(
        &mut self,
        driver: &DriverSpec,
        id: NodeId,
        common: Common,
    ) -> Result<(Access, Option<Remade>), ReopenError> {
        let Some(Body::Driver(old)) = self.before(id).map(|node| node.body().clone()) else {
            return Ok((common.access, None));
        };
        match driver {
            DriverSpec::File(spec) => match old.as_file() {
                Some(file) => self.reopen_file(id, file, &spec.options, common),
                None => Ok((common.access, None)),
            },
            DriverSpec::Nbd(options) => {
                match (asked(common.access, options.mode), old.writable()) {
                    (file::OpenMode::ReadWrite, false) => Err(ReopenError::ReadOnlyServer),
                    (file::OpenMode::Auto, false) => Ok((Access::ReadOnly, None)),
                    _ => Ok((common.access, None)),
                }
            }
            _ => Ok((common.access, None)),
        }
    }

    fn reopen_file(
        &mut self,
        id: NodeId,
        old: &FileDriver,
        options: &FileOptions,
        common: Common,
    ) -> Result<(Access, Option<Remade>), ReopenError> {
        let mut options = options.clone();
        options.mode = asked(common.access, options.mode);
        let before = self
            .before(id)
            .map(|node| (node.common(), node.spec().cloned()));
        let same = |now: Common, spec: &DriverSpec| match spec {
            DriverSpec::File(was) => {
                asked(now.access, was.options.mode) == options.mode
                    && was.options.cache == options.cache
                    && was.options.flushes == options.flushes
                    && now.activity == common.activity
            }
            _ => false,
        };
        if let Some((now, Some(spec))) = &before
            && same(
                Common {
                    access: spec.common.access,
                    ..*now
                },
                &spec.driver,
            )
        {
            return Ok((now.access, None));
        }
        let name = self.edit.graph.new_file_id();
        let (opened, access) = file::reopen(name, &options, old)?;
        let files = vec![opened.file().clone()];
        let body = Body::Driver(Arc::new(opened));
        Ok((access, Some(Remade { body, files })))
    }

    /// Everything else. Nothing is under way. Old bodies bring to disk what they know, parents first, since that goes through
    /// their children; then new ones are made, children first.
    pub(super) fn remake_bodies(&mut self) -> Result<(), ReopenError> {
        for id in self.edit.before.all_parents_first() {
            if self.changes.iter().any(|change| change.id == id) {
                self.flush(id)?;
            }
            if self.needs_loading(id) {
                self.store_bitmaps(id)?;
                self.hand_over(id)?;
            }
        }
        self.end_preallocations()?;
        let mut order = self.edit.graph.all_parents_first();
        order.reverse();
        for id in order {
            let change = self.changes.iter().find(|change| change.id == id);
            let Some(Change { spec, old, .. }) = change else {
                continue;
            };
            let (driver, old) = (spec.driver.clone(), old.clone());
            if let Some(Remade { body, files }) = self.remake(id, driver, &old.driver)? {
                self.edit.give_body(id, body, files);
            }
        }
        Ok(())
    }

    /// Is it an image that another body has to take over?
    fn needs_loading(&self, id: NodeId) -> bool {
        let change = self.changes.iter().find(|change| change.id == id);
        change.is_some_and(|change| match (&change.spec.driver, &change.old.driver) {
            (DriverSpec::Qcow2(new), DriverSpec::Qcow2(old)) => {
                new.options != old.options || !self.is_as_before(id)
            }
            _ => false,
        })
    }

    /// Filters that have grown a file ahead of who used them cut it before somebody uses it without them.
    fn end_preallocations(&mut self) -> Result<(), ReopenError> {
        let before = self.edit.before.clone();
        for (id, node) in before.nodes() {
            let is_used = |graph: &super::Graph| {
                let mut edges = graph.nodes().flat_map(|(_, node)| node.shape().edges());
                edges.any(|edge| edge.child == id)
            };
            if node.kind() != "preallocate" || !is_used(&before) || is_used(&self.edit.graph) {
                continue;
            }
            if let Body::Driver(driver) = node.body().clone() {
                let work = move |io: Io| async move { driver.close(&io).await };
                self.run(&before, id, work)?.map_err(ReopenError::Flush)?;
            }
        }
        Ok(())
    }

    fn remake(
        &mut self,
        id: NodeId,
        new: DriverSpec,
        old: &DriverSpec,
    ) -> Result<Option<Remade>, ReopenError> {
        match (new, old) {
            (DriverSpec::File(_), DriverSpec::File(_)) => {
                self.measure(id)?;
                Ok(None)
            }
            (DriverSpec::Raw { window, .. }, DriverSpec::Raw { window: was, .. }) => {
                self.remake_raw(id, window, *was)
            }
            (
                DriverSpec::Delay { latency_ns, .. },
                DriverSpec::Delay {
                    latency_ns: was, ..
                },
            ) if latency_ns != *was => {
                Ok(Some(Body::Filter(Arc::new(Delay::new(latency_ns))).into()))
            }
            (DriverSpec::Filter(new), DriverSpec::Filter(old)) => match (*new, &**old) {
                (FilterSpec::Throttle { group, .. }, FilterSpec::Throttle { group: was, .. })
                    if group != *was =>
                {
                    let group = self.edit.graph.throttle_groups().get(&group)?;
                    let throttle = Arc::new(Throttle::new(group));
                    Ok(Some(Body::Filter(throttle).into()))
                }
                _ => Ok(None),
            },
            (DriverSpec::Qcow2(new), _) if self.handed_over.contains(&id) => {
                let image = self.load(id, &new)?;
                self.load_bitmaps(id, &image)?;
                self.image_body(id, image).map(|body| Some(body.into()))
            }
            _ => Ok(None),
        }
    }

    /// A file may have grown between being opened and now, when nothing is under way.
    fn measure(&self, id: NodeId) -> Result<(), ReopenError> {
        let Some(Body::Driver(driver)) = self.edit.graph.node(id).map(Node::body) else {
            return Ok(());
        };
        match driver.as_file().map(FileDriver::measure) {
            Some(Err(error)) => Err(FileError::Size(error).into()),
            _ => Ok(()),
        }
    }

    fn remake_raw(
        &mut self,
        id: NodeId,
        window: Window,
        was: Window,
    ) -> Result<Option<Remade>, ReopenError> {
        let graph = &self.edit.graph;
        let below = graph
            .node(id)
            .and_then(|node| node.shape().child(Role::Image));
        let Some(below) = below.and_then(|below| graph.info(below)) else {
            return Ok(None);
        };
        let raw = Raw::new(below, window)?;
        let now: Option<Info> = graph.info(id);
        if window == was && now == Some(raw.info()) {
            return Ok(None);
        }
        Ok(Some(Body::Driver(Arc::new(raw)).into()))
    }

    /// Are rights, activity and the file below it the same, whatever filters are between?
    fn is_as_before(&self, id: NodeId) -> bool {
        let file = |graph: &super::Graph| {
            let shape = graph.node(id)?.shape();
            let file = shape.child(Role::Image).or(shape.child(Role::Metadata))?;
            graph
                .node(graph.skip_filters(file))
                .map(|node| node.name().to_owned())
        };
        let common = |graph: &super::Graph| {
            let common = graph.node(id)?.common();
            Some((common.access, common.activity))
        };
        let (before, after) = (&self.edit.before, &self.edit.graph);
        file(before) == file(after) && common(before) == common(after)
    }

    /// Brings what the old body knows to disk.
    fn hand_over(&mut self, id: NodeId) -> Result<(), ReopenError> {
        let Some(Body::Driver(driver)) = self.before(id).map(|node| node.body().clone()) else {
            return Ok(());
        };
        let before = self.edit.before.clone();
        let work = move |io: Io| async move {
            match driver.as_qcow2() {
                Some(image) => image.hand_over(&io).await,
                None => Ok(()),
            }
        };
        let done = self.run(&before, id, work)?;
        done.map_err(ReopenError::Flush)?;
        self.handed_over.push(id);
        Ok(())
    }

    fn load(&mut self, id: NodeId, spec: &Qcow2Spec) -> Result<Image, ReopenError> {
        let graph = Arc::new(self.edit.graph.kept());
        let file = metadata_of(&graph, id)?;
        let options = spec.options.clone();
        let load = move |io: Io| async move { Image::load(&io, file, &options).await };
        Ok(self.run(&graph, file, load)??)
    }

    fn image_body(&self, id: NodeId, image: Image) -> Result<Body, ReopenError> {
        let graph = &self.edit.graph;
        let node = graph.node(id).ok_or(EIO)?;
        let storage = graph.storage_child(id).and_then(|child| graph.info(child));
        let driver = image.driver(storage.ok_or(EIO)?, rights(node.common()))?;
        Ok(Body::Driver(Arc::new(driver)))
    }

    /// Images that may be written now and that their last writer did not close.
    pub(super) fn repair_images(&mut self) -> Result<(), ReopenError> {
        for at in 0..self.changes.len() {
            let Change { id, spec, .. } = &self.changes[at];
            let (id, driver) = (*id, spec.driver.clone());
            let DriverSpec::Qcow2(spec) = driver else {
                continue;
            };
            let node = self.edit.graph.node(id);
            let Some(Body::Driver(driver)) = node.map(Node::body) else {
                continue;
            };
            // One that goes on has set that bit itself.
            let new = self.handed_over.contains(&id);
            let dirty = new && driver.as_qcow2().is_some_and(repair_wanted);
            if node.is_some_and(|node| node.common().takes_writes()) && dirty {
                self.repair(id)?;
                let image = self.load(id, &spec)?;
                let body = self.image_body(id, image)?;
                self.edit.give_body(id, body, Vec::new());
            }
        }
        Ok(())
    }

    fn repair(&mut self, id: NodeId) -> Result<(), ReopenError> {
        let graph = Arc::new(self.edit.graph.kept());
        let file = metadata_of(&graph, id)?;
        let work = move |io: Io| async move { repair_dirty(&io, file).await };
        let repaired = self.run(&graph, file, work)?;
        repaired.map_err(Qcow2Error::Repair)?;
        Ok(())
    }

    /// What was written through the old body is durable before another takes over.
    fn flush(&mut self, id: NodeId) -> Result<(), ReopenError> {
        let before = self.edit.before.clone();
        if !before
            .node(id)
            .is_some_and(|node| node.common().takes_writes())
        {
            return Ok(());
        }
        let nothing = Span { at: 0, len: 0 };
        let work =
            move |io: Io| async move { io.request(id, Request::plain(Kind::Flush, nothing)).await };
        self.run(&before, id, work)?.map_err(ReopenError::Flush)
    }

    /// Runs work to its end. Should it take too long, all that waits for another machine is told to end.
    pub(super) fn run<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        graph: &Arc<super::Graph>,
        here: NodeId,
        work: impl FnOnce(Io) -> F,
    ) -> Result<T, ReopenError> {
        let cancel = || {
            for node in graph.parents_first(here) {
                if let Some(Body::Driver(driver)) = graph.node(node).map(Node::body) {
                    driver.cancel();
                }
            }
        };
        let ran = self
            .control
            .run_or(graph, here, (self.deadline, LAST_CALL), cancel, work);
        ran.map_err(ReopenError::Ring)
    }
}

/// The node that has the image's metadata.
pub(super) fn metadata_of(graph: &super::Graph, id: NodeId) -> Result<NodeId, ReopenError> {
    let shape = graph.node(id).map(Node::shape);
    let file = shape.and_then(|shape| shape.child(Role::Image).or(shape.child(Role::Metadata)));
    file.ok_or(EIO)
}

/// A graph that is not as it has to be.
const EIO: ReopenError = ReopenError::Flush(Errno::IO);
