//! What somebody at a terminal sees while it goes on, and how they end it.
//!
//! The rule: it is told of every batch, and answers whether to go on; it draws at most ten times a second, and only on a
//! terminal.

use super::error::BackupError;
use crate::units;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_millis(100);
const BAR_CHARS: u64 = 30;

/// How far it is.
pub struct Progress<'a> {
    is_over: &'a mut dyn FnMut() -> bool,
    what: &'static str,
    done: u64,
    total: u64,
    began: Instant,
    drawn: Instant,
    is_shown: bool,
}

impl fmt::Debug for Progress<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Progress {
            what, done, total, ..
        } = self;
        write!(f, "{what}: {done} of {total}")
    }
}

impl<'a> Progress<'a> {
    /// Shown if stderr is a terminal. `is_over` is asked often, and says true when somebody wants an end.
    pub fn new(is_over: &'a mut dyn FnMut() -> bool) -> Progress<'a> {
        let now = Instant::now();
        Progress {
            is_over,
            what: "",
            done: 0,
            total: 0,
            began: now,
            drawn: now,
            is_shown: std::io::stderr().is_terminal(),
        }
    }

    /// A new piece of work.
    pub(super) fn begin(&mut self, what: &'static str, total: u64) {
        self.end();
        (self.what, self.done, self.total) = (what, 0, total);
        self.began = Instant::now();
    }

    /// So much more is done. Errors: somebody wants it to end.
    pub(super) fn advance(&mut self, bytes: u64) -> Result<(), BackupError> {
        self.done += bytes;
        if self.is_shown && self.drawn.elapsed() >= PERIOD {
            self.draw();
        }
        match (self.is_over)() {
            true => Err(BackupError::Interrupted),
            false => Ok(()),
        }
    }

    /// The line is over.
    pub(super) fn end(&mut self) {
        if self.is_shown && !self.what.is_empty() {
            self.draw();
            eprintln!();
        }
        self.what = "";
    }

    /// A word that is worth a line.
    pub(super) fn say(&mut self, text: &str) {
        self.end();
        eprintln!("{text}");
    }

    fn draw(&mut self) {
        self.drawn = Instant::now();
        let line = line(self.what, self.done, self.total, self.began.elapsed());
        // A terminal that is gone ends it by SIGHUP.
        let _ = write!(std::io::stderr(), "\r{line}\x1b[K");
    }
}

fn line(what: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let share = |of: u64| (u128::from(done.min(total)) * u128::from(of)) / u128::from(total.max(1));
    let (full, percent) = match total {
        0 => (BAR_CHARS as usize, 100),
        _ => (share(BAR_CHARS) as usize, share(100)),
    };
    let empty = BAR_CHARS as usize - full;
    let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
    format!(
        "{what:9} [{}{}] {percent:3} %  {} of {}, {}/s",
        "#".repeat(full),
        "-".repeat(empty),
        units::bytes(done as f64),
        units::bytes(total as f64),
        units::bytes(rate)
    )
}

/// Seconds since 1970 as a date and time in UTC (Gregorian, RFC 3339).
pub(super) fn utc(time_s: u64) -> String {
    let (mut days, rest) = (time_s / 86_400, time_s % 86_400);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    // Past the year 9999 nobody reads it.
    while year < 9999 {
        let length = if is_leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!(
        "{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
        days + 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_dates_read_well() {
        let half = line("copying", 1 << 30, 2 << 30, Duration::from_secs(2));
        assert_eq!(
            half,
            "copying   [###############---------------]  50 %  1 GiB of 2 GiB, 512 MiB/s"
        );
        assert!(line("copying", 0, 0, Duration::ZERO).contains("100 %"));
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_795_889_222), "2026-11-28T18:07:02Z");
    }

    #[test]
    fn who_wants_an_end_gets_one() {
        let mut count = 0;
        let mut is_over = || {
            count += 1;
            count > 2
        };
        let mut progress = Progress::new(&mut is_over);
        assert!(progress.advance(1).is_ok() && progress.advance(1).is_ok());
        assert!(matches!(progress.advance(1), Err(BackupError::Interrupted)));
    }
}
