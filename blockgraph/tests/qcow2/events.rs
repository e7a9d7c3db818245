//! What a qcow2 image tells the blkdebug node that it lies on: errors at its events fail a request and leave at worst leaks,
//! and QEMU's own tools are hit by the same rules at the same requests.

use crate::support;
use blockgraph::driver::qcow2::Options;
use blockgraph::filter::blkdebug::{self, BlkdebugEvent, InjectError};
use blockgraph::graph::gate::Named;
use blockgraph::graph::open::{Backing, Child, DriverSpec, FilterSpec, NodeSpec, Qcow2Spec};
use blockgraph::request::Prealloc;
use blockgraph::{Kind, Mode, NodeId, Outcome};
use ring::{Choice, Durability, Errno, Mem};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::qcow2::{create, overlay, qemu_io, run, text};
use support::writes::{below, close, file_child, image};
use support::{Bench, common, inline, modes, span};

const SIZE: u64 = 8 << 20;
const K: u64 = 1024;

/// An image on a blkdebug node on its file.
fn on_blkdebug(
    path: &Path,
    backing: Backing,
    config: Option<PathBuf>,
    options: blkdebug::Options,
) -> NodeSpec {
    let node = |driver| NodeSpec {
        name: None,
        common: common(),
        driver,
    };
    let debug = FilterSpec::Blkdebug {
        image: file_child(path),
        config,
        options,
    };
    let file: Child = inline(node(DriverSpec::Filter(Box::new(debug))));
    node(DriverSpec::Qcow2(Box::new(Qcow2Spec {
        file,
        data_file: None,
        backing,
        options: Options::default(),
        named: Named::default(),
        journal: None,
    })))
}

fn once(event: BlkdebugEvent) -> blkdebug::Options {
    let rule = InjectError {
        event,
        state: 0,
        io_type: None,
        errno: libc::EIO,
        sector: None,
        once: true,
        immediately: false,
    };
    blkdebug::Options {
        inject_error: vec![rule],
        ..blkdebug::Options::default()
    }
}

/// Data at 0, a compressed cluster at 1 MiB, and the rest below.
fn made(dir: &Path, cluster: u64) -> (PathBuf, PathBuf) {
    let (base, top) = (dir.join("base"), dir.join("top"));
    create(&base, "", SIZE);
    qemu_io(&base, "qcow2", &[format!("write -P 1 0 {SIZE}")]);
    overlay(
        &top,
        &format!("cluster_size={cluster}"),
        SIZE,
        &base,
        "qcow2",
    );
    let compressed = format!("write -c -P 3 {} {cluster}", 1024 * K);
    qemu_io(&top, "qcow2", &["write -P 2 0 64k".to_owned(), compressed]);
    (base, top)
}

fn ask(bench: &mut Bench, node: NodeId, kind: Kind, at: u64, len: u64) -> Outcome {
    let mem = match len {
        0 => Mem::none(),
        _ => Mem::zeroed(len as usize).expect("memory"),
    };
    mem.store(0, &vec![0x77; len as usize]);
    bench.ask(node, kind, span(at, len), &mem)
}

/// Meets every event at least once; returns how many requests failed.
fn work(bench: &mut Bench, node: NodeId, cluster: u64) -> usize {
    let write = Kind::Write(Durability::Cached);
    let mut failed = 0;
    for (kind, at, len) in [
        (Kind::Read, 0, 512),
        (Kind::Read, 2048 * K, 512),
        (Kind::Read, 1024 * K, 512),
        (write, 0, 512),
        (write, 3072 * K + 100, 200),
        (Kind::WriteCompressed, 4096 * K, cluster),
        (write, 5120 * K, 1024 * K),
        (Kind::Flush, 0, 0),
        (Kind::Flush, 0, 0),
    ] {
        let asked = ask(bench, node, kind, at, len);
        failed += usize::from(asked.is_err());
    }
    failed
}

#[test]
fn an_error_at_an_event_fails_a_request_once_and_leaves_leaks_at_worst() {
    use BlkdebugEvent as Event;
    let clusters = [
        (65536, Event::ReadAio),
        (65536, Event::ReadBackingAio),
        (65536, Event::ReadCompressed),
        (65536, Event::WriteAio),
        (65536, Event::WriteCompressed),
        (65536, Event::CowRead),
        (65536, Event::CowWrite),
        (65536, Event::ClusterAlloc),
        (65536, Event::ClusterAllocBytes),
        (65536, Event::L2Load),
        (65536, Event::L2Update),
        (65536, Event::L2UpdateCompressed),
        (65536, Event::RefblockLoad),
        (65536, Event::RefblockUpdatePart),
        (65536, Event::FlushToOs),
        (65536, Event::FlushToDisk),
        (512, Event::L1Update),
        (512, Event::L2AllocWrite),
        (512, Event::RefblockAlloc),
        (512, Event::RefblockAllocWrite),
        (512, Event::RefblockAllocHookup),
        (512, Event::VmstateLoad),
    ];
    for (n, (cluster, event)) in clusters.into_iter().enumerate() {
        let mode = modes(n as u64)[n % 3];
        let dir = tempfile::tempdir().expect("a directory");
        let (base, top) = made(dir.path(), cluster);
        let mut bench = Bench::new(Choice::Threads, mode);
        let spec = on_blkdebug(&top, below(&base, "qcow2"), None, once(event));
        let node = bench.open(spec);
        let failed = work(&mut bench, node, cluster);
        let never = event == Event::VmstateLoad;
        assert_eq!(failed, usize::from(!never), "{event:?} {mode:?}");
        assert_eq!(work(&mut bench, node, cluster), 0, "{event:?} {mode:?}");
        close(&mut bench, node).expect("closed");
        drop(bench);
        let mut check = Command::new("qemu-img");
        check.args(["check", "-q", "-f", "qcow2", text(&top)]);
        let code = check.status().expect("qemu-img").code();
        // 3: leaks and nothing else.
        assert!(matches!(code, Some(0 | 3)), "{event:?} {mode:?}: {code:?}");
    }
}

fn resize(bench: &mut Bench, node: NodeId, size: u64) -> Outcome {
    let graph = bench.current.get();
    let work =
        move |io: blockgraph::Io| async move { io.truncate(node, size, Prealloc::Off).await };
    bench.control.run(&graph, node, work).expect("a ring")
}

#[test]
fn an_error_at_an_event_of_a_new_l1_table_leaves_the_disk_as_it_was() {
    for (event, size) in [
        (BlkdebugEvent::L1GrowAllocTable, 2 * SIZE),
        (BlkdebugEvent::L1GrowWriteTable, 2 * SIZE),
        (BlkdebugEvent::L1GrowActivateTable, 2 * SIZE),
        (BlkdebugEvent::L1ShrinkWriteTable, SIZE / 2),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let (_, top) = made(dir.path(), 512);
        let mut bench = Bench::new(Choice::Threads, Mode::Fast);
        let node = bench.open(on_blkdebug(&top, Backing::Nothing, None, once(event)));
        let resized = resize(&mut bench, node, size);
        assert_eq!(resized, Err(Errno::IO), "{event:?}");
        let info = bench.current.get().info(node).expect("a node");
        assert_eq!(info.size_bytes, SIZE, "{event:?}");
        resize(&mut bench, node, size).expect("only once");
        close(&mut bench, node).expect("closed");
        run("qemu-img", &["check", "-q", "-f", "qcow2", text(&top)]);
    }
}

/// Which of the first requests is the first that QEMU fails.
fn first_of_qemu(rules: &Path, fresh: &Path) -> Option<usize> {
    let commands = ["write 0 64k", "write 1M 64k", "flush", "read 0 64k"];
    (0..commands.len()).find(|&last| {
        let path = fresh.with_extension("qemu");
        std::fs::copy(fresh, &path).expect("copied");
        let image = format!(
            "driver=qcow2,file.driver=blkdebug,file.config={},file.image.driver=file,file.image.filename={}",
            text(rules),
            text(&path)
        );
        let mut args = vec!["-t", "writeback", "--image-opts", &image];
        for command in &commands[..=last] {
            args.extend(["-c", command]);
        }
        let output = Command::new("qemu-io").args(args).output();
        !output.expect("qemu-io").status.success()
    })
}

/// The same requests, of ours.
fn first_of_ours(rules: &Path, fresh: &Path, mode: Mode) -> Option<usize> {
    let path = fresh.with_extension("ours");
    std::fs::copy(fresh, &path).expect("copied");
    let mut bench = Bench::new(Choice::Threads, mode);
    let rules = Some(rules.to_owned());
    let spec = on_blkdebug(&path, Backing::Nothing, rules, Default::default());
    let node = bench.open(spec);
    let write = Kind::Write(Durability::Cached);
    let requests = [
        (write, 0, 64 * K),
        (write, 1024 * K, 64 * K),
        (Kind::Flush, 0, 0),
        (Kind::Read, 0, 64 * K),
    ];
    let first = requests
        .into_iter()
        .position(|(kind, at, len)| ask(&mut bench, node, kind, at, len).is_err());
    close(&mut bench, node).expect("closed");
    first
}

#[test]
fn the_same_rule_file_hits_the_same_request_as_with_qemu() {
    for (event, expected) in [
        ("l2_load", Some(0)),
        ("write_aio", Some(0)),
        ("cluster_alloc", Some(1)),
        ("flush_to_disk", Some(2)),
        ("flush_to_os", Some(2)),
        ("read_aio", Some(3)),
        ("read_compressed", None),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let (fresh, rules) = (dir.path().join("image"), dir.path().join("rules"));
        create(&fresh, "", SIZE);
        qemu_io(&fresh, "qcow2", &["write 0 64k".to_owned()]);
        let rule = format!("[inject-error]\nevent = \"{event}\"\nerrno = \"5\"\nonce = \"on\"\n");
        std::fs::write(&rules, rule).expect("written");
        assert_eq!(first_of_qemu(&rules, &fresh), expected, "QEMU at {event}");
        for mode in modes(0) {
            let first = first_of_ours(&rules, &fresh, mode);
            assert_eq!(first, expected, "{event} {mode:?}");
        }
    }
}

/// A write that was allocating left its L2 entry in memory; a second one, of the whole cluster and through all caches, was
/// mapped: its bytes were durable, and nothing on disk led to them.
#[test]
fn a_write_through_to_a_cluster_that_is_new_has_its_metadata_on_disk_as_well() {
    for mode in modes(1) {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, copy) = (dir.path().join("image"), dir.path().join("copy"));
        create(&path, "", SIZE);
        let mut bench = Bench::new(Choice::Threads, mode);
        let node = bench.open(image(&path, None, Backing::Nothing, Options::default()));
        bench.write(node, 0, &[1; 65536]).expect("allocated");
        let through = Kind::Write(Durability::Through);
        ask(&mut bench, node, through, 0, 65536).expect("written through");
        std::fs::copy(&path, &copy).expect("copied");
        qemu_io(&copy, "qcow2", &["read -P 0x77 0 64k".to_owned()]);
        close(&mut bench, node).expect("closed");
    }
}
