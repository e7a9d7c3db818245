//! Why an option cannot be taken, in QEMU's words: scripts compare them, so a text here changes only when QEMU's does.

use std::fmt::Display;
use thiserror::Error;

/// Why a step cannot be taken. Shown after the words the user wrote.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct Refusal {
    message: String,
}

impl Refusal {
    /// The whole message, without the option's own words in front.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
        }
    }

    pub(crate) fn missing(parameter: impl Display) -> Self {
        Self::new(format!("Parameter '{parameter}' is missing"))
    }

    pub(crate) fn unexpected(parameter: impl Display) -> Self {
        Self::new(format!("Parameter '{parameter}' is unexpected"))
    }

    pub(crate) fn expects(parameter: impl Display, what: &str) -> Self {
        Self::new(format!("Parameter '{parameter}' expects {what}"))
    }

    pub(crate) fn wrong_type(parameter: impl Display, expected: &str) -> Self {
        Self::new(format!(
            "Invalid parameter type for '{parameter}', expected: {expected}"
        ))
    }

    pub(crate) fn wrong_value(parameter: impl Display, value: &str) -> Self {
        Self::new(format!(
            "Parameter '{parameter}' does not accept value '{value}'"
        ))
    }

    pub(super) fn out_of_range(parameter: &str, value: i64) -> Self {
        Self::new(format!(
            "Value '{value}' is out of range for parameter '{parameter}'"
        ))
    }

    /// What QEMU has and we do not: said, never ignored.
    pub(super) fn unsupported(what: impl Display) -> Self {
        Self::new(format!("{what} is not supported by this version"))
    }
}

/// The first refusal among the checks that QEMU makes only after an option was read as a whole.
#[derive(Debug, Default)]
pub(super) struct Later(Option<Refusal>);

impl Later {
    /// Remembers `why` unless `holds`, or unless something was remembered before.
    pub(super) fn check(&mut self, holds: bool, why: impl FnOnce() -> Refusal) {
        if !holds && self.0.is_none() {
            self.0 = Some(why());
        }
    }

    /// Takes over what `other` remembers, unless something was remembered before.
    pub(super) fn merge(&mut self, other: Later) {
        self.0 = self.0.take().or(other.0);
    }

    pub(super) fn into_result(self) -> Result<(), Refusal> {
        self.0.map_or(Ok(()), Err)
    }
}
