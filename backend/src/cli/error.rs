//! Why an option cannot be taken, in QEMU's words: scripts compare them, so a text here changes only when QEMU's does.

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
}
