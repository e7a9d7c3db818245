//! copy-on-read and compress above real qcow2 images, judged by QEMU's tools.

use crate::support;
use blockgraph::Mode;
use blockgraph::driver::qcow2::Options;
use blockgraph::graph::open::{DriverSpec, FilterSpec, NodeSpec};
use ring::Choice;
use support::qcow2::{create, flat, overlay, qemu_io, run, scribble, text};
use support::writes::{below, close, compare, image};
use support::{Bench, Chance, common, named};

const SIZE: u64 = 4 << 20;

fn filter(spec: FilterSpec) -> NodeSpec {
    NodeSpec {
        name: None,
        common: common(),
        driver: DriverSpec::Filter(Box::new(spec)),
    }
}

#[test]
fn an_overlay_that_was_read_through_copy_on_read_needs_its_base_no_more() {
    for (seed, options) in [
        (1, "cluster_size=64k"),
        (2, "cluster_size=16k,extended_l2=on"),
    ] {
        let mode = support::modes(seed)[seed as usize];
        let dir = tempfile::tempdir().expect("a directory");
        let (base, top) = (dir.path().join("base"), dir.path().join("top"));
        create(&base, "cluster_size=64k", SIZE);
        let mut chance = Chance(seed);
        qemu_io(&base, "qcow2", &scribble(&mut chance, SIZE, 65536, 40));
        overlay(&top, options, SIZE, &base, "qcow2");
        let mut model = flat(&base, "qcow2");
        let before = std::fs::read(&base).expect("the base");
        let mut bench = Bench::new(Choice::Threads, mode);
        let spec = named(
            image(&top, None, below(&base, "qcow2"), Options::default()),
            "top",
        );
        let top_node = bench.open(spec);
        let node = bench.open(filter(FilterSpec::CopyOnRead {
            file: blockgraph::graph::open::Child::Named("top".to_owned()),
            bottom: None,
        }));
        for _ in 0..60 {
            let at = chance.below(SIZE - 1);
            let len = 1 + chance.below((SIZE - at).min(100_000));
            let range = at as usize..(at + len) as usize;
            if chance.below(3) == 0 {
                let bytes = vec![chance.next() as u8; len as usize];
                bench.write(node, at, &bytes).expect("written");
                model[range].copy_from_slice(&bytes);
            } else {
                assert!(bench.read(node, at, len as usize) == model[range]);
            }
        }
        compare(&mut bench, node, &model);
        compare(&mut bench, node, &model);
        close(&mut bench, top_node).expect("closed");
        drop(bench);
        assert!(
            std::fs::read(&base).expect("the base") == before,
            "untouched"
        );
        run("qemu-img", &["check", "-q", "-f", "qcow2", text(&top)]);
        run(
            "qemu-img",
            &["rebase", "-u", "-f", "qcow2", "-b", "", text(&top)],
        );
        assert!(flat(&top, "qcow2") == model, "without its base");
    }
}

#[test]
fn what_is_written_through_compress_is_compressed_and_qemu_reads_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    create(&path, "cluster_size=64k", SIZE);
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let backing = blockgraph::graph::open::Backing::Nothing;
    let spec = named(image(&path, None, backing, Options::default()), "image");
    let image_node = bench.open(spec);
    let node = bench.open(filter(FilterSpec::Compress {
        file: blockgraph::graph::open::Child::Named("image".to_owned()),
    }));
    let mut model = vec![0; SIZE as usize];
    model[..2 << 20].fill(0x5a);
    bench.write(node, 0, &model[..2 << 20]).expect("written");
    compare(&mut bench, node, &model);
    close(&mut bench, image_node).expect("closed");
    drop(bench);
    run("qemu-img", &["check", "-q", "-f", "qcow2", text(&path)]);
    let checked = run("qemu-img", &["check", "-f", "qcow2", text(&path)]);
    assert!(checked.contains("100.00% compressed clusters"), "{checked}");
    assert!(flat(&path, "qcow2") == model);
}
