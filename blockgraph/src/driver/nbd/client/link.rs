//! What queue threads and a connection's own thread share: requests going in, answers coming out.
//!
//! The rule: there are as many permits as slots for requests in flight, and a request takes one before its data is
//! copied. So memory is bounded by the slots however many requests wait, and the connection's thread always has room.

use crate::driver::nbd::wire::{Command, Extent};
use ring::{Bell, Errno};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

/// Requests in flight on one connection. (QEMU has 16; its server reads no further ahead than that.)
pub(super) const SLOTS: usize = 32;

/// What is asked of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) command: Command,
    pub(super) flags: u16,
    pub(super) at: u64,
    pub(super) len: u64,
}

/// What a server answers.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// A read's bytes, as many as were asked for.
    pub(super) data: Vec<u8>,
    /// A block status, of the request's beginning.
    pub(super) extent: Option<Extent>,
}

/// A request on its way.
#[derive(Debug)]
pub(super) struct Call {
    /// Requests are sent in this order, again after a reconnection.
    pub(super) order: u64,
    pub(super) ask: Ask,
    /// A write's bytes.
    pub(super) payload: Vec<u8>,
    /// How long it has waited for a connection to come back.
    pub(super) waited: Duration,
    answer: Arc<Answer>,
}

/// Where an answer is left, and who waits for it.
#[derive(Debug, Default)]
struct Answer(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    result: Option<Result<Reply, Errno>>,
    waker: Option<Waker>,
}

/// A request that was handed over; dropping it gives up its answer and nothing else.
#[derive(Debug)]
pub(super) struct Ticket(Arc<Answer>);

/// What the connection's thread is told besides requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    /// Carry on.
    Go,
    /// End with an error what waits for the server to come back, then carry on.
    Hurry,
    /// End what is under way with an error, then carry on.
    Cancel,
    /// Take leave of the server, and end.
    Stop,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Call>,
    next_order: u64,
    /// Permits nobody has.
    free: usize,
    /// Who waits for one, first come first served; a number is a name.
    waiting: VecDeque<(u64, Waker)>,
    /// Who was given one and has not looked yet.
    granted: Vec<u64>,
    next_waiter: u64,
    /// The connection's thread sleeps, or is about to.
    asleep: bool,
    order: Order,
    ended: bool,
    closers: Vec<Waker>,
}

/// The way to a connection's thread.
#[derive(Debug)]
pub(super) struct Link {
    /// Never held across an await or an I/O.
    state: Mutex<State>,
    /// Wakes the connection's thread.
    pub(super) bell: Bell,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// Errors: out of descriptors.
    pub(super) fn new() -> std::io::Result<Link> {
        let state = State {
            queue: VecDeque::with_capacity(SLOTS),
            next_order: 0,
            free: SLOTS,
            waiting: VecDeque::new(),
            granted: Vec::new(),
            next_waiter: 0,
            asleep: false,
            order: Order::Go,
            ended: false,
            closers: Vec::new(),
        };
        Ok(Link {
            state: Mutex::new(state),
            bell: Bell::new()?,
        })
    }

    /// Waits for a permit.
    pub(super) async fn permit(&self) -> Permit<'_> {
        let mut turn = Turn {
            link: self,
            name: None,
        };
        poll_fn(|cx| turn.poll(cx.waker())).await
    }

    /// Hands a request over.
    pub(super) fn submit(&self, permit: Permit<'_>, ask: Ask, payload: Vec<u8>) -> Ticket {
        let answer = Arc::<Answer>::default();
        let ticket = Ticket(answer.clone());
        let mut state = lock(&self.state);
        let call = Call {
            order: state.next_order,
            ask,
            payload,
            waited: Duration::ZERO,
            answer,
        };
        state.next_order += 1;
        // From here on the permit is the call's.
        std::mem::forget(permit);
        if state.ended {
            drop(state);
            self.finish(call, Err(Errno::IO));
            return ticket;
        }
        state.queue.push_back(call);
        let wake = std::mem::replace(&mut state.asleep, false);
        drop(state);
        if wake {
            self.bell.ring();
        }
        ticket
    }

    /// Answers a request and lets the next one in.
    pub(super) fn finish(&self, call: Call, result: Result<Reply, Errno>) {
        let waker = {
            let mut waiting = lock(&call.answer.0);
            waiting.result = Some(result);
            waiting.waker.take()
        };
        self.release();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn release(&self) {
        let mut state = lock(&self.state);
        let Some((name, waker)) = state.waiting.pop_front() else {
            state.free += 1;
            return;
        };
        state.granted.push(name);
        drop(state);
        waker.wake();
    }

    /// Tells the connection's thread; a later order never takes a stronger one back.
    pub(super) fn order(&self, order: Order) {
        let mut state = lock(&self.state);
        state.order = state.order.max(order);
        drop(state);
        self.bell.ring();
    }

    /// Waits until the connection's thread has ended.
    pub(super) async fn ended(&self) {
        poll_fn(|cx| {
            let mut state = lock(&self.state);
            if state.ended {
                return Poll::Ready(());
            }
            state.closers.push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// For the connection's thread: what there is to do.
    pub(super) fn take(&self, calls: &mut VecDeque<Call>) -> Order {
        let mut state = lock(&self.state);
        state.asleep = false;
        calls.append(&mut state.queue);
        match state.order {
            Order::Hurry | Order::Cancel => std::mem::replace(&mut state.order, Order::Go),
            order => order,
        }
    }

    /// For the connection's thread: true if it may sleep, and will be woken by the bell.
    pub(super) fn may_sleep(&self) -> bool {
        let mut state = lock(&self.state);
        state.asleep = state.queue.is_empty() && state.order == Order::Go;
        state.asleep
    }

    /// For the connection's thread, at its end: nobody will take requests any more.
    pub(super) fn end(&self) {
        let (queue, closers) = {
            let mut state = lock(&self.state);
            state.ended = true;
            (
                std::mem::take(&mut state.queue),
                std::mem::take(&mut state.closers),
            )
        };
        for call in queue {
            self.finish(call, Err(Errno::IO));
        }
        closers.into_iter().for_each(Waker::wake);
    }
}

/// The right to have one request in flight; given back on drop.
#[derive(Debug)]
pub(super) struct Permit<'a>(&'a Link);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// A place among those who wait for a permit.
struct Turn<'a> {
    link: &'a Link,
    name: Option<u64>,
}

impl<'a> Turn<'a> {
    fn poll(&mut self, waker: &Waker) -> Poll<Permit<'a>> {
        let mut state = lock(&self.link.state);
        let Some(name) = self.name else {
            if state.free > 0 {
                state.free -= 1;
                return Poll::Ready(Permit(self.link));
            }
            let name = state.next_waiter;
            state.next_waiter += 1;
            state.waiting.push_back((name, waker.clone()));
            self.name = Some(name);
            return Poll::Pending;
        };
        if let Some(at) = state.granted.iter().position(|granted| *granted == name) {
            state.granted.swap_remove(at);
            self.name = None;
            return Poll::Ready(Permit(self.link));
        }
        if let Some(entry) = state.waiting.iter_mut().find(|entry| entry.0 == name) {
            entry.1.clone_from(waker);
        }
        Poll::Pending
    }
}

impl Drop for Turn<'_> {
    /// Whoever goes leaves the place, or passes the permit on that came too late.
    fn drop(&mut self) {
        let Some(name) = self.name else { return };
        let mut state = lock(&self.link.state);
        state.waiting.retain(|(waiting, _)| *waiting != name);
        let Some(at) = state.granted.iter().position(|granted| *granted == name) else {
            return;
        };
        state.granted.swap_remove(at);
        drop(state);
        self.link.release();
    }
}

impl Future for Ticket {
    type Output = Result<Reply, Errno>;

    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        let mut waiting = lock(&self.0.0);
        match waiting.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                waiting.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::Context;

    fn ask() -> Ask {
        Ask {
            command: Command::Flush,
            flags: 0,
            at: 0,
            len: 0,
        }
    }

    #[test]
    fn permits_are_as_many_as_slots_and_whoever_leaves_passes_his_on() {
        let link = Link::new().expect("a link");
        let mut cx = Context::from_waker(Waker::noop());
        let mut held = Vec::new();
        for _ in 0..SLOTS {
            let Poll::Ready(permit) = pin!(link.permit()).poll(&mut cx) else {
                panic!("free")
            };
            held.push(permit);
        }
        let mut first = Box::pin(link.permit());
        let mut second = Box::pin(link.permit());
        assert!(first.as_mut().poll(&mut cx).is_pending());
        assert!(second.as_mut().poll(&mut cx).is_pending());
        held.pop();
        // The first was given it, and goes without having looked.
        drop(first);
        assert!(second.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn after_the_end_every_request_fails() {
        let link = Link::new().expect("a link");
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(permit) = pin!(link.permit()).poll(&mut cx) else {
            panic!("free")
        };
        let queued = link.submit(permit, ask(), Vec::new());
        link.end();
        let Poll::Ready(Err(Errno::IO)) = pin!(queued).poll(&mut cx) else {
            panic!("failed")
        };
        let Poll::Ready(permit) = pin!(link.permit()).poll(&mut cx) else {
            panic!("free")
        };
        let late = link.submit(permit, ask(), Vec::new());
        assert!(pin!(late).poll(&mut cx).is_ready());
        assert_eq!(lock(&link.state).free, SLOTS);
    }
}
