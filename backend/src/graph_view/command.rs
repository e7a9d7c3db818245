//! The words behind `virtioblkd graph`.

use lexopt::{Arg, Parser, ValueExt};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A tree for a terminal.
    Text,
    /// For graphviz.
    Dot,
    /// A picture for a browser.
    Svg,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphCommand {
    /// The monitor's socket.
    pub socket: PathBuf,
    /// What is drawn.
    pub format: Format,
    /// Over how long the rates are taken; `None`: no rates.
    pub interval: Option<Duration>,
}

/// What `--help` shows.
pub const HELP: &str = "\
Usage: virtioblkd graph --qmp SOCKET [--format text|dot|svg] [--interval SECONDS]

Draws the block graph of a running virtioblkd or qemu-storage-daemon.

  --qmp SOCKET         the unix socket of its QMP monitor
  --format FORMAT      text (a tree, the default), dot (for graphviz) or svg
  --interval SECONDS   measure the exports' rates for so long (default 1, 0: no rates)
";

/// The longest interval: a day.
const INTERVAL_MAX_S: f64 = 86_400.0;

/// What is wrong with the words, in one line.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("graph: {0}")]
pub struct UsageError(String);

/// What the words behind `graph` ask for; `None`: for help. Errors: words that make no sense.
pub fn parse(
    words: impl IntoIterator<Item = OsString>,
) -> Result<Option<GraphCommand>, UsageError> {
    let mut parser = Parser::from_args(words);
    let (mut socket, mut format, mut interval_s) = (None, Format::Text, 1.0);
    let wrong = |error: lexopt::Error| UsageError(error.to_string());
    while let Some(arg) = parser.next().map_err(wrong)? {
        match arg {
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            Arg::Long("qmp") => socket = Some(PathBuf::from(parser.value().map_err(wrong)?)),
            Arg::Long("format") => {
                format = format_of(&parser.value().map_err(wrong)?.string().map_err(wrong)?)?;
            }
            Arg::Long("interval") => {
                interval_s = parser.value().map_err(wrong)?.parse().map_err(wrong)?;
            }
            other => return Err(wrong(other.unexpected())),
        }
    }
    let socket = socket.ok_or_else(|| UsageError("--qmp SOCKET is missing".to_owned()))?;
    // NaN is in no range.
    if !(0.0..=INTERVAL_MAX_S).contains(&interval_s) {
        return Err(UsageError(format!(
            "--interval takes 0 to {INTERVAL_MAX_S} seconds"
        )));
    }
    Ok(Some(GraphCommand {
        socket,
        format,
        interval: (interval_s > 0.0).then(|| Duration::from_secs_f64(interval_s)),
    }))
}

fn format_of(word: &str) -> Result<Format, UsageError> {
    match word {
        "text" => Ok(Format::Text),
        "dot" => Ok(Format::Dot),
        "svg" => Ok(Format::Svg),
        other => Err(UsageError(format!(
            "--format takes text, dot or svg, not '{other}'"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Option<GraphCommand>, UsageError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn words_are_understood_or_refused_in_one_line() {
        let plain = words("--qmp /run/q").unwrap().unwrap();
        assert_eq!(plain.format, Format::Text);
        assert_eq!(plain.interval, Some(Duration::from_secs(1)));
        let svg = words("--format=svg --qmp=q --interval 0").unwrap().unwrap();
        assert_eq!((svg.format, svg.interval), (Format::Svg, None));
        assert_eq!(words("--qmp q --help"), Ok(None));
        for wrong in [
            "",
            "--qmp",
            "--qmp q --format png",
            "--qmp q --interval nan",
            "--qmp q --interval -1",
            "--qmp q --interval 1e9",
            "--qmp q more",
        ] {
            let error = words(wrong).unwrap_err().to_string();
            assert!(
                error.starts_with("graph: ") && !error.contains('\n'),
                "{error}"
            );
        }
    }
}
