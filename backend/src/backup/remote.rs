//! The daemon's side of a backup: one transaction makes the instant, and `settle` takes everything away again.
//!
//! The rule: whatever this puts into a daemon is found again by its name alone. So there is one way to clean up, and it is
//! the same after success, after a failure, and for what a backup left that was killed.

use super::catalogue::Catalogue;
use super::error::BackupError;
use crate::qmp_client::{Client, ClientError};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// Draining a node waits for what its guest has under way.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long something may take to go away.
const LEAVING: Duration = Duration::from_secs(60);
const GLANCE: Duration = Duration::from_millis(20);

/// A daemon and what belongs to one directory in it.
#[derive(Debug)]
pub(super) struct Remote {
    client: Client,
    node: String,
    prefix: String,
}

/// What the daemon says of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeState {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Can it keep a bitmap in its image?
    pub keeps_bitmaps: bool,
    /// Its bitmaps, ours and others.
    pub bitmaps: Vec<Bitmap>,
}

/// A bitmap, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bitmap {
    /// Its name.
    pub name: String,
    /// Does it record writes?
    pub is_recording: bool,
    /// Can it be relied on?
    pub is_consistent: bool,
}

/// What to take.
#[derive(Clone, Debug)]
pub(super) struct Taking<'a> {
    /// Changes from then on go in here.
    pub begins: &'a str,
    /// Changes up to then are in here.
    pub ends: Option<&'a str>,
    /// Are they kept in the image?
    pub is_persistent: bool,
    /// A file of the node's size for what is overwritten.
    pub scratch: &'a Path,
    /// Where the snapshot is served.
    pub socket: &'a Path,
}

impl Remote {
    pub(super) fn connect(socket: &Path, catalogue: &Catalogue) -> Result<Remote, BackupError> {
        let mut client = Client::connect(socket)?;
        client.be_patient(PATIENCE)?;
        Ok(Remote {
            client,
            node: catalogue.node.clone(),
            prefix: format!("vbk-{}-", catalogue.id),
        })
    }

    /// The name of the bitmap that records what changes after backup `number`.
    pub(super) fn bitmap_name(&self, number: u64) -> String {
        format!("{}{number}", self.prefix)
    }

    fn name(&self, what: &str) -> String {
        format!("{}{what}", self.prefix)
    }

    fn ask(&mut self, command: &'static str, arguments: Value) -> Result<Value, ClientError> {
        let arguments = match arguments {
            Value::Object(members) => members,
            _ => Map::new(),
        };
        self.client.ask(command, arguments)
    }

    fn list(&mut self, command: &'static str) -> Result<Vec<Value>, ClientError> {
        match self.ask(command, Value::Null)? {
            Value::Array(list) => Ok(list),
            _ => Err(ClientError::NotQmp("no list")),
        }
    }

    fn nodes(&mut self) -> Result<Vec<Value>, ClientError> {
        match self.ask("query-named-block-nodes", json!({"flat": true}))? {
            Value::Array(list) => Ok(list),
            _ => Err(ClientError::NotQmp("no list")),
        }
    }

    /// Errors: there is no such node.
    pub(super) fn node_state(&mut self) -> Result<NodeState, BackupError> {
        let nodes = self.nodes()?;
        let node = nodes.iter().find(|node| node["node-name"] == self.node[..]);
        let node = node.ok_or_else(|| BackupError::NoNode(self.node.clone()))?;
        let size_bytes = node["image"]["virtual-size"].as_u64();
        let v3 = node["image"]["format-specific"]["data"]["compat"] == "1.1";
        let bitmaps = node["dirty-bitmaps"].as_array();
        Ok(NodeState {
            size_bytes: size_bytes.ok_or(ClientError::NotQmp("a node without a size"))?,
            keeps_bitmaps: (node["drv"] == "qcow2" && v3 || node["x-bitmap-journal"].is_object())
                && node["ro"] == false,
            bitmaps: bitmaps.into_iter().flatten().filter_map(bitmap).collect(),
        })
    }

    /// Makes the instant, and serves the node as it is then.
    pub(super) fn begin(&mut self, instant: &Taking<'_>) -> Result<(), BackupError> {
        let (scratch, snapshot) = (self.name("scratch"), self.name("snapshot"));
        let file = json!({
            "driver": "file", "node-name": scratch, "filename": instant.scratch,
        });
        self.ask("blockdev-add", file)?;
        self.transaction(instant)?;
        let over = json!({
            "driver": "snapshot-access", "node-name": snapshot, "file": self.name("filter"),
        });
        self.ask("blockdev-add", over)?;
        let address = json!({"type": "unix", "data": {"path": instant.socket}});
        self.ask("nbd-server-start", json!({"addr": address}))?;
        let changes = instant
            .ends
            .map(|name| json!({"node": self.node, "name": name}));
        let export = json!({
            "type": "nbd", "id": self.name("export"), "node-name": snapshot, "name": super::EXPORT,
            "bitmaps": changes.into_iter().collect::<Vec<_>>(),
        });
        self.ask("block-export-add", export)?;
        Ok(())
    }

    /// From one instant to the next: what was written before it is in the old bitmap and in the snapshot, what is written
    /// after it in the new bitmap and not in the snapshot. Asks for as much as the daemon knows.
    fn transaction(&mut self, instant: &Taking<'_>) -> Result<(), BackupError> {
        let mut breaks_snapshot = true;
        loop {
            let actions = self.actions(instant, breaks_snapshot);
            match self.ask("transaction", json!({"actions": actions})) {
                // Known since QEMU 10.1; before that a failure to keep old data is the guest's.
                Err(ClientError::Refused { text, .. })
                    if breaks_snapshot && text.contains("on-cbw-error'") =>
                {
                    breaks_snapshot = false;
                }
                other => return Ok(other.map(drop)?),
            }
        }
    }

    fn actions(&self, instant: &Taking<'_>, breaks_snapshot: bool) -> Vec<Value> {
        let mut actions = vec![json!({"type": "block-dirty-bitmap-add", "data": {
            "node": self.node, "name": instant.begins, "persistent": instant.is_persistent,
        }})];
        if let Some(name) = instant.ends {
            actions.push(json!({"type": "block-dirty-bitmap-disable", "data": {
                "node": self.node, "name": name,
            }}));
        }
        let mut job = json!({
            "job-id": self.name("job"), "device": self.node, "target": self.name("scratch"),
            "sync": "none", "filter-node-name": self.name("filter"),
        });
        if breaks_snapshot {
            // A guest is worth more than its backup.
            job["on-cbw-error"] = json!("break-snapshot");
        }
        actions.push(json!({"type": "blockdev-backup", "data": job}));
        actions
    }

    /// Takes away what a backup of this directory has in the daemon, if it has anything, and leaves `last`, if that is there,
    /// as the one bitmap, with all that has changed since. Errors: something does not go away.
    pub(super) fn settle(
        &mut self,
        last: Option<&str>,
        serves: Serving,
    ) -> Result<(), BackupError> {
        self.end_export()?;
        self.delete_node("snapshot")?;
        self.end_job()?;
        self.delete_node("scratch")?;
        if serves == Serving::Ours {
            // It may not have got so far.
            let _ = self.ask("nbd-server-stop", Value::Null);
        }
        self.settle_bitmaps(last)
    }

    fn end_export(&mut self) -> Result<(), BackupError> {
        let id = self.name("export");
        let is_there = |remote: &mut Remote| -> Result<bool, ClientError> {
            let exports = remote.list("query-block-exports")?;
            Ok(exports.iter().any(|export| export["id"] == id[..]))
        };
        if is_there(self)? {
            // What is already on its way says so.
            let _ = self.ask("block-export-del", json!({"id": id, "mode": "hard"}));
        }
        self.await_end(&id, is_there)
    }

    fn end_job(&mut self) -> Result<(), BackupError> {
        let id = self.name("job");
        let is_there = |remote: &mut Remote| -> Result<bool, ClientError> {
            let jobs = remote.list("query-jobs")?;
            Ok(jobs.iter().any(|job| job["id"] == id[..]))
        };
        if is_there(self)? {
            // It may end by itself meanwhile.
            let _ = self.ask("job-cancel", json!({"id": id}));
        }
        self.await_end(&id, is_there)
    }

    fn await_end(
        &mut self,
        what: &str,
        mut is_there: impl FnMut(&mut Remote) -> Result<bool, ClientError>,
    ) -> Result<(), BackupError> {
        let until = Instant::now() + LEAVING;
        while is_there(self)? {
            if Instant::now() > until {
                return Err(BackupError::Stuck(what.to_owned()));
            }
            std::thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// A node may be used for a moment after what used it is gone.
    fn delete_node(&mut self, what: &str) -> Result<(), BackupError> {
        let name = self.name(what);
        let until = Instant::now() + LEAVING;
        while self
            .nodes()?
            .iter()
            .any(|node| node["node-name"] == name[..])
        {
            match self.ask("blockdev-del", json!({"node-name": name})) {
                Ok(_) => {}
                Err(ClientError::Refused { .. }) if Instant::now() < until => {
                    std::thread::sleep(GLANCE)
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// `last` gets back what a backup that came to nothing had taken over from it; all others of this directory go.
    fn settle_bitmaps(&mut self, last: Option<&str>) -> Result<(), BackupError> {
        let bitmaps = match self.node_state() {
            Ok(state) => state.bitmaps,
            // Without a node there is nothing to settle.
            Err(BackupError::NoNode(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let number = |name: &str| name.strip_prefix(&self.prefix[..])?.parse::<u64>().ok();
        let ours: Vec<&Bitmap> = bitmaps
            .iter()
            .filter(|b| number(&b.name).is_some())
            .collect();
        let kept = ours
            .iter()
            .find(|b| Some(&b.name[..]) == last && b.is_consistent);
        let kept_number = kept.and_then(|kept| number(&kept.name));
        let data = |name: &str| json!({"node": self.node, "name": name});
        let mut actions = Vec::new();
        if let Some(kept) = kept.filter(|kept| !kept.is_recording) {
            // First, so that nothing is missed between the two.
            actions.push(json!({"type": "block-dirty-bitmap-enable", "data": data(&kept.name)}));
        }
        let others = ours
            .iter()
            .filter(|b| kept.is_none_or(|kept| kept.name != b.name));
        let gone: Vec<&str> = others.clone().map(|b| &b.name[..]).collect();
        let later = others.filter(|b| b.is_consistent && number(&b.name) > kept_number);
        let later: Vec<&str> = later.map(|b| &b.name[..]).collect();
        if let (Some(kept), false) = (kept, later.is_empty()) {
            actions.push(json!({"type": "block-dirty-bitmap-merge", "data": {
                "node": self.node, "target": kept.name, "bitmaps": later,
            }}));
        }
        let removals: Vec<Value> = gone.iter().map(|name| data(name)).collect();
        if !actions.is_empty() {
            self.ask("transaction", json!({"actions": actions}))?;
        }
        for removal in removals {
            self.ask("block-dirty-bitmap-remove", removal)?;
        }
        Ok(())
    }
}

/// Whose is the NBD server?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Serving {
    /// A backup of this directory started it.
    Ours,
    /// Somebody else's, if there is one.
    Others,
}

fn bitmap(value: &Value) -> Option<Bitmap> {
    Some(Bitmap {
        name: value["name"].as_str()?.to_owned(),
        is_recording: value["recording"] == true,
        is_consistent: value["inconsistent"] != true,
    })
}
