//! What a qcow2 image lets others do with its files, in this process and in a real QEMU's.

use crate::support;
use blockgraph::Mode;
use blockgraph::driver::file::{Cache, FileOptions, Locking, OpenMode};
use blockgraph::driver::qcow2::Options;
use blockgraph::graph::open::{Backing, Child, DriverSpec, FileSpec, NodeSpec, open};
use blockgraph::graph::{Access, Common};
use ring::Choice;
use std::path::Path;
use std::process::Command;
use support::qcow2::{create, image, overlay, read_only, text};
use support::{Bench, file_options, named};

const SIZE: u64 = 1 << 20;

/// A file whose locks other processes see.
fn locked_file(path: &Path, access: Access) -> NodeSpec {
    let mode = match access {
        Access::ReadOnly => OpenMode::ReadOnly,
        Access::ReadWrite => OpenMode::ReadWrite,
    };
    let options = FileOptions {
        mode,
        locking: Locking::On,
        ..file_options(path, Cache::Page)
    };
    NodeSpec {
        name: None,
        common: Common {
            access,
            ..read_only()
        },
        driver: DriverSpec::File(FileSpec { options }),
    }
}

fn with_file(mut spec: NodeSpec, file: Child) -> NodeSpec {
    if let DriverSpec::Qcow2(qcow2) = &mut spec.driver {
        qcow2.file = file;
    }
    spec
}

/// What qemu-io says when it opens the image, `-r` or not, and reads a sector; `Ok` if it could.
fn qemu_reads(path: &Path, more: &[&str]) -> Result<(), String> {
    let output = Command::new("qemu-io")
        .args(more)
        .args(["-f", "qcow2", "-c", "read 0 512", text(path)])
        .output()
        .expect("qemu-io");
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn while_an_image_is_read_another_process_may_read_it_but_not_write() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    create(&path, "", SIZE);
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let file = Child::Inline(Box::new(locked_file(&path, Access::ReadOnly)));
    let spec = image(&path, None, Backing::Nothing, Options::default());
    bench.open(with_file(spec, file));
    assert_eq!(qemu_reads(&path, &["-r"]), Ok(()));
    let refused = qemu_reads(&path, &[]).expect_err("a writer");
    assert!(
        refused.contains("Failed to get \"write\" lock"),
        "{refused}"
    );
}

#[test]
fn a_backing_file_may_be_read_by_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, below) = (dir.path().join("top.qcow2"), dir.path().join("below.qcow2"));
    create(&below, "", SIZE);
    overlay(&path, "", SIZE, &below, "qcow2");
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let file = Child::Inline(Box::new(locked_file(&below, Access::ReadOnly)));
    let spec = image(&below, None, Backing::Nothing, Options::default());
    let backing = Backing::Node(Child::Inline(Box::new(with_file(spec, file))));
    bench.open(image(&path, None, backing, Options::default()));
    assert_eq!(qemu_reads(&below, &["-r"]), Ok(()));
    assert!(qemu_reads(&below, &[]).is_err());
}

#[test]
fn two_images_cannot_be_in_one_file_if_one_of_them_is_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    create(&path, "", SIZE);
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    bench.open(named(locked_file(&path, Access::ReadWrite), "file0"));
    let file = || Child::Named("file0".to_owned());
    let spec = || image(&path, None, Backing::Nothing, Options::default());
    bench.open(named(with_file(spec(), file()), "reader"));
    bench.open(named(with_file(spec(), file()), "reader2"));
    let mut writer = named(with_file(spec(), file()), "writer");
    writer.common.access = Access::ReadWrite;
    let opened = open(&bench.current, writer, &mut bench.control);
    let refused = opened.expect_err("a writer").to_string();
    assert_eq!(
        refused,
        "Permission conflict on node 'file0': permissions 'write, resize' are both required by node 'writer' (uses node \
         'file0' as 'file' child) and unshared by node 'reader' (uses node 'file0' as 'file' child)."
    );
}
