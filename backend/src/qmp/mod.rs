//! The monitor: commands and events in JSON, as `qemu-storage-daemon` speaks them (QEMU's docs/interop/qmp-spec.rst).
//!
//! The rule: clients are read and written on a thread of their own (`thread.rs`), commands are executed one by one on the
//! control thread (`dispatch.rs`). A client may send anything and read its answers or not; it keeps neither another client
//! nor the control thread waiting, and what it can make us hold is bounded (`client.rs`).

mod client;
pub mod commands;
mod dispatch;
mod error;
pub mod events;
#[cfg(test)]
mod fuzz;
mod hub;
pub mod session;
mod show;
mod thread;

pub use commands::{Command, Oob, all as commands};
pub use dispatch::Context;
pub use error::{ErrorClass, QmpError};
pub use events::EventKind;
pub use hub::{Hub, MonitorOptions, Pretty, Request, SessionId};
pub(crate) use show::name::text as name_text;
