//! blkdebug's config file: groups of `name = "value"` lines.
//!
//! The rule: what QEMU's reader takes is taken and what it refuses is refused in its words, first come first served.

use super::event::BlkdebugEvent;
use super::rules::{InjectError, IoType, SetState};
use std::collections::BTreeMap;
use thiserror::Error;

/// No config file is longer than this.
const BYTES_MAX: u64 = 1 << 20;

/// Why a config file is refused; the texts are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("Could not read blkdebug config file: {0}")]
    Unreadable(String),
    /// Something before the first group.
    #[error("no group defined")]
    NoGroup,
    /// A line that is nothing.
    #[error("parse error")]
    Syntax,
    /// A group that means nothing.
    #[error("There is no option group '{0}'")]
    UnknownGroup(String),
    /// A name that means nothing in its group.
    #[error("Invalid parameter '{0}'")]
    UnknownName(String),
    /// Not a number.
    #[error("Parameter '{0}' expects a number")]
    Number(&'static str),
    /// Not a switch.
    #[error("Parameter '{0}' expects 'on' or 'off'")]
    Switch(&'static str),
    /// A rule without its event.
    #[error("Missing event name for rule")]
    NoEvent,
    /// A word that is none of those there are.
    #[error("invalid parameter value: {0}")]
    Word(String),
}

/// The rules of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `[inject-error]`
    pub inject_error: Vec<InjectError>,
    /// `[set-state]`
    pub set_state: Vec<SetState>,
}

const INJECT: &[&str] = &[
    "event",
    "state",
    "iotype",
    "errno",
    "sector",
    "once",
    "immediately",
];
const STATE: &[&str] = &["event", "state", "new_state"];
const IO_TYPES: &[(&str, IoType)] = &[
    ("read", IoType::Read),
    ("write", IoType::Write),
    ("write-zeroes", IoType::WriteZeroes),
    ("discard", IoType::Discard),
    ("flush", IoType::Flush),
    ("block-status", IoType::BlockStatus),
];

/// Reads a file. Errors: it cannot be read, or makes no sense.
pub fn read(path: &std::path::Path) -> Result<Config, ConfigError> {
    let unreadable = |error: std::io::Error| {
        let text = crate::graph::errno_text(&error);
        ConfigError::Unreadable(text)
    };
    let length = std::fs::metadata(path).map_err(unreadable)?.len();
    if length > BYTES_MAX {
        return Err(unreadable(std::io::Error::from_raw_os_error(libc::EFBIG)));
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    parse(&String::from_utf8_lossy(&bytes))
}

/// Parses a file's text.
pub(super) fn parse(text: &str) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    let mut group: Option<Group> = None;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = group_name(line) {
            finish(group.take(), &mut config)?;
            group = Some(Group::new(name)?);
            continue;
        }
        let group = group.as_mut().ok_or(ConfigError::NoGroup)?;
        let (name, value) = pair(line).ok_or(ConfigError::Syntax)?;
        if !group.names.contains(&name) {
            return Err(ConfigError::UnknownName(name.to_owned()));
        }
        group.values.insert(name.to_owned(), value.to_owned());
    }
    finish(group, &mut config)?;
    Ok(config)
}

/// `[name]` or `[name "id"]`
fn group_name(line: &str) -> Option<&str> {
    let inner = line.strip_prefix('[')?.strip_suffix(']')?;
    let name = inner.split_whitespace().next()?;
    Some(name)
}

/// `name = "value"`; a line of one word is a name without a value.
fn pair(line: &str) -> Option<(&str, &str)> {
    let Some((name, rest)) = line.split_once(char::is_whitespace) else {
        return Some((line, ""));
    };
    let value = rest.trim_start().strip_prefix('=')?.trim();
    let value = value.strip_prefix('"')?.split('"').next()?;
    Some((name, value))
}

struct Group {
    injects: bool,
    names: &'static [&'static str],
    values: BTreeMap<String, String>,
}

impl Group {
    fn new(name: &str) -> Result<Group, ConfigError> {
        let (injects, names) = match name {
            "inject-error" => (true, INJECT),
            "set-state" => (false, STATE),
            _ => return Err(ConfigError::UnknownGroup(name.to_owned())),
        };
        let values = BTreeMap::new();
        Ok(Group {
            injects,
            names,
            values,
        })
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    fn number(&self, name: &'static str) -> Result<Option<i64>, ConfigError> {
        let number = |text: &str| {
            let digits = text.strip_prefix("0x");
            let parsed = match digits {
                Some(digits) => i64::from_str_radix(digits, 16),
                None => text.parse(),
            };
            parsed.map_err(|_| ConfigError::Number(name))
        };
        self.text(name).map(number).transpose()
    }

    fn switch(&self, name: &'static str) -> Result<bool, ConfigError> {
        match self.text(name) {
            None | Some("off" | "no" | "false" | "n") => Ok(false),
            Some("on" | "yes" | "true" | "y") => Ok(true),
            Some(_) => Err(ConfigError::Switch(name)),
        }
    }

    fn event(&self) -> Result<BlkdebugEvent, ConfigError> {
        let name = self.text("event").ok_or(ConfigError::NoEvent)?;
        BlkdebugEvent::parse(name).ok_or_else(|| ConfigError::Word(name.to_owned()))
    }

    fn io_type(&self) -> Result<Option<IoType>, ConfigError> {
        let find = |name: &str| {
            let found = IO_TYPES.iter().find(|(known, _)| *known == name);
            let found = found.map(|(_, io_type)| *io_type);
            found.ok_or_else(|| ConfigError::Word(name.to_owned()))
        };
        self.text("iotype").map(find).transpose()
    }
}

fn finish(group: Option<Group>, config: &mut Config) -> Result<(), ConfigError> {
    let Some(group) = group else {
        return Ok(());
    };
    let state = group.number("state")?.unwrap_or(0);
    if group.injects {
        let errno = group.number("errno")?.unwrap_or(libc::EIO.into());
        let sector = group.number("sector")?;
        let (once, immediately) = (group.switch("once")?, group.switch("immediately")?);
        config.inject_error.push(InjectError {
            event: group.event()?,
            state,
            io_type: group.io_type()?,
            errno: i32::try_from(errno).unwrap_or(libc::EIO),
            sector: sector.and_then(|sector| sector.try_into().ok()),
            once,
            immediately,
        });
    } else {
        let new_state = group.number("new_state")?.unwrap_or(0);
        config.set_state.push(SetState {
            event: group.event()?,
            state,
            new_state,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_rules_in_groups() {
        let text = "# a comment\n\n[set-state]\nevent = \"read_aio\"\nstate = \"1\"\nnew_state = \"3\"\n\
                    [inject-error \"x\"]\nevent = \"flush_to_disk\"\nerrno = \"28\"\nonce = \"on\"\niotype = \"write\"\n";
        let config = parse(text).expect("a config");
        assert_eq!(config.set_state[0].new_state, 3);
        let rule = config.inject_error[0];
        assert_eq!(rule.event, BlkdebugEvent::FlushToDisk);
        assert_eq!((rule.errno, rule.once, rule.sector), (28, true, None));
        assert_eq!(rule.io_type, Some(IoType::Write));
    }

    /// Each line was said by qemu-storage-daemon 10.0.2 of the same file.
    #[test]
    fn files_are_refused_in_qemus_words() {
        let inject = "[inject-error]\nevent = \"read_aio\"\n";
        for (text, words) in [
            ("garbage\n", "no group defined"),
            ("[inject-errr]\n", "There is no option group 'inject-errr'"),
            ("[inject-error]\nevnt = \"x\"\n", "Invalid parameter 'evnt'"),
            (
                "[inject-error]\nstate=\"1\"\n",
                "Invalid parameter 'state=\"1\"'",
            ),
            (
                "[inject-error]\nerrno = \"5\"\n",
                "Missing event name for rule",
            ),
            (
                "[inject-error]\nevent = \"bogus\"\n",
                "invalid parameter value: bogus",
            ),
            (
                &format!("{inject}errno = \"x\"\n"),
                "Parameter 'errno' expects a number",
            ),
            (
                &format!("{inject}iotype = \"x\"\n"),
                "invalid parameter value: x",
            ),
            (
                &format!("{inject}once = \"maybe\"\n"),
                "Parameter 'once' expects 'on' or 'off'",
            ),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.to_string(), words, "{text}");
        }
        let missing = read(std::path::Path::new("/nonexistent")).expect_err("missing");
        let words = "Could not read blkdebug config file: No such file or directory";
        assert_eq!(missing.to_string(), words);
    }
}
