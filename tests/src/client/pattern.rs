//! Bytes that say where they belong, and the model of a disk that holds them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::blk::{OK, Request, SECTOR, kind};

/// `len` bytes that differ at every word and with every `salt`.
pub fn pattern(salt: u64, len: usize) -> Vec<u8> {
    let word = |i: u64| {
        (salt.wrapping_add(i))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .to_le_bytes()
    };
    (0..(len as u64).div_ceil(8))
        .flat_map(word)
        .take(len)
        .collect()
}

/// A file in a directory of its own, filled with a pattern, and a copy of what it ought to hold.
#[derive(Debug)]
pub struct Model {
    /// The image.
    pub path: PathBuf,
    /// What it ought to hold.
    pub bytes: Vec<u8>,
    _dir: TempDir,
}

impl Model {
    /// A new image of `len` bytes, none of them zero blocks.
    pub fn new(len: usize) -> io::Result<Model> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("disk.raw");
        let bytes = pattern(7, len);
        fs::write(&path, &bytes)?;
        Ok(Model {
            path,
            bytes,
            _dir: dir,
        })
    }

    /// Sectors of the disk.
    pub fn sectors(&self) -> u64 {
        self.bytes.len() as u64 / SECTOR
    }

    /// What the disk ought to hold there.
    pub fn at(&self, sector: u64, len: usize) -> &[u8] {
        let start = (sector * SECTOR) as usize;
        &self.bytes[start..start + len]
    }

    /// Takes note of a request that was answered with `status`.
    pub fn apply(&mut self, request: &Request, status: u8) {
        if status != OK {
            return;
        }
        match request.kind & 0x7fff_ffff {
            kind::OUT => self.put(request.sector, &request.payload),
            // A discarded range of a file with discard=unmap reads as zeroes.
            kind::DISCARD | kind::WRITE_ZEROES => {
                segments(&request.payload).for_each(|(sector, sectors)| {
                    self.put(sector, &vec![0; (u64::from(sectors) * SECTOR) as usize]);
                })
            }
            _ => {}
        }
    }

    fn put(&mut self, sector: u64, bytes: &[u8]) {
        if !bytes.is_empty() {
            let start = (sector * SECTOR) as usize;
            self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Compares the file with the model; the first difference as text.
    pub fn check_file(&self) -> Result<(), String> {
        differ(
            &fs::read(&self.path).map_err(|e| e.to_string())?,
            &self.bytes,
        )
    }
}

fn segments(payload: &[u8]) -> impl Iterator<Item = (u64, u32)> + '_ {
    payload.chunks_exact(16).filter_map(|segment| {
        let sector = u64::from_le_bytes(*segment.first_chunk()?);
        Some((sector, u32::from_le_bytes(*segment[8..].first_chunk()?)))
    })
}

/// Where two byte strings differ first.
pub fn differ(got: &[u8], wanted: &[u8]) -> Result<(), String> {
    if got.len() != wanted.len() {
        return Err(format!("{} bytes, wanted {}", got.len(), wanted.len()));
    }
    match got.iter().zip(wanted).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => Err(format!(
            "byte {at} is {:#x}, wanted {:#x}",
            got[at], wanted[at]
        )),
    }
}

/// A path beside the image.
pub fn beside(path: &Path, name: &str) -> PathBuf {
    path.with_file_name(name)
}
