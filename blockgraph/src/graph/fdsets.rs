//! Sets of descriptors that were passed to the process, opened as `/dev/fdset/N`.
//!
//! The rule: a set holds one file opened in several ways, and who opens it gets a duplicate of the descriptor whose way fits.
//! Names from inside images never lead here.

use rustix::fs::{OFlags, fcntl_getfl};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use thiserror::Error;

/// What names of sets begin with.
const PREFIX: &str = "/dev/fdset/";
/// Descriptors in all sets: whoever passes them shall not use up all that the process may have.
const FDS_MAX: usize = 512;

/// Why there is no descriptor; the texts are QEMU's.
#[derive(Debug, Error)]
pub enum FdSetError {
    /// An id below zero.
    #[error("Parameter 'fdset-id' expects a non-negative value")]
    Negative,
    /// Nothing to remove.
    #[error("File descriptor named '{0}' not found")]
    NotFound(String),
    /// What follows the prefix is no number.
    #[error("Could not parse fdset {0}")]
    NoNumber(String),
    /// There is no such set.
    #[error("Failed to find fdset {0}")]
    NoSet(String),
    /// None of its descriptors was opened like that.
    #[error("Failed to find file descriptor with matching flags={0:#x}")]
    NoneFits(u32),
    /// There are as many as there may be.
    #[error("too many file descriptors in fdsets (at most {FDS_MAX})")]
    TooMany,
    /// The process may have no more.
    #[error("cannot duplicate a file descriptor")]
    Duplicate(#[source] io::Error),
}

/// All sets, by number.
#[derive(Debug, Default)]
pub struct FdSets(BTreeMap<i64, Vec<Held>>);

#[derive(Debug)]
struct Held {
    fd: OwnedFd,
    /// Whatever the client wants to remember it by.
    opaque: Option<String>,
}

impl FdSets {
    /// Is that the name of a set, or would be?
    pub fn is_name(name: &str) -> bool {
        name.starts_with(PREFIX)
    }

    /// Puts a descriptor into a set, a new one if none is named; the set's number and the descriptor's.
    ///
    /// # Errors
    /// The number is negative; there are too many descriptors.
    pub fn add(
        &mut self,
        id: Option<i64>,
        fd: OwnedFd,
        opaque: Option<String>,
    ) -> Result<(i64, RawFd), FdSetError> {
        if self.0.values().map(Vec::len).sum::<usize>() >= FDS_MAX {
            return Err(FdSetError::TooMany);
        }
        let id = match id {
            Some(0..) | None => id.unwrap_or_else(|| self.first_free()),
            Some(_) => return Err(FdSetError::Negative),
        };
        let number = fd.as_raw_fd();
        self.0.entry(id).or_default().push(Held { fd, opaque });
        Ok((id, number))
    }

    fn first_free(&self) -> i64 {
        let ids = (0..).zip(self.0.keys());
        let gap = ids.take_while(|(at, id)| at == *id).count();
        i64::try_from(gap).unwrap_or(i64::MAX)
    }

    /// Closes a descriptor of a set, or all of them. What was opened by its name stays open.
    ///
    /// # Errors
    /// There is none.
    pub fn remove(&mut self, id: i64, fd: Option<i64>) -> Result<(), FdSetError> {
        let shown = match fd {
            Some(fd) => format!("fdset-id:{id}, fd:{fd}"),
            None => format!("fdset-id:{id}"),
        };
        let not_found = || FdSetError::NotFound(shown.clone());
        let set = self.0.get_mut(&id).ok_or_else(not_found)?;
        let before = set.len();
        set.retain(|held| fd.is_some_and(|fd| i64::from(held.fd.as_raw_fd()) != fd));
        let removed = set.len() < before;
        if set.is_empty() {
            self.0.remove(&id);
        }
        removed.then_some(()).ok_or_else(not_found)
    }

    /// Every set, the highest number first as QEMU has it, and its descriptors in the order in which they came.
    pub fn all(&self) -> impl Iterator<Item = (i64, impl Iterator<Item = (RawFd, Option<&str>)>)> {
        self.0.iter().rev().map(|(id, set)| {
            let fds = set.iter();
            let fds = fds.map(|held| (held.fd.as_raw_fd(), held.opaque.as_deref()));
            (*id, fds)
        })
    }

    /// A duplicate of the descriptor in the set of that name that was opened for reading and writing, or not, and directly, or
    /// not, as `wanted` says.
    ///
    /// # Errors
    /// No such set; no such descriptor in it; out of descriptors.
    pub fn open(&self, name: &str, wanted: OFlags) -> Result<OwnedFd, FdSetError> {
        let relevant = OFlags::RWMODE | OFlags::DIRECT;
        let number = name.strip_prefix(PREFIX).unwrap_or_default();
        let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        let id = number.parse().ok().filter(|_| is_number);
        let id: i64 = id.ok_or_else(|| FdSetError::NoNumber(name.to_owned()))?;
        let set = self.0.get(&id);
        let set = set.ok_or_else(|| FdSetError::NoSet(name.to_owned()))?;
        let fits = |held: &&Held| {
            fcntl_getfl(&held.fd).is_ok_and(|flags| flags & relevant == wanted & relevant)
        };
        let found = set.iter().find(fits);
        let found = found.ok_or(FdSetError::NoneFits((wanted & relevant).bits()))?;
        found.fd.try_clone().map_err(FdSetError::Duplicate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    fn fd(write: bool) -> OwnedFd {
        let mut how = OpenOptions::new();
        how.read(true).write(write);
        how.open("/dev/null").expect("there").into()
    }

    #[test]
    fn sets_without_a_number_get_the_first_that_is_free() {
        let mut sets = FdSets::default();
        let mut add = |id| sets.add(id, fd(true), None).expect("room").0;
        assert_eq!(
            [add(None), add(Some(2)), add(None), add(None)],
            [0, 2, 1, 3]
        );
        let ids: Vec<i64> = sets.all().map(|(id, _)| id).collect();
        assert_eq!(ids, [3, 2, 1, 0]);
        let refused = sets.add(Some(-1), fd(true), None).expect_err("negative");
        assert_eq!(
            refused.to_string(),
            "Parameter 'fdset-id' expects a non-negative value"
        );
    }

    #[test]
    fn who_opens_gets_the_descriptor_that_was_opened_that_way() {
        let mut sets = FdSets::default();
        sets.add(Some(4), fd(false), None).expect("room");
        let message = |name, flags| sets.open(name, flags).expect_err("none").to_string();
        assert_eq!(
            message("/dev/fdset/4", OFlags::RDWR),
            "Failed to find file descriptor with matching flags=0x2"
        );
        assert_eq!(
            message("/dev/fdset/5", OFlags::RDWR),
            "Failed to find fdset /dev/fdset/5"
        );
        assert_eq!(
            message("/dev/fdset/4x", OFlags::RDWR),
            "Could not parse fdset /dev/fdset/4x"
        );
        assert!(sets.open("/dev/fdset/4", OFlags::RDONLY).is_ok());
    }

    #[test]
    fn what_was_opened_outlives_its_set() {
        let mut sets = FdSets::default();
        let (_, number) = sets.add(Some(1), fd(true), Some("x".into())).expect("room");
        let opened = sets.open("/dev/fdset/1", OFlags::RDWR).expect("fits");
        let other = sets.remove(1, Some(-5)).expect_err("no such descriptor");
        assert_eq!(
            other.to_string(),
            "File descriptor named 'fdset-id:1, fd:-5' not found"
        );
        sets.remove(1, Some(number.into())).expect("there");
        assert_eq!(sets.all().count(), 0);
        assert!(fcntl_getfl(&opened).is_ok());
        assert!(sets.remove(1, None).is_err());
    }

    #[test]
    fn there_is_a_bound() {
        let mut sets = FdSets::default();
        let room = (0..FDS_MAX).all(|_| sets.add(Some(0), fd(true), None).is_ok());
        assert!(room);
        assert!(matches!(
            sets.add(None, fd(true), None),
            Err(FdSetError::TooMany)
        ));
    }
}
