//! The process among other processes: background, pid file, service manager, inherited sockets. Nothing here knows of disks.

mod activation;
mod daemon;
mod pidfile;
mod socket;

use std::io;

pub use activation::{activated_fds, notify_ready};
pub use daemon::{Background, Daemon, enter_background};
pub use pidfile::{PidFile, PidFileError};
pub use socket::{
    SocketError, connected_socket, connected_stream, listening_socket, stream_listener,
};

/// The kernel's words for an error, without the number that std adds: what C programs print, and QEMU's messages end with.
pub fn error_text(error: &io::Error) -> String {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(code) => match text.strip_suffix(&format!(" (os error {code})")) {
            Some(words) => words.to_owned(),
            None => text,
        },
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_text_is_that_of_strerror() {
        let missing = std::fs::File::open("/nonexistent").unwrap_err();
        assert_eq!(error_text(&missing), "No such file or directory");
        assert_eq!(error_text(&io::Error::other("odd")), "odd");
    }
}
