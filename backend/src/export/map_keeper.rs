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
    /// `None` where the guest's writes go to no image.
    log: Option<Log>,
}

#[derive(Debug)]
struct Log {
    image: MappedImage,
    log: Arc<dyn MapLog>,
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
        let log = match image {
            Some(image) => self.begin(&graph, &region, image, found)?,
            None => None,
        };
        *kept = Some(Kept { region, log });
        Ok(())
    }

    /// Does again what was found of `image`, and begins its log.
    fn begin(
        &self,
        graph: &Arc<Graph>,
        region: &MapRegion,
        image: MappedImage,
        found: Found,
    ) -> Result<Option<Log>, String> {
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
        let log = kept.as_ref().and_then(|kept| kept.log.as_ref());
        if let (Some(Log { image, .. }), Ok(mut control)) = (log, self.control())
            && let Err(error) = image.flush(&mut control, &self.current.get(), None)
        {
            tracing::warn!("an image whose map is logged cannot be flushed: {error}");
        }
    }

    /// The region is somebody else's now. What was in the log is made durable.
    pub fn let_go(&self) {
        let Some(Kept { region, log }) = self.kept().take() else {
            return;
        };
        if let (Some(log), Ok(mut control)) = (log, self.control()) {
            end(&mut control, &self.current.get(), log, None);
        }
        region.clear();
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
        if image.as_ref() == kept.log.as_ref().map(|log| &log.image) {
            return;
        }
        if let Some(log) = kept.log.take() {
            end(control, &graph, log, Some(deadline()));
        }
        kept.region.clear();
        let until = Some(deadline());
        kept.log = image.and_then(|image| begin(control, &graph, &kept.region, image, until));
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

/// Without a log there is none to be found: the guest is served all the same, as it is without a region.
fn begin(
    control: &mut Control,
    graph: &Arc<Graph>,
    region: &MapRegion,
    image: MappedImage,
    deadline: Option<Instant>,
) -> Option<Log> {
    let log = match region.begin(image.file, owner()) {
        Ok(log) => log,
        Err(error) => {
            tracing::warn!("the map of an image is not logged: {error}");
            return None;
        }
    };
    match image.keep(control, graph, &log, deadline) {
        Ok(()) => Some(Log { image, log }),
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

fn end(
    control: &mut Control,
    graph: &Arc<Graph>,
    Log { image, log }: Log,
    deadline: Option<Instant>,
) {
    if let Err(error) = image.end(control, graph, &log, deadline) {
        tracing::warn!("an image whose map was logged cannot be flushed: {error}");
    }
    log.give_up();
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
