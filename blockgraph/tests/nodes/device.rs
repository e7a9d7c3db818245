//! host_device on a loop device with 4096-byte sectors. Needs root; says so and passes where there is none.

use crate::support;
use blockgraph::driver::file::{Cache, FileKind};
use blockgraph::graph::open::OpenError;
use blockgraph::{Current, Kind, Mode};
use ring::Choice;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use support::{Bench, engines, file_options, file_with, image, model, modes, open, span};

const SIZE: u64 = 1 << 20;

struct Loop(PathBuf);

impl Loop {
    fn over(image: &Path) -> Option<Loop> {
        let mut losetup = Command::new("losetup");
        losetup
            .args(["--find", "--show", "--sector-size", "4096"])
            .arg(image);
        match losetup.output() {
            Ok(output) if output.status.success() => {
                let name = String::from_utf8(output.stdout).expect("a name");
                Some(Loop(PathBuf::from(name.trim())))
            }
            other => {
                println!("skipped: no loop device here ({other:?})");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let gone = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
        assert!(gone.expect("losetup runs").success());
    }
}

fn device(path: &Path, cache: Cache) -> blockgraph::graph::open::NodeSpec {
    let mut options = file_options(path, cache);
    options.kind = FileKind::Device;
    file_with(options)
}

#[test]
fn a_device_of_4096_byte_sectors_equals_the_model() {
    for cache in [Cache::Page, Cache::Direct] {
        for choice in engines() {
            for mode in modes(61) {
                println!("{cache:?} {choice:?} {mode:?} seed 61");
                let dir = tempfile::tempdir().expect("a directory");
                let Some(disk) = Loop::over(&image(dir.path(), SIZE)) else {
                    return;
                };
                let mut bench = Bench::new(choice.clone(), mode);
                let node = bench.open(device(&disk.0, cache));
                model::check(&mut bench, node, 61, SIZE, 120);
            }
        }
    }
}

#[test]
fn a_device_says_what_it_is_and_a_discard_reaches_what_is_behind_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image(dir.path(), SIZE);
    let Some(disk) = Loop::over(&path) else {
        return;
    };
    let mut bench = Bench::new(Choice::Best, Mode::Fast);
    let node = bench.open(device(&disk.0, Cache::Direct));
    let info = bench.current.get().info(node).expect("a node");
    assert_eq!(info.size_bytes, SIZE);
    assert_eq!(info.limits.logical_block_bytes, 4096);
    assert_eq!(info.limits.physical_block_bytes, 4096);
    assert_eq!(info.limits.discard_bytes, 4096);
    bench
        .write(node, 0, &vec![1; SIZE as usize])
        .expect("written");
    bench.plain(node, Kind::Flush, span(0, 0)).expect("flushed");
    assert_eq!(
        std::fs::metadata(&path).expect("there").blocks(),
        SIZE / 512
    );
    bench
        .plain(node, Kind::Discard, span(0, SIZE))
        .expect("discarded");
    assert_eq!(std::fs::metadata(&path).expect("there").blocks(), 0);
    let file = file_with(file_options(&disk.0, Cache::Page));
    let error: OpenError = open(&Arc::new(Current::default()), file).expect_err("refused");
    let at = disk.0.display();
    assert_eq!(
        error.to_string(),
        format!("'file' driver requires '{at}' to be a regular file")
    );
}
