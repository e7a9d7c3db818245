//! Histograms of latency: how many requests took how long.
//!
//! The rule: boundaries are checked where they come in and never change; an interval takes its lower boundary in and
//! leaves its upper one out, the first begins at 0 and the last has no end, as in QEMU's `BlockLatencyHistogramInfo`.

use super::{Counted, OPS};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error;

/// Boundaries of one histogram; more would be no histogram, and each counts for every queue.
const BOUNDARIES_MAX: usize = 1024;

/// Ascending, and none is 0; in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boundaries(Arc<[u64]>);

impl Boundaries {
    /// Checks them: `None` if one is 0, they do not ascend, or there are too many. None at all make one interval of all.
    pub fn new(ns: &[u64]) -> Option<Boundaries> {
        let ascend = ns.is_sorted_by(|a, b| a < b);
        let fine = ascend && ns.first() != Some(&0);
        (fine && ns.len() <= BOUNDARIES_MAX).then(|| Boundaries(ns.into()))
    }

    /// The boundaries, in nanoseconds.
    pub fn ns(&self) -> &[u64] {
        &self.0
    }

    fn interval(&self, ns: u64) -> usize {
        self.0.partition_point(|boundary| *boundary <= ns)
    }
}

/// What is asked of the histograms of an export, as `block-latency-histogram-set` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistogramOptions {
    /// For every kind that has none of its own.
    pub all: Option<Vec<u64>>,
    /// For reads.
    pub read: Option<Vec<u64>>,
    /// For writes.
    pub write: Option<Vec<u64>>,
    /// For flushes.
    pub flush: Option<Vec<u64>>,
    /// For zone appends, of which no disk of ours knows: shown, and always empty.
    pub zone_append: Option<Vec<u64>>,
}

/// Some boundaries make no sense; the text is QEMU's, but for the name of the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("set {0} boundaries fail")]
pub struct HistogramRefused(pub &'static str);

/// The boundaries of every kind that has any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) by_op: [Option<Boundaries>; OPS],
    pub(super) zone_append: Option<Boundaries>,
}

impl HistogramOptions {
    /// What is to be set; the others keep what they have, unless nothing is to be set: then all are removed. Errors: the
    /// first boundaries that make no sense, in QEMU's order.
    pub(super) fn shape(&self) -> Result<Shape, HistogramRefused> {
        let asked = |own: &Option<Vec<u64>>, name| {
            let ns = own.as_ref().or(self.all.as_ref());
            let boundaries = ns.map(|ns| Boundaries::new(ns).ok_or(HistogramRefused(name)));
            boundaries.transpose()
        };
        let (read, write) = (asked(&self.read, "read")?, asked(&self.write, "write")?);
        let zone_append = asked(&self.zone_append, "append write")?;
        let flush = asked(&self.flush, "flush")?;
        Ok(Shape {
            by_op: [read, write, flush, None],
            zone_append,
        })
    }
}

/// One histogram, added up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// Where its intervals meet.
    pub boundaries: Boundaries,
    /// Requests by interval: one more than there are boundaries.
    pub bins: Vec<u64>,
}

impl Histogram {
    pub(super) fn empty(boundaries: &Boundaries) -> Histogram {
        Histogram {
            boundaries: boundaries.clone(),
            bins: vec![0; boundaries.ns().len() + 1],
        }
    }
}

/// One writer's counts of one kind.
#[derive(Debug)]
struct Row {
    boundaries: Boundaries,
    counts: Box<[AtomicU64]>,
}

/// One writer's counts.
#[derive(Debug)]
pub(super) struct Bins([Option<Arc<Row>>; OPS]);

impl Row {
    fn empty(boundaries: &Boundaries) -> Arc<Row> {
        Arc::new(Row {
            boundaries: boundaries.clone(),
            counts: (0..=boundaries.ns().len())
                .map(|_| AtomicU64::new(0))
                .collect(),
        })
    }
}

impl Bins {
    /// Empty ones where `set` says, and those that were there where it does not.
    pub(super) fn renewed(set: &Shape, before: Option<&Bins>) -> Bins {
        Bins(std::array::from_fn(|op| match &set.by_op[op] {
            Some(boundaries) => Some(Row::empty(boundaries)),
            None => before.and_then(|before| before.0[op].clone()),
        }))
    }

    /// By the one writer.
    pub(super) fn count(&self, op: Counted, time_ns: u64) {
        let Some(row) = &self.0[op as usize] else {
            return;
        };
        if let Some(count) = row.counts.get(row.boundaries.interval(time_ns)) {
            // Nobody else writes it, so this needs no locked instruction.
            count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    /// Adds what was counted of `op` to `histogram`, which has the same boundaries.
    pub(super) fn add_to(&self, op: Counted, histogram: &mut Histogram) {
        let Some(row) = &self.0[op as usize] else {
            return;
        };
        debug_assert_eq!(row.boundaries, histogram.boundaries);
        for (sum, count) in histogram.bins.iter_mut().zip(&row.counts) {
            *sum += count.load(Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_begins_with_its_lower_boundary() {
        let boundaries = Boundaries::new(&[10, 50, 100]).unwrap();
        let of = [0, 9, 10, 49, 50, 99, 100, u64::MAX].map(|ns| boundaries.interval(ns));
        assert_eq!(of, [0, 0, 1, 1, 2, 2, 3, 3]);
    }

    #[test]
    fn boundaries_ascend_from_above_zero() {
        for right in [&[][..], &[1], &[1, u64::MAX]] {
            assert!(Boundaries::new(right).is_some(), "{right:?}");
        }
        for wrong in [&[0][..], &[0, 1], &[5, 5], &[5, 4]] {
            assert_eq!(Boundaries::new(wrong), None, "{wrong:?}");
        }
        let most: Vec<u64> = (1..=BOUNDARIES_MAX as u64).collect();
        assert!(Boundaries::new(&most).is_some());
        assert!(Boundaries::new(&[&most[..], &[u64::MAX]].concat()).is_none());
        assert_eq!(Boundaries::new(&[]).unwrap().interval(7), 0);
    }

    #[test]
    fn the_first_boundaries_that_make_no_sense_are_named() {
        let options = HistogramOptions {
            all: Some(vec![0]),
            read: Some(vec![1]),
            ..HistogramOptions::default()
        };
        assert_eq!(options.shape(), Err(HistogramRefused("write")));
        let options = HistogramOptions {
            zone_append: Some(vec![3, 2]),
            ..HistogramOptions::default()
        };
        assert_eq!(options.shape(), Err(HistogramRefused("append write")));
        let options = HistogramOptions {
            all: Some(vec![7]),
            flush: Some(vec![]),
            ..HistogramOptions::default()
        };
        let shape = options.shape().unwrap();
        let [read, write, flush, unmap] = shape.by_op;
        assert_eq!((&read, &write), (&Boundaries::new(&[7]), &read));
        assert_eq!((flush, unmap), (Boundaries::new(&[]), None));
        assert_eq!(shape.zone_append, read);
    }
}
