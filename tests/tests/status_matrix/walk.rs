//! Our own walk, asked layer by layer as `qemu-img map` asks.

use super::images::{self, Image, Layer, NULL};
use super::{Range, map_of_files, merged};
use blockgraph::driver::file::{Cache, FileKind, FileOptions, Flushes, Locking, OpenMode};
use blockgraph::driver::null::Reads;
use blockgraph::driver::qcow2::Options;
use blockgraph::driver::raw::Window;
use blockgraph::graph::gate::Named;
use blockgraph::graph::open::{
    Backing, Child, DriverSpec, FileSpec, NodeSpec, NullKind, NullSpec, Qcow2Spec, open,
};
use blockgraph::graph::status::{self, Until, status_above};
use blockgraph::graph::{Access, Common, Control};
use blockgraph::node::{Engine, NodeId};
use blockgraph::pin::Epochs;
use blockgraph::status::{Content, Mapping};
use blockgraph::{Current, Io, Span};
use ring::{Choice, Errno};
use std::sync::Arc;

fn node(driver: DriverSpec) -> NodeSpec {
    NodeSpec {
        name: None,
        common: Common {
            access: Access::ReadOnly,
            ..Common::default()
        },
        driver,
    }
}

fn inline(spec: NodeSpec) -> Child {
    Child::Inline(Box::new(spec))
}

/// The image, opened by the names in it, or layer by layer where filters are to be in between.
fn spec(image: &Image, from: usize) -> NodeSpec {
    let layer = &image.layers[from];
    let backing = match (image.filters, from + 1 < image.layers.len()) {
        (0, _) => Backing::Stored,
        (_, true) => Backing::Node(inline(spec(image, from + 1))),
        (_, false) => Backing::Nothing,
    };
    let mut spec = opened(layer, backing);
    for _ in 0..image.filters {
        spec = node(DriverSpec::Delay {
            file: inline(spec),
            latency_ns: 0,
        });
    }
    spec
}

fn opened(layer: &Layer, backing: Backing) -> NodeSpec {
    let file = FileOptions {
        filename: layer.path.clone(),
        kind: FileKind::Regular,
        mode: OpenMode::ReadOnly,
        cache: Cache::Page,
        flushes: Flushes::Sync,
        locking: Locking::Auto,
        engine: Engine::Any,
    };
    let file = || inline(node(DriverSpec::File(FileSpec { options: file })));
    node(match layer.format {
        NULL => DriverSpec::Null(NullSpec {
            kind: NullKind::Co,
            size_bytes: 1 << 20,
            reads: match layer.path.to_str() {
                Some("on") => Reads::Zeroes,
                _ => Reads::Untouched,
            },
            latency_ns: 0,
        }),
        "raw" => DriverSpec::Raw {
            file: file(),
            window: Window::default(),
            journal: None,
        },
        _ => DriverSpec::Qcow2(Box::new(Qcow2Spec {
            file: file(),
            data_file: None,
            backing,
            options: Options::default(),
            named: Named::default(),
            journal: None,
        })),
    })
}

/// The beginning of what is left of `top`, in the words of `qemu-img map`.
async fn range(io: &Io, top: NodeId, rest: Span) -> Result<Range, Errno> {
    let mut range = Range {
        start: rest.at,
        len: rest.len,
        depth: 0,
        present: false,
        zero: true,
        data: false,
        compressed: false,
        offset: None,
    };
    for (depth, layer) in io.graph().chain(top).enumerate() {
        let asked = Span {
            at: rest.at,
            len: range.len,
        };
        let status = status::status(io, layer, asked).await?;
        range.len = status.len;
        range.depth = depth as u64;
        if status.is_local() {
            range.zero = status.is_zero();
            range.data = status.content == Content::Data && status.is_mapped();
            range.present = range.zero || range.data;
            range.compressed = range.data && status.mapping == Mapping::Opaque;
            range.offset = status.offset().map(|(_, at)| at);
            return Ok(range);
        }
        // Past the end of the layer below, it reads as zeroes, and it is this one that is said to do so.
        let below = io
            .graph()
            .next_layer(layer)
            .and_then(|id| io.graph().info(id));
        if below.is_none_or(|below| rest.at >= below.size_bytes) {
            return Ok(range);
        }
    }
    Err(Errno::IO)
}

async fn ranges(io: Io, top: NodeId) -> Result<Vec<Range>, Errno> {
    let size = io.graph().info(top).ok_or(Errno::IO)?.size_bytes;
    let mut ranges = Vec::new();
    let mut rest = Span { at: 0, len: size };
    while !rest.is_empty() {
        let range = range(&io, top, rest).await?;
        check_walk(&io, top, rest, &range).await?;
        rest = rest.after(range.len);
        ranges.push(range);
    }
    Ok(merged(ranges))
}

/// The walk of all layers at once says the same.
async fn check_walk(io: &Io, top: NodeId, rest: Span, range: &Range) -> Result<(), Errno> {
    let asked = Span {
        len: range.len,
        ..rest
    };
    let found = status_above(io, top, Until::Bottom, asked).await?;
    assert_eq!(found.is_zero(), range.zero, "{range:?} {found:?}");
    assert_eq!(found.is_data(), range.data, "{range:?} {found:?}");
    if range.present {
        assert_eq!(u64::from(found.allocation_depth()), range.depth + 1);
    }
    Ok(())
}

fn ours(image: &Image) -> Vec<Range> {
    let current = Arc::new(Current::default());
    let epochs = Arc::new(Epochs::default());
    let mut control = Control::new(current.clone(), epochs, Choice::Threads).expect("a control");
    let (top, graph) = open(&current, spec(image, 0), &mut control)
        .unwrap_or_else(|error| panic!("{}: {error}", image.name));
    let ran = control.run(&graph, top, |io| ranges(io, top));
    let walked = ran.expect("a control");
    walked.unwrap_or_else(|errno| panic!("{}: {errno}", image.name))
}

#[test]
fn our_walk_says_of_every_image_what_qemu_img_map_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let images = images::all(dir.path());
    assert!(images.len() >= 40, "{}", images.len());
    let mut differences = Vec::new();
    for image in &images {
        let (theirs, ours) = (map_of_files(image), ours(image));
        if theirs != ours {
            let lines = |ranges: &[Range]| {
                let lines: Vec<String> = ranges
                    .iter()
                    .map(|range| format!("    {range:?}"))
                    .collect();
                lines.join("\n")
            };
            differences.push(format!(
                "{}\n  theirs\n{}\n  ours\n{}",
                image.name,
                lines(&theirs),
                lines(&ours)
            ));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
