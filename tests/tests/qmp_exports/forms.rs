//! Every kind of wrong value in every kind of member, given to both daemons: what is wrong is the same, in the same words.
//!
//! No command here succeeds, with a well-formed value either: an id, a node or a file is not there.

use super::{BOTH, Stage};
use serde_json::{Value, json};

/// The command, arguments that fail for want of something, and members to set, by path.
type Case = (&'static str, Value, &'static str);

fn values() -> Vec<Value> {
    vec![
        json!(-1),
        json!(65536),
        json!(1_u64 << 31),
        json!(1_u64 << 32),
        json!(i64::MAX),
        json!(1_u64 << 63),
        json!(u64::MAX),
        json!(1.5),
        json!("1"),
        json!("x"),
        json!(true),
        json!(null),
        json!([]),
        json!({}),
    ]
}

fn cases() -> Vec<Case> {
    let blkdebug = json!({"driver": "blkdebug", "node-name": "1", "image": "n"});
    let with = |member: &str, value: Value| {
        let mut blkdebug = blkdebug.clone();
        blkdebug[member] = value;
        blkdebug
    };
    vec![
        (
            "object-add",
            json!({"qom-type": "iothread", "id": "1"}),
            "poll-max-ns poll-grow poll-shrink qom-type",
        ),
        (
            "object-add",
            json!({"qom-type": "throttle-group", "id": "1"}),
            "limits x-iops-total x-bps-read-max-length limits.iops-total limits.iops-size limits.bps-total-max-length",
        ),
        (
            "object-add",
            json!({"qom-type": "tls-creds-x509", "id": "g", "dir": "/nonexistent"}),
            "verify-peer endpoint sanity-check dir",
        ),
        (
            "block-export-add",
            json!({"type": "vhost-user-blk", "id": "1", "node-name": "n", "addr": {"type": "unix", "path": "/nonexistent/s"}}),
            "num-queues logical-block-size writable writethrough iothread fixed-iothread addr addr.path addr.type type node-name",
        ),
        (
            "block-export-add",
            json!({"type": "vhost-user-blk", "id": "1", "node-name": "n", "addr": {"type": "inet", "host": "h", "port": "1"}}),
            "addr.to addr.ipv4 addr.keep-alive addr.numeric addr.port",
        ),
        (
            "block-export-add",
            json!({"type": "nbd", "id": "1", "node-name": "n"}),
            "name description allocation-depth",
        ),
        (
            "nbd-server-start",
            json!({"addr": {"type": "unix", "data": {"path": "/nonexistent/s"}}}),
            "max-connections handshake-max-seconds addr addr.data addr.type",
        ),
        ("block-export-del", json!({"id": "e"}), "id mode"),
        ("object-del", json!({"id": "e"}), "id"),
        (
            "qom-get",
            json!({"path": "/", "property": "nope"}),
            "path property",
        ),
        (
            "qom-set",
            json!({"path": "/", "property": "nope", "value": 1}),
            "path property",
        ),
        (
            "blockdev-add",
            json!({"driver": "null-co", "node-name": "1"}),
            "size latency-ns read-zeroes cache cache.direct discard detect-zeroes read-only auto-read-only force-share driver",
        ),
        (
            "blockdev-add",
            json!({"driver": "raw", "node-name": "1", "file": "n"}),
            "offset size file.driver",
        ),
        (
            "blockdev-add",
            json!({"driver": "file", "node-name": "1", "filename": "/nonexistent"}),
            "filename locking aio",
        ),
        (
            "blockdev-add",
            json!({"driver": "qcow2", "node-name": "1", "file": "n"}),
            "backing lazy-refcounts overlap-check cache-size l2-cache-size l2-cache-entry-size refcount-cache-size \
             cache-clean-interval data-file pass-discard-request discard-no-unref",
        ),
        (
            "blockdev-add",
            json!({"driver": "nbd", "node-name": "1", "server": {"type": "unix", "path": "/nonexistent"}}),
            "reconnect-delay open-timeout export tls-creds server server.path x-dirty-bitmap",
        ),
        (
            "blockdev-add",
            blkdebug.clone(),
            "align max-transfer opt-write-zero max-discard inject-error set-state take-child-perms",
        ),
        (
            "blockdev-add",
            with("inject-error", json!([{"event": "none"}])),
            "inject-error.0.errno inject-error.0.state inject-error.0.sector inject-error.0.once inject-error.0.event",
        ),
        (
            "blockdev-add",
            with("set-state", json!([{"event": "none", "new_state": 2}])),
            "set-state.0.new_state set-state.0.state",
        ),
        (
            "blockdev-add",
            json!({"driver": "preallocate", "node-name": "1", "file": "n"}),
            "prealloc-size prealloc-align",
        ),
        (
            "blockdev-add",
            json!({"driver": "copy-on-read", "node-name": "1", "file": "n"}),
            "bottom",
        ),
        (
            "blockdev-add",
            json!({"driver": "throttle", "node-name": "1", "file": "n", "throttle-group": "g"}),
            "throttle-group",
        ),
    ]
}

/// Sets a member; what is no object on the way becomes one.
fn set(arguments: &Value, path: &str, value: Value) -> Value {
    let mut arguments = arguments.clone();
    let mut at = &mut arguments;
    for name in path.split('.') {
        at = match name.parse::<usize>() {
            Ok(index) => &mut at[index],
            Err(_) => {
                if !at.is_object() {
                    *at = json!({});
                }
                &mut at[name]
            }
        };
    }
    *at = value;
    arguments
}

#[test]
fn values_of_a_wrong_form_are_refused_in_the_same_words() {
    let [mut theirs, mut ours] = BOTH.map(|kind| Stage::new(kind, &super::NULL));
    let mut differences = Vec::new();
    for (command, arguments, members) in cases() {
        for member in members.split_whitespace() {
            for value in values() {
                let arguments = set(&arguments, member, value);
                let expected = theirs.qmp.refusal(command, arguments.clone());
                let got = ours.qmp.refusal(command, arguments.clone());
                if expected != got {
                    differences.push(format!(
                        "{command} {arguments}\n  QSD:  {expected}\n  ours: {got}"
                    ));
                }
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
