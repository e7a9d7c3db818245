//! delay: every request waits before it passes. THE FILTER TO COPY.
//!
//! The rule: `ready` only looks, `before` earns a token by waiting, `begin` spends it. A token belongs to the thread that
//! earned it, and from the end of `before` to `begin` that thread runs nothing else; so nobody can pass on another's wait.

use crate::graph::name::{Described, Setting, Short};
use crate::io::Io;
use crate::node::{Filter, Local, Outcome};
use crate::request::Dir;
use crate::units::Span;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

/// The right of one request to pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token {
    thread: ThreadId,
    dir: Dir,
    span: Span,
}

impl Token {
    fn of(dir: Dir, span: Span) -> Token {
        Token {
            thread: std::thread::current().id(),
            dir,
            span,
        }
    }
}

/// Lets requests pass after a wait.
#[derive(Debug)]
pub struct Delay {
    latency_ns: u64,
    /// How many tokens there are, so that `ready` costs a load while nobody has waited.
    count: AtomicUsize,
    /// Never held across an await or an I/O.
    tokens: Mutex<Vec<Token>>,
}

impl Delay {
    /// Makes each request wait `latency_ns` nanoseconds; 0 lets all pass at once.
    pub fn new(latency_ns: u64) -> Delay {
        Delay {
            latency_ns,
            count: AtomicUsize::new(0),
            tokens: Mutex::default(),
        }
    }

    fn tokens(&self) -> MutexGuard<'_, Vec<Token>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Filter for Delay {
    fn ready(&self, dir: Dir, span: Span) -> bool {
        if self.latency_ns == 0 {
            return true;
        }
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        // A lock that is not free means "not ready", never a wait (rule 7).
        let Ok(tokens) = self.tokens.try_lock() else {
            return false;
        };
        tokens.contains(&Token::of(dir, span))
    }

    fn described(&self) -> Described {
        let latency = Setting::Number(self.latency_ns);
        Described {
            settings: vec![("latency-ns".to_owned(), latency)],
            short: Short::None,
        }
    }

    fn before<'a>(&'a self, io: &'a Io, dir: Dir, span: Span) -> Local<'a, Outcome> {
        Box::pin(async move {
            let token = Token::of(dir, span);
            // `ready` may have said no to a token that is there; whoever has waited does not wait again.
            if !self.tokens().contains(&token) {
                io.sleep(self.latency_ns).await;
                let mut tokens = self.tokens();
                tokens.push(token);
                self.count.store(tokens.len(), Ordering::Release);
            }
            Ok(())
        })
    }

    fn begin(&self, dir: Dir, span: Span) {
        if self.latency_ns == 0 {
            return;
        }
        let mut tokens = self.tokens();
        let token = Token::of(dir, span);
        if let Some(at) = tokens.iter().position(|t| *t == token) {
            tokens.swap_remove(at);
        }
        self.count.store(tokens.len(), Ordering::Release);
    }

    fn end(&self, _dir: Dir, _span: Span, _outcome: Outcome) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn earn(delay: &Delay, dir: Dir, span: Span) {
        let mut tokens = delay.tokens();
        tokens.push(Token::of(dir, span));
        delay.count.store(tokens.len(), Ordering::Release);
    }

    #[test]
    fn a_wait_is_good_for_one_request_of_its_own_thread() {
        let delay = Delay::new(1000);
        let span = Span { at: 0, len: 512 };
        assert!(!delay.ready(Dir::Read, span));
        earn(&delay, Dir::Read, span);
        let elsewhere = || std::thread::scope(|s| s.spawn(|| delay.ready(Dir::Read, span)).join());
        assert!(!elsewhere().expect("no panic"));
        assert!(!delay.ready(Dir::Write, span));
        assert!(!delay.ready(Dir::Read, Span { at: 0, len: 1024 }));
        assert!(delay.ready(Dir::Read, span) && delay.ready(Dir::Read, span));
        delay.begin(Dir::Read, span);
        assert!(!delay.ready(Dir::Read, span));
    }

    #[test]
    fn no_latency_lets_all_pass() {
        let delay = Delay::new(0);
        assert!(delay.ready(Dir::Write, Span { at: 0, len: 1 }));
    }
}
