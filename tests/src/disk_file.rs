//! The host's view of a raw disk: what the guest says it wrote is compared with what is here.
//!
//! The rule to know: it reads the file itself, so what it sees is what the daemon wrote, through no code of the daemon's.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

const CHUNK_BYTES: usize = 1 << 20;
/// `st_blocks` counts in these, whatever the file system's block size (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;

/// A raw disk in a directory of its own, gone when dropped.
#[derive(Debug)]
pub struct DiskFile {
    path: PathBuf,
    _directory: TempDir,
}

impl DiskFile {
    /// A sparse disk of this size: all holes, all zeroes.
    ///
    /// # Errors
    /// What the file system says.
    pub fn sparse(len_bytes: u64) -> io::Result<DiskFile> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("disk.raw");
        File::create_new(&path)?.set_len(len_bytes)?;
        Ok(DiskFile {
            path,
            _directory: directory,
        })
    }

    /// A disk without holes or zeroes whose every 8 bytes tell their own place and the seed.
    ///
    /// # Errors
    /// What the file system says.
    pub fn patterned(len_bytes: u64, seed: u64) -> io::Result<DiskFile> {
        let disk = DiskFile::sparse(len_bytes)?;
        let mut file = File::options().write(true).open(&disk.path)?;
        let mut at = 0;
        while at < len_bytes {
            let len = (len_bytes - at).min(CHUNK_BYTES as u64);
            let words = (at / 8)..(at + len).div_ceil(8);
            let chunk: Vec<u8> = words.flat_map(|w| pattern(w, seed).to_le_bytes()).collect();
            file.write_all(&chunk)?;
            at += len;
        }
        file.sync_all()?;
        Ok(disk)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size.
    ///
    /// # Errors
    /// What the file system says.
    pub fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.path.metadata()?.len())
    }

    /// How much of the host's disk it takes.
    ///
    /// # Errors
    /// What the file system says.
    pub fn allocated_bytes(&self) -> io::Result<u64> {
        // Delayed allocation counts blocks only when they are written back.
        File::open(&self.path)?.sync_all()?;
        Ok(self.path.metadata()?.blocks() * STAT_BLOCK_BYTES)
    }

    /// The sha256 of a region, in hexadecimal, as `sha256sum` prints it.
    ///
    /// # Errors
    /// Where the region cannot be read, or `sha256sum` does not run.
    pub fn sha256(&self, at: u64, len_bytes: u64) -> io::Result<String> {
        let mut region = self.region(at, len_bytes)?;
        let mut child = Command::new("sha256sum")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let copied = io::copy(&mut region, &mut stdin);
        drop(stdin);
        let output = child.wait_with_output()?;
        if copied? != len_bytes || !output.status.success() {
            return Err(io::Error::other("sha256sum did not read the whole region"));
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned())
    }

    /// Does the whole region read as zeroes?
    ///
    /// # Errors
    /// Where the region cannot be read.
    pub fn is_zero(&self, at: u64, len_bytes: u64) -> io::Result<bool> {
        let file = File::open(&self.path)?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut done = 0;
        while done < len_bytes {
            let len = usize::try_from(len_bytes - done).map_or(CHUNK_BYTES, |l| l.min(CHUNK_BYTES));
            file.read_exact_at(&mut chunk[..len], at + done)?;
            if chunk[..len].iter().any(|&b| b != 0) {
                return Ok(false);
            }
            done += len as u64;
        }
        Ok(true)
    }

    fn region(&self, at: u64, len_bytes: u64) -> io::Result<impl Read> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(at))?;
        Ok(file.take(len_bytes))
    }
}

/// A number that is never 0: the top bit is set.
fn pattern(word: u64, seed: u64) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    word.wrapping_add(seed).wrapping_mul(ODD) | 1 << 63
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_disk_takes_no_space_and_is_zero() {
        let disk = DiskFile::sparse(3 << 20).unwrap();
        assert_eq!(disk.len_bytes().unwrap(), 3 << 20);
        assert_eq!(disk.allocated_bytes().unwrap(), 0);
        assert!(disk.is_zero(0, 3 << 20).unwrap());
    }

    #[test]
    fn patterned_disk_has_no_zeroes_and_differs_by_seed_and_place() {
        let disk = DiskFile::patterned((1 << 20) + 512, 7).unwrap();
        let other = DiskFile::patterned((1 << 20) + 512, 8).unwrap();
        assert_eq!(disk.len_bytes().unwrap(), (1 << 20) + 512);
        assert!(!disk.is_zero(1 << 20, 512).unwrap());
        assert_ne!(
            disk.sha256(0, 4096).unwrap(),
            other.sha256(0, 4096).unwrap()
        );
        assert_ne!(
            disk.sha256(0, 4096).unwrap(),
            disk.sha256(4096, 4096).unwrap()
        );
    }

    #[test]
    fn sha256_is_of_the_region_only() {
        // `printf '\0\0\0\0' | sha256sum`
        const FOUR_ZEROES: &str =
            "df3f619804a92fdb4057192dc43dd748ea778adc52bc498ce80524c014b81119";
        let disk = DiskFile::sparse(4096).unwrap();
        assert_eq!(disk.sha256(8, 4).unwrap(), FOUR_ZEROES);
    }
}
