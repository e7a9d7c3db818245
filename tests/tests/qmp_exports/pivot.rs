//! A layer is committed whose base is exported, too: two exports cannot come to be in one place.

use super::Stage;
use serde_json::{Value, json};
use tests::daemon::Kind;
use tests::qemu_img;

/// QSD's two exports are of one node then. Here the job stays ready, with nothing lost, until one export is gone.
#[test]
fn a_commit_into_a_base_that_is_exported_waits_until_one_export_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (dir.path().join("base"), dir.path().join("top"));
    qemu_img::create(&base, 1 << 20);
    qemu_img::create_on(&top, &base);
    let io = |path: &std::path::Path, command| {
        let path = path.to_str().unwrap();
        qemu_img::qemu_io(["-f", "qcow2", "-c", command, path]).unwrap();
    };
    io(&top, "write -P 5 64k 64k");
    let node = |name: &str, path: &std::path::Path| {
        let path = path.display();
        format!("qcow2,node-name={name},file.driver=file,file.filename={path}")
    };
    let below = node("b", &base);
    let above = format!("{},backing=b", node("t", &top));
    let words = ["--blockdev", &below, "--blockdev", &above];
    let mut stage = Stage::new(Kind::Virtioblkd, &words);
    let at = json!({"type": "unix", "data": {"path": stage.path("nbd.sock")}});
    let qmp = &mut stage.qmp;
    qmp.succeed("nbd-server-start", json!({"addr": at}));
    for (node, writable) in [("b", false), ("t", true)] {
        let export = json!({"type": "nbd", "id": node, "node-name": node, "writable": writable});
        qmp.succeed("block-export-add", export);
    }
    qmp.succeed("block-commit", json!({"job-id": "j", "device": "t"}));
    qmp.event("BLOCK_JOB_READY");
    let complete = json!({"id": "j"});
    assert_eq!(
        qmp.refusal("job-complete", complete.clone()),
        "Node b is in use"
    );
    let jobs = qmp.succeed("query-jobs", Value::Null);
    assert_eq!(jobs[0]["status"], "ready", "{jobs:#}");
    qmp.succeed("block-export-del", json!({"id": "b"}));
    qmp.event("BLOCK_EXPORT_DELETED");
    qmp.succeed("job-complete", complete);
    let completed = qmp.event("BLOCK_JOB_COMPLETED");
    assert_eq!(completed["data"]["error"], Value::Null, "{completed:#}");
    let exports = qmp.succeed("query-block-exports", Value::Null);
    assert_eq!(exports[0]["node-name"], "b", "{exports:#}");
    assert_eq!(stage.daemon.stop().unwrap(), "");
    io(&base, "read -P 5 64k 64k");
}
