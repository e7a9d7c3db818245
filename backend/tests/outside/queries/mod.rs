//! What queries tell, held against the real qemu-storage-daemon with the same command line, member by member, and figures of
//! exports, held against what qemu-io was told to do.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod qsd;
mod stage;

use serde_json::{Value, json};
use stage::{Stage, images, run};
use std::path::Path;
use std::sync::OnceLock;

/// Nodes that both daemons can have; each line is a daemon's whole command line.
const SETUPS: &[&str] = &[
    "--blockdev null-co,node-name=a --blockdev null-co,node-name=b,size=8192,read-zeroes=on \
     --blockdev null-aio,node-name=c,latency-ns=5",
    "--blockdev raw,node-name=a,file.driver=null-co",
    "--blockdev raw,node-name=a,file.driver=file,file.filename=raw.img,offset=4096,size=8192,read-only=on",
    "--blockdev raw,node-name=a,file.driver=file,file.filename=raw.img,cache.direct=on,cache.no-flush=on",
    "--blockdev qcow2,node-name=a,file.driver=file,file.filename=ov.qcow2,detect-zeroes=unmap,discard=unmap",
    r#"--blockdev {"driver":"qcow2","node-name":"a","file":{"driver":"file","filename":"ov.qcow2"},"backing":null}"#,
    r#"--blockdev {"driver":"qcow2","node-name":"a","file":{"driver":"file","filename":"ov.qcow2"},"backing":{"driver":"qcow2","node-name":"b","file":{"driver":"file","filename":"other.qcow2"}}}"#,
    r#"--blockdev {"driver":"qcow2","node-name":"b","file":{"driver":"file","filename":"base.qcow2"},"read-only":true} --blockdev {"driver":"qcow2","node-name":"a","file":{"driver":"file","filename":"absolute.qcow2"},"backing":"b"}"#,
    "--blockdev qcow2,node-name=a,file.driver=file,file.filename=sub/relative.qcow2",
    "--blockdev qcow2,node-name=a,file.driver=file,file.filename=on-raw.qcow2",
    "--blockdev qcow2,node-name=a,file.driver=file,file.filename=with-data.qcow2",
    "--blockdev qcow2,node-name=a,file.driver=file,file.filename=old.qcow2",
    "--blockdev qcow2,node-name=a,file.driver=file,file.filename=lazy.qcow2,lazy-refcounts=off",
    "--blockdev qcow2,node-name=a,file.driver=file,file.filename=marked.qcow2,read-only=on",
    "--blockdev compress,node-name=a,file.driver=qcow2,file.file.driver=file,file.file.filename=other.qcow2",
    "--blockdev preallocate,node-name=a,prealloc-align=1048576,file.driver=file,file.filename=raw.img",
    "--blockdev blkdebug,node-name=a,image.driver=file,image.filename=raw.img",
    "--blockdev blkdebug,node-name=a,align=4096,max-transfer=8192,inject-error.0.event=read_aio,\
     inject-error.0.errno=28,inject-error.0.sector=9,inject-error.0.once=on,inject-error.0.immediately=on,\
     inject-error.0.state=2,inject-error.0.iotype=read,set-state.0.event=write_aio,set-state.0.state=1,\
     set-state.0.new_state=2,opt-discard=8192,max-discard=8192,opt-write-zero=8192,max-write-zero=8192,\
     image.driver=file,image.filename=raw.img",
    "--object throttle-group,id=tg,limits.iops-total=2000 \
     --blockdev throttle,node-name=a,throttle-group=tg,file.driver=blkdebug,file.config=debug.cfg,\
     file.image.driver=file,file.image.filename=raw.img",
    "--object throttle-group,id=tg,limits.iops-total=2000 \
     --blockdev qcow2,node-name=ov,file.driver=file,file.filename=ov.qcow2 \
     --blockdev copy-on-read,node-name=cor,file=ov \
     --blockdev throttle,node-name=thr,throttle-group=tg,file=cor \
     --export vhost-user-blk,id=e,node-name=thr,addr.type=unix,addr.path=e.sock,writable=on \
     --nbd-server addr.type=unix,addr.path=n.sock --export nbd,id=n,node-name=thr,name=disk",
    "--object throttle-group,id=tg \
     --blockdev throttle,node-name=a,throttle-group=tg,file.driver=qcow2,file.file.driver=file,\
     file.file.filename=with-data.qcow2",
    "--blockdev nbd,node-name=a,server.type=unix,server.path=server.sock,export=exp,reconnect-delay=2",
    "--object throttle-group,id=tg --blockdev throttle,node-name=a,throttle-group=tg,file.driver=nbd,\
     file.server.type=unix,file.server.path=server.sock,file.export=exp",
];

/// Names that a daemon made up itself say nothing.
fn without_made_up_names(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let is_name = ["node-name", "name"].contains(&name.as_str());
                if is_name && value.as_str().is_some_and(|name| name.starts_with('#')) {
                    *value = json!("#");
                }
                without_made_up_names(value);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(without_made_up_names),
        _ => {}
    }
}

fn comparable(mut answer: Value) -> Vec<String> {
    without_made_up_names(&mut answer);
    answer.sort_all_objects();
    let items = answer.as_array().unwrap().iter();
    items
        .map(|item| serde_json::to_string_pretty(item).unwrap())
        .collect()
}

/// What both daemons answered after one setup.
#[derive(Debug)]
struct Answers {
    setup: &'static str,
    ours: Vec<Value>,
    theirs: Vec<Value>,
}

/// The queries, in the order of the answers.
fn queries() -> [(&'static str, Value); 4] {
    [
        ("query-named-block-nodes", json!({"flat": true})),
        ("query-named-block-nodes", json!({"flat": false})),
        ("query-blockstats", json!({"query-nodes": true})),
        ("x-debug-query-block-graph", json!({})),
    ]
}

/// All answers; asked once, since daemons take their time to start.
fn answers() -> &'static [Answers] {
    static ANSWERS: OnceLock<Vec<Answers>> = OnceLock::new();
    ANSWERS.get_or_init(|| {
        let dir = images();
        let _server = stage::Server::start(dir.path());
        SETUPS
            .iter()
            .map(|setup| ask_both(dir.path(), setup))
            .collect()
    })
}

fn ask_both(dir: &Path, setup: &'static str) -> Answers {
    let mut qsd = qsd::Qsd::start(dir, setup);
    let theirs = queries().map(|(command, arguments)| qsd.ask(command, &arguments));
    qsd.quit();
    let mut stage = Stage::new(dir, setup);
    let ours = queries().map(|(command, arguments)| stage.ask(command, arguments).unwrap());
    stage.end();
    Answers {
        setup,
        ours: ours.into(),
        theirs: theirs.into(),
    }
}

#[test]
fn nodes_and_images_are_told_of_as_by_qemu() {
    let mut wrong = Vec::new();
    for answers in answers() {
        for query in [0, 1] {
            let ours = comparable(answers.ours[query].clone());
            let theirs = comparable(answers.theirs[query].clone());
            let pairs = ours.iter().zip(&theirs).filter(|(a, b)| a != b);
            let pairs: Vec<String> = pairs.map(|(a, b)| format!("ours {a}\nqemu {b}")).collect();
            if !pairs.is_empty() || ours.len() != theirs.len() {
                wrong.push(format!("{}\n{}", answers.setup, pairs.join("\n")));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n\n")
    );
}

/// Every member a query has, with the path to it.
fn members(path: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(all) => {
            for (name, value) in all {
                members(&format!("{path}.{name}"), value, found);
            }
        }
        other => found.push(format!("{path} {other}")),
    }
}

/// An export's node counts, and says so; QEMU's has no account.
fn without_account(mut answer: Value) -> Value {
    for item in answer.as_array_mut().unwrap() {
        let stats = item["stats"].as_object_mut().unwrap();
        if stats.remove("x-in-flight").is_some() {
            stats.insert("account_invalid".to_owned(), json!(false));
            stats.insert("account_failed".to_owned(), json!(false));
        }
    }
    answer
}

#[test]
fn idle_nodes_have_the_same_statistics() {
    for answers in answers() {
        let ours = comparable(without_account(answers.ours[2].clone()));
        assert_eq!(
            ours,
            comparable(answers.theirs[2].clone()),
            "{}",
            answers.setup
        );
    }
}

#[test]
fn the_graph_has_qemus_nodes_edges_and_permissions() {
    let mut wrong = Vec::new();
    for answers in answers() {
        for list in ["nodes", "edges"] {
            let of = |graph: &Value| {
                let mut list = graph[list].clone();
                if answers.setup.contains("copy-on-read") {
                    // Ours lets nobody else write what it copies; QEMU's does.
                    let edges = list.as_array_mut().unwrap().iter_mut();
                    edges
                        .for_each(|edge| drop(edge.as_object_mut().unwrap().remove("shared-perm")));
                }
                comparable(list)
            };
            let (ours, theirs) = (of(&answers.ours[3]), of(&answers.theirs[3]));
            if ours != theirs {
                let (ours, theirs) = (ours.join(""), theirs.join(""));
                wrong.push(format!("{}\nours {ours}\nqemu {theirs}", answers.setup));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n\n")
    );
}

#[test]
fn exports_count_what_their_clients_ask() {
    let dir = images();
    let mut ours = Stage::new(
        dir.path(),
        "--blockdev file,node-name=f,filename=raw.img,discard=unmap \
         --blockdev raw,node-name=r,file=f,discard=unmap,offset=1048576 \
         --nbd-server addr.type=unix,addr.path=n.sock --export nbd,id=n,node-name=r,name=disk,writable=on",
    );
    let histogram = json!({"id": "n", "boundaries": [1], "boundaries-flush": []});
    ours.ask("block-latency-histogram-set", histogram).unwrap();
    let address = format!(
        "nbd+unix:///disk?socket={}",
        dir.path().join("n.sock").display()
    );
    run(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "read 0 64k",
            "-c",
            "read 64k 4k",
            "-c",
            "write 1M 128k",
            "-c",
            "write -z 2M 64k",
            "-c",
            "discard 3M 32k",
            "-c",
            "flush",
            &address,
        ],
        dir.path(),
    );
    let by_export = ours.ask("query-blockstats", json!({})).unwrap();
    let entry = &by_export[0];
    assert_eq!(
        (&entry["qdev"], &entry["device"]),
        (&json!("n"), &json!(""))
    );
    assert_eq!(entry["node-name"], "r");
    let stats = &entry["stats"];
    let is = |name: &str, value: u64| assert_eq!(stats[name], json!(value), "{name} in {stats}");
    is("rd_operations", 2);
    is("rd_bytes", 68 << 10);
    is("wr_operations", 2);
    is("wr_bytes", 192 << 10);
    is("unmap_operations", 1);
    is("unmap_bytes", 32 << 10);
    is("wr_highest_offset", (2 << 20) + (64 << 10));
    is("x-in-flight", 0);
    is("failed_rd_operations", 0);
    assert!(stats["flush_operations"].as_u64() >= Some(1), "{stats}");
    assert!(stats["rd_total_time_ns"].as_u64() > Some(0), "{stats}");
    assert!(stats["idle_time_ns"].is_u64());
    assert_eq!(stats["account_failed"], true);
    let bins = |name: &str| -> u64 {
        let bins = stats[name]["bins"].as_array().unwrap().iter();
        bins.map(|bin| bin.as_u64().unwrap()).sum()
    };
    assert_eq!(
        (bins("rd_latency_histogram"), bins("wr_latency_histogram")),
        (2, 2)
    );
    assert_eq!(
        stats["zone_append_latency_histogram"],
        json!({"boundaries": [1], "bins": [0, 0]})
    );
    assert_eq!(stats["flush_latency_histogram"]["boundaries"], json!([]));
    // The file is below a window of a MiB.
    let below = &entry["parent"];
    assert_eq!(
        below["stats"]["wr_highest_offset"],
        json!((3 << 20) + (64 << 10))
    );
    assert_eq!(below["driver-specific"]["discard-nb-ok"], 1);
    assert_eq!(
        below["driver-specific"]["discard-bytes-ok"],
        json!(32 << 10)
    );
    let by_node = ours
        .ask("query-blockstats", json!({"query-nodes": true}))
        .unwrap();
    let node = by_node
        .as_array()
        .unwrap()
        .iter()
        .find(|node| node["node-name"] == "r")
        .unwrap();
    assert_eq!(node["stats"]["wr_bytes"], json!(192 << 10));
    ours.end();
}

#[test]
fn histograms_are_refused_in_qemus_words() {
    let dir = images();
    let mut ours = Stage::new(
        dir.path(),
        "--blockdev null-co,node-name=a --nbd-server addr.type=unix,addr.path=n.sock \
         --export nbd,id=n,node-name=a",
    );
    for (arguments, said) in [
        (
            json!({"id": "n", "boundaries": [0, 5]}),
            "Device 'n' set read boundaries fail",
        ),
        (
            json!({"id": "n", "boundaries-write": [5, 5]}),
            "Device 'n' set write boundaries fail",
        ),
        (
            json!({"id": "n", "boundaries-zap": [5, 4]}),
            "Device 'n' set append write boundaries fail",
        ),
        (
            json!({"id": "n", "boundaries-flush": [5, 4]}),
            "Device 'n' set flush boundaries fail",
        ),
        (json!({"id": "other"}), "Device 'other' not found"),
        (json!({}), "Parameter 'id' is missing"),
    ] {
        let refused = ours
            .ask("block-latency-histogram-set", arguments)
            .unwrap_err();
        assert_eq!(refused, said);
    }
    assert_eq!(ours.ask("query-block", json!({})).unwrap(), json!([]));
    ours.end();
}

/// Values of an idle export are all there, and all zero.
#[test]
fn an_idle_export_has_every_figure() {
    let dir = images();
    let setup = "--blockdev null-co,node-name=a --nbd-server addr.type=unix,addr.path=n.sock \
                 --export nbd,id=n,node-name=a";
    let mut ours = Stage::new(dir.path(), setup);
    let answer = ours.ask("query-blockstats", json!({})).unwrap();
    let mut found = Vec::new();
    members("", &answer[0]["stats"], &mut found);
    let zero = found.iter().filter(|line| line.ends_with(" 0")).count();
    assert_eq!((found.len(), zero), (33, 30), "{found:?}");
    ours.end();
}
