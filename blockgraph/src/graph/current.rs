//! The graph as the process holds it: the newest generation, and who is still on older ones.
//!
//! The rule: one thread, the control thread, publishes. All others adopt what is newest between batches, and are woken to
//! do so.

use super::Graph;
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
    /// Of the threads that adopt generations, each with a name of its own.
    bells: Mutex<(u64, Vec<(u64, Bell)>)>,
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
        lock(&self.current.bells)
            .1
            .retain(|(name, _)| *name != self.name);
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
        // Not under the lock: with the last of a generation its nodes go.
        drop(before);
        next
    }

    /// Rings `bell` whenever somebody waits for older generations to be left.
    pub(crate) fn listen(self: &Arc<Current>, bell: Bell) -> Listener {
        let mut bells = lock(&self.bells);
        bells.0 += 1;
        let name = bells.0;
        bells.1.push((name, bell));
        Listener {
            current: self.clone(),
            name,
        }
    }

    /// Waits until nobody is on a generation older than `generation`, threads that sleep being woken; says whether it came
    /// to that before `deadline`.
    pub(super) fn left(&self, generation: u64, deadline: Instant) -> bool {
        for (_, bell) in &lock(&self.bells).1 {
            bell.ring();
        }
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
