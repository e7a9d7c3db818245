//! A guest's four queues under verified load while its disk's chain is streamed, committed and mirrored, again and again.

use super::{Chance, DISK_BYTES, Load, path};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use tests::daemon::{Daemon, Kind};
use tests::operator::Operator;
use tests::qemu_img;

/// Each with two layers more, and then fewer.
const ROUNDS: usize = 48;

/// What a round may do.
const KINDS: usize = 10;

/// The chain, the lowest layer first.
struct Chain {
    dir: tempfile::TempDir,
    operator: Operator,
    chance: Chance,
    layers: Vec<String>,
    made: usize,
    /// How often each thing was done.
    done: [usize; KINDS],
}

impl Chain {
    fn top(&self) -> String {
        self.layers.last().expect("a layer").clone()
    }

    /// An overlay on top.
    fn grow(&mut self) {
        self.made += 1;
        let name = format!("l{}", self.made);
        let file = path(self.dir.path(), &format!("{name}.qcow2"));
        let below = path(self.dir.path(), &format!("{}.qcow2", self.top()));
        qemu_img::create_on(Path::new(&file), Path::new(&below));
        let overlay = json!({
            "driver": "qcow2", "node-name": name, "backing": null, "discard": "unmap",
            "file": {"driver": "file", "filename": file},
        });
        self.operator.ok("blockdev-add", overlay);
        let put = json!({"node": self.top(), "overlay": name});
        self.operator.ok("blockdev-snapshot", put);
        self.layers.push(name);
    }

    /// An image that nobody uses, on a layer or on nothing; says what its node is called.
    fn spare(&mut self, on: Option<usize>) -> String {
        self.made += 1;
        let name = format!("l{}", self.made);
        let file = path(self.dir.path(), &format!("{name}.qcow2"));
        let below = on.map(|layer| self.layers[layer].clone());
        match &below {
            Some(below) => {
                let below = path(self.dir.path(), &format!("{below}.qcow2"));
                qemu_img::create_on(Path::new(&file), Path::new(&below));
            }
            None => qemu_img::create(Path::new(&file), DISK_BYTES),
        }
        let node = json!({
            "driver": "qcow2", "node-name": name, "backing": below, "discard": "unmap",
            "file": {"driver": "file", "filename": file},
        });
        self.operator.ok("blockdev-add", node);
        name
    }

    /// The whole disk goes to another image, which the guest uses afterwards.
    fn move_all(&mut self, load: &Load, mode: &str) {
        let target = self.spare(None);
        let how = json!({"target": target, "sync": "full", "copy-mode": mode});
        self.start("blockdev-mirror", how);
        self.event("BLOCK_JOB_READY", None);
        load.run_for(50);
        self.operator.ok("job-complete", json!({"id": "j"}));
        self.wait_for_end();
        let layers = self.layers.len();
        self.lose(0..layers);
        self.layers.push(target);
    }

    /// The top goes to another image on the same layers.
    fn move_top(&mut self, load: &Load) {
        let layers = self.layers.len();
        let target = self.spare(Some(layers - 2));
        let how = json!({"target": target, "sync": "top", "speed": 1 << 24});
        self.start("blockdev-mirror", how);
        load.run_for(20);
        let change = json!({"id": "j", "type": "mirror", "copy-mode": "write-blocking"});
        self.operator.ok("block-job-change", change);
        self.operator.ok("job-pause", json!({"id": "j"}));
        load.run_for(20);
        self.operator.ok("job-resume", json!({"id": "j"}));
        let fast = json!({"device": "j", "speed": 0});
        self.operator.ok("block-job-set-speed", fast);
        self.event("BLOCK_JOB_READY", None);
        load.run_for(30);
        self.operator.ok("job-complete", json!({"id": "j"}));
        self.wait_for_end();
        self.lose(layers - 1..layers);
        self.layers.push(target);
    }

    /// A copy is made and left behind.
    fn copy(&mut self, load: &Load) {
        let target = self.spare(None);
        let modes = ["background", "write-blocking"];
        let mode = modes[self.chance.below(2) as usize];
        let how = json!({"target": target, "sync": "full", "copy-mode": mode});
        self.start("blockdev-mirror", how);
        self.event("BLOCK_JOB_READY", None);
        load.run_for(30);
        self.operator.ok("block-job-cancel", json!({"device": "j"}));
        self.wait_for_end();
        self.operator
            .ok("blockdev-del", json!({"node-name": target}));
        let file = path(self.dir.path(), &format!("{target}.qcow2"));
        qemu_img::check(Path::new(&file));
    }

    fn start(&mut self, command: &str, mut arguments: Value) {
        arguments["job-id"] = json!("j");
        arguments["device"] = json!(self.top());
        println!("{command} {arguments} of {:?}", self.layers);
        self.operator.events.clear();
        self.operator.ok(command, arguments);
    }

    /// Waits for such an event of the job.
    fn event(&mut self, name: &str, status: Option<&str>) -> Value {
        let until = Instant::now() + tests::client::patience();
        loop {
            let is_it = |event: &&Value| {
                event["event"] == name
                    && status.is_none_or(|status| event["data"]["status"] == status)
            };
            if let Some(event) = self.operator.events.iter().find(is_it) {
                return event.clone();
            }
            assert!(
                Instant::now() < until,
                "no {name}: {:?}",
                self.operator.events
            );
            std::thread::sleep(Duration::from_millis(1));
            self.operator.ok("query-version", json!({}));
        }
    }

    fn wait_for_end(&mut self) {
        self.event("JOB_STATUS_CHANGE", Some("null"));
        let completed = self.event("BLOCK_JOB_COMPLETED", None);
        assert_eq!(completed["data"]["error"], Value::Null, "{completed}");
    }

    /// These layers are in the chain no more.
    fn lose(&mut self, lost: std::ops::Range<usize>) {
        let lost: Vec<String> = self.layers.drain(lost).collect();
        for name in lost.iter().rev() {
            self.operator.ok("blockdev-del", json!({"node-name": name}));
        }
    }

    fn round(&mut self, load: &Load) {
        (0..2).for_each(|_| {
            load.run_for(30);
            self.grow();
        });
        load.run_for(30);
        let layers = self.layers.len();
        let base = self.chance.below(layers as u64 - 2) as usize;
        let middle = base + 1 + self.chance.below((layers - base - 2) as u64) as usize;
        // Nothing is left out, whatever the seed.
        let missing = self.done.iter().position(|times| *times == 0);
        let what = match missing.filter(|_| self.chance.below(2) == 0) {
            Some(missing) => missing,
            None => self.chance.below(KINDS as u64) as usize,
        };
        self.done[what] += 1;
        match what {
            0 => {
                self.start("block-stream", json!({}));
                self.wait_for_end();
                self.lose(0..layers - 1);
            }
            1 => {
                let base_node = self.layers[base].clone();
                self.start("block-stream", json!({"base-node": base_node}));
                self.wait_for_end();
                self.lose(base + 1..layers - 1);
            }
            2 => {
                let (base_node, top_node) = (&self.layers[base], &self.layers[middle]);
                let part = json!({"base-node": base_node, "top-node": top_node});
                self.start("block-commit", part);
                self.wait_for_end();
                self.lose(base + 1..middle + 1);
            }
            3 => {
                let base_node = self.layers[base].clone();
                self.start("block-commit", json!({"base-node": base_node}));
                self.event("BLOCK_JOB_READY", None);
                load.run_for(50);
                self.operator.ok("job-complete", json!({"id": "j"}));
                self.wait_for_end();
                self.lose(base + 1..layers);
            }
            4 => {
                self.start("block-commit", json!({"speed": 1 << 22}));
                load.run_for(20);
                self.operator.ok("job-pause", json!({"id": "j"}));
                load.run_for(20);
                self.operator.ok("job-cancel", json!({"id": "j"}));
                self.event("BLOCK_JOB_CANCELLED", None);
                self.event("JOB_STATUS_CHANGE", Some("null"));
            }
            5 => self.move_all(load, "background"),
            6 => self.move_all(load, "write-blocking"),
            7 => self.move_top(load),
            8 => self.copy(load),
            _ => {
                self.start("block-stream", json!({"speed": 1 << 22}));
                load.run_for(20);
                self.operator.ok("job-cancel", json!({"id": "j"}));
                self.event("JOB_STATUS_CHANGE", Some("null"));
            }
        }
        load.run_for(30);
    }
}

#[test]
fn a_guest_loses_nothing_while_its_layers_are_streamed_committed_and_mirrored() {
    let seed = std::env::var("SOAK_SEED").ok();
    let seed = seed.and_then(|seed| seed.parse().ok()).unwrap_or(11);
    println!("seed {seed}");
    let dir = tempfile::tempdir().expect("a directory");
    let base = dir.path().join("l0.qcow2");
    qemu_img::create(&base, DISK_BYTES);
    let chardev = format!(
        "socket,id=c,path={},server=on,wait=off",
        path(dir.path(), "monitor")
    );
    let node = format!(
        "driver=qcow2,node-name=l0,discard=unmap,file.driver=file,file.filename={}",
        base.display()
    );
    let arguments = [
        "--chardev",
        &chardev,
        "--monitor",
        "chardev=c",
        "--blockdev",
        &node,
    ];
    let daemon = Daemon::serve_graph(Kind::Virtioblkd, &arguments, "l0").expect("a daemon");
    let operator = Operator::connect(&dir.path().join("monitor")).expect("a monitor");
    let load = Load::start(daemon.socket(0), seed);
    let mut chain = Chain {
        dir,
        operator,
        chance: Chance(seed),
        layers: vec!["l0".to_owned()],
        made: 0,
        done: [0; KINDS],
    };
    for _ in 0..ROUNDS {
        chain.round(&load);
    }
    println!(
        "{:?}, slowest answer {:?}",
        chain.done, chain.operator.slowest
    );
    assert!(
        chain.done.iter().all(|times| *times > 0),
        "{:?}",
        chain.done
    );
    let model = load.stop();
    chain
        .operator
        .ok("block-export-del", json!({"id": "export0"}));
    let image = |name: &String| path(chain.dir.path(), &format!("{name}.qcow2"));
    let images: Vec<String> = chain.layers.iter().map(image).collect();
    let said = daemon.stop().expect("a clean end");
    assert!(!said.contains("ERROR"), "{said}");
    images
        .iter()
        .for_each(|image| qemu_img::check(Path::new(image)));
    let found = qemu_img::flat(Path::new(images.last().expect("the top")));
    assert!(
        found[..model.len()] == *model,
        "the disk is not what was written"
    );
}
