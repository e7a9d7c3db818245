//! The orderly end: sessions are drained, everything written is made durable, and only then does anything close.

use super::executor::Daemon;
use super::removal::Leaving;
use crate::export::nbd::NbdStillBusy;
use blockgraph::graph::{Body, journals};
use blockgraph::{Event, Graph, Kind, Lane, Mode, NodeId, Span, Started};
use ring::{Choice, Ring, Wait};
use std::time::{Duration, Instant};

/// How long what waits for another machine is let wait. Then it is told to end.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long sessions may take to drain. Beyond it some disk is stuck, and waiting longer helps nobody.
const DRAIN: Duration = Duration::from_secs(8);
/// When flushes that wait for another machine are told to end, so that they still can.
const LAST_CALL: Duration = Duration::from_secs(9);
/// How long all of it may take: whatever draining took, the flush has the rest.
const END: Duration = Duration::from_secs(10);

/// Not everything could be ended in order.
#[derive(Debug, thiserror::Error)]
pub enum Unclean {
    /// Requests did not end in time.
    #[error("requests of export {0} did not end in time")]
    StillDraining(String),
    /// The same of NBD clients.
    #[error(transparent)]
    NbdStillBusy(#[from] NbdStillBusy),
    /// Something written may not be durable.
    #[error("cannot flush node {0}: {1}")]
    Flush(String, ring::Errno),
    /// The same, and nobody knows yet.
    #[error("flushing did not end in time")]
    StillFlushing,
    /// A node could not write what it has to at its end.
    #[error("cannot close node {0}: {1}")]
    Close(String, ring::Errno),
    /// It has not written it yet.
    #[error("closing node {0} did not end in time")]
    StillClosing(String),
    /// No ring to flush through.
    #[error("cannot flush")]
    Ring(#[from] std::io::Error),
}

impl Daemon {
    /// Ends every session, flushes every node, closes everything. Errors: the first thing that could not be done; the rest
    /// was tried. With requests stuck in flight nothing is closed: their memory must outlive them, to the process's end.
    pub fn shut_down(mut self) -> Result<(), Unclean> {
        let begun = Instant::now();
        self.end_jobs(begun + PATIENCE);
        // First of all, so that nobody knocks any more, and so that nothing is left behind however the rest goes.
        for export in &mut self.exports {
            export.remove_path();
        }
        if let Some(running) = self.nbd.running_mut() {
            running.path = None;
        }
        self.monitors.unlink();
        let mut drained = self.drain(begun + PATIENCE);
        if drained.is_err() {
            self.cancel();
            drained = self.drain(begun + DRAIN);
        }
        let flushed = self.flush(begun + LAST_CALL, begun + END);
        if drained.is_err() {
            std::mem::forget(self);
            return drained.and(flushed);
        }
        self.reap();
        for export in std::mem::take(&mut self.exports).into_iter().rev() {
            self.say_deleted(export);
        }
        self.retry_leaving();
        let closed = self.close(begun + END);
        if matches!(closed, Err(Unclean::StillClosing(_))) {
            std::mem::forget(self);
        }
        flushed.and(closed)
    }

    fn drain(&mut self, deadline: Instant) -> Result<(), Unclean> {
        let mut result = Ok(());
        for export in self.exports.iter().chain(self.leaving_exports()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if export.door().is_some_and(|door| door.stop(left).is_err()) {
                result = result.and(Err(Unclean::StillDraining(export.id.clone())));
            }
        }
        let stopped = self.leaving.iter_mut().filter_map(Leaving::server);
        for running in self.nbd.running_mut().into_iter().chain(stopped) {
            result = result.and(running.server.stop(deadline).map_err(Unclean::from));
        }
        result
    }

    /// Nobody waits for servers any longer.
    fn cancel(&self) {
        for (_, node) in self.current.get().nodes() {
            if let Body::Driver(driver) = node.body() {
                driver.cancel();
            }
        }
    }

    /// Threads, not io_uring: one flush for each node is no reason to set up a ring, and they are never refused.
    fn flush(&self, last_call: Instant, deadline: Instant) -> Result<(), Unclean> {
        let ring = Ring::new(Choice::Threads)?;
        let epochs = self.teams.epochs().clone();
        let mut lane = Lane::new(ring, self.current.clone(), epochs, Mode::Fast);
        let graph = lane.graph().clone();
        let nothing = Span { at: 0, len: 0 };
        for (id, _) in graph.nodes() {
            let started = lane.start(id, Kind::Flush, nothing, &[], u64::from(id.0));
            debug_assert_ne!(started, Started::Full, "a flush is served, never mapped");
        }
        let mut result = Ok(());
        let mut called = false;
        while lane.in_flight() > 0 {
            let until = if called { deadline } else { last_call };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() && !called {
                called = true;
                self.cancel();
                continue;
            }
            if left.is_zero() {
                // Dropping it would wait for what is stuck.
                std::mem::forget(lane);
                return result.and(Err(Unclean::StillFlushing));
            }
            let left_ns = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
            lane.turn(Wait::AtMost(left_ns))?;
            while let Some(event) = lane.take() {
                result = result.and(flushed(&graph, event));
            }
        }
        result
    }

    /// Parents first: what a node has to write at its end goes through its children.
    fn close(&mut self, deadline: Instant) -> Result<(), Unclean> {
        let graph = self.current.get();
        let mut result = Ok(());
        for id in graph.all_parents_first() {
            let Some(node) = graph.node(id) else {
                continue;
            };
            let Body::Driver(driver) = node.body().clone() else {
                continue;
            };
            let work = |io| async move { driver.close(&io).await };
            let closed = self.control.run_until(&graph, id, Some(deadline), work);
            let name = || node.name().to_owned();
            match closed {
                Ok(Ok(())) => {}
                Ok(Err(errno)) => result = result.and(Err(Unclean::Close(name(), errno))),
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                    return result.and(Err(Unclean::StillClosing(name())));
                }
                Err(error) => return result.and(Err(error.into())),
            }
        }
        // What is closed below a disk may still have changed its file.
        for (id, node) in graph.nodes() {
            if node.bitmaps().journal().is_none() {
                continue;
            }
            let until = Some(deadline);
            let ended = self
                .control
                .run_until(&graph, id, until, journals::end_here);
            if ended.is_err() {
                return result.and(Err(Unclean::StillClosing(node.name().to_owned())));
            }
        }
        result
    }
}

fn flushed(graph: &Graph, event: Event) -> Result<(), Unclean> {
    match event {
        Event::Finished {
            token,
            outcome: Err(errno),
        } => {
            let node = graph.node(NodeId(token as u32));
            let name = node.map_or("?", |node| node.name());
            Err(Unclean::Flush(name.to_owned(), errno))
        }
        _ => Ok(()),
    }
}
