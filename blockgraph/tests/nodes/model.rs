//! Reads equal a `Vec<u8>` model, whatever the driver, the engine, the cache and the way requests go.

use crate::support;
use blockgraph::NodeId;
use blockgraph::driver::file::Cache;
use blockgraph::driver::raw::Window;
use std::path::Path;
use support::{Bench, engines, file, image, inline, model, modes, raw, strict_file};

/// A disk that is not a multiple of 4096 bytes.
const SIZE: u64 = (1 << 20) + 512;

fn everywhere(name: &str, seed: u64, size: u64, open: impl Fn(&mut Bench, &Path) -> NodeId) {
    for choice in engines() {
        for mode in modes(seed) {
            println!("{name}: {choice:?} {mode:?} seed {seed}");
            let dir = tempfile::tempdir().expect("a directory");
            let mut bench = Bench::new(choice.clone(), mode);
            let node = open(&mut bench, &image(dir.path(), SIZE));
            model::check(&mut bench, node, seed, size, 250);
        }
    }
}

#[test]
fn a_file_in_the_page_cache_equals_the_model() {
    everywhere("page cache", 1, SIZE, |bench, path| {
        bench.open(file(path, Cache::Page))
    });
}

#[test]
fn a_file_with_direct_io_equals_the_model() {
    everywhere("direct", 2, SIZE, |bench, path| {
        bench.open(file(path, Cache::Direct))
    });
}

#[test]
fn a_file_that_takes_whole_pages_only_equals_the_model() {
    everywhere("4096-byte blocks", 5, SIZE, |bench, path| {
        strict_file(bench, path)
    });
}

#[test]
fn a_window_off_the_sectors_with_direct_io_equals_the_model() {
    let window = Window {
        offset_bytes: 100,
        size_bytes: Some(300 * 512),
    };
    everywhere("raw window", 3, 300 * 512, |bench, path| {
        bench.open(raw(inline(file(path, Cache::Direct)), window))
    });
}

#[test]
fn a_whole_raw_node_equals_the_model() {
    everywhere("raw", 4, SIZE, |bench, path| {
        bench.open(raw(inline(file(path, Cache::Page)), Window::default()))
    });
}
