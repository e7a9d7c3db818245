//! `virtioblkd graph` against running daemons: ours and the real qemu-storage-daemon, which it must draw alike.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

const OURS: &str = env!("CARGO_BIN_EXE_virtioblkd");
const QSD: &str = "qemu-storage-daemon";

/// A running daemon; killed when dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(program: &str, dir: &Path) -> Daemon {
    let socket = dir.join("qmp.sock");
    let _ = std::fs::remove_file(&socket);
    let setup = format!(
        "--object throttle-group,id=tg,limits.iops-total=1000 \
         --blockdev qcow2,node-name=disk,file.driver=file,file.node-name=disk-file,file.filename=top.qcow2,\
         backing.driver=qcow2,backing.node-name=base,backing.file.driver=file,backing.file.node-name=base-file,\
         backing.file.filename=base.qcow2 \
         --blockdev throttle,node-name=slow,throttle-group=tg,file=disk \
         --blockdev null-co,node-name=spare,size=1048576 \
         --nbd-server addr.type=unix,addr.path={dir}/nbd.sock --export nbd,id=copy,node-name=slow,name=x,writable=on \
         --chardev socket,id=c,path={socket},server=on,wait=off --monitor c",
        dir = dir.display(),
        socket = socket.display(),
    );
    let mut command = Command::new(program);
    let child = command
        .current_dir(dir)
        .args(setup.split_whitespace())
        .spawn();
    let daemon = Daemon(child.unwrap());
    let end = Instant::now() + Duration::from_secs(20);
    // It talks to one client at a time, so nobody just knocks.
    while !graph(dir, "--interval 0").status.success() {
        assert!(Instant::now() < end, "{program} has no monitor");
        std::thread::sleep(Duration::from_millis(2));
    }
    daemon
}

fn graph(dir: &Path, words: &str) -> Output {
    let mut command = Command::new(OURS);
    command
        .current_dir(dir)
        .arg("graph")
        .args(["--qmp", "qmp.sock"]);
    command.args(words.split_whitespace()).output().unwrap()
}

fn drawn(dir: &Path, words: &str) -> String {
    let output = graph(dir, words);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn image(dir: &Path, words: &str) {
    let done = Command::new("qemu-img")
        .current_dir(dir)
        .args(words.split_whitespace())
        .status();
    assert!(done.unwrap().success());
}

#[test]
fn ours_and_the_real_daemon_are_drawn_alike() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    image(dir, "create -q -f qcow2 base.qcow2 64M");
    image(dir, "create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    let pictures = [QSD, OURS].map(|program| {
        let _daemon = start(program, dir);
        ["text", "dot", "svg"].map(|format| drawn(dir, &format!("--interval 0 --format {format}")))
    });
    let [theirs, ours] = pictures;
    assert_eq!(ours, theirs);
    let tree = "\
export nbd copy
└─ throttle slow (filter)
   └─ file: qcow2 disk: 64 MiB, 196 KiB allocated
      ├─ file: file disk-file: 192 KiB, 196 KiB allocated, top.qcow2
      └─ backing: qcow2 base: 64 MiB, 196 KiB allocated, read-only
         └─ file: file base-file: 192 KiB, 196 KiB allocated, base.qcow2, read-only
null-co spare: 1 MiB, 0 B allocated
";
    // How much is allocated is the file system's choice.
    let shape = |text: &str| -> Vec<String> {
        let lines = text
            .lines()
            .map(|line| line.split(", ").next().unwrap_or_default());
        lines.map(str::to_owned).collect()
    };
    assert_eq!(shape(&ours[0]), shape(tree), "{}", ours[0]);
}

#[test]
fn rates_of_exports_are_those_of_the_interval() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    image(dir, "create -q -f qcow2 base.qcow2 64M");
    image(dir, "create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    let _daemon = start(OURS, dir);
    let idle = drawn(dir, "--interval 0.05");
    assert!(idle.starts_with("export nbd copy: idle\n"), "{idle}");
    let bench = "bench -f raw -c 100000 -s 4096 -t none nbd+unix:///x?socket=nbd.sock";
    let mut client = Command::new("qemu-img");
    client.current_dir(dir).args(bench.split_whitespace());
    let _client = Daemon(client.stdout(std::process::Stdio::null()).spawn().unwrap());
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let busy = drawn(dir, "--interval 0.2");
        if busy.contains(" reads/s (") && busy.contains(" each\n") {
            return;
        }
        assert!(Instant::now() < end, "{busy}");
    }
}

#[test]
fn whoever_cannot_be_drawn_is_told_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let output = graph(dir.path(), "");
    assert!(!output.status.success() && output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        said,
        "virtioblkd: cannot connect to 'qmp.sock': No such file or directory (os error 2)\n"
    );
    let output = graph(dir.path(), "--format png");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        said,
        "virtioblkd: graph: --format takes text, dot or svg, not 'png'\n"
    );
}
