//! compress, preallocate and blkdebug: what they make of requests, and that they pass them on.

use crate::support;
use blockgraph::driver::file::Cache;
use blockgraph::filter::blkdebug::{
    BlkdebugEvent, InjectError, IoType, Options, Pretended, SetState,
};
use blockgraph::filter::compress::Compress;
use blockgraph::graph::open::{Child, DriverSpec, FilterSpec, NodeSpec};
use blockgraph::graph::{Body, DetectZeroes, NewNode, Shape};
use blockgraph::map::{Plan, Walk, walk};
use blockgraph::request::Prealloc;
use blockgraph::{Dir, Kind, Mode, NodeId, Outcome, Unmap};
use ring::{Choice, Durability, Errno};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use support::cow::Cow;
use support::{Bench, common, file, image, inline, model, modes, raw, span};

const M: u64 = 1 << 20;

fn filter(spec: FilterSpec) -> NodeSpec {
    NodeSpec {
        name: None,
        common: common(),
        driver: DriverSpec::Filter(Box::new(spec)),
    }
}

fn blkdebug(image: Child, options: Options) -> NodeSpec {
    filter(FilterSpec::Blkdebug {
        image,
        config: None,
        options,
    })
}

fn inject(event: BlkdebugEvent) -> InjectError {
    InjectError {
        event,
        state: 0,
        io_type: None,
        errno: libc::EIO,
        sector: None,
        once: false,
        immediately: false,
    }
}

fn truncate(bench: &mut Bench, node: NodeId, size: u64, how: Prealloc) -> Outcome {
    let graph = bench.current.get();
    let work = move |io: blockgraph::Io| async move { io.truncate(node, size, how).await };
    bench.control.run(&graph, node, work).expect("a ring")
}

fn close(bench: &mut Bench, node: NodeId) -> Outcome {
    let graph = bench.current.get();
    let work = move |io: blockgraph::Io| async move {
        let graph = io.graph().clone();
        match graph.node(node).map(|node| node.body()) {
            Some(Body::Driver(driver)) => driver.close(&io).await,
            _ => Err(Errno::INVAL),
        }
    };
    bench.control.run(&graph, node, work).expect("a ring")
}

fn size(bench: &Bench, node: NodeId) -> u64 {
    bench.current.get().info(node).expect("a node").size_bytes
}

fn is_mapped(bench: &Bench, node: NodeId, dir: Dir) -> bool {
    let graph = bench.current.get();
    walk(&graph, node, dir, span(0, 4096), &mut Plan::default()) == Walk::Mapped
}

#[test]
fn filters_with_nothing_to_do_are_walked_past() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image(dir.path(), M);
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let groups = bench.current.get();
    groups
        .throttle_groups()
        .add("g", Default::default())
        .expect("a group");
    let mut node = bench.open(file(&path, Cache::Page));
    let named = |bench: &Bench, node| {
        let graph = bench.current.get();
        Child::Named(graph.node(node).expect("a node").name().to_owned())
    };
    for n in 0..5 {
        let file = named(&bench, node);
        node = bench.open(match n {
            0 => filter(FilterSpec::Preallocate {
                file,
                align_bytes: 1 << 20,
                ahead_bytes: 1 << 27,
            }),
            1 => filter(FilterSpec::CopyOnRead { file, bottom: None }),
            2 => filter(FilterSpec::Throttle {
                file,
                group: "g".to_owned(),
            }),
            3 => blkdebug(file, Options::default()),
            _ => NodeSpec {
                name: None,
                common: common(),
                driver: DriverSpec::Delay {
                    file,
                    latency_ns: 0,
                },
            },
        });
        assert!(is_mapped(&bench, node, Dir::Read), "{n}");
        assert!(is_mapped(&bench, node, Dir::Write), "{n}");
    }
    model::check(&mut bench, node, 1, M, 100);
    truncate(&mut bench, node, 2 * M, Prealloc::Off).expect("resized");
    assert_eq!(size(&bench, node), 2 * M);
}

#[test]
fn writes_through_compress_are_compressed_and_nothing_else_is() {
    for mode in modes(1) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = image(dir.path(), M);
        let mut bench = Bench::new(Choice::Threads, mode);
        let base = bench.open(file(&path, Cache::Page));
        let top_path = dir.path().join("top.raw");
        std::fs::File::create(&top_path)
            .and_then(|file| file.set_len(M))
            .expect("a file");
        let data = bench.open(file(&top_path, Cache::Page));
        let mut graph = (*bench.current.get()).clone();
        let cow = Arc::new(Cow::new(M, 4096, M));
        let layer = cow.insert(&mut graph, data, base);
        let info = graph.info(layer).expect("a node");
        let node = graph.insert(NewNode {
            name: "compress".to_owned(),
            kind: "compress",
            common: common(),
            body: Body::Driver(Arc::new(Compress::new(info))),
            shape: Shape::filter(layer),
            files: Vec::new(),
        });
        bench.current.publish(graph);
        bench.write(node, 4096, &[7; 8192]).expect("written");
        assert_eq!(cow.compressed.load(Ordering::SeqCst), 1);
        assert_eq!(bench.read(node, 4096, 8192), [7; 8192]);
        let zeroes = Kind::WriteZeroes(Unmap::Keep, Durability::Cached);
        bench.plain(node, zeroes, span(4096, 4096)).expect("zeroed");
        bench.plain(node, Kind::Flush, span(0, 0)).expect("flushed");
        assert_eq!(cow.compressed.load(Ordering::SeqCst), 1);
        assert!(is_mapped(&bench, node, Dir::Read));
        // Over what does not compress it says so.
        let spec = filter(FilterSpec::Compress {
            file: inline(file(&path, Cache::Page)),
        });
        let error = support::open(&bench.current, spec).expect_err("refused");
        let words = "Compression is not supported for underlying format: file";
        assert_eq!(error.to_string(), words);
    }
}

#[test]
fn a_file_grows_ahead_of_what_is_asked_for_and_is_cut_back_at_the_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image(dir.path(), M);
    let length = || path.metadata().expect("metadata").len();
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let node = bench.open(filter(FilterSpec::Preallocate {
        file: inline(file(&path, Cache::Page)),
        align_bytes: M,
        ahead_bytes: 10 * M,
    }));
    truncate(&mut bench, node, M + 512, Prealloc::Off).expect("grown");
    assert_eq!((size(&bench, node), length()), (M + 512, 12 * M));
    bench.write(node, M, &[7; 512]).expect("written");
    let beyond = bench.plain(node, Kind::Discard, span(M + 512, 512));
    assert_eq!(beyond, Err(Errno::INVAL), "not asked for yet");
    truncate(&mut bench, node, 12 * M, Prealloc::Falloc).expect("grown");
    assert_eq!((size(&bench, node), length()), (12 * M, 12 * M));
    assert_eq!(bench.read(node, M + 512, 4096), [0; 4096]);
    truncate(&mut bench, node, 13 * M, Prealloc::Off).expect("grown");
    assert_eq!((size(&bench, node), length()), (13 * M, 23 * M));
    close(&mut bench, node).expect("closed");
    assert_eq!((size(&bench, node), length()), (13 * M, 13 * M));
    truncate(&mut bench, node, 14 * M, Prealloc::Off).expect("grown");
    truncate(&mut bench, node, M, Prealloc::Off).expect("cut");
    assert_eq!((size(&bench, node), length()), (M, M));
    truncate(&mut bench, node, 2 * M, Prealloc::Full).expect("grown");
    assert_eq!((size(&bench, node), length()), (2 * M, 2 * M));
    let refused = truncate(&mut bench, node, 3 * M, Prealloc::Metadata);
    assert_eq!((refused, size(&bench, node)), (Err(Errno::NOTSUP), 2 * M));
}

#[test]
fn rules_fail_the_requests_they_name() {
    for mode in modes(2) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = image(dir.path(), M);
        let mut bench = Bench::new(Choice::Threads, mode);
        let once = InjectError {
            once: true,
            errno: libc::ENOSPC,
            sector: Some(8),
            io_type: Some(IoType::Write),
            ..inject(BlkdebugEvent::WriteAio)
        };
        let flush = InjectError {
            state: 2,
            io_type: Some(IoType::Flush),
            immediately: true,
            ..inject(BlkdebugEvent::ReadAio)
        };
        let options = Options {
            inject_error: vec![once, flush],
            set_state: vec![SetState {
                event: BlkdebugEvent::ReadAio,
                state: 1,
                new_state: 2,
            }],
            ..Options::default()
        };
        let debug = blkdebug(inline(file(&path, Cache::Page)), options);
        let node = bench.open(raw(inline(debug), Default::default()));
        bench.write(node, 0, &[1; 4096]).expect("another sector");
        let written = bench.write(node, 4096, &[1; 512]);
        assert_eq!(written, Err(Errno::NOSPC), "{mode:?}");
        bench.write(node, 4096, &[1; 512]).expect("only once");
        let no_span = span(0, 0);
        bench
            .plain(node, Kind::Flush, no_span)
            .expect("not in state 1");
        bench.read(node, 0, 512);
        bench.plain(node, Kind::Flush, no_span).expect("not yet");
        bench.read(node, 0, 512);
        let flushed = bench.plain(node, Kind::Flush, no_span);
        assert_eq!(flushed, Err(Errno::IO), "{mode:?}");
    }
}

#[test]
fn the_model_holds_within_limits_that_are_only_pretended() {
    for seed in 0..4 {
        for mode in modes(seed) {
            let dir = tempfile::tempdir().expect("a directory");
            let path = image(dir.path(), M);
            let mut bench = Bench::new(Choice::Threads, mode);
            let pretended = Pretended {
                align: Some(4096),
                max_transfer: Some(8192),
                opt_write_zero: Some(16384),
                max_write_zero: Some(16384),
                opt_discard: Some(8192),
                max_discard: Some(65536),
            };
            let options = Options {
                pretended,
                ..Options::default()
            };
            let node = bench.open(blkdebug(inline(file(&path, Cache::Page)), options));
            let info = bench.current.get().info(node).expect("a node");
            assert_eq!(info.limits.logical_block_bytes, 4096);
            model::check(&mut bench, node, seed, M, 100);
        }
    }
}

#[test]
fn zeroes_are_detected_at_the_node_that_says_so_and_passed_by_filters() {
    for (detect, zeroed) in [(DetectZeroes::Off, false), (DetectZeroes::On, true)] {
        for mode in modes(4) {
            let dir = tempfile::tempdir().expect("a directory");
            let path = image(dir.path(), M);
            let mut bench = Bench::new(Choice::Threads, mode);
            let fail = InjectError {
                io_type: Some(IoType::WriteZeroes),
                ..inject(BlkdebugEvent::None)
            };
            let options = Options {
                inject_error: vec![fail],
                ..Options::default()
            };
            let debug = blkdebug(inline(file(&path, Cache::Page)), options);
            let middle = NodeSpec {
                name: None,
                common: common(),
                driver: DriverSpec::Delay {
                    file: inline(debug),
                    latency_ns: 0,
                },
            };
            let mut top = filter(FilterSpec::CopyOnRead {
                file: inline(middle),
                bottom: None,
            });
            top.common.detect_zeroes = detect;
            let node = bench.open(top);
            bench.write(node, 0, &[1; 512]).expect("not zeroes");
            let outcome = bench.write(node, 0, &[0; 512]);
            assert_eq!(outcome.is_err(), zeroed, "{detect:?} {mode:?}");
        }
    }
}
