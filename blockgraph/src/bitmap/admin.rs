//! Adding, removing, clearing, enabling, disabling and merging, by name.
//!
//! The rule: everything is checked before anything is changed. All of it happens on the control thread, so bitmaps come and go
//! between two edits of the graph and never within one.

use super::bits::NoMemory;
use super::dirty::{DirtyBitmap, GRANULARITY_BYTES_MIN, Keeping, State};
use super::error::BitmapError;
use super::find::{check_changeable, check_removable, check_usable, find};
use crate::driver::qcow2::StoreError;
use crate::graph::{Body, Control, Current, Graph, Role, journals};
use crate::map::DEPTH_MAX;
use crate::node::NodeId;
use ring::Errno;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the field of its length can tell in an image.
const NAME_BYTES_MAX: usize = 1023;
/// A bit stands for so much unless somebody asks for something else, or the clusters are smaller.
const GRANULARITY_BYTES: u64 = 64 << 10;
/// And for no less by itself.
const GRANULARITY_BYTES_LEAST: u64 = 4 << 10;
/// How long mapped requests that were under way before may take to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// What was told to end ends within this.
const LAST_CALL: Duration = Duration::from_secs(5);
/// How long threads may take to let go of a bitmap's memory before nobody waits for that.
const WAKING: Duration = Duration::from_millis(100);

impl From<NoMemory> for BitmapError {
    fn from(_: NoMemory) -> BitmapError {
        BitmapError::NoMemory
    }
}

/// A bitmap to be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBitmap {
    /// Its name.
    pub name: String,
    /// How much a bit stands for; `None`: what suits the node.
    pub granularity_bytes: Option<u32>,
    /// Does it record from the start?
    pub state: State,
    /// Is it stored?
    pub keeping: Keeping,
}

/// A bitmap to be merged into another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Whose; `None`: of the same node.
    pub node: Option<String>,
    /// Its name.
    pub name: String,
}

/// What a bit of a node's bitmaps stands for unless somebody says otherwise: a cluster, if that is neither small nor large.
fn default_granularity(graph: &Graph, node: NodeId) -> u32 {
    let mut id = node;
    let mut unit = 0;
    for _ in 0..DEPTH_MAX {
        let Some(node) = graph.node(id) else { break };
        let below = match node.kind() {
            "raw" => node.shape().child(Role::Image),
            _ => node.shape().filtered(),
        };
        match (below, node.body()) {
            (Some(below), _) => id = below,
            (None, Body::Driver(driver)) => {
                // Whole clusters, whatever it allocates at once.
                let image = driver.as_qcow2();
                unit = image.map_or(0, |image| image.geometry().cluster_bytes());
                break;
            }
            _ => break,
        }
    }
    let bytes = match unit {
        0 => GRANULARITY_BYTES,
        unit => unit.clamp(GRANULARITY_BYTES_LEAST, GRANULARITY_BYTES),
    };
    bytes as u32
}

/// Where bitmaps are changed: the newest generation, and the control thread's lane.
#[derive(Debug)]
pub struct BitmapAdmin<'a> {
    /// Where generations are published.
    pub current: &'a Arc<Current>,
    /// The calling thread's.
    pub control: &'a mut Control,
}

impl BitmapAdmin<'_> {
    /// Adds a clean bitmap to a node.
    pub fn add(&mut self, node: &str, new: NewBitmap) -> Result<(), BitmapError> {
        let graph = self.current.get();
        let found = graph.find(node);
        let id = found.ok_or_else(|| BitmapError::NoNodeToAddTo(node.to_owned()))?;
        let granularity = check_new(&graph, id, &new)?;
        let size_bytes = graph.info(id).map_or(0, |info| info.size_bytes);
        let memory = graph.bitmap_memory();
        let bitmap = DirtyBitmap::new(new.name, granularity, size_bytes, new.state, memory)?;
        let bitmap = Arc::new(bitmap.kept(new.keeping));
        let name = bitmap.name().to_owned();
        self.change(&graph, id, |list| list.insert(0, bitmap));
        drop(graph);
        match new.state == State::Recording && !self.settle() {
            true => {
                self.drop_bitmap(id, &name);
                Err(BitmapError::StillUsed)
            }
            false => Ok(()),
        }
    }

    /// Removes a bitmap; the one thing that can be done with an inconsistent one.
    pub fn remove(&mut self, node: &str, name: &str) -> Result<(), BitmapError> {
        let found = find(&self.current.get(), node, name)?;
        check_removable(&found.bitmap)?;
        self.forget_stored(node, name)?;
        self.drop_bitmap(found.node, name);
        Ok(())
    }

    /// Takes a bitmap out of its image, if it is there; in memory it stays. Errors: the image is as it was, or the bitmap in it
    /// cannot be used.
    pub fn forget_stored(&mut self, node: &str, name: &str) -> Result<(), BitmapError> {
        let graph = Arc::new(self.current.get().kept());
        let found = find(&graph, node, name)?;
        let body = graph.node(found.node).map(|node| node.body().clone());
        let (Keeping::Persistent, Some(Body::Driver(driver))) = (found.bitmap.keeping(), body)
        else {
            return Ok(());
        };
        let name = name.as_bytes().to_vec();
        let work = move |io: crate::io::Io| async move {
            journals::before_change(&io).await;
            match driver.as_qcow2() {
                Some(image) => image.remove_bitmap(&io, &name).await,
                None => Ok(()),
            }
        };
        let cancel = || {
            for below in graph.parents_first(found.node) {
                if let Some(Body::Driver(driver)) = graph.node(below).map(|node| node.body()) {
                    driver.cancel();
                }
            }
        };
        let deadline = (Instant::now() + PATIENCE, LAST_CALL);
        let control = &mut self.control;
        let ran = control.run_or(&graph, found.node, deadline, cancel, work);
        let removed = ran.map_err(|_| BitmapError::Store(StoreError::Update(Errno::IO)))?;
        removed.map_err(BitmapError::Store)
    }

    /// Has the journal of a node, if there is one, say what its bitmaps say now. Errors: a crash would bring back what they said
    /// before.
    pub fn store(&mut self, node: &str) -> Result<(), BitmapError> {
        let id = self.current.get().find(node);
        let id = id.ok_or_else(|| BitmapError::NoNode(node.to_owned()))?;
        journals::store(self.current, self.control, id)
    }

    /// Forgets what was written.
    pub fn clear(&mut self, node: &str, name: &str) -> Result<(), BitmapError> {
        let found = find(&self.current.get(), node, name)?;
        check_changeable(&found.bitmap)?;
        found.bitmap.clear();
        Ok(())
    }

    /// Makes a bitmap record. Errors: requests under way did not end in time; it does not record then.
    pub fn enable(&mut self, node: &str, name: &str) -> Result<(), BitmapError> {
        self.set_state(node, name, State::Recording)?;
        match self.settle() {
            true => Ok(()),
            false => {
                self.set_state(node, name, State::Disabled)?;
                Err(BitmapError::StillUsed)
            }
        }
    }

    /// Makes a bitmap record no more.
    pub fn disable(&mut self, node: &str, name: &str) -> Result<(), BitmapError> {
        self.set_state(node, name, State::Disabled)
    }

    fn set_state(&mut self, node: &str, name: &str, state: State) -> Result<(), BitmapError> {
        let graph = self.current.get();
        let found = find(&graph, node, name)?;
        check_usable(&found.bitmap)?;
        found.bitmap.set_state(state);
        if let Some(node) = graph.node(found.node) {
            node.bitmaps().note_recording();
        }
        Ok(())
    }

    /// Makes dirty in `target` what is dirty in any of the sources, or changes nothing.
    pub fn merge(
        &mut self,
        node: &str,
        target: &str,
        sources: &[Source],
    ) -> Result<(), BitmapError> {
        let graph = self.current.get();
        let target = find(&graph, node, target)?.bitmap;
        check_changeable(&target)?;
        let mut found = Vec::new();
        for source in sources {
            let of = source.node.as_deref().unwrap_or(node);
            let bitmap = find(&graph, of, &source.name)?.bitmap;
            bitmap.check_source(target.size_bytes())?;
            found.push(bitmap);
        }
        for source in found {
            target.take_up(&source);
        }
        Ok(())
    }

    /// Threads that sleep are woken to leave the generation that has it, or its memory would stay taken.
    fn drop_bitmap(&mut self, id: NodeId, name: &str) {
        let graph = self.current.get();
        self.change(&graph, id, |list| {
            list.retain(|bitmap| bitmap.name() != name);
        });
        drop(graph);
        self.control.adopt();
        let newest = self.current.generation();
        // Requests that take longer hold it longer, and nothing else is wrong with that.
        self.current.left(newest, Instant::now() + WAKING);
    }

    /// Publishes a generation in which the node has other bitmaps.
    fn change(
        &mut self,
        graph: &Graph,
        id: NodeId,
        change: impl FnOnce(&mut Vec<Arc<DirtyBitmap>>),
    ) {
        if let Some(node) = graph.node(id) {
            let mut list = node.bitmaps().bitmaps();
            change(&mut list);
            let tracker = node.bitmaps().with(list);
            self.current.publish(graph.with_bitmaps(id, tracker));
        }
    }

    /// Waits for mapped writes that began when no bitmap recorded, and so will not be marked; false: they did not end.
    fn settle(&mut self) -> bool {
        let deadline = Some(Instant::now() + PATIENCE);
        let graph = self.current.get();
        let work = |io: crate::io::Io| async move { io.grace().await };
        let waited = self.control.run_until(&graph, NodeId(0), deadline, work);
        waited.is_ok()
    }
}

/// Errors: what is wrong with it, in QEMU's order. Says what a bit stands for.
fn check_new(graph: &Graph, id: NodeId, new: &NewBitmap) -> Result<u32, BitmapError> {
    let name = || new.name.clone();
    if new.name.is_empty() {
        return Err(BitmapError::EmptyName);
    }
    let granularity = match new.granularity_bytes {
        None => default_granularity(graph, id),
        Some(bytes) if bytes.is_power_of_two() && bytes >= GRANULARITY_BYTES_MIN => bytes,
        Some(_) => return Err(BitmapError::Granularity),
    };
    let node = graph.node(id);
    let image = node.and_then(|node| match node.body() {
        Body::Driver(driver) => driver.as_qcow2(),
        Body::Filter(_) => None,
    });
    let of = node.map_or("", |node| node.name());
    let journaled = node.is_some_and(|node| node.bitmaps().journal().is_some());
    if new.keeping == Keeping::Persistent && image.is_none() && !journaled {
        return Err(BitmapError::NotStorable(of.to_owned()));
    }
    if node.is_some_and(|node| node.bitmaps().find(&new.name).is_some()) {
        return Err(BitmapError::Exists(name()));
    }
    if let (Keeping::Persistent, Some(image), Some(node)) = (new.keeping, image, node) {
        let reason = image.may_keep(&new.name, granularity, &node.bitmaps().bitmaps());
        reason.map_err(|reason| BitmapError::NotKept {
            name: name(),
            node: of.to_owned(),
            reason,
        })?;
    }
    if new.name.len() > NAME_BYTES_MAX {
        return Err(BitmapError::NameTooLong(name()));
    }
    Ok(granularity)
}
