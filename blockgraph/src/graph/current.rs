//! The graph as the process holds it: the newest generation, and who is still on older ones.
//!
//! The rule: one thread, the control thread, publishes. All others adopt what is newest between batches, and are woken to
//! do so.

use super::Graph;
use super::drains::{DrainFigures, Drains};
use super::pause::StillBusy;
use ring::Bell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The graph as the process holds it: the newest generation, and a counter that threads look at between batches.
#[derive(Debug, Default)]
pub struct Current {
    generation: AtomicU64,
    graph: Mutex<Arc<Graph>>,
    living: Arc<Living>,
    listeners: Mutex<Listeners>,
    /// A listener has nothing under way on what is held, or is gone.
    quiet: Condvar,
    pub(super) drains: Drains,
}

/// The threads that adopt generations.
#[derive(Debug, Default)]
struct Listeners {
    next: u64,
    all: Vec<Listening>,
}

/// Is a thread asked whether anything of its is under way on what is held? One that runs no requests of guests is not: what it
/// does to nodes, whoever gave it the work keeps apart from changes of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Always,
    Never,
}

#[derive(Debug)]
struct Listening {
    name: u64,
    bell: Bell,
    /// The last generation that holds requests and that it has nothing under way on.
    quiet: u64,
    /// When the last request ended that had to before that.
    last_end: Option<Instant>,
}

/// The generations that somebody still has.
#[derive(Debug, Default)]
struct Living {
    generations: Mutex<BTreeSet<u64>>,
    changed: Condvar,
}

/// In a published generation and gone with it.
#[derive(Debug)]
pub(super) struct Life {
    generation: u64,
    of: Arc<Living>,
}

impl Drop for Life {
    fn drop(&mut self) {
        lock(&self.of.generations).remove(&self.generation);
        self.of.changed.notify_all();
    }
}

/// A thread that adopts generations; not any more when this is gone.
#[derive(Debug)]
pub(crate) struct Listener {
    current: Arc<Current>,
    name: u64,
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut listeners = lock(&self.current.listeners);
        listeners.all.retain(|other| other.name != self.name);
        drop(listeners);
        self.current.quiet.notify_all();
    }
}

impl Listener {
    /// Nothing of this thread's is under way on what `generation` holds, since `last_end` if something was.
    pub(crate) fn is_quiet(&self, generation: u64, last_end: Option<Instant>) {
        let mut listeners = lock(&self.current.listeners);
        let own = listeners.all.iter_mut().find(|own| own.name == self.name);
        if let Some(own) = own {
            own.quiet = own.quiet.max(generation);
            own.last_end = last_end;
        }
        drop(listeners);
        self.current.quiet.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Current {
    /// The newest generation.
    pub fn get(&self) -> Arc<Graph> {
        lock(&self.graph).clone()
    }

    /// Its number, without a lock.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Publishes `graph` as the next generation.
    pub fn publish(&self, mut graph: Graph) -> Arc<Graph> {
        let mut current = lock(&self.graph);
        graph.generation = current.generation + 1;
        let living = &self.living;
        lock(&living.generations).insert(graph.generation);
        graph.life = Some(Arc::new(Life {
            generation: graph.generation,
            of: living.clone(),
        }));
        let next = Arc::new(graph);
        let before = std::mem::replace(&mut *current, next.clone());
        self.generation.store(next.generation, Ordering::Release);
        drop(current);
        if before.is_held() {
            self.ring();
        }
        // Not under the lock: with the last of a generation its nodes go.
        drop(before);
        next
    }

    /// Rings `bell` whenever somebody waits for older generations to be left.
    pub(crate) fn listen(self: &Arc<Current>, bell: Bell, asked: Asked) -> Listener {
        let mut listeners = lock(&self.listeners);
        listeners.next += 1;
        let name = listeners.next;
        let quiet = match asked {
            Asked::Always => 0,
            Asked::Never => u64::MAX,
        };
        listeners.all.push(Listening {
            name,
            bell,
            quiet,
            last_end: None,
        });
        Listener {
            current: self.clone(),
            name,
        }
    }

    /// Has every thread look for a newer generation, those that sleep too.
    pub(super) fn ring(&self) {
        for listening in &lock(&self.listeners).all {
            listening.bell.ring();
        }
    }

    /// How long requests were held back so far.
    pub fn drain_figures(&self) -> DrainFigures {
        self.drains.figures()
    }

    /// Waits until nothing is under way on what `generation` holds; says when the last request ended, if any was waited for.
    /// Errors: it did not come to that before `deadline`.
    pub(super) fn wait_quiet(
        &self,
        generation: u64,
        deadline: Instant,
    ) -> Result<Option<Instant>, StillBusy> {
        self.ring();
        let mut listeners = lock(&self.listeners);
        while listeners.all.iter().any(|other| other.quiet < generation) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Err(StillBusy);
            }
            let waited = self.quiet.wait_timeout(listeners, left);
            listeners = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let of_this = listeners.all.iter().filter(|own| own.quiet == generation);
        Ok(of_this.filter_map(|own| own.last_end).max())
    }

    /// The oldest generation that anybody is on.
    pub(super) fn oldest(&self) -> u64 {
        let generations = lock(&self.living.generations);
        generations.first().copied().unwrap_or(0)
    }

    /// Waits until nobody is on a generation older than `generation`, threads that sleep being woken; says whether it came
    /// to that before `deadline`.
    pub(crate) fn left(&self, generation: u64, deadline: Instant) -> bool {
        self.ring();
        let mut generations = lock(&self.living.generations);
        while generations
            .first()
            .is_some_and(|oldest| *oldest < generation)
        {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return false;
            }
            let waited = self.living.changed.wait_timeout(generations, left);
            generations = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}
