//! Images that cannot be told of their bitmaps: what is refused, and that nothing is lost or believed that is not so.

use super::{Running, ask, end, shell, start};
use serde_json::{Value, json};
use std::path::Path;
use tests::daemon::Kind;
use tests::qemu_img::qemu_img;
use tests::qmp::Qmp;

const IN_USE: &str = "in-use auto old in-use dis";
const RIGHT: &str = "auto old dis";

/// An image with a bitmap that records and one that does not, and a daemon.
fn stage() -> (tempfile::TempDir, Running, Qmp) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.qcow2").display().to_string();
    qemu_img(["create", "-q", "-f", "qcow2", &path, "8M"]).expect("an image");
    qemu_img(["bitmap", "--add", &path, "old"]).expect("a bitmap");
    qemu_img(["bitmap", "--add", "--disable", &path, "dis"]).expect("a bitmap");
    let (running, monitor) = start(Kind::Virtioblkd, dir.path());
    (dir, running, monitor)
}

/// What the image says of its bitmaps: flags and names.
fn on_disk(dir: &Path) -> String {
    let words = "qemu-img info -U a.qcow2 | sed -n '/bitmaps:/,/refcount/p' | sed -n 's/.*: \\([a-z-]\\)/\\1/p'";
    let words = shell(words, dir);
    let words = words.as_array().expect("lines").iter();
    let words: Vec<&str> = words.filter_map(Value::as_str).collect();
    words.join(" ")
}

fn check(dir: &Path) {
    assert_eq!(shell("qemu-img check -q a.qcow2", dir), json!([]));
}

/// What the node's bitmaps are called, and how much of each is dirty.
fn in_memory(monitor: &mut Qmp) -> Value {
    let nodes = ask(monitor, r#"{"execute": "query-named-block-nodes"}"#);
    let nodes = nodes.as_array().expect("nodes").iter();
    let mut found = nodes.filter(|node| node[0] == "a");
    let bitmaps = found.next().expect("the node")[1].clone();
    let bitmaps = bitmaps.as_array().expect("bitmaps").iter();
    bitmaps.map(|b| json!([b["name"], b["count"]])).collect()
}

/// The image's file, of which that many writes fail once the daemon has opened what it opens.
fn debugged(monitor: &mut Qmp, rules: Value) {
    let mut file = json!({"driver": "blkdebug", "node-name": "dbg",
        "image": {"driver": "file", "filename": "a.qcow2"}});
    file.as_object_mut()
        .expect("an object")
        .extend(rules.as_object().expect("rules").clone());
    monitor.succeed("blockdev-add", file);
}

fn image(read_only: bool) -> Value {
    json!({"driver": "qcow2", "node-name": "a", "file": "dbg", "read-only": read_only})
}

fn reopen(read_only: bool) -> Value {
    json!({"options": [image(read_only)]})
}

#[test]
fn a_node_is_not_made_writable_if_its_bitmaps_cannot_be_said_to_be_in_use() {
    let (dir, mut running, mut monitor) = stage();
    let before = std::fs::read(dir.path().join("a.qcow2")).expect("read");
    let fails = json!({"inject-error": [{"event": "pwritev", "errno": 5, "once": true}]});
    debugged(&mut monitor, fails);
    monitor.succeed("blockdev-add", image(true));
    let refused = monitor.refusal("blockdev-reopen", reopen(false));
    assert_eq!(
        refused,
        "a: Failed to make dirty bitmaps writable: Cannot update bitmap directory: Input/output error"
    );
    let clear = json!({"node": "a", "name": "old"});
    let refused = monitor.refusal("block-dirty-bitmap-clear", clear);
    assert_eq!(refused, "Bitmap 'old' is readonly and cannot be modified");
    // But for its length, which is one of whole clusters now.
    let after = std::fs::read(dir.path().join("a.qcow2")).expect("read");
    let (same, added) = after.split_at(before.len());
    assert!(before == same, "the image was changed");
    assert!(
        added.iter().all(|byte| *byte == 0),
        "by more than its length"
    );
    // The disk works again, and so does this.
    monitor.succeed("blockdev-reopen", reopen(false));
    assert_eq!(on_disk(dir.path()), IN_USE);
    end(&mut running, &mut monitor, "quit");
    assert_eq!(on_disk(dir.path()), RIGHT);
    check(dir.path());
}

#[test]
fn a_full_disk_keeps_a_node_writable_and_its_bitmaps_in_use_until_there_is_room() {
    let (dir, mut running, mut monitor) = stage();
    let fails = json!({"set-state": [{"event": "cluster_alloc", "state": 1, "new_state": 2}],
        "inject-error": [{"event": "pwritev", "state": 2, "errno": 28, "once": true}]});
    debugged(&mut monitor, fails);
    monitor.succeed("blockdev-add", image(false));
    let refused = monitor.refusal("blockdev-reopen", reopen(true));
    let words = "Failed to write bitmap 'old' to file: No space left on device";
    assert_eq!(refused, words);
    assert_eq!(on_disk(dir.path()), IN_USE);
    write(&mut monitor, dir.path(), "w 1M 64k");
    assert_eq!(in_memory(&mut monitor), json!([["dis", 0], ["old", 65536]]));
    monitor.succeed("blockdev-reopen", reopen(true));
    assert_eq!(on_disk(dir.path()), RIGHT);
    check(dir.path());
    end(&mut running, &mut monitor, "KILL");
    let (_running, mut monitor) = start(Kind::Virtioblkd, dir.path());
    debugged(&mut monitor, json!({}));
    monitor.succeed("blockdev-add", image(false));
    assert_eq!(in_memory(&mut monitor), json!([["dis", 0], ["old", 65536]]));
}

#[test]
fn a_full_disk_at_the_end_costs_the_bitmaps_and_nothing_else() {
    let (dir, mut running, mut monitor) = stage();
    let fails = json!({"set-state": [{"event": "cluster_alloc", "state": 1, "new_state": 2}],
        "inject-error": [{"event": "pwritev", "state": 2, "errno": 28, "once": true}]});
    debugged(&mut monitor, fails);
    monitor.succeed("blockdev-add", image(false));
    let ended = end(&mut running, &mut monitor, "TERM");
    assert_eq!(ended, json!([0, null]));
    assert_eq!(on_disk(dir.path()), IN_USE);
    check(dir.path());
    let (_running, mut monitor) = start(Kind::Virtioblkd, dir.path());
    debugged(&mut monitor, json!({}));
    monitor.succeed("blockdev-add", image(false));
    let clear = json!({"node": "a", "name": "old"});
    let refused = monitor.refusal("block-dirty-bitmap-clear", clear);
    assert_eq!(refused, "Bitmap 'old' is inconsistent and cannot be used");
}

fn write(monitor: &mut Qmp, dir: &Path, what: &str) {
    let export = json!({"type": "nbd", "id": "e", "node-name": "a", "writable": true});
    monitor.succeed("block-export-add", export);
    let command = format!("qemu-io -f raw -c '{what}' 'nbd+unix:///a?socket=nbd'");
    shell(&command, dir);
    monitor.succeed("block-export-del", json!({"id": "e", "mode": "hard"}));
    monitor.event("BLOCK_EXPORT_DELETED");
}

/// Stored already when it is found that it may not be: nothing that is written after that may be missing.
#[test]
fn a_node_that_stays_writable_after_all_has_its_bitmaps_in_use_again() {
    let (dir, mut running, mut monitor) = stage();
    debugged(&mut monitor, json!({}));
    monitor.succeed("blockdev-add", image(false));
    let export = json!({"type": "nbd", "id": "e", "node-name": "a", "writable": true});
    monitor.succeed("block-export-add", export);
    let io = |what: &str| {
        let command = format!("qemu-io -f raw -c '{what}' 'nbd+unix:///a?socket=nbd'");
        shell(&command, dir.path())
    };
    io("w 0 64k");
    let refused = monitor.refusal("blockdev-reopen", reopen(true));
    assert!(!refused.contains("bitmap"), "{refused}");
    assert_eq!(on_disk(dir.path()), IN_USE);
    // In place, which is mapped.
    assert_eq!(io("w 4k 4k").as_array().expect("lines").len(), 1);
    io("w 2M 64k");
    assert_eq!(
        in_memory(&mut monitor),
        json!([["dis", 0], ["old", 131072]])
    );
    end(&mut running, &mut monitor, "KILL");
    assert_eq!(on_disk(dir.path()), IN_USE);
}
