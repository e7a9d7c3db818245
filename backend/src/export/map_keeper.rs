//! Who keeps the log of the map of an exported image, and does again what an earlier daemon has left of one.
//!
//! The rule: the log is of the image that the guest's writes go to, whichever that is by now; an image whose log is given up
//! is flushed first.

use crate::vhost::{Found, MapRegion};
use blockgraph::graph::Control;
use blockgraph::graph::map_logs::{MapLog, MappedImage};
use blockgraph::pin::Epochs;
use blockgraph::{Current, Graph, NodeId};
use ring::Choice;
use rustix::rand::{GetRandomFlags, getrandom};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Whoever else wrote to an image after a daemon was killed did so later than this. What the dead daemon had under way may
/// land a little after it was last seen.
const SLACK: Duration = Duration::from_secs(10);

/// Keeps the log of one export.
#[derive(Debug)]
pub struct MapKeeper {
    current: Arc<Current>,
    epochs: Arc<Epochs>,
    /// The export's place in the graph.
    node: NodeId,
    /// What carries out its I/O.
    engine: Choice,
    kept: Mutex<Option<Kept>>,
}

#[derive(Debug)]
struct Kept {
    region: MapRegion,
    /// The image that the guest's writes went to when somebody looked last, if they go to one.
    image: Option<MappedImage>,
    /// Its log, if it could be begun.
    log: Option<Arc<dyn MapLog>>,
}

impl MapKeeper {
    /// For the export of a node that may be written.
    pub fn new(
        current: Arc<Current>,
        epochs: Arc<Epochs>,
        node: NodeId,
        engine: Choice,
    ) -> MapKeeper {
        MapKeeper {
            engine,
            current,
            epochs,
            node,
            kept: Mutex::default(),
        }
    }

    /// Takes up what is in `region`, and has it be the log's from now on. Errors: what is in there is of another image, or
    /// cannot be done again.
    pub fn take_up(&self, region: MapRegion) -> Result<(), String> {
        let mut kept = self.kept();
        let graph = self.current.get();
        let image = MappedImage::of(&graph, self.node);
        let file = image.as_ref().map(|image| image.file);
        let found = region.find(file, owner());
        if found == Found::AnothersChanges {
            return Err("the front end keeps the map of another image".to_owned());
        }
        let log = match &image {
            Some(image) => self.begin(&graph, &region, image, found)?,
            None => None,
        };
        *kept = Some(Kept { region, image, log });
        Ok(())
    }

    /// Does again what was found of `image`, and begins its log.
    fn begin(
        &self,
        graph: &Arc<Graph>,
        region: &MapRegion,
        image: &MappedImage,
        found: Found,
    ) -> Result<Option<Arc<dyn MapLog>>, String> {
        let mut control = self.control()?;
        if let Found::Changes {
            alive,
            changes,
            left_out,
        } = found
        {
            if image.written.is_some_and(|written| written > alive + SLACK) {
                return Err("somebody has written to the image since its map was logged".to_owned());
            }
            let replayed = image.replay(&mut control, graph, changes);
            let count = replayed.map_err(|error| {
                format!("the map of an image cannot be taken up where it was: {error}")
            })?;
            tracing::info!("{count} clusters that an earlier daemon had in memory were taken up");
            if left_out {
                tracing::warn!("changes of an image's map were lost: there was no room for them");
            }
        }
        Ok(begin(&mut control, graph, region, image, None))
    }

    /// What is in the log is made durable.
    pub fn settle(&self) {
        let kept = self.kept();
        let logged = kept.as_ref().filter(|kept| kept.log.is_some());
        let image = logged.and_then(|kept| kept.image.as_ref());
        if let (Some(image), Ok(mut control)) = (image, self.control())
            && let Err(error) = image.flush(&mut control, &self.current.get(), None)
        {
            tracing::warn!("an image whose map is logged cannot be flushed: {error}");
        }
    }

    /// The region is somebody else's now. What was in the log is made durable.
    pub fn let_go(&self) {
        let Some(mut kept) = self.kept().take() else {
            return;
        };
        match self.control() {
            Ok(mut control) => kept.end(&mut control, &self.current.get(), None),
            // Out of descriptors or memory: what is not flushed stays so.
            Err(_) => kept.drop_log(),
        }
        kept.region.clear();
    }

    /// The graph may have changed: sees to it that the log is of the image that writes go to. A disk that hangs is waited for
    /// until the deadline.
    pub fn follow(&self, control: &mut Control, deadline: fn() -> Instant) {
        // Whoever has it now looks at the graph himself.
        let Ok(mut kept) = self.kept.try_lock() else {
            return;
        };
        let Some(kept) = &mut *kept else {
            return;
        };
        let graph = self.current.get();
        let image = MappedImage::of(&graph, self.node);
        if image == kept.image {
            return;
        }
        kept.end(control, &graph, Some(deadline()));
        kept.region.clear();
        let until = Some(deadline());
        let begun = image.as_ref();
        kept.log = begun.and_then(|image| begin(control, &graph, &kept.region, image, until));
        kept.image = image;
    }

    fn control(&self) -> Result<Control, String> {
        let control = Control::new(
            self.current.clone(),
            self.epochs.clone(),
            self.engine.clone(),
        );
        control.map_err(|error| format!("cannot take up the map of an image: {error}"))
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Ends the log, after a flush.
    fn end(&mut self, control: &mut Control, graph: &Arc<Graph>, deadline: Option<Instant>) {
        if let (Some(image), Some(_)) = (&self.image, &self.log)
            && let Err(error) = image.flush(control, graph, deadline)
        {
            tracing::warn!("an image whose map was logged cannot be flushed: {error}");
        }
        self.drop_log();
    }

    fn drop_log(&mut self) {
        if let Some(log) = self.log.take() {
            if let Some(image) = &self.image {
                image.drop_log(&log);
            }
            log.give_up();
        }
    }
}

/// Without a log there is none to be found: the guest is served all the same, as it is without a region.
fn begin(
    control: &mut Control,
    graph: &Arc<Graph>,
    region: &MapRegion,
    image: &MappedImage,
    deadline: Option<Instant>,
) -> Option<Arc<dyn MapLog>> {
    let log = match region.begin(image.file, owner()) {
        Ok(log) => log,
        Err(error) => {
            tracing::warn!("the map of an image is not logged: {error}");
            return None;
        }
    };
    match image.keep(control, graph, &log, deadline) {
        Ok(()) => Some(log),
        Err(error) => {
            log.give_up();
            match error.0 {
                libc::EBUSY => tracing::warn!("an image has two exports: its map is not logged"),
                _ => {
                    tracing::warn!("an image cannot be flushed, so its map is not logged: {error}")
                }
            }
            None
        }
    }
}

/// A number of this process's own.
fn owner() -> u64 {
    static OWNER: OnceLock<u64> = OnceLock::new();
    *OWNER.get_or_init(|| {
        let mut bytes = [0; 8];
        match getrandom(&mut bytes, GetRandomFlags::empty()) {
            Ok(8) => u64::from_ne_bytes(bytes),
            // As good, but for a process of the same number.
            _ => u64::from(std::process::id()),
        }
    })
}
