//! qcow2 images on a simulated disk: the disk, a bench on it, and what is asked of an image that a crash or an error left.

use super::{Bench, common, qemu};
use blockgraph::driver::file::{Cache, FileDriver, FileKind, FileParts, Flushes};
use blockgraph::driver::qcow2::check::{Finding, Repair, Report, check};
use blockgraph::driver::qcow2::{Options, Qcow2};
use blockgraph::driver::raw::Window;
use blockgraph::graph::gate::Named;
use blockgraph::graph::open::{Backing, Child, DriverSpec, NodeSpec, Qcow2Spec};
use blockgraph::graph::{Access, Body, Common, NewNode, Shape};
use blockgraph::io::Io;
use blockgraph::{Graph, Limits, Mode, NodeId, graph};
use ring::sim::{Act, Config, Disk, FileConfig, Images, Rule, Weather};
use ring::{Align, Choice, FileId};
use std::path::Path;
use std::sync::Arc;

/// The image's name on the disk.
pub const FILE: FileId = FileId(0);
/// What lies below it, if anything does.
pub const BACKING: FileId = FileId(1);
/// What its data is in, if that is not the image.
pub const DATA: FileId = FileId(2);
/// What keeps its bitmaps, if anything does. No node of its own.
pub const JOURNAL: FileId = FileId(3);

/// The files in a directory, as images name them.
const NAMES: [(FileId, &str); 4] = [
    (FILE, "disk.qcow2"),
    (BACKING, "backing"),
    (DATA, "data"),
    (JOURNAL, "journal"),
];

fn name(id: FileId) -> &'static str {
    let named = NAMES.iter().find(|named| named.0 == id);
    named.expect("one of the four").1
}

/// The files of a directory that are an image's.
pub fn files_in(dir: &Path) -> Images {
    let files = NAMES.map(|(id, name)| Some((id, std::fs::read(dir.join(name)).ok()?)));
    files.into_iter().flatten().collect()
}

/// An image as qemu-img makes it, alone.
pub fn image(options: &str, size: u64) -> Images {
    image_on(options, size, None)
}

/// The same on top of a raw image. A data file has to be called "data".
pub fn image_on(options: &str, size: u64, below: Option<&[u8]>) -> Images {
    let dir = tempfile::tempdir().expect("a directory");
    let size = size.to_string();
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", options];
    if let Some(below) = below {
        std::fs::write(dir.path().join(name(BACKING)), below).expect("written");
        args.extend(["-b", name(BACKING), "-F", "raw"]);
    }
    args.extend([name(FILE), &size]);
    qemu::ok(dir.path(), "qemu-img", &args);
    files_in(dir.path())
}

/// A disk of an image's files.
pub fn disk(files: Images, size_bytes_max: u64, seed: u64, weather: Weather) -> Disk {
    let align = Align {
        memory_bytes: 1,
        offset_bytes: 512,
    };
    let mut config = Config::new(seed).weather(weather);
    for (id, bytes) in files {
        config = config.file_with(FileConfig {
            id,
            bytes,
            align,
            size_bytes_max,
        });
    }
    config.disk()
}

/// A bench on a simulated disk, and the image's file's node.
pub fn bench(disk: &Disk, mode: Mode) -> (Bench, NodeId) {
    let mut bench = Bench::new(Choice::Sim(disk.clone()), mode);
    let mut graph = (*bench.current.get()).clone();
    let mut next = graph.new_file_id();
    for (id, bytes) in disk.images() {
        while next < id {
            next = graph.new_file_id();
        }
        assert_eq!(next, id);
        if id == JOURNAL {
            let file = disk.open(id).expect("a file of the disk");
            let path = Path::new(name(JOURNAL));
            bench.control.resources.put_journal(path, file);
            continue;
        }
        insert(&mut graph, disk, id, bytes.len() as u64);
    }
    let node = graph.find(name(FILE)).expect("just put there");
    bench.current.publish(graph);
    (bench, node)
}

fn insert(graph: &mut Graph, disk: &Disk, id: FileId, size_bytes: u64) -> NodeId {
    let file = disk.open(id).expect("a file of the disk");
    let parts = FileParts {
        file: file.clone(),
        kind: FileKind::Regular,
        size_bytes,
        limits: Limits::PLAIN,
        cache: Cache::Direct,
        flushes: Flushes::Sync,
    };
    graph.insert(NewNode {
        name: name(id).to_owned(),
        kind: "file",
        common: common(),
        body: Body::Driver(Arc::new(FileDriver::from_parts(parts))),
        shape: Shape::Leaf,
        files: vec![file],
    })
}

/// The image in `file`, with what stands beside it on the disk.
fn spec(bench: &Bench, file: NodeId, options: Options) -> NodeSpec {
    let graph = bench.current.get();
    let beside = |id| {
        let there = graph.find(name(id));
        there.map(|_| Child::Named(name(id).to_owned()))
    };
    let own = graph.node(file).expect("there").name().to_owned();
    let access = match options.snapshot {
        None => Access::ReadWrite,
        Some(_) => Access::ReadOnly,
    };
    NodeSpec {
        name: None,
        common: Common { access, ..common() },
        driver: DriverSpec::Qcow2(Box::new(Qcow2Spec {
            file: Child::Named(own),
            data_file: beside(DATA),
            backing: beside(BACKING).map_or(Backing::Nothing, Backing::Node),
            options,
            named: Named::default(),
            journal: None,
        })),
    }
}

/// Opens the image in `file`; one that was left dirty is repaired. A snapshot is opened to be read only.
pub fn open(bench: &mut Bench, file: NodeId, options: Options) -> NodeId {
    let spec = spec(bench, file, options);
    bench.open(spec)
}

/// The disk in `file`, whose bitmaps are kept by the journal on the same disk: an image, or raw.
pub fn journaled(bench: &Bench, file: NodeId, format: Format) -> NodeSpec {
    let mut spec = spec(bench, file, Options::default());
    let path = Some(Path::new(name(JOURNAL)).to_owned());
    spec.name = Some("disk".to_owned());
    spec.driver = match spec.driver {
        DriverSpec::Qcow2(mut image) if format == Format::Qcow2 => {
            image.journal = path;
            DriverSpec::Qcow2(image)
        }
        DriverSpec::Qcow2(image) => DriverSpec::Raw {
            file: image.file,
            window: Window::default(),
            journal: path,
        },
        other => other,
    };
    spec
}

/// What a disk is in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Raw,
    Qcow2,
}

/// The same, should the disk let it.
pub fn try_open(bench: &mut Bench, file: NodeId, options: Options) -> Option<NodeId> {
    let spec = spec(bench, file, options);
    let opened = graph::open::open(&bench.current, spec, &mut bench.control);
    opened.ok().map(|(node, _)| node)
}

/// The disk's files as a power cut leaves them while the image is being opened, after `count` operations of that: repairs
/// are cut short. The rest of the operations fail, so nothing else is written.
pub fn cut_while_opening(files: Images, size_bytes_max: u64, count: u64, seed: u64) -> Images {
    let disk = disk(files, size_bytes_max, seed, Weather::CALM);
    let (mut bench, file) = bench(&disk, Mode::Fast);
    disk.set_weather(Weather::ROUGH);
    disk.rule(Rule::every(Act::Refuse(libc::EIO)).when(move |seen| seen.number >= count));
    let spec = spec(&bench, file, Options::default());
    // It may be over by then.
    let _ = graph::open::open(&bench.current, spec, &mut bench.control);
    disk.crash(seed)
}

/// Does something with an open image that only qcow2 can, and waits for it.
pub fn with<T: 'static>(
    bench: &mut Bench,
    node: NodeId,
    work: impl AsyncFnOnce(&Qcow2, &Io) -> T + 'static,
) -> T {
    let graph = bench.current.get();
    let Some(Body::Driver(driver)) = graph.node(node).map(|node| node.body().clone()) else {
        panic!("a driver");
    };
    let ran = bench.control.run(&graph, node, move |io| async move {
        work(driver.as_qcow2().expect("an image"), &io).await
    });
    ran.expect("a turn")
}

/// What our own check says of the image in `file`.
pub fn look(bench: &mut Bench, file: NodeId) -> Report {
    let graph = bench.current.get();
    let report = bench.control.run(&graph, file, |io| async move {
        check(&io, file, Repair::Nothing).await
    });
    report.expect("a ring").expect("an image")
}

/// Nothing is wrong but refcounts that are too high and flags that do not fit refcounts.
pub fn refcounts_are_high_enough(report: &Report) -> bool {
    assert!(
        report.findings.len() < 1000,
        "more was found than is told: {report:?}"
    );
    let harmless =
        |finding: &Finding| matches!(finding, Finding::Leak { .. } | Finding::Copied { .. });
    report.findings.iter().all(harmless)
}

/// What the real qemu-img finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Clean,
    Leaks,
    Errors,
}

/// Asks `qemu-img check`.
pub fn ask_qemu(files: &Images) -> (Verdict, String) {
    let dir = tempfile::tempdir().expect("a directory");
    for (&id, bytes) in files {
        std::fs::write(dir.path().join(name(id)), bytes).expect("written");
    }
    let args = ["check", "-f", "qcow2", name(FILE)];
    let output = qemu::run(dir.path(), "qemu-img", &args);
    let said = format!("{output:?}");
    match output.status.code() {
        Some(0) => (Verdict::Clean, said),
        Some(2) => (Verdict::Errors, said),
        Some(3) => (Verdict::Leaks, said),
        _ => panic!("{said}"),
    }
}
