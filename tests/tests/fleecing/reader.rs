//! An NBD client that reads one piece after the other and lives on after an error, as no tool does.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use tests::client::patience;

const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const OPT_EXPORT_NAME: u32 = 1;
/// NBD_FLAG_C_FIXED_NEWSTYLE and NBD_FLAG_C_NO_ZEROES
const CLIENT_FLAGS: u32 = 3;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const CMD_READ: u16 = 0;
const CMD_DISC: u16 = 2;

/// A connection in transmission, with simple replies.
pub(super) struct Reader {
    stream: UnixStream,
    cookie: u64,
    pub(super) size_bytes: u64,
}

impl Reader {
    /// The handshake of NBD's "fixed newstyle", by NBD_OPT_EXPORT_NAME.
    pub(super) fn connect(socket: &Path, export: &str) -> io::Result<Reader> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(patience()))?;
        // NBDMAGIC, IHAVEOPT, flags.
        stream.read_exact(&mut [0; 18])?;
        let mut words = CLIENT_FLAGS.to_be_bytes().to_vec();
        words.extend(IHAVEOPT.to_be_bytes());
        words.extend(OPT_EXPORT_NAME.to_be_bytes());
        words.extend((export.len() as u32).to_be_bytes());
        words.extend(export.as_bytes());
        stream.write_all(&words)?;
        let mut export = [0; 10];
        stream.read_exact(&mut export)?;
        Ok(Reader {
            stream,
            cookie: 0,
            size_bytes: u64::from_be_bytes(export[..8].try_into().unwrap()),
        })
    }

    fn ask(&mut self, what: u16, at: u64, len: u32) -> io::Result<()> {
        self.cookie += 1;
        let mut words = REQUEST.to_be_bytes().to_vec();
        words.extend(0_u16.to_be_bytes());
        words.extend(what.to_be_bytes());
        words.extend(self.cookie.to_be_bytes());
        words.extend(at.to_be_bytes());
        words.extend(len.to_be_bytes());
        self.stream.write_all(&words)
    }

    /// What is there, or the NBD error.
    pub(super) fn read(&mut self, at: u64, len: u32) -> io::Result<Result<Vec<u8>, u32>> {
        self.ask(CMD_READ, at, len)?;
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        let cookie = u64::from_be_bytes(head[8..].try_into().unwrap());
        assert_eq!((word(0), cookie), (SIMPLE_REPLY, self.cookie));
        if word(4) != 0 {
            return Ok(Err(word(4)));
        }
        let mut bytes = vec![0; len as usize];
        self.stream.read_exact(&mut bytes)?;
        Ok(Ok(bytes))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Politeness.
        let _ = self.ask(CMD_DISC, 0, 0);
    }
}
