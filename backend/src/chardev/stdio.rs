//! `stdio`: the process's own standard input and output.
//!
//! The rule: they are shared with whoever started us, and so are their flags. Reading waits for nothing because it is polled
//! first; a terminal or a pipe to write to is opened once more, for ourselves alone, so that it can be non-blocking.

use super::{AfterInput, Port};
use crate::cli::StdioSignal;
use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::net::{SendFlags, send};
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, tcgetattr,
    tcsetattr,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Written at once where it is not known how much there is room for: POSIX has it that so much fits into a pipe that can be written.
const PIECE_BYTES: usize = 4096;

/// Standard input and output.
#[derive(Debug)]
pub struct StdioPort {
    output: Output,
    /// As the terminal was, if it is one.
    terminal: Option<Termios>,
}

/// What standard output is.
#[derive(Debug)]
enum Output {
    /// Opened for ourselves, non-blocking.
    Own(OwnedFd),
    Socket,
    /// A file, or what cannot be opened again.
    Shared,
}

impl StdioPort {
    /// Takes over the terminal, if there is one: what is typed is not shown and comes at once, as with QEMU.
    pub fn open(signal: StdioSignal) -> StdioPort {
        let terminal = tcgetattr(io::stdin()).ok();
        if let Some(before) = &terminal {
            let mut raw = before.clone();
            make_raw(&mut raw, signal);
            // A terminal that stays as it was can be typed at all the same.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &raw);
        }
        StdioPort {
            output: Output::find(),
            terminal,
        }
    }
}

impl Drop for StdioPort {
    fn drop(&mut self) {
        if let Some(before) = &self.terminal {
            // Nobody is left to be told.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

fn make_raw(terminal: &mut Termios, signal: StdioSignal) {
    terminal.input_modes &= !(InputModes::IGNBRK
        | InputModes::BRKINT
        | InputModes::PARMRK
        | InputModes::ISTRIP
        | InputModes::INLCR
        | InputModes::IGNCR
        | InputModes::ICRNL
        | InputModes::IXON);
    terminal.output_modes |= OutputModes::OPOST;
    terminal.local_modes &=
        !(LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::IEXTEN);
    if signal == StdioSignal::No {
        terminal.local_modes &= !LocalModes::ISIG;
    }
    terminal.special_codes[SpecialCodeIndex::VMIN] = 1;
    terminal.special_codes[SpecialCodeIndex::VTIME] = 0;
}

impl Output {
    fn find() -> Output {
        let kind = fstat(io::stdout()).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let reopen = || rustix::fs::open("/proc/self/fd/1", flags, Mode::empty());
        match kind {
            Ok(FileType::Socket) => Output::Socket,
            Ok(FileType::Fifo | FileType::CharacterDevice) => {
                reopen().map_or(Output::Shared, Output::Own)
            }
            _ => Output::Shared,
        }
    }
}

impl Port for StdioPort {
    fn read_fd(&self) -> Option<RawFd> {
        Some(io::stdin().as_raw_fd())
    }

    fn write_fd(&self) -> Option<RawFd> {
        match &self.output {
            Output::Own(fd) => Some(fd.as_raw_fd()),
            Output::Socket | Output::Shared => Some(io::stdout().as_raw_fd()),
        }
    }

    fn after_input(&self) -> AfterInput {
        AfterInput::Written
    }

    fn read(&mut self, bytes: &mut [u8], _: &mut Vec<OwnedFd>) -> io::Result<usize> {
        Ok(rustix::io::read(io::stdin(), bytes)?)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.output {
            Output::Own(fd) => Ok(rustix::io::write(fd, bytes)?),
            Output::Socket => {
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                Ok(send(io::stdout(), bytes, flags)?)
            }
            Output::Shared => {
                let piece = &bytes[..bytes.len().min(PIECE_BYTES)];
                Ok(rustix::io::write(io::stdout(), piece)?)
            }
        }
    }
}
