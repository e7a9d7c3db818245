//! Images made by the real qemu-img and qemu-io, and what these say of them.

use super::{Bench, Chance, file_options, span};
use blockgraph::driver::file::{Cache, FileOptions, Locking, OpenMode};
use blockgraph::driver::qcow2::Options;
use blockgraph::graph::gate::Named;
use blockgraph::graph::open::{Backing, Child, DriverSpec, FileSpec, NodeSpec, Qcow2Spec};
use blockgraph::graph::{Access, Common};
use blockgraph::node::NodeId;
use blockgraph::status::{Content, Mapping};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a program; panics with its words if it fails.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a name of this test's making")
}

/// `qemu-img create -f qcow2 -o options`.
pub fn create(path: &Path, options: &str, size: u64) {
    let (size, path) = (size.to_string(), text(path));
    let mut args = vec!["create", "-q", "-f", "qcow2"];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    args.extend([path, &size]);
    run("qemu-img", &args);
}

/// The same on top of another image.
pub fn overlay(path: &Path, options: &str, size: u64, below: &Path, format: &str) {
    let (size, path) = (size.to_string(), text(path));
    let mut args = vec![
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        text(below),
        "-F",
        format,
    ];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    args.extend([path, &size]);
    run("qemu-img", &args);
}

/// `qemu-io` with those commands.
pub fn qemu_io(path: &Path, format: &str, commands: &[String]) {
    let mut args = vec!["-f", format, "-d", "unmap"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(text(path));
    let said = run("qemu-io", &args);
    assert!(!said.contains("failed"), "{commands:?}: {said}");
}

/// Commands that leave an image in many states: `count` writes, zeroes and discards anywhere, some of whole clusters.
pub fn scribble(chance: &mut Chance, size: u64, cluster: u64, count: usize) -> Vec<String> {
    (0..count)
        .map(|_| {
            let unit = if chance.below(2) == 0 {
                512
            } else {
                cluster.min(65536)
            };
            let units = size / unit;
            let at = chance.below(units);
            let len = 1 + chance.below((units - at).min(200_000 / unit + 2));
            let (at, len, pattern) = (at * unit, len * unit, 1 + chance.below(255));
            match chance.below(8) {
                0 => format!("write -z {at} {len}"),
                1 => format!("write -z -u {at} {len}"),
                2 => format!("discard {at} {len}"),
                _ => format!("write -P {pattern} {at} {len}"),
            }
        })
        .collect()
}

/// Compressed writes of clusters that nothing was written to before: from the end of the disk down.
pub fn squeeze(chance: &mut Chance, size: u64, cluster: u64, count: u64) -> Vec<String> {
    let clusters = size / cluster;
    (0..count.min(clusters))
        .map(|n| {
            let (at, pattern) = ((clusters - 1 - n) * cluster, chance.below(256));
            format!("write -c -P {pattern} {at} {cluster}")
        })
        .collect()
}

/// What the guest would read, according to `qemu-img convert`.
pub fn flat(path: &Path, format: &str) -> Vec<u8> {
    let raw = path.with_extension("flat");
    run(
        "qemu-img",
        &[
            "convert",
            "-U",
            "-f",
            format,
            "-O",
            "raw",
            text(path),
            text(&raw),
        ],
    );
    let bytes = std::fs::read(&raw).expect("read");
    std::fs::remove_file(raw).expect("removed");
    bytes
}

/// The options of a node that is only read.
pub fn read_only() -> Common {
    Common {
        access: Access::ReadOnly,
        ..super::common()
    }
}

/// A file that is only read, as a child.
pub fn file_child(path: &Path) -> Child {
    let options = FileOptions {
        mode: OpenMode::ReadOnly,
        locking: Locking::Off,
        ..file_options(path, Cache::Page)
    };
    Child::Inline(Box::new(NodeSpec {
        name: None,
        common: read_only(),
        driver: DriverSpec::File(FileSpec { options }),
    }))
}

/// A qcow2 image that is only read.
pub fn image(
    path: &Path,
    data_file: Option<&Path>,
    backing: Backing,
    options: Options,
) -> NodeSpec {
    NodeSpec {
        name: None,
        common: read_only(),
        driver: DriverSpec::Qcow2(Box::new(Qcow2Spec {
            file: file_child(path),
            data_file: data_file.map(file_child),
            backing,
            options,
            named: Named::default(),
            journal: None,
        })),
    }
}

/// An image and what is below it.
#[derive(Clone, Debug)]
pub struct Layer {
    pub path: PathBuf,
    pub format: &'static str,
    pub data_file: Option<PathBuf>,
}

impl Layer {
    pub fn qcow2(path: PathBuf) -> Layer {
        Layer {
            path,
            format: "qcow2",
            data_file: None,
        }
    }

    pub fn raw(path: PathBuf) -> Layer {
        Layer {
            path,
            format: "raw",
            data_file: None,
        }
    }
}

/// Opens a chain, topmost layer first, and returns its nodes in that order.
pub fn open_chain(bench: &mut Bench, layers: &[Layer], options: &Options) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = Vec::new();
    for layer in layers.iter().rev() {
        let spec = match layer.format {
            "raw" => NodeSpec {
                name: None,
                common: read_only(),
                driver: DriverSpec::Raw {
                    file: file_child(&layer.path),
                    window: blockgraph::driver::raw::Window::default(),
                    journal: None,
                },
            },
            _ => {
                let name = |node: &NodeId| {
                    let graph = bench.current.get();
                    graph.node(*node).expect("open").name().to_owned()
                };
                let backing = match nodes.last() {
                    Some(node) => Backing::Node(Child::Named(name(node))),
                    None => Backing::Nothing,
                };
                let data_file = layer.data_file.as_deref();
                image(&layer.path, data_file, backing, options.clone())
            }
        };
        nodes.push(bench.open(spec));
    }
    nodes.reverse();
    nodes
}

/// What `qemu-img map` says of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    pub depth: usize,
    pub present: bool,
    pub zero: bool,
    pub data: bool,
    pub compressed: bool,
    pub offset: Option<u64>,
}

/// `qemu-img map --output=json`, sector by sector.
pub fn qemu_map(path: &Path, format: &str) -> Vec<Mapped> {
    let json = run(
        "qemu-img",
        &["map", "-f", format, "--output=json", text(path)],
    );
    let mut sectors = Vec::new();
    for line in json.lines().filter(|line| line.contains("\"start\"")) {
        let field = |name: &str| {
            let from = line.find(&format!("\"{name}\": "))? + name.len() + 4;
            let rest = &line[from..];
            Some(&rest[..rest.find([',', '}']).expect("an end")])
        };
        let number = |name| field(name).map(|value| value.parse::<u64>().expect("a number"));
        let flag = |name| field(name) == Some("true");
        let len = number("length").expect("a length");
        for at in (0..len).step_by(512) {
            sectors.push(Mapped {
                depth: number("depth").expect("a depth") as usize,
                present: flag("present"),
                zero: flag("zero"),
                data: flag("data"),
                compressed: flag("compressed"),
                offset: number("offset").map(|offset| offset + at),
            });
        }
    }
    sectors
}

/// The same according to us, walking down the chain by hand.
pub fn our_map(bench: &mut Bench, chain: &[NodeId]) -> Vec<Mapped> {
    let sizes: Vec<u64> = chain
        .iter()
        .map(|node| bench.current.get().info(*node).expect("open").size_bytes)
        .collect();
    let mut sectors = Vec::new();
    while (sectors.len() as u64) * 512 < sizes[0] {
        let at = sectors.len() as u64 * 512;
        let (mapped, len) = our_extent(bench, chain, &sizes, at);
        assert_eq!(len % 512, 0, "an answer of whole sectors");
        for skip in (0..len).step_by(512) {
            let offset = mapped.offset.map(|offset| offset + skip);
            sectors.push(Mapped { offset, ..mapped });
        }
    }
    sectors
}

fn our_extent(bench: &mut Bench, chain: &[NodeId], sizes: &[u64], at: u64) -> (Mapped, u64) {
    let mut len = sizes[0] - at;
    for (depth, node) in chain.iter().enumerate() {
        let node = *node;
        let asked = span(at, len);
        let graph = bench.current.get();
        let told = bench.control.run(
            &graph,
            node,
            |io| async move { io.status(node, asked).await },
        );
        let status = told.expect("a ring").expect("a status");
        assert!(status.len > 0 && status.len <= len);
        len = status.len;
        let below = sizes.get(depth + 1).map(|size| size.saturating_sub(at));
        let reads_zero = status.content == Content::Zero
            || (status.content == Content::Below && below.unwrap_or(0) == 0);
        if status.content == Content::Below && !reads_zero {
            len = len.min(below.expect("a layer below"));
            continue;
        }
        let mapped = Mapped {
            depth,
            present: status.content != Content::Below,
            zero: reads_zero,
            data: status.content == Content::Data,
            compressed: status.mapping == Mapping::Opaque,
            offset: match status.mapping {
                Mapping::At(_, offset) => Some(offset),
                _ => None,
            },
        };
        return (mapped, len);
    }
    panic!("the last layer defers to nothing");
}

/// Reads the whole node in pieces of any size in any order, and says where it differs from `truth`.
pub fn check_reads(bench: &mut Bench, node: NodeId, truth: &[u8], chance: &mut Chance) {
    let sectors = truth.len() as u64 / 512;
    for _ in 0..40 {
        let at = chance.below(sectors);
        let longest = [8, 300, 3000][chance.below(3) as usize];
        let len = 1 + chance.below((sectors - at).min(longest));
        let (at, len) = ((at * 512) as usize, (len * 512) as usize);
        compare(&bench.read(node, at as u64, len), &truth[at..at + len], at);
    }
    let whole = bench.read(node, 0, truth.len());
    compare(&whole, truth, 0);
}

fn compare(ours: &[u8], truth: &[u8], at: usize) {
    let wrong = ours.iter().zip(truth).position(|(a, b)| a != b);
    if let Some(wrong) = wrong {
        panic!(
            "byte {:#x} is {:#x} and should be {:#x} (read of {at:#x}+{:#x})",
            at + wrong,
            ours[wrong],
            truth[wrong],
            truth.len()
        );
    }
}
