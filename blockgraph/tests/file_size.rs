//! Files made longer and shorter while they are in use.

mod support;

use blockgraph::driver::file::Cache;
use blockgraph::node::Outcome;
use blockgraph::request::Prealloc;
use blockgraph::{Kind, Mode, NodeId};
use ring::{Choice, Errno};
use std::os::unix::fs::MetadataExt;
use support::*;

fn truncate(bench: &mut Bench, node: NodeId, size: u64, how: Prealloc) -> Outcome {
    let graph = bench.current.get();
    let ran = bench.control.run(&graph, node, move |io| async move {
        io.truncate(node, size, how).await
    });
    ran.expect("a turn")
}

fn size(bench: &Bench, node: NodeId) -> u64 {
    bench.current.get().info(node).expect("a node").size_bytes
}

#[test]
fn a_file_grows_with_zeroes_and_loses_what_is_cut_off() {
    for engine in engines() {
        for cache in [Cache::Page, Cache::Direct] {
            let dir = tempfile::tempdir().expect("a directory");
            let path = image(dir.path(), 4096);
            let mut bench = Bench::new(engine.clone(), Mode::Fast);
            let node = bench.open(file(&path, cache));
            bench.write(node, 0, &[7; 4096]).expect("written");
            truncate(&mut bench, node, 8192, Prealloc::Off).expect("grown");
            assert_eq!(size(&bench, node), 8192);
            assert_eq!(bench.read(node, 4096, 4096), vec![0; 4096]);
            bench.write(node, 4096, &[8; 4096]).expect("written");
            truncate(&mut bench, node, 512, Prealloc::Off).expect("cut");
            assert_eq!(size(&bench, node), 512);
            truncate(&mut bench, node, 8192, Prealloc::Off).expect("grown");
            let mut expected = vec![7; 512];
            expected.resize(8192, 0);
            assert_eq!(bench.read(node, 0, 8192), expected);
        }
    }
}

#[test]
fn space_is_set_aside_as_asked_and_only_where_a_file_grows() {
    for how in [Prealloc::Falloc, Prealloc::Full] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = image(dir.path(), 4096);
        let mut bench = Bench::new(Choice::Threads, Mode::Fast);
        let node = bench.open(file(&path, Cache::Page));
        truncate(&mut bench, node, 1 << 20, how).expect("grown");
        bench.plain(node, Kind::Flush, span(0, 0)).expect("flushed");
        let blocks = std::fs::metadata(&path).expect("there").blocks();
        assert!(blocks * 512 >= (1 << 20) - 4096, "{how:?}: {blocks}");
        assert_eq!(bench.read(node, 0, 1 << 20), vec![0; 1 << 20]);
        let cut = truncate(&mut bench, node, 4096, how);
        assert_eq!(cut, Err(Errno::INVAL));
        assert_eq!(size(&bench, node), 1 << 20);
    }
}

#[test]
fn a_file_knows_no_metadata_to_set_aside_and_no_size_beyond_the_system_s() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image(dir.path(), 4096);
    for engine in engines() {
        let mut bench = Bench::new(engine, Mode::Fast);
        let node = bench.open(file(&path, Cache::Page));
        let refused = truncate(&mut bench, node, 8192, Prealloc::Metadata);
        assert_eq!(refused, Err(Errno::NOTSUP));
        for how in [Prealloc::Off, Prealloc::Falloc] {
            assert!(truncate(&mut bench, node, 1 << 62, how).is_err());
            assert_eq!(size(&bench, node), 4096);
            assert_eq!(std::fs::metadata(&path).expect("there").len(), 4096);
        }
    }
}
