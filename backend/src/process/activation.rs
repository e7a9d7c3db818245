//! systemd's two protocols: sockets passed at start (sd_listen_fds(3)) and the word that all is up (sd_notify(3)).

use std::env;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::parent_id;

use super::daemon;

/// SD_LISTEN_FDS_START
const FIRST_FD: RawFd = 3;
/// More sockets than any service has; a bound on what an environment variable can make us do.
const FDS_MAX: RawFd = 1024;

/// The numbers of the sockets that the service manager passed to this process; none if it passed none.
pub fn activated_fds() -> Vec<RawFd> {
    let number = |name| env::var(name).ok()?.parse::<u32>().ok();
    let count = listen_fds(
        number("LISTEN_PID"),
        number("LISTEN_FDS"),
        &addressees(std::process::id()),
    );
    (FIRST_FD..FIRST_FD + count).collect()
}

/// Whose sockets are ours: this process's, and after going to the background those of the process that was started.
fn addressees(own_id: u32) -> Vec<u32> {
    match daemon::is_background() {
        true => vec![own_id, parent_id()],
        false => vec![own_id],
    }
}

fn listen_fds(pid: Option<u32>, count: Option<u32>, addressees: &[u32]) -> RawFd {
    match (pid, count) {
        (Some(pid), Some(count)) if addressees.contains(&pid) => {
            RawFd::try_from(count).unwrap_or(FDS_MAX).min(FDS_MAX)
        }
        _ => 0,
    }
}

/// Tells the service manager that every export accepts connections. Without one, does nothing.
///
/// # Errors
/// The manager's socket cannot be reached.
pub fn notify_ready() -> io::Result<()> {
    sd_notify::notify(&[sd_notify::NotifyState::Ready])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_another_process_are_not_ours() {
        assert_eq!(listen_fds(Some(7), Some(2), &[7]), 2);
        assert_eq!(listen_fds(Some(8), Some(2), &[7]), 0);
        assert_eq!(listen_fds(None, Some(2), &[7]), 0);
        assert_eq!(listen_fds(Some(7), None, &[7]), 0);
        assert_eq!(listen_fds(Some(7), Some(u32::MAX), &[7]), FDS_MAX);
    }
}
