//! `file`: what is written goes to a file, and what is read comes from another, if there is one.
//!
//! The rule: a file may as well be a FIFO or a terminal, so it is opened to be asked, not waited for.

use super::{AfterInput, Port};
use crate::cli::FileMode;
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

/// A file to write to, maybe one to read from.
#[derive(Debug)]
pub struct FilePort {
    output: OwnedFd,
    input: Option<OwnedFd>,
}

impl FilePort {
    /// Opens the files. Errors: which of them cannot be opened, and why.
    pub fn open<'p>(
        path: &'p Path,
        mode: FileMode,
        input: Option<&'p Path>,
    ) -> Result<FilePort, (&'p Path, io::Error)> {
        let how = match mode {
            FileMode::Append => OFlags::APPEND,
            FileMode::Truncate => OFlags::TRUNC,
        };
        let open = |path: &'p Path, flags: OFlags| {
            let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
            let fd = rustix::fs::open(path, flags, Mode::from_raw_mode(0o666));
            let fd = fd.map_err(io::Error::from)?;
            ring::sock::set_nonblocking(fd.as_fd())?;
            Ok(fd)
        };
        let opened = |path: &'p Path, flags| open(path, flags).map_err(|error| (path, error));
        let input = input.map(|path| opened(path, OFlags::RDONLY)).transpose()?;
        let output = opened(path, OFlags::WRONLY | OFlags::CREATE | how)?;
        Ok(FilePort { output, input })
    }
}

impl Port for FilePort {
    fn read_fd(&self) -> Option<RawFd> {
        self.input.as_ref().map(AsRawFd::as_raw_fd)
    }

    fn write_fd(&self) -> Option<RawFd> {
        Some(self.output.as_raw_fd())
    }

    fn after_input(&self) -> AfterInput {
        AfterInput::Written
    }

    fn read(&mut self, bytes: &mut [u8], _: &mut Vec<OwnedFd>) -> io::Result<usize> {
        match &self.input {
            Some(input) => Ok(rustix::io::read(input, bytes)?),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.output, bytes)?)
    }
}
