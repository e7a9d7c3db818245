//! The orderly end: sessions are drained, everything written is made durable, and only then does anything close.

use super::executor::Daemon;
use blockgraph::{Event, Kind, Lane, Mode, NodeId, Span, Started};
use ring::{Choice, Ring, Wait};
use std::time::{Duration, Instant};

/// How long sessions may take to drain. Beyond it some disk is stuck, and waiting longer helps nobody.
const DRAIN: Duration = Duration::from_secs(8);

/// Not everything could be ended in order.
#[derive(Debug, thiserror::Error)]
pub enum Unclean {
    /// Requests did not end in time.
    #[error("requests of export {0} did not end in time")]
    StillDraining(String),
    /// Something written may not be durable.
    #[error("cannot flush node {0}: {1}")]
    Flush(String, ring::Errno),
    /// No ring to flush through.
    #[error("cannot flush")]
    Ring(#[from] std::io::Error),
}

impl Daemon {
    /// Ends every session, flushes every node, closes everything. Errors: the first thing that could not be done; the rest
    /// was tried. With requests stuck in flight nothing is closed: their memory must outlive them, to the process's end.
    pub fn shut_down(self) -> Result<(), Unclean> {
        let drained = self.drain();
        let flushed = self.flush();
        if let Err(stuck) = drained {
            std::mem::forget(self);
            return Err(stuck);
        }
        flushed
    }

    fn drain(&self) -> Result<(), Unclean> {
        let deadline = Instant::now() + DRAIN;
        let mut result = Ok(());
        for export in &self.exports {
            let left = deadline.saturating_duration_since(Instant::now());
            if export.blk.door().stop(left).is_err() {
                result = result.and(Err(Unclean::StillDraining(export.id.clone())));
            }
        }
        result
    }

    fn flush(&self) -> Result<(), Unclean> {
        let ring = Ring::new(Choice::Best)?;
        let epochs = self.teams.epochs();
        let mut lane = Lane::new(ring, self.current.clone(), epochs, Mode::Fast);
        let graph = lane.graph().clone();
        let nothing = Span { at: 0, len: 0 };
        for (id, _) in graph.nodes() {
            let started = lane.start(id, Kind::Flush, nothing, &[], u64::from(id.0));
            debug_assert_ne!(started, Started::Full, "a flush is served, never mapped");
        }
        let mut result = Ok(());
        while lane.in_flight() > 0 {
            lane.turn(Wait::One)?;
            while let Some(event) = lane.take() {
                if let Event::Finished {
                    token,
                    outcome: Err(errno),
                } = event
                {
                    let node = graph.node(NodeId(token as u32));
                    let name = node.map_or("?", |node| node.name()).to_owned();
                    result = result.and(Err(Unclean::Flush(name, errno)));
                }
            }
        }
        for (_, node) in graph.nodes() {
            if let blockgraph::graph::Body::Driver(driver) = node.body() {
                driver.close();
            }
        }
        result
    }
}
