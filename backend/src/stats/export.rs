//! All figures of one export: its writers' seats, and the sums over them.

use super::histogram::{Bins, Histogram, HistogramOptions, HistogramRefused, Shape};
use super::tally::{Seat, Tally};
use super::{Counted, Figures};
use blockgraph::clock;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An export's figures; writers come and go, what they counted stays.
#[derive(Debug, Default)]
pub struct ExportStats(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// As many as there ever were writers at the same time.
    seats: Vec<Arc<Seat>>,
    shape: Shape,
}

impl State {
    /// Sets histograms anew, or removes all when there are none in `set`.
    fn set(&mut self, set: Shape) {
        let remove = set == Shape::default();
        for seat in &self.seats {
            let before = seat.bins();
            seat.set_bins((!remove).then(|| Arc::new(Bins::renewed(&set, before.as_deref()))));
        }
        if remove {
            self.shape = set;
            return;
        }
        for (own, set) in self.shape.by_op.iter_mut().zip(set.by_op) {
            *own = set.or(own.take());
        }
        self.shape.zone_append = set.zone_append.or(self.shape.zone_append.take());
    }

    fn new_bins(&self) -> Option<Arc<Bins>> {
        let any = self.shape != Shape::default();
        any.then(|| Arc::new(Bins::renewed(&self.shape, None)))
    }

    /// The histogram of one kind, if it has one.
    fn histogram(&self, op: Counted) -> Option<Histogram> {
        let boundaries = self.shape.by_op[op as usize].as_ref()?;
        let mut histogram = Histogram::empty(boundaries);
        for bins in self.seats.iter().filter_map(|seat| seat.bins()) {
            bins.add_to(op, &mut histogram);
        }
        Some(histogram)
    }
}

impl ExportStats {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more writer to count in, for as long as it lives. Not for a request: this locks and allocates.
    pub fn tally(&self) -> Tally {
        let mut state = self.state();
        if let Some(free) = state.seats.iter().find(|seat| seat.take()) {
            return Tally::new(free.clone());
        }
        let seat = Arc::<Seat>::default();
        seat.take();
        seat.set_bins(state.new_bins());
        state.seats.push(seat.clone());
        Tally::new(seat)
    }

    /// Sets histograms anew, or removes all when nothing is asked for. Whatever was in those that are set is gone. Errors:
    /// boundaries that make no sense; nothing has changed then.
    pub fn set_histograms(&self, options: &HistogramOptions) -> Result<(), HistogramRefused> {
        let shape = options.shape()?;
        self.state().set(shape);
        Ok(())
    }

    /// Everything counted until the last batch of each writer.
    pub fn figures(&self) -> Figures {
        let state = self.state();
        let mut figures = Figures::default();
        let mut last_ns = 0;
        for seat in &state.seats {
            for (sum, own) in figures.sums.iter_mut().zip(seat.sums()) {
                sum.add(&own);
            }
            figures.in_flight += seat.in_flight();
            figures.written_end_bytes = figures.written_end_bytes.max(seat.written_end_bytes());
            last_ns = last_ns.max(seat.last_ns());
        }
        let ago = |last_ns| clock::exact_ns().saturating_sub(last_ns);
        figures.idle_ns = (last_ns > 0).then(|| ago(last_ns));
        figures.histograms = Counted::EACH.map(|op| state.histogram(op));
        figures.zone_append = state.shape.zone_append.as_ref().map(Histogram::empty);
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Ended, OPS, Sum};

    fn times(tally: &mut Tally, op: Counted, count: u64, time_ns: u64) {
        for _ in 0..count {
            tally.ended(op, Ended::Done, 512, time_ns);
        }
    }

    #[test]
    fn what_writers_counted_is_added_up_and_outlives_them() {
        let stats = ExportStats::default();
        assert_eq!(stats.figures(), Figures::default());
        let (mut one, mut two) = (stats.tally(), stats.tally());
        times(&mut one, Counted::Read, 3, 10);
        two.ended(Counted::Read, Ended::Failed, 512, 7);
        two.refused(Counted::Unmap);
        two.wrote_to(4096);
        assert_eq!(stats.figures().sums, [Sum::default(); OPS], "not yet");
        one.publish(2, 5);
        two.publish(1, 6);
        let figures = stats.figures();
        let expected = Sum {
            operations: 3,
            bytes: 1536,
            time_ns: 37,
            failed: 1,
            invalid: 0,
        };
        assert_eq!(*figures.of(Counted::Read), expected);
        assert_eq!(figures.of(Counted::Unmap).invalid, 1);
        assert_eq!((figures.in_flight, figures.written_end_bytes), (3, 4096));
        assert!(figures.idle_ns.is_some());
        times(&mut one, Counted::Read, 1, 10);
        drop((one, two));
        assert_eq!(stats.figures().of(Counted::Read).operations, 4);
        assert_eq!(stats.figures().in_flight, 0);
        let mut heir = stats.tally();
        times(&mut heir, Counted::Read, 1, 10);
        heir.publish(0, 7);
        assert_eq!(stats.figures().of(Counted::Read).operations, 5);
        assert_eq!(stats.state().seats.len(), 2);
    }

    #[test]
    fn histograms_are_set_while_requests_are_counted() {
        let stats = ExportStats::default();
        let mut early = stats.tally();
        times(&mut early, Counted::Read, 5, 30);
        let all = HistogramOptions {
            all: Some(vec![10, 50]),
            write: Some(vec![20]),
            ..HistogramOptions::default()
        };
        stats.set_histograms(&all).unwrap();
        let mut late = stats.tally();
        early.begin_batch();
        times(&mut early, Counted::Read, 1, 9);
        times(&mut late, Counted::Read, 2, 10);
        times(&mut late, Counted::Write, 1, 20);
        times(&mut late, Counted::Unmap, 1, 20);
        let bins = |op| stats.figures().histograms[op as usize].clone();
        assert_eq!(bins(Counted::Read).unwrap().bins, [1, 2, 0]);
        assert_eq!(bins(Counted::Write).unwrap().bins, [0, 1]);
        assert_eq!(bins(Counted::Flush).unwrap().bins, [0, 0, 0]);
        assert_eq!(bins(Counted::Unmap), None);
        let wrong = HistogramOptions {
            read: Some(vec![0]),
            ..HistogramOptions::default()
        };
        assert_eq!(
            stats.set_histograms(&wrong),
            Err(HistogramRefused("read")),
            "and nothing changed:"
        );
        assert_eq!(bins(Counted::Read).unwrap().bins, [1, 2, 0]);
        let write = HistogramOptions {
            write: Some(vec![]),
            ..HistogramOptions::default()
        };
        stats.set_histograms(&write).unwrap();
        assert_eq!(bins(Counted::Read).unwrap().bins, [1, 2, 0], "kept");
        assert_eq!(bins(Counted::Write).unwrap().bins, [0], "anew");
        assert!(stats.figures().zone_append.is_some());
        stats.set_histograms(&HistogramOptions::default()).unwrap();
        early.begin_batch();
        times(&mut early, Counted::Read, 1, 9);
        assert_eq!(stats.figures().histograms, [None, None, None, None]);
    }
}
