//! The QEMU process: its command line, its console, its end. The rule to know: dropping it kills it.

use super::accel::Accel;
use super::initramfs::Image;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use tempfile::TempDir;

/// The initramfs takes about 100 MB unpacked, and as much while it is.
const MEMORY: &str = "768M";
/// What of the console an error shows.
const CONSOLE_TAIL_LINES: usize = 40;

/// What becomes of a disk whose daemon goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnLoss {
    /// It is lost.
    End,
    /// Its requests wait for another daemon.
    Reconnect,
}

#[derive(Debug)]
pub(super) struct Qemu {
    child: Child,
    directory: TempDir,
}

impl Qemu {
    /// Starts QEMU with one vhost-user-blk device per socket and gives the ends of the guest's second serial port.
    pub(super) fn start(
        sockets: &[PathBuf],
        on_loss: OnLoss,
        image: &Image,
        accel: Accel,
    ) -> io::Result<(Qemu, ChildStdin, ChildStdout)> {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new("qemu-system-x86_64");
        command.args(accel.arguments());
        add_machine(
            &mut command,
            image,
            sockets.len(),
            &console(directory.path()),
        );
        for (index, socket) in sockets.iter().enumerate() {
            add_disk(&mut command, index, socket, on_loss);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(messages(directory.path()))?);
        let mut child = command.spawn()?;
        let ends = child.stdin.take().zip(child.stdout.take());
        let qemu = Qemu { child, directory };
        let (stdin, stdout) = ends.ok_or(io::ErrorKind::BrokenPipe)?;
        Ok((qemu, stdin, stdout))
    }

    /// Waits for the process to end by itself.
    pub(super) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// Ends the process at once.
    pub(super) fn kill(&mut self) {
        // Both fail only where it is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// QEMU's messages and the end of the console, for an error to show.
    pub(super) fn told(&self) -> String {
        let read = |path: PathBuf| {
            let bytes = fs::read(path).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let messages = read(messages(self.directory.path()));
        let console = read(console(self.directory.path()));
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(CONSOLE_TAIL_LINES)..].join("\n");
        format!("--- QEMU said:\n{messages}--- end of the console:\n{tail}")
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

fn console(directory: &Path) -> PathBuf {
    directory.join("console")
}

fn messages(directory: &Path) -> PathBuf {
    directory.join("messages")
}

fn add_machine(command: &mut Command, image: &Image, disks: usize, console: &Path) {
    // The kernel gives "disks=", which it does not know, to the first process as a variable.
    // A periodic tick: under TCG on a busy machine a one-shot timer of the local APIC was lost now and then, and its processor with it.
    let append = format!("console=ttyS0 panic=-1 loglevel=5 nohz=off highres=off disks={disks}");
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-machine", "q35,memory-backend=memory"])
        .args(["-smp", &super::QUEUES.to_string(), "-m", MEMORY])
        // vhost-user shares the guest's memory, so it needs a file behind it.
        .args([
            "-object",
            &format!("memory-backend-memfd,id=memory,size={MEMORY},share=on"),
        ])
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initramfs)
        .args(["-append", &append])
        .args(["-serial", &format!("file:{}", console.display())])
        .args([
            "-chardev",
            "stdio,id=agent,signal=off",
            "-serial",
            "chardev:agent",
        ]);
}

fn add_disk(command: &mut Command, index: usize, socket: &Path, on_loss: OnLoss) {
    let queues = super::QUEUES;
    let again = match on_loss {
        OnLoss::End => "",
        OnLoss::Reconnect => ",reconnect-ms=50",
    };
    let chardev = format!("socket,id=disk{index},path={}{again}", socket.display());
    let device = format!("vhost-user-blk-pci,chardev=disk{index},num-queues={queues}");
    command.args(["-chardev", &chardev, "-device", &device]);
}
