//! Objects, exports and the NBD server, made and taken away through a monitor while guests run; and what the monitor says of
//! itself. Where the real qemu-storage-daemon has it, it is asked the same.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

mod ending;
mod forms;
mod front_ends;
mod live;
mod nbd;
mod pivot;
mod resized;
mod schema;
mod stuck;
mod transcript;

use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::Instant;
use tests::client::blk::{OK, Request};
use tests::client::guest::{Guest, Setup};
use tests::client::patience;
use tests::daemon::{Daemon, Kind};
use tests::qmp::Qmp;

/// Both daemons, for what both have.
const BOTH: [Kind; 2] = [Kind::QemuStorageDaemon, Kind::Virtioblkd];
const DELETED: &str = "BLOCK_EXPORT_DELETED";

/// A daemon with a monitor and somebody at it.
struct Stage {
    daemon: Daemon,
    qmp: Qmp,
}

impl Stage {
    fn new(kind: Kind, arguments: &[&str]) -> Stage {
        let daemon = Daemon::with_monitor(kind, arguments).unwrap();
        let qmp = daemon.qmp().unwrap();
        Stage { daemon, qmp }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.daemon.directory().join(name)
    }

    /// Arguments of `block-export-add` for a front end at `e.sock`.
    fn export(&self) -> Value {
        json!({
            "type": "vhost-user-blk", "id": "e", "node-name": "n", "writable": true,
            "addr": {"type": "unix", "path": self.path("e.sock")},
        })
    }

    /// The same with another member.
    fn export_with(&self, member: &str, value: Value) -> Value {
        let mut export = self.export();
        export[member] = value;
        export
    }

    /// A guest at `e.sock`.
    fn guest(&self) -> Guest {
        Guest::start(&self.path("e.sock"), Setup::default()).unwrap()
    }

    fn open_fds(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.daemon.pid()))
            .unwrap()
            .count()
    }

    /// A thread that has been joined is still seen for a moment.
    fn loses_threads(&self, prefix: &str) -> bool {
        let deadline = Instant::now() + patience();
        let has = || self.threads().iter().any(|name| name.starts_with(prefix));
        while has() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        !has()
    }

    /// The names of its threads.
    fn threads(&self) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.daemon.pid())).unwrap();
        let name = |task: std::io::Result<fs::DirEntry>| {
            fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default()
        };
        tasks.map(|task| name(task).trim().to_owned()).collect()
    }
}

/// Reads something.
fn serves(guest: &mut Guest) {
    let read = guest.run(0, &Request::read(0, 512)).unwrap();
    assert_eq!(read.status, OK);
}

/// A null node is enough for most.
const NULL: [&str; 2] = ["--blockdev", "null-co,node-name=n,size=1048576"];
