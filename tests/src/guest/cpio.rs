//! Writes a cpio archive of the "newc" form, the one a Linux kernel unpacks as its initramfs.
//!
//! The rule to know: parents come before what is in them, and the archive ends with [`CpioWriter::finish`].

use std::io::{self, Write};

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
/// Headers and contents are padded to this (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
const ALIGN_BYTES: usize = 4;

const MODE_DIRECTORY: u32 = 0o040_755;
const MODE_EXECUTABLE: u32 = 0o100_755;
const MODE_SYMLINK: u32 = 0o120_777;
const MODE_CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive being written to `W`.
#[derive(Debug)]
pub(super) struct CpioWriter<W> {
    out: W,
    next_inode: u32,
}

impl<W: Write> CpioWriter<W> {
    /// Starts an empty archive.
    pub(super) fn new(out: W) -> Self {
        CpioWriter { out, next_inode: 1 }
    }

    /// Adds a directory; `path` has no leading slash.
    ///
    /// # Errors
    /// What writing to `W` says.
    pub(super) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, MODE_DIRECTORY, (0, 0), &[])
    }

    /// Adds a file that all may read and execute.
    ///
    /// # Errors
    /// What writing to `W` says, or `InvalidInput` for contents of 4 GiB and more.
    pub(super) fn file(&mut self, path: &str, contents: &[u8]) -> io::Result<()> {
        self.entry(path, MODE_EXECUTABLE, (0, 0), contents)
    }

    /// Adds a symbolic link to `target`.
    ///
    /// # Errors
    /// What writing to `W` says.
    pub(super) fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, MODE_SYMLINK, (0, 0), target.as_bytes())
    }

    /// Adds a character device node.
    ///
    /// # Errors
    /// What writing to `W` says.
    pub(super) fn character_device(
        &mut self,
        path: &str,
        major: u32,
        minor: u32,
    ) -> io::Result<()> {
        self.entry(path, MODE_CHARACTER_DEVICE, (major, minor), &[])
    }

    /// Writes the trailer and gives the writer back.
    ///
    /// # Errors
    /// What writing to `W` says.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(
        &mut self,
        path: &str,
        mode: u32,
        device: (u32, u32),
        contents: &[u8],
    ) -> io::Result<()> {
        let too_big = |_| io::Error::new(io::ErrorKind::InvalidInput, "too big for a cpio archive");
        let size = u32::try_from(contents.len()).map_err(too_big)?;
        let name_size = u32::try_from(path.len() + 1).map_err(too_big)?;
        let (major, minor) = device;
        let inode = self.next_inode;
        self.next_inode += 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [
            inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0,
        ];
        let mut header = String::from(MAGIC);
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        header.push_str(path);
        header.push('\0');
        self.padded(header.as_bytes())?;
        self.padded(contents)
    }

    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        let padding = bytes.len().next_multiple_of(ALIGN_BYTES) - bytes.len();
        self.out.write_all(bytes)?;
        self.out.write_all(&[0; ALIGN_BYTES][..padding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_lists_what_was_written() {
        let mut archive = CpioWriter::new(Vec::new());
        archive.directory("dir").unwrap();
        archive.file("dir/odd", b"12345").unwrap();
        archive.symlink("link", "dir/odd").unwrap();
        let bytes = archive.finish().unwrap();

        let mut cpio = Command::new("cpio")
            .args(["--list", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio runs (ci/setup.sh installs it)");
        cpio.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = cpio.wait_with_output().unwrap();

        assert!(output.status.success());
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            "dir\ndir/odd\nlink\n"
        );
    }
}
