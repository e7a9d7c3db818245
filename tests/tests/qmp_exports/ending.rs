//! The end, asked for by `quit` or by a signal.

use super::{BOTH, DELETED, Stage};
use serde_json::{Value, json};
use std::fs;
use tests::client::blk::{OK, Request};
use tests::client::patience;
use tests::client::pattern::pattern;
use tests::daemon::Kind;

/// A daemon with a guest that has written, and an NBD server.
fn written(kind: Kind) -> (Stage, tempfile::TempDir) {
    let disk = tempfile::tempdir().unwrap();
    let file = disk.path().join("disk");
    fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    let node = format!("file,node-name=n,filename={}", file.display());
    let mut stage = Stage::new(
        kind,
        &[
            "--blockdev",
            &node,
            "--nbd-server",
            "addr.type=unix,addr.path=DIR/n.sock",
        ],
    );
    let export = stage.export();
    stage.qmp.succeed("block-export-add", export);
    let nbd = json!({"type": "nbd", "id": "nb", "node-name": "n"});
    stage.qmp.succeed("block-export-add", nbd);
    let mut guest = stage.guest();
    let done = guest.run(0, &Request::write(8, pattern(7, 4096))).unwrap();
    assert_eq!(done.status, OK);
    // It stays connected to the end.
    std::mem::forget(guest);
    (stage, disk)
}

fn check(disk: &tempfile::TempDir) {
    let bytes = fs::read(disk.path().join("disk")).unwrap();
    assert_eq!(
        bytes[4096..8192],
        pattern(7, 4096),
        "what the guest wrote is there"
    );
}

#[test]
fn quit_is_answered_and_ends_everything_in_order() {
    for kind in BOTH {
        let (mut stage, disk) = written(kind);
        let answer = stage.qmp.execute("quit", Value::Null);
        assert_eq!(answer, Ok(json!({})), "{kind:?}");
        let mut deleted: Vec<Value> = stage.qmp.events();
        while let Ok(event) = stage.qmp.read(std::time::Instant::now() + patience()) {
            deleted.push(event);
        }
        let mut ids: Vec<&str> = deleted
            .iter()
            .filter(|event| event["event"] == DELETED)
            .filter_map(|event| event["data"]["id"].as_str())
            .collect();
        ids.sort_unstable();
        assert_eq!(ids, ["e", "nb"], "{kind:?}");
        stage.daemon.ended().unwrap();
        if kind == Kind::Virtioblkd {
            let left = ["e.sock", "n.sock", "qmp.sock"].map(|name| stage.path(name).exists());
            assert_eq!(left, [false; 3], "sockets are left");
        }
        check(&disk);
    }
}

#[test]
fn a_signal_ends_everything_as_before() {
    let (stage, disk) = written(Kind::Virtioblkd);
    let said = stage.daemon.stop().unwrap();
    assert_eq!(said, "");
    check(&disk);
}

#[test]
fn commands_behind_quit_are_not_executed() {
    let mut stage = Stage::new(Kind::Virtioblkd, &super::NULL);
    let export = stage.export();
    let quit = json!({"execute": "quit"});
    let add = json!({"execute": "block-export-add", "arguments": export, "id": "late"});
    stage.qmp.send_raw(&format!("{quit}{add}")).unwrap();
    let mut answers = Vec::new();
    while let Ok(message) = stage.qmp.read(std::time::Instant::now() + patience()) {
        answers.push(message);
    }
    assert_eq!(answers, [json!({"return": {}})]);
    stage.daemon.ended().unwrap();
}
