//! The real `qemu-img` and `qemu-io`: makers of images, and judges of ours.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::Command;

/// Runs `qemu-img` and returns what it printed.
///
/// # Errors
/// Where it does not run or does not succeed; the message has what it said.
pub fn qemu_img(words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> io::Result<String> {
    run("qemu-img", words)
}

/// Runs `qemu-io` and returns what it printed. It may succeed although a command of its own failed, and says so there.
///
/// # Errors
/// As [`qemu_img`], and where a command failed.
pub fn qemu_io(words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> io::Result<String> {
    let said = run("qemu-io", words)?;
    match said.contains("failed") {
        true => Err(io::Error::other(format!("qemu-io: {said}"))),
        false => Ok(said),
    }
}

/// Makes a qcow2 image.
///
/// # Panics
/// Where it cannot.
pub fn create(path: &Path, size_bytes: u64) {
    let size = size_bytes.to_string();
    let words = ["create", "-q", "-f", "qcow2"].map(OsStr::new);
    let words = words
        .into_iter()
        .chain([path.as_os_str(), OsStr::new(&size)]);
    qemu_img(words).expect("an image");
}

/// Makes a qcow2 image on top of another, as large.
///
/// # Panics
/// Where it cannot.
pub fn create_on(path: &Path, below: &Path) {
    let words = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"].map(OsStr::new);
    let words = words
        .into_iter()
        .chain([below.as_os_str(), path.as_os_str()]);
    qemu_img(words).expect("an image");
}

/// The image has neither errors nor leaks.
///
/// # Panics
/// Where it has.
pub fn check(path: &Path) {
    let words = ["check", "-q", "-f", "qcow2"].map(OsStr::new);
    qemu_img(words.into_iter().chain([path.as_os_str()])).expect("a sound image");
}

/// What a guest of a chain would read.
///
/// # Panics
/// Where it cannot be read.
pub fn flat(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("flat");
    let words = ["convert", "-f", "qcow2", "-O", "raw"].map(OsStr::new);
    let words = words.into_iter().chain([path.as_os_str(), raw.as_os_str()]);
    qemu_img(words).expect("converted");
    std::fs::read(&raw).expect("read")
}

fn run(program: &str, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> io::Result<String> {
    let output = Command::new(program).args(words).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    match output.status.success() {
        true => Ok(said),
        false => {
            let status = output.status;
            let message = format!("{program} ended with {status}: {said}{complained}");
            Err(io::Error::other(message))
        }
    }
}
