//! Our daemon in this very process, and images for it.

use backend::cli::{self, Outcome};
use backend::daemon::Daemon;
use backend::qmp::Context;
use ring::inherited::Inherited;
use serde_json::Value;
use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Runs a program that must work.
pub fn run(program: &str, arguments: &[&str], dir: &Path) {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

/// A directory with images of every kind.
pub fn images() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    std::fs::create_dir(at.join("sub")).unwrap();
    std::fs::write(
        at.join("debug.cfg"),
        "[inject-error]\nevent = \"read_aio\"\n",
    )
    .unwrap();
    std::fs::File::create(at.join("raw.img"))
        .unwrap()
        .set_len(10 << 20)
        .unwrap();
    let image = |words: &str| run("qemu-img", &words.split(' ').collect::<Vec<_>>(), at);
    image("create -q -f qcow2 base.qcow2 64M");
    run("qemu-io", &["-c", "write -q -P 1 0 1M", "base.qcow2"], at);
    image(
        "create -q -f qcow2 -b base.qcow2 -F qcow2 -o extended_l2=on,compression_type=zstd ov.qcow2",
    );
    image("snapshot -c first ov.qcow2");
    image("create -q -f qcow2 other.qcow2 1M");
    image("create -q -f qcow2 -b ../base.qcow2 -F qcow2 sub/relative.qcow2");
    image("create -q -f qcow2 -b raw.img -F raw on-raw.qcow2");
    let base = at.join("base.qcow2");
    let on_base = format!("create -q -f qcow2 -F qcow2 -b {}", base.display());
    image(&format!("{on_base} absolute.qcow2"));
    // A data file's name is relative to the daemon's directory.
    let data = at.join("data.raw");
    let with = format!(
        "create -q -f qcow2 -o data_file={},data_file_raw=on",
        data.display()
    );
    image(&format!("{with} with-data.qcow2 1M"));
    image("create -q -f qcow2 -o compat=0.10 old.qcow2 1M");
    image(
        "create -q -f qcow2 -o lazy_refcounts=on,refcount_bits=64,cluster_size=512 lazy.qcow2 1M",
    );
    image("create -q -f qcow2 marked.qcow2 1M");
    image("bitmap --add --disable -g 32768 marked.qcow2 still");
    dir
}

/// A real NBD server on `raw.img`.
#[derive(Debug)]
pub struct Server(Child);

impl Server {
    pub fn start(dir: &Path) -> Server {
        let words = "-k server.sock -x exp -f raw -t --shared=0 raw.img";
        let mut command = Command::new("qemu-nbd");
        command
            .current_dir(dir)
            .args(words.split(' ').map(|word| match word {
                "server.sock" => dir.join(word).display().to_string(),
                word => word.to_owned(),
            }));
        let server = Server(command.spawn().unwrap());
        drop(connected(&dir.join("server.sock")));
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A connection, once somebody listens there.
pub fn connected(socket: &Path) -> UnixStream {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < end, "{}: {error}", socket.display()),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Words of a command line; names of files are made absolute, as the tests' directory is not the process's.
pub fn words(setup: &str, dir: &Path) -> Vec<OsString> {
    let absolute = |word: &str| {
        let dir = dir.display();
        let names = [
            "addr.path=",
            "server.path=",
            "filename=",
            "config=",
            "\"filename\":\"",
        ];
        names.iter().fold(word.to_owned(), |word, name| {
            word.replace(name, &format!("{name}{dir}/"))
        })
    };
    setup
        .split_whitespace()
        .map(|word| absolute(word).into())
        .collect()
}

/// Our daemon.
#[derive(Debug)]
pub struct Stage {
    daemon: Daemon,
}

impl Stage {
    /// Executes a command line. Names of files in it are those of `dir`.
    pub fn new(dir: &Path, setup: &str) -> Stage {
        let mut daemon = Daemon::new(Inherited::none()).unwrap();
        let Outcome::Run(invocation) = cli::parse(words(setup, dir), &[]).unwrap() else {
            panic!("nothing to run");
        };
        for step in invocation.steps {
            let executed = daemon.execute(step.command.unwrap());
            executed.unwrap_or_else(|error| panic!("{}: {error}", step.origin));
        }
        Stage { daemon }
    }

    /// What a command answers, or the text of its refusal.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let mut context = Context {
            daemon: &mut self.daemon,
            fds: Vec::new(),
        };
        let arguments = arguments.as_object().cloned().unwrap();
        let answer = context.execute(command, arguments);
        answer.map_err(|refused| refused.to_string())
    }

    pub fn end(self) {
        self.daemon.shut_down().unwrap();
    }
}
