//! The NBD server at run time, with real clients.

use super::{BOTH, DELETED, NULL, Stage};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use tests::daemon::Kind;

/// A real client, connected.
struct Client {
    child: Child,
    words: ChildStdin,
    said: BufReader<ChildStdout>,
}

impl Client {
    fn new(stage: &Stage, name: &str) -> Client {
        let socket = stage.path("n.sock");
        let url = format!("nbd+unix:///{name}?socket={}", socket.display());
        let mut child = Command::new("qemu-io")
            .args(["-r", "-f", "raw", &url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let words = child.stdin.take().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut client = Client { child, words, said };
        assert!(client.reads(), "the first read");
        client
    }

    /// Can it read?
    fn reads(&mut self) -> bool {
        self.words.write_all(b"read 0 512\n").unwrap();
        loop {
            let mut line = String::new();
            match self.said.read_line(&mut line).unwrap() {
                0 => return false,
                _ if line.contains("read 512/512") => return true,
                _ if line.contains("failed") => return false,
                _ => {}
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Both fail only where it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.said.read_to_end(&mut Vec::new());
    }
}

fn start(stage: &mut Stage) {
    let path = stage.path("n.sock");
    let address = json!({"type": "unix", "data": {"path": path}});
    stage
        .qmp
        .succeed("nbd-server-start", json!({"addr": address}));
}

fn export(id: &str, name: &str) -> Value {
    json!({"type": "nbd", "id": id, "node-name": "n", "name": name})
}

#[test]
fn an_nbd_export_with_clients_goes_only_when_it_is_meant() {
    for kind in BOTH {
        let mut stage = Stage::new(kind, &NULL);
        start(&mut stage);
        stage.qmp.succeed("block-export-add", export("a", "x"));
        stage.qmp.succeed("block-export-add", export("b", "y"));
        let (mut one, mut other) = (Client::new(&stage, "x"), Client::new(&stage, "y"));
        let refusal = stage.qmp.refusal("block-export-del", json!({"id": "a"}));
        assert_eq!(refusal, "export 'a' still in use", "{kind:?}");
        assert!(one.reads(), "{kind:?}");
        stage
            .qmp
            .succeed("block-export-del", json!({"id": "a", "mode": "hard"}));
        assert_eq!(stage.qmp.event(DELETED)["data"], json!({"id": "a"}));
        assert!(!one.reads() && other.reads(), "{kind:?}");
        let shown = stage.qmp.succeed("query-block-exports", json!({}));
        assert_eq!(shown.as_array().unwrap().len(), 1, "{kind:?}: {shown}");
    }
}

#[test]
fn a_server_that_stops_takes_its_exports_with_it() {
    for kind in BOTH {
        let mut stage = Stage::new(kind, &NULL);
        let vhost = stage.export();
        stage.qmp.succeed("block-export-add", vhost);
        for _ in 0..2 {
            start(&mut stage);
            stage.qmp.succeed("block-export-add", export("a", "x"));
            stage.qmp.succeed("block-export-add", export("b", "y"));
            let mut client = Client::new(&stage, "x");
            stage.qmp.succeed("nbd-server-stop", json!({}));
            let events = stage.qmp.events();
            let mut ids: Vec<&str> = events
                .iter()
                .filter_map(|e| e["data"]["id"].as_str())
                .collect();
            ids.sort_unstable();
            assert_eq!(ids, ["a", "b"], "{kind:?}");
            assert!(!stage.path("n.sock").exists(), "{kind:?}");
            assert!(!client.reads(), "{kind:?}");
            let shown = stage.qmp.succeed("query-block-exports", json!({}));
            assert_eq!(shown[0]["id"], "e", "{kind:?}: {shown}");
            assert_eq!(shown.as_array().unwrap().len(), 1, "{kind:?}: {shown}");
        }
        super::serves(&mut stage.guest());
    }
}

#[test]
fn servers_and_their_exports_come_and_go_and_nothing_is_left_behind() {
    let mut stage = Stage::new(Kind::Virtioblkd, &NULL);
    let mut fds = Vec::new();
    for _ in 0..40 {
        start(&mut stage);
        stage.qmp.succeed("block-export-add", export("a", "x"));
        stage.qmp.succeed("block-export-del", json!({"id": "a"}));
        stage.qmp.succeed("block-export-add", export("a", "x"));
        stage.qmp.succeed("nbd-server-stop", json!({}));
        fds.push(stage.open_fds());
    }
    assert_eq!(stage.qmp.events().len(), 80);
    assert!(fds[30..].iter().min() <= fds[5..15].iter().min(), "{fds:?}");
    assert!(stage.loses_threads("nbd"), "{:?}", stage.threads());
}

#[test]
fn an_nbd_export_holds_its_iothread_until_its_last_client_is_gone() {
    let mut stage = Stage::new(Kind::Virtioblkd, &NULL);
    start(&mut stage);
    let iothread = json!({"qom-type": "iothread", "id": "disks"});
    stage.qmp.succeed("object-add", iothread);
    let mut on_it = export("a", "x");
    on_it["iothread"] = json!("disks");
    stage.qmp.succeed("block-export-add", on_it);
    let mut client = Client::new(&stage, "x");
    let refusal = stage.qmp.refusal("object-del", json!({"id": "disks"}));
    assert_eq!(refusal, "object 'disks' is in use, can not be deleted");
    let hard = json!({"id": "a", "mode": "hard"});
    stage.qmp.succeed("block-export-del", hard);
    stage.qmp.event(DELETED);
    assert!(!client.reads());
    stage.qmp.succeed("object-del", json!({"id": "disks"}));
    assert!(stage.loses_threads("disks"), "{:?}", stage.threads());
}
