//! fio in a real guest while an operator changes the graph under it: filters come and go, layers are put on top, the disk
//! grows. The rule: the guest sees the new size and nothing else, and QEMU's tools find in the images what it read.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tests::daemon::{Daemon, Kind};
use tests::disk_file::DiskFile;
use tests::guest::{Guest, GuestSpec, QUEUES};
use tests::operator::Operator;
use tests::qemu_img;

const MIB: u64 = 1 << 20;
/// As the guest finds it; it uses no more.
const LEN_BYTES: u64 = 16 * MIB;
const REGION_BYTES: u64 = LEN_BYTES / QUEUES as u64;
/// How long the chain may become.
const LAYERS_MAX: usize = 4;

fn write_and_verify(seed: u64) -> String {
    format!(
        "fio --name=live --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=16 --numjobs={QUEUES} \
         --size={REGION_BYTES} --offset_increment={REGION_BYTES} --rw=randwrite --bssplit=4k/40:64k/40:256k/20 \
         --blockalign=4k --randseed={seed} --verify=crc32c --do_verify=1 --verify_fatal=1 --eta=never --minimal"
    )
}

/// What is changed, and what it has come to.
struct Live {
    dir: PathBuf,
    operator: Operator,
    layers: usize,
    size_bytes: u64,
    edits: usize,
}

impl Live {
    fn image(&self, layer: usize) -> PathBuf {
        self.dir.join(format!("layer{layer}.qcow2"))
    }

    /// The exported node is `disk`, and this the image below it.
    fn top(&self) -> String {
        format!("layer{}", self.layers)
    }

    fn reopen(&mut self, nodes: Value) {
        self.edits += 1;
        self.operator
            .ok("blockdev-reopen", json!({"options": nodes}));
    }

    fn disk_on(child: &str) -> Value {
        json!({"driver": "raw", "node-name": "disk", "file": child})
    }

    /// Puts a filter under the guest's disk and takes it out again.
    fn filter(&mut self, driver: &str) {
        let top = self.top();
        let mut filter = json!({"driver": driver, "node-name": "filter", "file": top});
        if driver == "throttle" {
            filter["throttle-group"] = json!("group");
        }
        self.operator.ok("blockdev-add", filter);
        self.reopen(json!([Self::disk_on("filter")]));
        self.reopen(json!([Self::disk_on(&top)]));
        self.operator
            .ok("blockdev-del", json!({"node-name": "filter"}));
    }

    fn layer(&mut self) {
        if self.layers == LAYERS_MAX {
            return;
        }
        let below = self.top();
        self.layers += 1;
        self.edits += 1;
        let sync = json!({
            "node-name": below, "snapshot-file": self.image(self.layers), "snapshot-node-name": self.top(),
            "format": "qcow2",
        });
        self.operator.ok("blockdev-snapshot-sync", sync);
    }

    fn grow(&mut self) {
        self.size_bytes += MIB;
        self.edits += 1;
        let size = json!({"node-name": "disk", "size": self.size_bytes});
        self.operator.ok("block_resize", size);
    }

    /// Not while the guest may write.
    fn make_read_only(&mut self) {
        let mut disk = Self::disk_on(&self.top());
        disk["read-only"] = json!(true);
        let why = "Read-only block node 'disk' cannot support read-write users";
        let options = json!({"options": [disk]});
        self.operator.refused("blockdev-reopen", options, why);
    }

    fn round(&mut self) {
        self.filter("throttle");
        self.layer();
        self.filter("copy-on-read");
        self.grow();
        self.make_read_only();
    }
}

fn serve(dir: &Path) -> (Daemon, Live) {
    let first = dir.join("layer0.qcow2");
    qemu_img::create(&first, LEN_BYTES);
    let monitor = dir.join("monitor");
    let chardev = format!("socket,id=c,path={},server=on,wait=off", monitor.display());
    let file = format!("driver=file,node-name=file,filename={}", first.display());
    let arguments = [
        "--chardev",
        &chardev,
        "--monitor",
        "chardev=c",
        "--object",
        "throttle-group,id=group,limits.iops-total=3000",
        "--blockdev",
        &file,
        "--blockdev",
        "driver=qcow2,node-name=layer0,file=file",
        "--blockdev",
        "driver=raw,node-name=disk,file=layer0",
    ];
    let daemon = Daemon::serve_graph(Kind::Virtioblkd, &arguments, "disk").expect("a daemon");
    let live = Live {
        dir: dir.to_owned(),
        operator: Operator::connect(&monitor).expect("a monitor"),
        layers: 0,
        size_bytes: LEN_BYTES,
        edits: 0,
    };
    (daemon, live)
}

#[test]
fn fio_verifies_while_filters_come_and_go_layers_are_added_and_the_disk_grows() {
    let seed = 0x5eed_0002;
    println!("seed {seed:#x}");
    let dir = tempfile::tempdir().unwrap();
    let (daemon, mut live) = serve(dir.path());
    let mut guest = Guest::boot(&GuestSpec::new().disk(daemon.socket(0))).unwrap();

    let (script, begun) = (write_and_verify(seed), Instant::now());
    std::thread::scope(|scope| {
        let fio = scope.spawn(|| guest.check(&script).unwrap());
        while !fio.is_finished() {
            live.round();
            // The guest's processors are emulated: it has to come to something in between.
            std::thread::sleep(Duration::from_millis(100));
        }
        fio.join().expect("fio");
    });
    let took = begun.elapsed();
    println!("{} edits, {} layers in {took:?}", live.edits, live.layers);
    assert!(live.edits >= 20, "{} edits", live.edits);
    let seen = guest.check("blockdev --getsize64 /dev/vda").unwrap();
    let complaints = guest.run("dmesg | grep -i 'error'").unwrap();
    let sums = guest
        .check(&format!(
            "dd if=/dev/vda bs=1M count={} iflag=direct 2>/dev/null | sha256sum",
            LEN_BYTES / MIB
        ))
        .unwrap();
    guest.power_off().unwrap();
    let said = daemon.stop().unwrap();

    assert_eq!(seen, live.size_bytes.to_string(), "the guest's disk grew");
    assert_eq!(complaints.text, "", "the guest's kernel");
    assert!(!said.contains("ERROR"), "{said}");
    for layer in 0..=live.layers {
        qemu_img::check(&live.image(layer));
    }
    let raw = DiskFile::sparse(0).unwrap();
    let (top, to) = (live.image(live.layers), raw.path().to_str().unwrap());
    let top = top.to_str().unwrap();
    qemu_img::qemu_img(["convert", "-f", "qcow2", "-O", "raw", top, to]).unwrap();
    assert!(
        sums.starts_with(&raw.sha256(0, LEN_BYTES).unwrap()),
        "the guest read {sums}"
    );
}
