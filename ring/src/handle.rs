//! A ring shared by a thread's loop and its tasks, and operations as futures.
//!
//! The rule: dropping a future in mid-flight cancels its operation and frees nothing the kernel may still touch.

use crate::buf::Mem;
use crate::op::{Errno, Op, OpId};
use crate::ring::Ring;
use std::cell::{RefCell, RefMut};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// A thread's ring, shared within that thread.
#[derive(Clone, Debug)]
pub struct Handle(Rc<RefCell<Ring>>);

impl Handle {
    /// Shares `ring`.
    pub fn new(ring: Ring) -> Handle {
        Handle(Rc::new(RefCell::new(ring)))
    }

    /// The ring itself, for a stretch of code that neither awaits nor wakes.
    pub fn borrow_mut(&self) -> RefMut<'_, Ring> {
        self.0.borrow_mut()
    }

    /// As [`Ring::has_news`].
    pub fn has_news(&self) -> bool {
        self.0.borrow_mut().has_news()
    }

    /// Starts `op` with `mem`, at once if there is room; resolves to its end.
    pub fn run(&self, op: Op, mem: Mem) -> Running {
        let mem = (!mem.is_empty()).then_some(mem);
        let started = self.0.borrow_mut().start_for_future(op, mem.clone());
        Running {
            ring: self.clone(),
            state: match started {
                Some(id) => State::Started(id),
                None => State::Starved(op, mem),
            },
        }
    }
}

#[derive(Debug)]
enum State {
    Starved(Op, Option<Mem>),
    Started(OpId),
    Over,
}

/// An operation under way.
#[derive(Debug)]
pub struct Running {
    ring: Handle,
    state: State,
}

impl Future for Running {
    type Output = Result<(), Errno>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let handle = self.ring.clone();
        let mut ring = handle.borrow_mut();
        if let State::Starved(op, mem) = &self.state {
            match ring.start_for_future(*op, mem.clone()) {
                Some(id) => self.state = State::Started(id),
                None => {
                    ring.starve(cx.waker());
                    return Poll::Pending;
                }
            }
        }
        let State::Started(id) = self.state else {
            return Poll::Ready(Err(Errno::CANCELED));
        };
        match ring.take_end(id, cx.waker()) {
            Some(result) => {
                self.state = State::Over;
                Poll::Ready(result)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let State::Started(id) = self.state {
            self.ring.borrow_mut().orphan(id);
        }
    }
}
