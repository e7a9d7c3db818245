//! Exports that are taken away: with front ends, without, two hundred times, and with a disk that is stuck.

use super::{BOTH, DELETED, NULL, Stage, serves};
use serde_json::json;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use tests::client::blk::Request;
use tests::client::front::{FrontEnd, Habits, Speaker};
use tests::client::patience;
use tests::daemon::Kind;

#[test]
fn a_deleted_export_disconnects_its_front_end_and_says_so_before_the_answer() {
    for kind in BOTH {
        let mut stage = Stage::new(kind, &NULL);
        let export = stage.export();
        stage.qmp.succeed("block-export-add", export);
        let mut guest = stage.guest();
        serves(&mut guest);
        stage.qmp.succeed("block-export-del", json!({"id": "e"}));
        let events = stage.qmp.events();
        assert_eq!(events.len(), 1, "{kind:?}: {events:?}");
        assert_eq!(events[0]["event"], DELETED);
        assert_eq!(events[0]["data"], json!({"id": "e"}));
        assert!(guest.wire().closed_within(patience()), "{kind:?}");
        assert!(!stage.path("e.sock").exists(), "{kind:?}");
        stage.qmp.succeed("blockdev-del", json!({"node-name": "n"}));
    }
}

/// Decision 4 of our compatibility sheet.
#[test]
fn a_safe_removal_spares_a_front_end_where_that_was_asked_for() {
    let mut stage = Stage::new(Kind::Virtioblkd, &NULL);
    let export = stage.export_with("require-safe-del", json!(true));
    stage.qmp.succeed("block-export-add", export.clone());
    let mut guest = stage.guest();
    for mode in [json!({"id": "e"}), json!({"id": "e", "mode": "safe"})] {
        let refusal = stage.qmp.refusal("block-export-del", mode);
        assert_eq!(refusal, "export 'e' still in use");
        serves(&mut guest);
    }
    let shown = stage.qmp.succeed("query-block-exports", json!({}));
    assert_eq!(shown[0]["shutting-down"], json!(false));
    stage
        .qmp
        .succeed("block-export-del", json!({"id": "e", "mode": "hard"}));
    assert!(guest.wire().closed_within(patience()));
    // One that has left is nobody's.
    stage.qmp.succeed("block-export-add", export);
    drop(stage.guest());
    let deadline = Instant::now() + patience();
    while stage
        .qmp
        .execute("block-export-del", json!({"id": "e"}))
        .is_err()
    {
        assert!(Instant::now() < deadline, "still in use");
    }
}

#[test]
fn two_hundred_exports_come_and_go_and_nothing_is_left_behind() {
    let mut stage = Stage::new(Kind::Virtioblkd, &NULL);
    let mut fds = Vec::new();
    for round in 0..200 {
        // The same id and the same path: whoever mistakes one for the other lets nobody in.
        let export = stage.export();
        stage.qmp.succeed("block-export-add", export);
        let mut front = Speaker::connect(&stage.path("e.sock"), Habits::Qemu).unwrap();
        front.get_features().unwrap();
        match round % 3 {
            0 => drop(front),
            1 => {
                stage.qmp.succeed("block-export-del", json!({"id": "e"}));
                assert!(front.closed_within(patience()), "round {round}");
                let export = stage.export();
                stage.qmp.succeed("block-export-add", export);
            }
            _ => {}
        }
        stage.qmp.succeed("block-export-del", json!({"id": "e"}));
        assert!(!stage.path("e.sock").exists());
        fds.push(stage.open_fds());
    }
    let deleted = stage.qmp.events().len();
    assert_eq!(deleted, 200 + 67, "an event for each");
    // The first rounds make what is made once, and a session that ends has its descriptors for a moment.
    let (early, late) = (fds[20..40].iter().min(), fds[180..].iter().min());
    assert!(late <= early, "{fds:?}");
}

/// Taken away and made again before the control thread looks around: the number of the descriptor is the same.
#[test]
fn an_export_that_is_replaced_in_one_go_lets_front_ends_in() {
    let mut stage = Stage::new(Kind::Virtioblkd, &NULL);
    let export = stage.export();
    stage.qmp.succeed("block-export-add", export.clone());
    let add = json!({"execute": "block-export-add", "arguments": export});
    let del = json!({"execute": "block-export-del", "arguments": {"id": "e"}});
    for round in 0..20 {
        stage
            .qmp
            .send_raw(&format!("{del}{add}{del}{add}"))
            .unwrap();
        let mut answers = 0;
        while answers < 4 {
            let message = stage.qmp.read(Instant::now() + patience()).unwrap();
            assert!(message.get("error").is_none(), "{message}");
            answers += usize::from(message.get("return").is_some());
        }
        let mut front = Speaker::connect(&stage.path("e.sock"), Habits::Qemu).unwrap();
        front
            .get_features()
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
    }
}

#[test]
fn a_disk_that_is_stuck_keeps_nobody_waiting() {
    let delay = "x-delay,node-name=d,latency-ns=4000000000,file=n";
    let mut stage = Stage::new(Kind::Virtioblkd, &[NULL[0], NULL[1], "--blockdev", delay]);
    let export = stage.export_with("node-name", json!("d"));
    stage.qmp.succeed("block-export-add", export.clone());
    let mut guest = stage.guest();
    guest.add(0, &Request::read(0, 512));
    guest.submit(0);
    let begun = Instant::now();
    stage.qmp.succeed("block-export-del", json!({"id": "e"}));
    stage.qmp.succeed("query-version", json!({}));
    let waited = begun.elapsed();
    assert!(
        waited < Duration::from_secs(3),
        "kept waiting for {waited:?}"
    );
    let shown = stage.qmp.succeed("query-block-exports", json!({}));
    if shown != json!([]) {
        assert_eq!(shown[0]["shutting-down"], json!(true));
        let refusal = stage.qmp.refusal("block-export-del", json!({"id": "e"}));
        assert_eq!(refusal, "Export 'e' is already shutting down");
        let refusal = stage.qmp.refusal("block-export-add", export);
        assert_eq!(refusal, "Block export id 'e' is already in use");
        let refusal = stage.qmp.refusal("blockdev-del", json!({"node-name": "d"}));
        assert_eq!(refusal, "Node d is in use");
    }
    stage.qmp.event(DELETED);
    assert_eq!(
        stage.qmp.succeed("query-block-exports", json!({})),
        json!([])
    );
    stage.qmp.succeed("blockdev-del", json!({"node-name": "d"}));
}

#[test]
fn an_export_whose_only_front_end_leaves_is_gone_and_says_so() {
    let (front, back) = UnixStream::pair().unwrap();
    // Without close-on-exec, so that the daemon has it too.
    let inherited = rustix::io::dup(&back).unwrap();
    drop(back);
    let number = inherited.as_raw_fd();
    let export =
        format!("vhost-user-blk,id=e,node-name=n,addr.type=connected-fd,addr.str={number}");
    let mut stage = Stage::new(Kind::Virtioblkd, &[NULL[0], NULL[1], "--export", &export]);
    drop(inherited);
    let shown = stage.qmp.succeed("query-block-exports", json!({}));
    assert_eq!(shown[0]["id"], "e");
    drop(front);
    let event = stage.qmp.event(DELETED);
    assert_eq!(event["data"], json!({"id": "e"}));
    // The process goes on: somebody can still ask for another.
    assert_eq!(
        stage.qmp.succeed("query-block-exports", json!({})),
        json!([])
    );
    let export = stage.export();
    stage.qmp.succeed("block-export-add", export);
    serves(&mut stage.guest());
    stage.daemon.stop().unwrap();
}

/// What a client who never reads what it is sent may not do: keep an export from being deleted.
#[test]
fn a_front_end_that_says_nothing_is_no_reason_to_wait() {
    let mut stage = Stage::new(Kind::Virtioblkd, &NULL);
    let export = stage.export();
    stage.qmp.succeed("block-export-add", export);
    let mut silent = UnixStream::connect(stage.path("e.sock")).unwrap();
    silent.write_all(&[1, 0, 0]).unwrap();
    let begun = Instant::now();
    stage.qmp.succeed("block-export-del", json!({"id": "e"}));
    assert!(begun.elapsed() < Duration::from_secs(5));
    stage.qmp.event(DELETED);
}
