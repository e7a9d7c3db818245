//! The real `qemu-img` and `qemu-io`: makers of images, and judges of ours.

use std::ffi::OsStr;
use std::io;
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
