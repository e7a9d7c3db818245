//! What becomes of a job when a transfer fails (QEMU's `on-error`), and what is said of it.

use ring::Errno;

/// Which way a transfer that failed went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// From the job's source.
    Read,
    /// To its target.
    Write,
}

impl Operation {
    /// Its name for clients (`IoOperationType`).
    pub fn name(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
        }
    }
}

/// A transfer that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which way it went.
    pub operation: Operation,
    /// How it failed.
    pub errno: Errno,
}

impl Failure {
    /// It could not be read.
    pub fn read(errno: Errno) -> Failure {
        Failure {
            operation: Operation::Read,
            errno,
        }
    }

    /// It could not be written.
    pub fn write(errno: Errno) -> Failure {
        Failure {
            operation: Operation::Write,
            errno,
        }
    }
}

/// What was asked for (`BlockdevOnError`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The job fails.
    #[default]
    Report,
    /// The job goes on.
    Ignore,
    /// The job rests until somebody resumes it.
    Stop,
    /// It rests where there is no room, and fails otherwise.
    Enospc,
}

impl OnError {
    /// By its name; `auto` is `enospc` for jobs.
    pub fn from_name(name: &str) -> Option<OnError> {
        match name {
            "report" => Some(OnError::Report),
            "ignore" => Some(OnError::Ignore),
            "stop" => Some(OnError::Stop),
            "enospc" | "auto" => Some(OnError::Enospc),
            _ => None,
        }
    }

    /// What it comes to.
    pub fn action(self, errno: Errno) -> ErrorAction {
        match self {
            OnError::Report => ErrorAction::Report,
            OnError::Ignore => ErrorAction::Ignore,
            OnError::Stop => ErrorAction::Stop,
            OnError::Enospc if errno == Errno(libc::ENOSPC) => ErrorAction::Stop,
            OnError::Enospc => ErrorAction::Report,
        }
    }
}

/// What is done about a transfer that failed (`BlockErrorAction`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorAction {
    /// The job fails.
    Report,
    /// The job goes on.
    Ignore,
    /// The job rests.
    Stop,
}

impl ErrorAction {
    /// Its name for clients.
    pub fn name(self) -> &'static str {
        match self {
            ErrorAction::Report => "report",
            ErrorAction::Ignore => "ignore",
            ErrorAction::Stop => "stop",
        }
    }
}

/// What a job that rests because of an error says of it (`BlockDeviceIoStatus`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoStatus {
    /// Nothing is wrong.
    #[default]
    Ok,
    /// A transfer failed.
    Failed,
    /// There is no room.
    NoSpace,
}

impl IoStatus {
    /// After a failure that stops a job.
    pub fn after(errno: Errno) -> IoStatus {
        match errno == Errno(libc::ENOSPC) {
            true => IoStatus::NoSpace,
            false => IoStatus::Failed,
        }
    }

    /// Its name for clients.
    pub fn name(self) -> &'static str {
        match self {
            IoStatus::Ok => "ok",
            IoStatus::Failed => "failed",
            IoStatus::NoSpace => "nospace",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_comes_to_an_action() {
        let (full, broken) = (Errno(libc::ENOSPC), Errno::IO);
        let actions = |name| {
            let policy = OnError::from_name(name).expect("a policy");
            (policy.action(full).name(), policy.action(broken).name())
        };
        assert_eq!(actions("report"), ("report", "report"));
        assert_eq!(actions("ignore"), ("ignore", "ignore"));
        assert_eq!(actions("stop"), ("stop", "stop"));
        assert_eq!(actions("enospc"), ("stop", "report"));
        assert_eq!(actions("auto"), ("stop", "report"));
        assert_eq!(OnError::from_name("nosuch"), None);
        assert_eq!(IoStatus::after(full).name(), "nospace");
        assert_eq!(IoStatus::after(broken).name(), "failed");
    }
}
