//! What a file as a disk does at its edges: its end, its holes, its refusals, its blocks shared by two writers.

use crate::support;
use blockgraph::driver::file::{Cache, FileKind, Flushes, OpenMode};
use blockgraph::graph::open::{Child, DriverSpec, NodeSpec, OpenError};
use blockgraph::graph::{Access, DiscardPolicy};
use blockgraph::pin::Epochs;
use blockgraph::status::{Content, Mapping, Status};
use blockgraph::{Common, Current, Kind, Mode, NodeId, Span, Unmap};
use ring::{Choice, Durability, Errno, Mem};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use support::*;

const MIB: u64 = 1 << 20;

#[test]
fn what_is_past_the_end_of_the_file_reads_as_zeroes() {
    for cache in [Cache::Page, Cache::Direct] {
        for mode in modes(11) {
            let dir = tempfile::tempdir().expect("a directory");
            let path = image(dir.path(), 1000);
            std::fs::write(&path, [7; 1000]).expect("filled");
            let mut bench = Bench::new(Choice::Threads, mode);
            let node = bench.open(file(&path, cache));
            let size = bench.current.get().info(node).expect("a node").size_bytes;
            assert_eq!(size, 1024, "whole sectors");
            let mut expected = vec![7; 1000];
            expected.resize(1024, 0);
            assert_eq!(bench.read(node, 0, 1024), expected);
            bench.write(node, 512, &[8; 512]).expect("written");
            assert_eq!(bench.read(node, 512, 512), vec![8; 512]);
        }
    }
}

#[test]
fn a_read_only_node_refuses_every_change_and_the_file_keeps_its_bytes() {
    for mode in modes(12) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = image(dir.path(), MIB);
        let mut bench = Bench::new(Choice::Threads, mode);
        let mut spec = file(&path, Cache::Page);
        spec.common.access = Access::ReadOnly;
        let node = bench.open(spec);
        let refused = Err(Errno::RDONLY);
        assert_eq!(bench.write(node, 0, &[1; 512]), refused);
        let zero = Kind::WriteZeroes(Unmap::Allow, Durability::Cached);
        assert_eq!(bench.plain(node, zero, span(0, 512)), refused);
        assert_eq!(bench.plain(node, Kind::Discard, span(0, 512)), refused);
        assert_eq!(bench.plain(node, Kind::Flush, span(0, 0)), Ok(()));
        assert_eq!(bench.read(node, 0, 512), vec![0; 512]);
        assert_eq!(std::fs::metadata(&path).expect("there").blocks(), 0);
    }
}

#[test]
fn a_discard_frees_blocks_unless_discards_are_ignored() {
    for (policy, blocks_left) in [(DiscardPolicy::Unmap, 0), (DiscardPolicy::Ignore, 2048)] {
        for cache in [Cache::Page, Cache::Direct] {
            let dir = tempfile::tempdir().expect("a directory");
            let path = image(dir.path(), MIB);
            let mut bench = Bench::new(Choice::Threads, Mode::Fast);
            let mut spec = file(&path, cache);
            spec.common.discard = policy;
            let node = bench.open(spec);
            bench
                .write(node, 0, &vec![1; MIB as usize])
                .expect("written");
            bench.plain(node, Kind::Flush, span(0, 0)).expect("flushed");
            let blocks = || std::fs::metadata(&path).expect("there").blocks();
            assert_eq!(blocks(), 2048);
            let outcome = bench.plain(node, Kind::Discard, span(0, MIB));
            assert_eq!(outcome, Ok(()));
            assert_eq!(blocks(), blocks_left, "{policy:?} {cache:?}");
        }
    }
}

#[test]
fn zeroes_that_keep_their_space_stay_allocated_and_others_do_not() {
    for (unmap, blocks_left) in [(Unmap::Keep, 2048), (Unmap::Allow, 0)] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = image(dir.path(), MIB);
        let mut bench = Bench::new(Choice::Threads, Mode::Fast);
        let node = bench.open(file(&path, Cache::Page));
        bench
            .write(node, 0, &vec![1; MIB as usize])
            .expect("written");
        let kind = Kind::WriteZeroes(unmap, Durability::Through);
        assert_eq!(bench.plain(node, kind, span(0, MIB)), Ok(()));
        let blocks = std::fs::metadata(&path).expect("there").blocks();
        assert_eq!(blocks, blocks_left, "{unmap:?}");
        assert_eq!(bench.read(node, 0, MIB as usize), vec![0; MIB as usize]);
    }
}

fn status(bench: &mut Bench, node: NodeId, asked: Span) -> Status {
    let (tell, told) = std::sync::mpsc::channel();
    bench.lane.begin_batch();
    bench.lane.spawn(node, 9, move |io| async move {
        tell.send(io.status(node, asked).await).expect("listening");
        Ok(())
    });
    bench.lane.end_batch();
    assert_eq!(bench.wait(), (9, Ok(())));
    told.recv().expect("an answer").expect("a status")
}

#[test]
fn status_tells_data_from_holes_in_the_file_s_own_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image(dir.path(), MIB);
    let writer = std::fs::File::options()
        .write(true)
        .open(&path)
        .expect("opened");
    writer.write_all_at(&[1; 4096], 65536).expect("written");
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let node = bench.open(named(file(&path, Cache::Page), "f"));
    let window = blockgraph::driver::raw::Window {
        offset_bytes: 65536,
        size_bytes: None,
    };
    let window = bench.open(raw(Child::Named("f".into()), window));
    let hole = |len| Status {
        len,
        content: Content::Zero,
        mapping: Mapping::None,
    };
    let data = Status {
        len: 4096,
        content: Content::Data,
        mapping: Mapping::At(node, 65536),
    };
    assert_eq!(status(&mut bench, node, span(0, MIB)), hole(65536));
    assert_eq!(status(&mut bench, node, span(0, 512)), hole(512));
    assert_eq!(status(&mut bench, node, span(65536, MIB - 65536)), data);
    let rest = MIB - 69632;
    assert_eq!(status(&mut bench, node, span(69632, rest)), hole(rest));
    assert_eq!(status(&mut bench, window, span(0, 65536)), data);
}

#[test]
fn writers_of_one_block_lose_nothing_to_each_other() {
    const WRITERS: u64 = 2;
    let seed = 21;
    println!("seed {seed}");
    for mode in modes(seed) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = image(dir.path(), 64 << 10);
        let epochs = Arc::new(Epochs::default());
        let current = Arc::new(Current::default());
        let first = Bench::on(current.clone(), epochs.clone(), Choice::Best, mode);
        let node = strict_file(&first, &path);
        drop(first);
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (current, epochs) = (current.clone(), epochs.clone());
                scope.spawn(move || {
                    let mut bench = Bench::on(current, epochs, Choice::Best, mode);
                    own_sectors(&mut bench, node, writer, WRITERS, seed);
                });
            }
        });
    }
}

/// Writes every `of`th sector, some alone and some as part of a write of whole blocks in the writer's own half, and reads
/// each back.
fn own_sectors(bench: &mut Bench, node: NodeId, writer: u64, of: u64, seed: u64) {
    let mut chance = Chance(seed + writer);
    for round in 0..200u64 {
        let sector = chance.below(64 / of) * of + writer;
        let bytes = [(round % 250) as u8 + 1; 512];
        bench.write(node, sector * 512, &bytes).expect("written");
        let block = 32768 + 8192 * chance.below(2) + 16384 * writer;
        bench
            .write(node, block, &[writer as u8; 8192])
            .expect("written");
        assert_eq!(bench.read(node, sector * 512, 512), bytes, "round {round}");
    }
}

fn refusal(spec: NodeSpec) -> String {
    let current = Arc::new(Current::default());
    let error = open(&current, spec).expect_err("refused");
    assert_eq!(current.generation(), 0, "nothing is left of it");
    error.to_string()
}

fn named_file(path: &Path, kind: FileKind) -> NodeSpec {
    let mut options = file_options(path, Cache::Page);
    options.kind = kind;
    file_with(options)
}

#[test]
fn what_is_no_disk_is_refused_in_qemu_s_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image(dir.path(), 512);
    let at = path.display();
    let regular = |path: &str| refusal(named_file(Path::new(path), FileKind::Regular));
    let device = |path: &str| refusal(named_file(Path::new(path), FileKind::Device));
    assert_eq!(
        regular("/nonexist"),
        "Could not open '/nonexist': No such file or directory"
    );
    assert_eq!(regular("/tmp"), "Could not open '/tmp': Is a directory");
    assert_eq!(
        regular("/dev/null"),
        "'file' driver requires '/dev/null' to be a regular file"
    );
    assert_eq!(regular(""), "The 'file' block driver requires a file name");
    assert_eq!(
        device(&at.to_string()),
        format!("'host_device' driver requires '{at}' to be either a character or block device")
    );
    let mut options = file_options(&path, Cache::Page);
    options.engine = blockgraph::node::Engine::Native;
    assert_eq!(
        refusal(file_with(options)),
        "aio=native was specified, but it requires cache.direct=on, which was not specified."
    );
    assert_eq!(
        refusal(file(Path::new("/proc/self/mem"), Cache::Page)),
        "Could not refresh total sector count: Invalid argument"
    );
}

#[test]
fn a_fifo_is_refused_without_waiting_for_its_other_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.expect("mkfifo runs").success());
    let at = path.display();
    assert_eq!(
        refusal(file(&path, Cache::Page)),
        format!("'file' driver requires '{at}' to be a regular file")
    );
}

#[test]
fn names_are_checked_and_found_as_in_qemu() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image(dir.path(), 512);
    let plain = || file(&path, Cache::Page);
    assert_eq!(refusal(named(plain(), "1a")), "Invalid node-name: '1a'");
    assert_eq!(
        refusal(named(plain(), &"a".repeat(32))),
        "Node name too long"
    );
    let window = blockgraph::driver::raw::Window::default();
    assert_eq!(
        refusal(raw(Child::Named("x".into()), window)),
        "Cannot find device='x' nor node-name='x'"
    );
    let both = named(raw(inline(named(plain(), "r")), window), "r");
    assert_eq!(refusal(both), "Duplicate nodes with node-name='r'");
    let current = Arc::new(Current::default());
    open(&current, named(plain(), &"a".repeat(31))).expect("long enough");
    let (id, graph) = open(&current, raw(inline(plain()), window)).expect("generated names");
    let name = graph.node(id).expect("a node").name().to_owned();
    assert!(name.starts_with("#block"), "{name}");
}

#[test]
fn too_many_nodes_on_top_of_each_other_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image(dir.path(), 512);
    let window = blockgraph::driver::raw::Window::default();
    let mut spec = file(&path, Cache::Page);
    for _ in 0..blockgraph::map::DEPTH_MAX {
        spec = raw(inline(spec), window);
    }
    let current = Arc::new(Current::default());
    let error = open(&current, spec).expect_err("refused");
    assert!(matches!(error, OpenError::TooDeep), "{error}");
}

#[test]
fn auto_read_only_falls_back_where_writing_is_not_permitted() {
    // Root may write anything but this: the kernel refuses to open it for writing.
    let path = Path::new("/sys/kernel/notes");
    if !path.exists() {
        return println!("skipped: no {}", path.display());
    }
    assert_eq!(
        refusal(file(path, Cache::Page)),
        "Could not open '/sys/kernel/notes': Permission denied"
    );
    let mut options = file_options(path, Cache::Page);
    options.mode = OpenMode::Auto;
    let current = Arc::new(Current::default());
    let (id, graph) = open(&current, file_with(options)).expect("opened");
    assert_eq!(
        graph.node(id).expect("a node").common().access,
        Access::ReadOnly
    );
}

#[test]
fn without_flushes_a_disk_writes_through_nothing_and_still_works() {
    for mode in modes(31) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = image(dir.path(), MIB);
        let mut bench = Bench::new(Choice::Best, mode);
        let mut options = file_options(&path, Cache::Page);
        options.flushes = Flushes::Nothing;
        let node = bench.open(file_with(options));
        let mem = Mem::zeroed(512).expect("memory");
        mem.store(0, &[5; 512]);
        let kind = Kind::Write(Durability::Through);
        assert_eq!(bench.ask(node, kind, span(0, 512), &mem), Ok(()));
        assert_eq!(bench.plain(node, Kind::Flush, span(0, 0)), Ok(()));
        assert_eq!(bench.read(node, 0, 512), vec![5; 512]);
    }
}

#[test]
fn null_stores_nothing_and_says_so() {
    use blockgraph::driver::null::{Null, Reads};
    for (reads, byte, content) in [
        (Reads::Zeroes, 0, Content::Zero),
        (Reads::Untouched, 0xee, Content::Data),
    ] {
        for latency_ns in [0, 1000] {
            for mode in modes(41) {
                let mut bench = Bench::new(Choice::Threads, mode);
                let mut graph = (*bench.current.get()).clone();
                let null = Null::new(1000, reads, latency_ns);
                let node = insert(&mut graph, "null-co", null, Vec::new());
                bench.current.publish(graph);
                assert_eq!(bench.write(node, 0, &[1; 1024]), Ok(()));
                assert_eq!(bench.read(node, 0, 1024), vec![byte; 1024]);
                assert_eq!(bench.plain(node, Kind::Flush, span(0, 0)), Ok(()));
                let expected = Status {
                    len: 1024,
                    content,
                    mapping: Mapping::None,
                };
                assert_eq!(status(&mut bench, node, span(0, 1024)), expected);
            }
        }
    }
}

#[test]
fn every_request_waits_at_a_delay_and_comes_out_whole() {
    const LATENCY_NS: u64 = 2_000_000;
    for mode in modes(51) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = image(dir.path(), MIB);
        let mut bench = Bench::new(Choice::Best, mode);
        let node = bench.open(NodeSpec {
            name: None,
            common: Common::default(),
            driver: DriverSpec::Delay {
                file: inline(file(&path, Cache::Page)),
                latency_ns: LATENCY_NS,
            },
        });
        // All of the same bytes: one's wait must not let another pass.
        let mem = Mem::zeroed(4096).expect("memory");
        let begun = std::time::Instant::now();
        for token in 1..=8 {
            let started = bench.start(node, Kind::Read, span(0, 4096), &mem, token);
            assert_eq!(started, blockgraph::Started::Pending);
        }
        let mut ends: Vec<u64> = (0..8)
            .map(|_| {
                let (token, outcome) = bench.wait();
                assert_eq!(outcome, Ok(()));
                assert!(begun.elapsed().as_nanos() >= u128::from(LATENCY_NS));
                token
            })
            .collect();
        ends.sort_unstable();
        assert_eq!(ends, (1..=8).collect::<Vec<_>>());
        bench.write(node, 0, &[3; 512]).expect("written");
        assert_eq!(bench.read(node, 0, 512), vec![3; 512]);
    }
}
