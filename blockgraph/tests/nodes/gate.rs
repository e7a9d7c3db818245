//! What images name, and what becomes of it: images by the real qemu-img, some of them with other names put in by hand.

use crate::support;
use blockgraph::driver::file::Cache;
use blockgraph::graph::Access;
use blockgraph::graph::gate::{Named, Names, Parsed, Parser, UnknownFormat};
use blockgraph::graph::open::{Backing, Child, DriverSpec, NodeSpec, OpenError};
use blockgraph::map::LANE_STACK_BYTES;
use blockgraph::{Mode, NodeId};
use ring::Choice;
use std::path::{Path, PathBuf};
use support::qcow2::{file_child, image, run, text};
use support::{Bench, file, inline, raw, span};
use tempfile::TempDir;

const SIZE: u64 = 1 << 20;

struct Place {
    dir: TempDir,
    bench: Bench,
}

fn place() -> Place {
    Place {
        dir: tempfile::tempdir().expect("a directory"),
        bench: Bench::new(Choice::Threads, Mode::Fast),
    }
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An image that names `backing` without anybody looking at it; no format if that is empty.
    fn names(&self, name: &str, backing: &str, format: &str) -> PathBuf {
        let path = self.path(name);
        let size = SIZE.to_string();
        let stored = if format.is_empty() { "raw" } else { format };
        let create = [
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-b",
            backing,
            "-F",
            stored,
            text(&path),
            &size,
        ];
        run("qemu-img", &create);
        if format.is_empty() {
            forget_format(&path);
        }
        path
    }

    fn base(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let size = SIZE.to_string();
        run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", text(&path), &size],
        );
        path
    }

    fn fill(path: &Path, format: &str, command: &str) {
        run("qemu-io", &["-f", format, "-c", command, text(path)]);
    }

    fn open(&mut self, spec: NodeSpec) -> Result<NodeId, OpenError> {
        let opened =
            blockgraph::graph::open::open(&self.bench.current, spec, &mut self.bench.control);
        opened.map(|(id, _)| id)
    }

    fn open_image(&mut self, path: &Path) -> Result<NodeId, OpenError> {
        self.open(image(path, None, Backing::Stored, Default::default()))
    }

    fn refusal(&mut self, path: &Path) -> String {
        let refused = self.open_image(path).expect_err("refused").to_string();
        assert_eq!(
            self.bench.current.get().nodes().count(),
            0,
            "nothing is left"
        );
        refused.replace(text(self.dir.path()), "DIR")
    }
}

/// Turns the extension with the backing format into one that means nothing.
fn forget_format(path: &Path) {
    let mut bytes = std::fs::read(path).expect("read");
    let magic = 0xe279_2aca_u32.to_be_bytes();
    let at = bytes.windows(4).position(|word| word == magic);
    bytes[at.expect("an extension")..][..4].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
    std::fs::write(path, bytes).expect("written");
}

/// Puts another backing file's name of the same length into an image.
fn rename(path: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(path).expect("read");
    let found = bytes
        .windows(from.len())
        .position(|name| name == from.as_bytes());
    bytes[found.expect("the name")..][..to.len()].copy_from_slice(to.as_bytes());
    std::fs::write(path, bytes).expect("written");
}

fn with(spec: NodeSpec, change: impl FnOnce(&mut Named)) -> NodeSpec {
    let mut spec = spec;
    let DriverSpec::Qcow2(qcow2) = &mut spec.driver else {
        panic!("{spec:?}")
    };
    change(&mut qcow2.named);
    spec
}

#[test]
fn a_chain_is_opened_by_names_relative_to_each_image_read_only_and_with_names_of_its_own() {
    let mut place = place();
    std::fs::create_dir_all(place.path("a/b")).expect("directories");
    let base = place.path("a/b/base.raw");
    std::fs::write(&base, vec![0; SIZE as usize]).expect("written");
    Place::fill(&base, "raw", "write -P 1 0 64k");
    let middle = place.names("a/middle", "b/base.raw", "raw");
    Place::fill(&middle, "qcow2", "write -P 2 64k 64k");
    let top = place.names("top", "a/middle", "qcow2");
    Place::fill(&top, "qcow2", "write -P 3 128k 64k");
    let id = place.open_image(&top).expect("opened");
    let bytes = place.bench.read(id, 0, 256 << 10);
    let expected = [1u8, 2, 3, 0].map(|byte| vec![byte; 64 << 10]).concat();
    assert!(bytes == expected);
    let graph = place.bench.current.get();
    let chain: Vec<&str> = graph
        .chain(id)
        .map(|id| graph.node(id).expect("there").kind())
        .collect();
    assert_eq!(chain, ["qcow2", "qcow2", "raw"]);
    for (_, node) in graph.nodes() {
        assert!(node.name().starts_with("#block"), "{}", node.name());
        assert_eq!(node.common().access, Access::ReadOnly);
    }
}

#[test]
fn a_backing_file_without_a_stored_format_is_refused_unless_it_may_be_probed() {
    let mut place = place();
    let base = place.base("base");
    Place::fill(&base, "qcow2", "write -P 7 0 64k");
    let top = place.names("top", "base", "");
    let refused = place.refusal(&top);
    assert!(refused.starts_with(
        "Could not open backing file: The format of the backing file 'base' is not stored in the image"
    ), "{refused}");
    let spec = image(&top, None, Backing::Stored, Default::default());
    let probed = with(spec, |named| named.unknown_format = UnknownFormat::Probe);
    let id = place.open(probed).expect("opened");
    assert!(place.bench.read(id, 0, 65536) == [7; 65536]);
}

#[test]
fn raw_is_never_probed_and_never_guessed() {
    let mut place = place();
    // What a guest could write to its raw disk.
    let inner = place.names("inner", "/etc/passwd", "raw");
    let disk = place.path("disk.raw");
    std::fs::copy(&inner, &disk).expect("copied");
    let top = place.names("top", "disk.raw", "raw");
    let id = place.open_image(&top).expect("opened");
    assert!(place.bench.read(id, 0, 4) == b"QFI\xfb");
    std::fs::write(&disk, vec![0; SIZE as usize]).expect("written");
    let unsaid = place.names("unsaid", "disk.raw", "");
    let spec = image(&unsaid, None, Backing::Stored, Default::default());
    let probed = with(spec, |named| named.unknown_format = UnknownFormat::Probe);
    let refused = place.open(probed).expect_err("refused").to_string();
    assert!(
        refused.ends_with("it does not look like qcow2, and raw is never guessed"),
        "{refused}"
    );
}

#[test]
fn names_that_are_no_paths_are_refused() {
    let mut place = place();
    let names = [
        "nbd://localhost:1/x",
        "nbd:unix:/tmp/socket",
        "json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}",
        "http://localhost/x",
        "file:base",
        "a:b",
        ":",
    ];
    for name in names {
        let top = place.names("top", name, "raw");
        let refused = place.refusal(&top);
        let expected = format!(
            "Could not open backing file: The image names '{name}', which is not a plain file name; say \
             'x-image-names=any' for images that may name anything"
        );
        assert_eq!(refused, expected);
    }
    // A colon after a slash is part of a path, as in QEMU.
    let top = place.names("top", "./a:b", "raw");
    let refused = place.refusal(&top);
    let expected =
        "Could not open backing file: Could not open 'DIR/./a:b': No such file or directory";
    assert_eq!(refused, expected);
}

#[test]
fn a_parser_is_asked_for_other_names_where_they_are_allowed() {
    fn parse(name: &str, inherited: &blockgraph::graph::gate::Inherited) -> Result<Parsed, String> {
        assert_eq!(inherited.common.access, Access::ReadOnly);
        let path = name.strip_prefix("my:").ok_or("not mine")?;
        let Child::Inline(file) = file_child(Path::new(path)) else {
            return Err("no file".to_owned());
        };
        Ok(Parsed::Storage(*file))
    }
    let mut place = place();
    let base = place.base("base");
    Place::fill(&base, "qcow2", "write -P 9 0 64k");
    let name = format!("my:{}", text(&base));
    let top = place.names("top", &name, "qcow2");
    let any = |top: &Path| {
        let spec = image(top, None, Backing::Stored, Default::default());
        with(spec, |named| named.names = Names::Any(Parser(parse)))
    };
    let id = place.open(any(&top)).expect("opened");
    assert!(place.bench.read(id, 0, 65536) == [9; 65536]);
    let other = place.names("other", "your:x", "qcow2");
    let refused = place.open(any(&other)).expect_err("refused").to_string();
    assert_eq!(refused, "Could not open backing file: not mine");
}

#[test]
fn nothing_is_below_itself_by_whatever_name() {
    let mut place = place();
    // Itself, by a name of the same length that qemu-img would not take.
    let own = place.names("own0", "own1", "qcow2");
    rename(&own, "own1", "own0");
    assert_eq!(
        place.refusal(&own),
        "'DIR/own0' is in its own backing chain"
    );
    // Two of each other.
    let first = place.names("first", "second", "qcow2");
    place.names("second", "first", "qcow2");
    assert_eq!(
        place.refusal(&first),
        "'DIR/first' is in its own backing chain"
    );
    // Through a symbolic link, and through a hard one.
    let link = place.names("image", "link", "qcow2");
    std::os::unix::fs::symlink("image", place.path("link")).expect("linked");
    assert_eq!(
        place.refusal(&link),
        "'DIR/link' is in its own backing chain"
    );
    let hard = place.names("image2", "hard", "qcow2");
    std::fs::hard_link(&hard, place.path("hard")).expect("linked");
    assert_eq!(
        place.refusal(&hard),
        "'DIR/hard' is in its own backing chain"
    );
    // As raw it would be no endless chain, but a disk in itself all the same.
    let raw_self = place.names("raw0", "raw1", "raw");
    rename(&raw_self, "raw1", "raw0");
    assert_eq!(
        place.refusal(&raw_self),
        "'DIR/raw0' is in its own backing chain"
    );
}

#[test]
fn an_image_is_not_its_own_data_file() {
    let mut place = place();
    let top = place.path("top");
    let data = place.path("dat");
    let options = format!("data_file={}", text(&data));
    let create = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        &options,
        text(&top),
        "1M",
    ];
    run("qemu-img", &create);
    rename(&top, text(&data), text(&top));
    assert_eq!(place.refusal(&top), "'DIR/top' is in its own backing chain");
}

#[test]
fn a_data_file_that_the_image_names_is_opened() {
    let mut place = place();
    let (top, data) = (place.path("top"), place.path("data"));
    let options = format!("data_file={}", text(&data));
    let create = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        &options,
        text(&top),
        "1M",
    ];
    run("qemu-img", &create);
    Place::fill(&top, "qcow2", "write -P 5 64k 64k");
    let id = place.open_image(&top).expect("opened");
    assert!(place.bench.read(id, 65536, 65536) == [5; 65536]);
    let graph = place.bench.current.get();
    let stored = graph.storage_child(id).expect("a data file");
    assert_eq!(
        graph
            .node(stored)
            .and_then(|node| node.origin())
            .map(|o| o.path.clone()),
        Some(data)
    );
}

#[test]
fn a_chain_deeper_than_the_limit_is_refused_and_says_so_once() {
    // What one layer asks of the next is asked from within.
    let thread = std::thread::Builder::new().stack_size(LANE_STACK_BYTES / 4);
    let deep = thread.spawn(deep_chains).expect("a thread");
    deep.join().expect("no panic");
}

fn deep_chains() {
    let mut place = place();
    place.names("i000", "i001", "qcow2");
    let template = place.path("i000");
    for at in 1..260 {
        let path = place.path(&format!("i{at:03}"));
        std::fs::copy(&template, &path).expect("copied");
        rename(&path, "i001", &format!("i{:03}", at + 1));
    }
    assert_eq!(
        place.refusal(&template),
        "Block graph is deeper than 250 nodes"
    );
    // Some way up it is a chain like any other.
    let base = place.base("last");
    std::fs::rename(base, place.path("i260")).expect("renamed");
    let mut top = image(
        &place.path("i060"),
        None,
        Backing::Stored,
        Default::default(),
    );
    top.common.access = Access::ReadWrite;
    if let DriverSpec::Qcow2(image) = &mut top.driver {
        image.file = inline(file(&place.path("i060"), Cache::Page));
    }
    let id = place.open(top).expect("opened");
    assert_eq!(place.bench.current.get().chain(id).count(), 201);
    assert!(place.bench.read(id, 4096, 4096) == [0; 4096]);
    place.bench.write(id, 4096, &[7; 512]).expect("written");
    assert!(place.bench.read(id, 4096, 512) == [7; 512]);
    assert!(place.bench.read(id, 0, 4096) == [0; 4096]);
    let (graph, all) = (place.bench.current.get(), span(0, 1 << 20));
    let status = move |io: blockgraph::Io| async move { io.status(id, all).await };
    let ran = place.bench.control.run(&graph, id, status);
    ran.expect("a ring").expect("a status");
}

#[test]
fn backing_and_null_overrule_what_the_image_names() {
    let mut place = place();
    let top = place.names("top", "nowhere", "qcow2");
    let refused = place.refusal(&top);
    let expected =
        "Could not open backing file: Could not open 'DIR/nowhere': No such file or directory";
    assert_eq!(refused, expected);
    let alone = image(&top, None, Backing::Nothing, Default::default());
    let id = place.open(alone).expect("opened");
    assert_eq!(place.bench.current.get().chain(id).count(), 1);
    let base = place.base("base");
    Place::fill(&base, "qcow2", "write -P 4 0 64k");
    let below = image(&base, None, Backing::Stored, Default::default());
    let given = image(&top, None, Backing::Node(inline(below)), Default::default());
    let id = place.open(given).expect("opened");
    assert!(place.bench.read(id, 0, 65536) == [4; 65536]);
}

#[test]
fn a_relative_name_is_found_through_what_the_image_is_in() {
    let mut place = place();
    let base = place.base("base");
    Place::fill(&base, "qcow2", "write -P 8 0 64k");
    let top = place.names("top", "base", "qcow2");
    let mut spec = image(&top, None, Backing::Stored, Default::default());
    let DriverSpec::Qcow2(qcow2) = &mut spec.driver else {
        panic!("{spec:?}")
    };
    let window = NodeSpec {
        common: support::qcow2::read_only(),
        ..raw(file_child(&top), Default::default())
    };
    let delay = NodeSpec {
        name: None,
        common: support::qcow2::read_only(),
        driver: DriverSpec::Delay {
            file: inline(window),
            latency_ns: 0,
        },
    };
    qcow2.file = inline(delay);
    let id = place.open(spec).expect("opened");
    assert!(place.bench.read(id, 0, 65536) == [8; 65536]);
}

#[test]
fn formats_nobody_knows_and_formats_without_a_driver_are_refused() {
    let mut place = place();
    place.base("base");
    let top = place.names("top", "base", "raw");
    rename(&top, "raw", "xyz");
    let refused = place.refusal(&top);
    assert_eq!(refused, "Could not open backing file: Unknown driver 'xyz'");
    let top = place.names("top2", "base", "vmdk");
    let refused = place.refusal(&top);
    let expected = "Could not open backing file: driver 'vmdk' is not supported by this version";
    assert_eq!(refused, expected);
}
