//! The executor of slow requests: a slab of futures that live and die on one thread.
//!
//! The rule: a waker may be used from any thread and for ever; a late one costs an idle poll and nothing else.

use crate::wait::Bell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};
use std::thread::ThreadId;

/// A task: runs to its end, and tells whoever asked by itself.
pub type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Tasks that can go on. Locked for a push or a pop, never across a poll.
#[derive(Debug)]
struct Ready {
    queue: Mutex<VecDeque<u32>>,
    any: AtomicBool,
    owner: ThreadId,
    bell: Bell,
}

impl Ready {
    fn push(&self, task: u32) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push_back(task);
        self.any.store(true, Ordering::Release);
        drop(queue);
        if std::thread::current().id() != self.owner {
            self.bell.ring();
        }
    }

    fn pop(&self) -> Option<u32> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let task = queue.pop_front();
        if queue.is_empty() {
            self.any.store(false, Ordering::Release);
        }
        task
    }
}

#[derive(Debug)]
struct TaskWaker {
    task: u32,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.push(self.task);
    }
}

/// The tasks of one thread.
pub struct Tasks {
    slots: Vec<Option<Task>>,
    wakers: Vec<Waker>,
    free: Vec<u32>,
    ready: Arc<Ready>,
}

impl std::fmt::Debug for Tasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tasks({} of {})", self.len(), self.slots.len())
    }
}

impl Tasks {
    /// No tasks, for the calling thread; wakers on other threads ring `bell`.
    pub fn new(bell: Bell) -> Tasks {
        Tasks {
            slots: Vec::new(),
            wakers: Vec::new(),
            free: Vec::new(),
            ready: Arc::new(Ready {
                queue: Mutex::default(),
                any: AtomicBool::new(false),
                owner: std::thread::current().id(),
                bell,
            }),
        }
    }

    /// Adds a task; it is polled at the next [`Tasks::run`].
    pub fn spawn(&mut self, task: Task) {
        let at = self.free.pop().unwrap_or_else(|| self.grow());
        self.slots[at as usize] = Some(task);
        self.ready.push(at);
    }

    fn grow(&mut self) -> u32 {
        let task = self.slots.len() as u32;
        let ready = self.ready.clone();
        self.slots.push(None);
        self.wakers.push(Arc::new(TaskWaker { task, ready }).into());
        task
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if some task can go on.
    pub fn can_run(&self) -> bool {
        self.ready.any.load(Ordering::Acquire)
    }

    /// Polls every task that can go on, until none can.
    pub fn run(&mut self) {
        while let Some(at) = self.ready.pop() {
            self.poll(at);
        }
    }

    fn poll(&mut self, at: u32) {
        let Some(task) = self.slots[at as usize].as_mut() else {
            return;
        };
        let mut cx = Context::from_waker(&self.wakers[at as usize]);
        if task.as_mut().poll(&mut cx).is_ready() {
            self.slots[at as usize] = None;
            self.free.push(at);
        }
    }
}
