//! Calls that may block on a disk and have no asynchronous form, on helper threads.
//!
//! The rule: a queue thread never makes such a call itself. There are few helpers, started when first needed; they serve
//! queries, never a guest's transfer.

use ring::Errno;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

/// As many helpers as there are; more calls wait for one to be free.
const HELPERS_MAX: usize = 4;
/// A helper without work ends after this long.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    helpers: usize,
    idle: usize,
}

static JOBS: Mutex<Jobs> = Mutex::new(Jobs {
    waiting: VecDeque::new(),
    helpers: 0,
    idle: 0,
});
static WORK: Condvar = Condvar::new();

/// Where a call leaves its answer, and who waits for it.
struct Answer<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

/// Makes `call` on a helper thread. Errors: EAGAIN if there is no helper and none can be started.
pub async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Errno> {
    let answer = Arc::new(Mutex::new(Answer {
        value: None,
        waker: None,
    }));
    let to = answer.clone();
    enqueue(Box::new(move || {
        let value = call();
        let waker = {
            let mut answer = lock(&to);
            answer.value = Some(value);
            answer.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }))?;
    poll_fn(|cx| {
        let mut answer = lock(&answer);
        match answer.value.take() {
            Some(value) => Poll::Ready(Ok(value)),
            None => {
                answer.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    })
    .await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn enqueue(job: Job) -> Result<(), Errno> {
    let mut jobs = lock(&JOBS);
    if jobs.idle <= jobs.waiting.len() && jobs.helpers < HELPERS_MAX {
        let name = String::from("blocking-call");
        let started = std::thread::Builder::new().name(name).spawn(help);
        match started {
            Ok(_) => jobs.helpers += 1,
            Err(_) if jobs.helpers > 0 => {}
            Err(_) => return Err(Errno(libc::EAGAIN)),
        }
    }
    jobs.waiting.push_back(job);
    drop(jobs);
    WORK.notify_one();
    Ok(())
}

fn help() {
    while let Some(job) = next() {
        job();
    }
}

/// The next job; `None` after too long without one, when the helper has signed off.
fn next() -> Option<Job> {
    let mut jobs = lock(&JOBS);
    loop {
        if let Some(job) = jobs.waiting.pop_front() {
            return Some(job);
        }
        jobs.idle += 1;
        let (back, waited) = WORK
            .wait_timeout(jobs, IDLE)
            .unwrap_or_else(PoisonError::into_inner);
        jobs = back;
        jobs.idle -= 1;
        if waited.timed_out() && jobs.waiting.is_empty() {
            jobs.helpers -= 1;
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::sync::mpsc;
    use std::task::{Context, Wake};

    struct Tell(mpsc::Sender<()>);

    impl Wake for Tell {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(());
        }
    }

    #[test]
    fn a_call_runs_elsewhere_and_wakes_its_caller() {
        let (tell, told) = mpsc::channel();
        let waker = Arc::new(Tell(tell)).into();
        let mut cx = Context::from_waker(&waker);
        let mut call = pin!(blocking(|| std::thread::current().id()));
        let there = loop {
            match call.as_mut().poll(&mut cx) {
                Poll::Ready(answer) => break answer.expect("a helper"),
                Poll::Pending => told.recv().expect("woken"),
            }
        };
        assert_ne!(there, std::thread::current().id());
    }

    #[test]
    fn more_calls_than_helpers_all_end() {
        let (tell, told) = mpsc::channel();
        for n in 0..20 {
            let tell = tell.clone();
            enqueue(Box::new(move || tell.send(n).expect("listening"))).expect("a helper");
        }
        let mut seen: Vec<i32> = (0..20).map(|_| told.recv().expect("an end")).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..20).collect::<Vec<_>>());
    }
}
