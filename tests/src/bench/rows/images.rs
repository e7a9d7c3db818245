//! qcow2 images for the rows, made by qemu-img so that both daemons are measured on the same ones.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use crate::qemu_img::qemu_img;

/// An empty qcow2 image, to be made and made again.
#[derive(Debug, Clone)]
pub(super) struct Empty {
    pub(super) path: PathBuf,
    pub(super) size_bytes: u64,
}

impl Empty {
    /// Makes it, over what is there.
    pub(super) fn make(&self) -> io::Result<()> {
        // Another file, not the same one emptied: the kernel may hold a killed daemon's locks a little longer.
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => create(&self.path, &[], self.size_bytes),
        }
    }
}

/// Makes an image with some options of `qemu-img create`.
pub(super) fn create(path: &Path, options: &[&str], size_bytes: u64) -> io::Result<()> {
    let size = size_bytes.to_string();
    let words = ["create", "-q", "-f", "qcow2"].iter().chain(options);
    let words = words.map(OsStr::new);
    qemu_img(words.chain([path.as_os_str(), OsStr::new(&size)])).map(drop)
}

/// Makes an image that holds what a raw file does.
pub(in crate::bench) fn converted(raw: &Path, to: &Path) -> io::Result<()> {
    let words = ["convert", "-q", "-f", "raw", "-O", "qcow2"].map(OsStr::new);
    qemu_img(words.into_iter().chain([raw.as_os_str(), to.as_os_str()])).map(drop)
}

/// Puts an image on the disk and out of the page cache. Direct I/O pays for each page that is still there, for dirty ones
/// above all: whose image was made last would look slow.
pub(super) fn settle(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
}

/// Makes an empty overlay of `backing`.
pub(super) fn overlay(backing: &Path, format: &str, to: &Path) -> io::Result<()> {
    let words = ["create", "-q", "-f", "qcow2", "-F", format, "-b"].map(OsStr::new);
    qemu_img(
        words
            .into_iter()
            .chain([backing.as_os_str(), to.as_os_str()]),
    )
    .map(drop)
}
