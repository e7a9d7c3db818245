//! Why a command could not be done, as a client is told.

use crate::cli::Refusal;
use serde_json::{Value, json};

/// QMP's error classes: clients look at these, and at the text only to show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Everything else.
    GenericError,
    /// There is no such command, or not now.
    CommandNotFound,
    /// There is no such job.
    DeviceNotActive,
    /// There is no such device.
    DeviceNotFound,
}

impl ErrorClass {
    fn name(self) -> &'static str {
        match self {
            ErrorClass::GenericError => "GenericError",
            ErrorClass::CommandNotFound => "CommandNotFound",
            ErrorClass::DeviceNotActive => "DeviceNotActive",
            ErrorClass::DeviceNotFound => "DeviceNotFound",
        }
    }
}

/// Why a command could not be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{desc}")]
pub struct QmpError {
    /// What kind of reason.
    pub class: ErrorClass,
    /// For people, in QSD's words.
    pub desc: String,
}

impl QmpError {
    /// An error of the class that nearly all are of.
    pub fn new(desc: impl Into<String>) -> QmpError {
        QmpError {
            class: ErrorClass::GenericError,
            desc: desc.into(),
        }
    }

    /// An error of another class.
    pub fn of_class(class: ErrorClass, desc: impl Into<String>) -> QmpError {
        QmpError {
            class,
            desc: desc.into(),
        }
    }

    /// What is sent.
    pub(super) fn to_json(&self) -> Value {
        json!({"class": self.class.name(), "desc": self.desc})
    }
}

impl From<String> for QmpError {
    /// The command line prints a hint on a line of its own below the message; a monitor's client never sees it, as with QEMU.
    fn from(message: String) -> QmpError {
        QmpError::new(message.lines().next().unwrap_or_default())
    }
}

impl From<Refusal> for QmpError {
    fn from(refusal: Refusal) -> QmpError {
        QmpError::from(refusal.to_string())
    }
}
