//! Why a guest could not do what a test asked. Each message carries the console's end: the guest is gone when it is read.

use std::io;
use std::time::Duration;

/// What went wrong with a guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Nothing was booted: a file, program or permission is missing on the host.
    #[error("cannot prepare the guest: {what}")]
    Prepare {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// QEMU ended, or its serial port closed, while an answer was awaited.
    #[error("QEMU ended while {waiting_for}\n{console}")]
    Ended {
        /// What was awaited.
        waiting_for: String,
        /// QEMU's messages and the console's end.
        console: String,
    },
    /// The time limit was reached; QEMU has been killed.
    #[error("no answer within {limit:?} while {waiting_for}\n{console}")]
    TimeLimit {
        /// What was awaited.
        waiting_for: String,
        /// The limit that was hit.
        limit: Duration,
        /// QEMU's messages and the console's end.
        console: String,
    },
    /// The guest started anew in the middle of a script: most often a kernel panic.
    #[error("the guest rebooted while {waiting_for}\n{console}")]
    Rebooted {
        /// What was awaited.
        waiting_for: String,
        /// QEMU's messages and the console's end.
        console: String,
    },
    /// A script that should succeed did not.
    #[error("guest script ended with {exit_code}:\n{script}\n--- said:\n{text}")]
    Script {
        /// The script.
        script: String,
        /// Its exit code.
        exit_code: i32,
        /// What it printed.
        text: String,
    },
    /// QEMU's own exit status was not success.
    #[error("QEMU ended with {status}\n{console}")]
    Status {
        /// As the shell would say it.
        status: String,
        /// QEMU's messages and the console's end.
        console: String,
    },
}
