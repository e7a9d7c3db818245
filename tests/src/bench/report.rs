//! Samples of many rounds, and the markdown table made of them.

use super::median;

/// What one round of one contender brought.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// Requests per second.
    pub iops: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile of latency in microseconds.
    pub p99_us: f64,
    /// Processor nanoseconds of the backend per request.
    pub cpu_ns: f64,
    /// Notifications per request, where they can be counted.
    pub notifications: Option<f64>,
}

/// One contender's line of a row.
#[derive(Debug)]
pub struct Line {
    /// Who.
    pub name: String,
    /// Round by round.
    pub samples: Vec<Sample>,
    /// System calls that enter a ring or submit, per request, from a run of their own.
    pub enters: Option<f64>,
}

impl Line {
    fn of(&self, figure: impl Fn(&Sample) -> f64) -> Vec<f64> {
        self.samples.iter().map(figure).collect()
    }

    /// Median of the ratios to another contender, round by round.
    fn ratio(&self, other: &Line, figure: impl Fn(&Sample) -> f64) -> f64 {
        let pairs = self.samples.iter().zip(&other.samples);
        median(
            &pairs
                .map(|(a, b)| figure(a) / figure(b).max(f64::MIN_POSITIVE))
                .collect::<Vec<_>>(),
        )
    }
}

/// A figure that a goal may be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// Requests per second.
    Iops,
    /// Processor time per request.
    Cpu,
}

/// Where a ratio should lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// There or below.
    AtMost(f64),
    /// There or above.
    AtLeast(f64),
}

/// What the ratio of two contenders' figures should be. Printed, never enforced.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    figure: Figure,
    of: usize,
    over: usize,
    bound: Bound,
}

impl Goal {
    /// The `figure` of the contender at place `of`, over that of the one at place `over`.
    pub fn new(figure: Figure, of: usize, over: usize, bound: Bound) -> Goal {
        Goal {
            figure,
            of,
            over,
            bound,
        }
    }

    /// A line of text: what it is, what it should be, and whether it is.
    pub fn render(&self, row: &Row) -> String {
        let (of, over) = (&row.lines[self.of], &row.lines[self.over]);
        let (word, ratio) = match self.figure {
            Figure::Iops => ("IOPS", of.ratio(over, |s| s.iops)),
            Figure::Cpu => ("CPU/IO", of.ratio(over, |s| s.cpu_ns)),
        };
        let (met, wanted) = match self.bound {
            Bound::AtMost(most) => (ratio <= most, format!("at most {most}")),
            Bound::AtLeast(least) => (ratio >= least, format!("at least {least}")),
        };
        let verdict = if met { "met" } else { "MISSED" };
        format!(
            "{}: {word} of {} over {}: {ratio:.2}, {wanted} wanted: {verdict}",
            row.name, of.name, over.name
        )
    }
}

/// One row: the same load for several contenders, in turn.
#[derive(Debug)]
pub struct Row {
    /// What was asked.
    pub name: String,
    /// Who answered; ratios are to the one of this place.
    pub lines: Vec<Line>,
    /// The contender the others are compared with.
    pub reference: usize,
    /// What should come out.
    pub goals: Vec<Goal>,
}

/// The head of the table.
pub fn heading() -> String {
    let columns = [
        "row",
        "contender",
        "IOPS (min to max)",
        "x ref",
        "p50 us",
        "p99 us",
        "CPU ns/IO (min to max)",
        "x ref",
        "notifications/IO",
        "enters/IO",
    ];
    format!(
        "| {} |\n|{}",
        columns.join(" | "),
        "---|".repeat(columns.len())
    )
}

/// The lines of a row.
pub fn render(row: &Row) -> String {
    let lines = row
        .lines
        .iter()
        .enumerate()
        .map(|(i, line)| render_line(row, i, line));
    lines.collect::<Vec<_>>().join("\n")
}

fn render_line(row: &Row, place: usize, line: &Line) -> String {
    let reference = &row.lines[row.reference];
    let (iops, cpu) = (line.of(|s| s.iops), line.of(|s| s.cpu_ns));
    let ratio = |figure: fn(&Sample) -> f64| {
        if place == row.reference {
            "1".to_owned()
        } else {
            format!("{:.2}", line.ratio(reference, figure))
        }
    };
    let notifications: Option<Vec<f64>> = line.samples.iter().map(|s| s.notifications).collect();
    let optional = |figure: Option<f64>| figure.map_or("".into(), |f| format!("{f:.3}"));
    let cells = [
        row.name.clone(),
        line.name.clone(),
        spread(&iops),
        ratio(|s| s.iops),
        format!("{:.0}", median(&line.of(|s| s.p50_us))),
        format!("{:.0}", median(&line.of(|s| s.p99_us))),
        spread(&cpu),
        ratio(|s| s.cpu_ns),
        optional(notifications.map(|n| median(&n))),
        optional(line.enters),
    ];
    format!("| {} |", cells.join(" | "))
}

fn spread(figures: &[f64]) -> String {
    let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let most = figures.iter().copied().fold(0.0, f64::max);
    format!("{:.0} ({least:.0} to {most:.0})", median(figures))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_round_by_round() {
        let line = |name: &str, iops: [f64; 3]| Line {
            name: name.into(),
            samples: iops
                .iter()
                .map(|iops| Sample {
                    iops: *iops,
                    ..Sample::default()
                })
                .collect(),
            enters: None,
        };
        let (ours, theirs) = (line("a", [2.0, 20.0, 200.0]), line("b", [1.0, 10.0, 100.0]));
        assert_eq!(ours.ratio(&theirs, |s| s.iops), 2.0);
        let row = Row {
            name: "r".into(),
            lines: vec![ours, theirs],
            reference: 1,
            goals: vec![],
        };
        let columns = |line: &str| line.matches('|').count();
        let text = render(&row);
        assert_eq!(
            columns(text.lines().next().unwrap()),
            columns(heading().lines().next().unwrap())
        );
        assert!(text.contains("| 20 (2 to 200) | 2.00 |"), "{text}");
        let goal = |bound| Goal::new(Figure::Iops, 0, 1, bound).render(&row);
        let (met, missed) = (goal(Bound::AtLeast(2.0)), goal(Bound::AtMost(1.9)));
        assert_eq!(met, "r: IOPS of a over b: 2.00, at least 2 wanted: met");
        assert!(missed.ends_with("at most 1.9 wanted: MISSED"), "{missed}");
    }
}
