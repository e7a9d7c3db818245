//! The same commands to both daemons: the same answers, the same errors, the same events before each.

use super::{BOTH, Stage};
use serde_json::{Value, json};

/// What is said of a type or an object that both have, though QEMU's has more of it.
const LISTS: [&str; 3] = ["qom-list", "qom-list-types", "qom-list-properties"];

/// A command and its arguments, `DIR` standing for the daemon's directory.
const COMMANDS: &[(&str, &str)] = &[
    ("object-add", r#"{"qom-type":"iothread","id":"io"}"#),
    ("object-add", r#"{"qom-type":"iothread","id":"io"}"#),
    ("object-add", r#"{"qom-type":"throttle-group","id":"io"}"#),
    ("object-add", r#"{"qom-type":"foo","id":"x"}"#),
    ("object-add", r#"{"qom-type":"iothread","id":"1"}"#),
    ("object-add", r#"{"qom-type":"iothread","id":""}"#),
    ("object-add", r#"{"qom-type":"iothread"}"#),
    (
        "object-add",
        r#"{"qom-type":"iothread","id":"x","bogus":1}"#,
    ),
    (
        "object-add",
        r#"{"qom-type":"iothread","id":"x","poll-max-ns":-1}"#,
    ),
    (
        "object-add",
        r#"{"qom-type":"throttle-group","id":"g","limits":{"iops-total":100}}"#,
    ),
    (
        "object-add",
        r#"{"qom-type":"throttle-group","id":"x","limits":{"iops-total":1,"iops-read":1}}"#,
    ),
    (
        "object-add",
        r#"{"qom-type":"throttle-group","id":"h","x-bps-total":4096}"#,
    ),
    ("object-add", r#"{"qom-type":"tls-creds-x509","id":"x"}"#),
    (
        "object-add",
        r#"{"qom-type":"tls-creds-x509","id":"x","dir":"/nonexistent"}"#,
    ),
    ("qom-list-types", r#"{"implements":"user-creatable"}"#),
    (
        "qom-list-types",
        r#"{"implements":"tls-creds","abstract":true}"#,
    ),
    ("qom-list-types", r#"{"implements":"iothread"}"#),
    ("qom-list-types", r#"{"implements":"nope"}"#),
    ("qom-list-properties", r#"{"typename":"throttle-group"}"#),
    ("qom-list-properties", r#"{"typename":"iothread"}"#),
    ("qom-list-properties", r#"{"typename":"tls-creds-x509"}"#),
    ("qom-list-properties", r#"{"typename":"container"}"#),
    ("qom-list-properties", r#"{"typename":"user-creatable"}"#),
    ("qom-list-properties", r#"{"typename":"nope"}"#),
    ("qom-list", r#"{"path":"/objects"}"#),
    ("qom-list", r#"{"path":"/objects/g"}"#),
    ("qom-list", r#"{"path":"/objects/io"}"#),
    ("qom-list", r#"{"path":"g"}"#),
    ("qom-list", r#"{"path":"objects//g"}"#),
    ("qom-list", r#"{"path":"/objects/nope"}"#),
    ("qom-list", r#"{"path":"nope"}"#),
    ("qom-list", r#"{"path":""}"#),
    ("qom-list", r#"{"path":"/objects/g/limits"}"#),
    ("qom-get", r#"{"path":"/objects/g","property":"limits"}"#),
    (
        "qom-get",
        r#"{"path":"/objects/g","property":"x-iops-total"}"#,
    ),
    (
        "qom-get",
        r#"{"path":"/objects/h","property":"x-bps-total"}"#,
    ),
    (
        "qom-get",
        r#"{"path":"/objects/g","property":"x-iops-total-max-length"}"#,
    ),
    ("qom-get", r#"{"path":"/objects/g","property":"type"}"#),
    ("qom-get", r#"{"path":"g","property":"type"}"#),
    ("qom-get", r#"{"path":"/objects/g","property":"nope"}"#),
    ("qom-get", r#"{"path":"/objects/nope","property":"type"}"#),
    ("qom-get", r#"{"path":"/objects","property":"g"}"#),
    ("qom-get", r#"{"path":"/objects","property":"type"}"#),
    ("qom-get", r#"{"path":"/","property":"objects"}"#),
    ("qom-get", r#"{"path":"/objects"}"#),
    (
        "qom-get",
        r#"{"path":"/objects/io","property":"poll-grow"}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects/g","property":"limits","value":{"iops-total":0,"bps-total":4096}}"#,
    ),
    ("qom-get", r#"{"path":"/objects/g","property":"limits"}"#),
    (
        "qom-set",
        r#"{"path":"/objects/g","property":"limits","value":{"bps-total-max":8192}}"#,
    ),
    ("qom-get", r#"{"path":"/objects/g","property":"limits"}"#),
    (
        "qom-set",
        r#"{"path":"/objects/g","property":"limits","value":{}}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects/g","property":"limits","value":{"iops-total":1,"iops-read":1}}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects/g","property":"limits","value":{"iops-total":-1}}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects/g","property":"limits","value":{"iops-total-max-length":4294967296}}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects/g","property":"limits","value":{"iops-total":9223372036854775808}}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects/g","property":"limits","value":{"bogus":4}}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects/g","property":"limits","value":{"iops-total":"10"}}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects/g","property":"limits","value":5}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects/g","property":"limits","value":null}"#,
    ),
    ("qom-set", r#"{"path":"/objects/g","property":"limits"}"#),
    ("qom-get", r#"{"path":"/objects/g","property":"limits"}"#),
    (
        "qom-set",
        r#"{"path":"/objects/g","property":"x-iops-total","value":5}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects/g","property":"x-iops-total","value":"5"}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects/g","property":"nope","value":5}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects/g","property":"type","value":"5"}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects","property":"g","value":"5"}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects","property":"nope","value":"5"}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects/nope","property":"nope","value":"5"}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects/io","property":"poll-max-ns","value":1000}"#,
    ),
    (
        "qom-get",
        r#"{"path":"/objects/io","property":"poll-max-ns"}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects/io","property":"poll-max-ns","value":-1}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects/io","property":"poll-max-ns","value":"1"}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects/io","property":"poll-max-ns","value":true}"#,
    ),
    (
        "qom-set",
        r#"{"path":"/objects/io","property":"poll-grow","value":4}"#,
    ),
    (
        "qom-get",
        r#"{"path":"/objects/io","property":"poll-grow"}"#,
    ),
    ("object-del", r#"{"id":"nope"}"#),
    ("object-del", r#"{"id":""}"#),
    ("object-del", r#"{"id":"h"}"#),
    (
        "blockdev-add",
        r#"{"driver":"throttle","node-name":"t","throttle-group":"g","file":"n"}"#,
    ),
    ("object-del", r#"{"id":"g"}"#),
    ("blockdev-del", r#"{"node-name":"t"}"#),
    ("object-del", r#"{"id":"g"}"#),
    (
        "blockdev-add",
        r#"{"driver":"throttle","node-name":"t","throttle-group":"g","file":"n"}"#,
    ),
    // Exports.
    ("query-block-exports", "{}"),
    ("block-export-add", E),
    ("block-export-add", E),
    (
        "block-export-add",
        r#"{"type":"vhost-user-blk","id":"f","node-name":"n","addr":{"type":"unix","path":"DIR/f.sock"}}"#,
    ),
    ("query-block-exports", "{}"),
    ("blockdev-del", r#"{"node-name":"n"}"#),
    ("block-export-del", r#"{"id":"nope"}"#),
    ("block-export-del", r#"{"id":"f","mode":"soft"}"#),
    ("block-export-del", r#"{"id":"f"}"#),
    ("block-export-del", r#"{"id":"f"}"#),
    ("block-export-del", r#"{"id":"e","mode":"hard"}"#),
    ("query-block-exports", "{}"),
    (
        "block-export-add",
        r#"{"type":"vhost-user-blk","id":"e","node-name":"nope","addr":{"type":"unix","path":"DIR/e.sock"}}"#,
    ),
    (
        "block-export-add",
        r#"{"type":"vhost-user-blk","id":"e","node-name":"ro","writable":true,"addr":{"type":"unix","path":"DIR/e.sock"}}"#,
    ),
    (
        "block-export-add",
        r#"{"type":"vhost-user-blk","id":"e","node-name":"n","iothread":"nope","addr":{"type":"unix","path":"DIR/e.sock"}}"#,
    ),
    (
        "block-export-add",
        r#"{"type":"vhost-user-blk","id":"e","node-name":"n","addr":{"type":"unix","path":"/nonexistent/x"}}"#,
    ),
    (
        "block-export-add",
        r#"{"type":"vhost-user-blk","id":"e","node-name":"n","addr":{"type":"inet","host":"h","port":"1"}}"#,
    ),
    (
        "block-export-add",
        r#"{"type":"vhost-user-blk","id":"1","node-name":"n","addr":{"type":"unix","path":"DIR/e.sock"}}"#,
    ),
    (
        "block-export-add",
        r#"{"type":"vhost-user-blk","id":"e","node-name":"n","num-queues":0,"addr":{"type":"unix","path":"DIR/e.sock"}}"#,
    ),
    (
        "block-export-add",
        r#"{"type":"vhost-user-blk","id":"e","node-name":"n"}"#,
    ),
    (
        "block-export-add",
        r#"{"type":"vhost-user-blk","id":"e","node-name":"n","iothread":"io","addr":{"type":"unix","path":"DIR/e.sock"}}"#,
    ),
    ("block-export-del", r#"{"id":"e"}"#),
    ("object-del", r#"{"id":"io"}"#),
    // The NBD server.
    ("block-export-add", N),
    ("nbd-server-stop", "{}"),
    ("nbd-server-start", "{}"),
    (
        "nbd-server-start",
        r#"{"addr":{"type":"unix","path":"DIR/n.sock"}}"#,
    ),
    (
        "nbd-server-start",
        r#"{"addr":{"type":"unix","data":{"path":"/nonexistent/x"}}}"#,
    ),
    (
        "nbd-server-start",
        r#"{"addr":{"type":"unix","data":{"path":"DIR/n.sock"}},"tls-creds":"nope"}"#,
    ),
    (
        "nbd-server-start",
        r#"{"addr":{"type":"unix","data":{"path":"DIR/n.sock"}},"tls-creds":"g"}"#,
    ),
    (
        "nbd-server-start",
        r#"{"addr":{"type":"unix","data":{"path":"DIR/n.sock"}},"max-connections":-1}"#,
    ),
    (
        "nbd-server-start",
        r#"{"addr":{"type":"unix","data":{"path":"DIR/n.sock"}},"handshake-max-seconds":4294967296}"#,
    ),
    (
        "nbd-server-start",
        r#"{"addr":{"type":"unix","data":{"path":"DIR/n.sock"}},"max-connections":3,"handshake-max-seconds":5}"#,
    ),
    (
        "nbd-server-start",
        r#"{"addr":{"type":"unix","data":{"path":"DIR/n.sock"}}}"#,
    ),
    ("block-export-add", N),
    (
        "block-export-add",
        r#"{"type":"nbd","id":"m","node-name":"n","name":"x"}"#,
    ),
    (
        "block-export-add",
        r#"{"type":"nbd","id":"m","node-name":"ro","name":"y","writable":true}"#,
    ),
    (
        "block-export-add",
        r#"{"type":"nbd","id":"m","node-name":"ro"}"#,
    ),
    ("block-export-add", E),
    ("query-block-exports", "{}"),
    ("block-export-del", r#"{"id":"nb"}"#),
    ("query-block-exports", "{}"),
    ("block-export-add", N),
    ("nbd-server-stop", "{}"),
    ("nbd-server-stop", "{}"),
    ("query-block-exports", "{}"),
    (
        "nbd-server-start",
        r#"{"addr":{"type":"inet","data":{"host":"127.0.0.1","port":"0"}}}"#,
    ),
    ("nbd-server-stop", "{}"),
    ("block-export-del", r#"{"id":"e"}"#),
    ("blockdev-del", r#"{"node-name":"t"}"#),
    ("blockdev-del", r#"{"node-name":"n"}"#),
    ("query-block-exports", "{}"),
];

const E: &str = r#"{"type":"vhost-user-blk","id":"e","node-name":"n","addr":{"type":"unix","path":"DIR/e.sock"}}"#;
const N: &str = r#"{"type":"nbd","id":"nb","node-name":"n","name":"x"}"#;

/// What QEMU alone has of what both list: names of types and properties.
const THEIRS: [&str; 15] = [
    "aio-max-batch",
    "authz-list",
    "authz-list-file",
    "authz-simple",
    "main-loop",
    "passwordid",
    "pr-manager-helper",
    "priority",
    "secret",
    "secret_keyring",
    "thread-context",
    "thread-pool-max",
    "thread-pool-min",
    "tls-creds-anon",
    "tls-creds-psk",
];

#[test]
fn both_daemons_give_the_same_answers_about_objects_and_exports() {
    let read_only = ["--blockdev", "null-co,node-name=ro,read-only=on"];
    let arguments = [super::NULL, read_only].concat();
    let [mut theirs, mut ours] = BOTH.map(|kind| Stage::new(kind, &arguments));
    let mut differences = Vec::new();
    for (name, arguments) in COMMANDS {
        let (expected, got) = (
            say(&mut theirs, name, arguments),
            say(&mut ours, name, arguments),
        );
        if expected != got {
            differences.push(format!(
                "{name} {arguments}\n  QSD:  {expected}\n  ours: {got}"
            ));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// The answer, and the events before it.
fn say(stage: &mut Stage, name: &str, arguments: &str) -> Value {
    let dir = stage.daemon.directory().display().to_string();
    let arguments = serde_json::from_str(&arguments.replace("DIR", &dir)).unwrap();
    let answer = match stage.qmp.execute(name, arguments) {
        Ok(answer) if LISTS.contains(&name) => json!({"return": by_name(answer)}),
        Ok(answer) => json!({"return": answer}),
        Err(error) => json!({"error": error}),
    };
    let events = stage.qmp.events().into_iter();
    let events: Vec<Value> = events.map(|e| json!([e["event"], e["data"]])).collect();
    json!([events, answer])
}

/// Lists have no order, and QEMU's are longer.
fn by_name(list: Value) -> Value {
    let mut list = list.as_array().cloned().unwrap_or_default();
    let is_shared = |item: &Value| !THEIRS.contains(&item["name"].as_str().unwrap_or_default());
    list.retain(is_shared);
    list.sort_by_key(|item| item["name"].to_string());
    list.into()
}
