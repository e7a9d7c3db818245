//! How long requests were held back for changes of the graph: for an operator who asks what guests noticed of them.
//!
//! The rule: clocks are read for drains, never for requests: by whoever changes the graph, and by a thread at each turn that it
//! makes while something of its own is waited for.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where the intervals of [`DrainFigures::settled`] meet.
pub const BOUNDARIES: [Duration; 5] = [
    Duration::from_micros(100),
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_secs(1),
];

/// What is known of all drains since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainFigures {
    /// How often requests were held back.
    pub count: u64,
    /// How often those under way did not end in time.
    pub timed_out: u64,
    /// The longest that requests under way were waited for: theirs, as long as the disk took.
    pub longest_wait: Duration,
    /// The longest from the end of the last request under way, or from the beginning where none was, until whoever waited
    /// went on: ours.
    pub longest_settling: Duration,
    /// The longest that new requests were held back, the change itself included.
    pub longest_hold: Duration,
    /// How many took how long to settle, by the intervals of [`BOUNDARIES`].
    pub settled: [u64; BOUNDARIES.len() + 1],
}

impl DrainFigures {
    fn add(&mut self, drain: &Drain, end: Instant) {
        self.count += 1;
        self.longest_hold = self.longest_hold.max(end - drain.begun);
        let Some(Settled { last, known }) = drain.settled else {
            self.timed_out += 1;
            return;
        };
        let settling = known.saturating_duration_since(last);
        self.longest_wait = self.longest_wait.max(last - drain.begun);
        self.longest_settling = self.longest_settling.max(settling);
        let interval = BOUNDARIES.partition_point(|boundary| *boundary <= settling);
        self.settled[interval] += 1;
    }
}

/// The figures, for all threads.
#[derive(Debug, Default)]
pub(super) struct Drains(Mutex<DrainFigures>);

impl Drains {
    pub(super) fn figures(&self) -> DrainFigures {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests are held back no more.
    pub(super) fn over(&self, drain: &Drain) {
        let mut figures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        figures.add(drain, Instant::now());
    }
}

/// Requests are held back since then.
#[derive(Debug)]
pub(super) struct Drain {
    begun: Instant,
    settled: Option<Settled>,
}

/// Nothing is under way any more.
#[derive(Debug)]
struct Settled {
    /// The last request ended.
    last: Instant,
    /// Whoever waits for that knows.
    known: Instant,
}

impl Drain {
    pub(super) fn begin() -> Drain {
        Drain {
            begun: Instant::now(),
            settled: None,
        }
    }

    /// Everything has ended, at last at `last` if there was anything.
    pub(super) fn settle(&mut self, last: Option<Instant>) {
        let last = last.map_or(self.begun, |last| last.max(self.begun));
        let known = Instant::now();
        self.settled = Some(Settled { last, known });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_takes_and_what_we_take_are_told_apart() {
        let ms = Duration::from_millis;
        let begun = Instant::now();
        let drain = |last, known| Drain {
            begun,
            settled: Some(Settled {
                last: begun + ms(last),
                known: begun + ms(known),
            }),
        };
        let mut figures = DrainFigures::default();
        figures.add(&drain(500, 503), begun + ms(510));
        figures.add(&drain(0, 100), begun + ms(101));
        let stuck = Drain {
            begun,
            settled: None,
        };
        figures.add(&stuck, begun + ms(5000));
        let expected = DrainFigures {
            count: 3,
            timed_out: 1,
            longest_wait: ms(500),
            longest_settling: ms(100),
            longest_hold: ms(5000),
            settled: [0, 0, 1, 0, 1, 0],
        };
        assert_eq!(figures, expected);
    }

    #[test]
    fn a_request_that_ended_before_does_not_count_for_what_came_then() {
        let early = Instant::now();
        let mut drain = Drain::begin();
        drain.settle(Some(early));
        let settled = drain.settled.expect("settled");
        assert_eq!(settled.last, drain.begun);
    }
}
