//! Files made longer and shorter while they are in use.

use crate::support;
use blockgraph::driver::file::{Cache, CopyOnWrite, CreateOptions};
use blockgraph::graph::Body;
use blockgraph::graph::perm::{Perms, Wants};
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

fn create(options: CreateOptions) -> Result<(), String> {
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let graph = bench.current.get();
    let ran = bench.control.run(&graph, NodeId(0), move |io| async move {
        blockgraph::driver::file::create(&io, options).await
    });
    ran.expect("a turn").map_err(|error| error.to_string())
}

/// What is asked, and what QSD 10.0.2 answers.
#[test]
fn a_new_file_is_as_long_as_asked_or_refused_in_qemu_s_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("new");
    std::fs::write(&path, [7; 5000]).expect("written");
    let options = |filename: &std::path::Path, size_bytes, preallocation| CreateOptions {
        filename: filename.to_owned(),
        size_bytes,
        preallocation,
        copy_on_write: CopyOnWrite::Off,
    };
    assert_eq!(create(options(&path, 513, Prealloc::Off)), Ok(()));
    assert_eq!(std::fs::read(&path).expect("there"), vec![0; 513]);
    assert_eq!(create(options(&path, 1 << 20, Prealloc::Full)), Ok(()));
    let blocks = std::fs::metadata(&path).expect("there").blocks();
    assert!(blocks * 512 >= 1 << 20);
    let refused = [
        (
            options(&path, 512, Prealloc::Metadata),
            "Unsupported preallocation mode: metadata",
        ),
        (
            options(&path, 1 << 62, Prealloc::Off),
            "Could not resize file: File too large",
        ),
        (
            options("/nonexistent/x".as_ref(), 512, Prealloc::Off),
            "Could not create '/nonexistent/x': No such file or directory",
        ),
        (
            options("/tmp".as_ref(), 512, Prealloc::Off),
            "Could not create '/tmp': Is a directory",
        ),
        (
            options("".as_ref(), 512, Prealloc::Off),
            "Could not create '': No such file or directory",
        ),
    ];
    for (options, words) in refused {
        assert_eq!(create(options), Err(words.to_owned()));
    }
}

#[test]
fn a_file_that_somebody_uses_is_not_emptied() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image(dir.path(), 4096);
    std::fs::write(&path, [7; 4096]).expect("written");
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let node = bench.open(file(&path, Cache::Page));
    let wants = Wants {
        needs: Perms::READ_WRITE,
        shares: Perms::READ,
    };
    let graph = bench.current.get();
    let Some(Body::Driver(driver)) = graph.node(node).map(|node| node.body().clone()) else {
        panic!("a driver");
    };
    driver.permit(wants).expect("permitted");
    let error = create(CreateOptions {
        filename: path.clone(),
        size_bytes: 512,
        preallocation: Prealloc::Off,
        copy_on_write: CopyOnWrite::Usual,
    });
    assert_eq!(error, Err("Failed to get \"write\" lock".to_owned()));
    assert_eq!(std::fs::read(&path).expect("there"), vec![7; 4096]);
}
