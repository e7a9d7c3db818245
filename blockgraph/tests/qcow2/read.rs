//! qcow2 images of every kind, made by the real qemu-img and qemu-io, read by us: the bytes are those of `qemu-img convert`,
//! the block status is that of `qemu-img map`.

use crate::support;
use blockgraph::driver::qcow2::Options;
use blockgraph::driver::qcow2::cache::CacheOptions;
use blockgraph::graph::Access;
use blockgraph::graph::open::{self, Backing};
use blockgraph::{Mode, NodeId};
use ring::Choice;
use std::path::{Path, PathBuf};
use support::qcow2::{
    Layer, Mapped, check_reads, create, flat, image, open_chain, our_map, overlay, qemu_io,
    qemu_map, run, scribble, squeeze, text,
};
use support::{Bench, Chance, engines, modes};

/// Not a whole number of any cluster.
const SIZE: u64 = (5 << 20) + 3 * 512;

/// The caches as they come, and the smallest there are.
fn caches() -> [Options; 2] {
    let smallest = CacheOptions {
        l2: Some(0),
        l2_entry: Some(512),
        ..CacheOptions::default()
    };
    let smallest = Options {
        cache: smallest,
        ..Options::default()
    };
    [Options::default(), smallest]
}

/// Every way of reading a chain comes to what QEMU says.
fn check(layers: &[Layer], seed: u64) {
    println!("seed {seed}");
    // Space that a file system has set aside counts as a hole only until somebody has read it, so status comes first.
    check_status(layers, seed);
    let truth = flat(&layers[0].path, layers[0].format);
    for mode in modes(seed) {
        for options in caches() {
            let (mut bench, chain) = open(layers, mode, &options);
            check_reads(&mut bench, chain[0], &truth, &mut Chance(seed));
        }
    }
}

fn check_status(layers: &[Layer], seed: u64) {
    let map = qemu_map(&layers[0].path, layers[0].format);
    for mode in modes(seed) {
        for options in caches() {
            let (mut bench, chain) = open(layers, mode, &options);
            let ours = our_map(&mut bench, &chain);
            assert_eq!(ours.len(), map.len());
            for (sector, (ours, theirs)) in ours.iter().zip(&map).enumerate() {
                let theirs = expected(*theirs, layers);
                assert_eq!(*ours, theirs, "sector {sector} in {mode:?}");
            }
        }
    }
}

fn open(layers: &[Layer], mode: Mode, options: &Options) -> (Bench, Vec<NodeId>) {
    let engine = engines().pop().expect("at least the pool");
    let mut bench = Bench::new(engine, mode);
    let chain = open_chain(&mut bench, layers, options);
    (bench, chain)
}

/// What QEMU says, in our words: where in a file the hole of a raw image is we do not say, and data that is set aside in a
/// hole of the file is zeroes with space behind them.
fn expected(theirs: Mapped, layers: &[Layer]) -> Mapped {
    let raw_hole = theirs.zero && !theirs.data && layers[theirs.depth].format == "raw";
    Mapped {
        data: theirs.data && !theirs.zero,
        offset: theirs.offset.filter(|_| !raw_hole),
        ..theirs
    }
}

/// One image of its own, scribbled on.
fn check_alone(options: &str, cluster: u64, seed: u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    create(&path, options, SIZE);
    let mut chance = Chance(seed);
    qemu_io(&path, "qcow2", &scribble(&mut chance, SIZE, cluster, 40));
    check(&[Layer::qcow2(path)], seed);
}

#[test]
fn clusters_of_every_size_read_as_qemu_reads_them() {
    for bits in [9, 10, 12, 14, 16, 18, 21] {
        let cluster = 1u64 << bits;
        check_alone(&format!("cluster_size={cluster}"), cluster, bits);
    }
}

#[test]
fn version_2_reads_as_qemu_reads_it() {
    check_alone("compat=0.10", 65536, 20);
    check_alone("compat=0.10,cluster_size=512", 512, 21);
}

#[test]
fn subclusters_read_as_qemu_reads_them() {
    for (cluster, seed) in [(16384, 30), (65536, 31), (2 << 20, 32)] {
        check_alone(
            &format!("extended_l2=on,cluster_size={cluster}"),
            cluster,
            seed,
        );
    }
}

#[test]
fn compressed_clusters_read_as_qemu_reads_them() {
    let kinds = [
        ("zlib", 16),
        ("zstd", 16),
        ("zlib", 12),
        ("zstd", 21),
        ("zlib", 9),
    ];
    for (seed, (kind, bits)) in (40..).zip(kinds) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk.qcow2");
        let cluster = 1u64 << bits;
        let options = format!("compression_type={kind},cluster_size={cluster}");
        create(&path, &options, SIZE);
        let mut chance = Chance(seed);
        let commands = squeeze(&mut chance, SIZE, cluster, 30);
        qemu_io(&path, "qcow2", &commands);
        let commands = scribble(&mut chance, SIZE, cluster, 10);
        qemu_io(&path, "qcow2", &commands);
        check(&[Layer::qcow2(path)], seed);
    }
}

#[test]
fn a_compressed_copy_of_real_text_reads_as_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = dir.path().join("source.raw");
    let mut bytes = std::fs::read("/proc/self/exe").expect("this program");
    bytes.resize(3 << 20, 0);
    std::fs::write(&source, &bytes).expect("written");
    for (seed, options) in [
        (50, "compression_type=zlib"),
        (51, "compression_type=zstd"),
        (52, "compression_type=zstd,extended_l2=on"),
        (53, "compression_type=zlib,compat=1.1,cluster_size=4k"),
    ] {
        let path = dir.path().join(format!("disk{seed}.qcow2"));
        let (from, to) = (text(&source), text(&path));
        run(
            "qemu-img",
            &["convert", "-c", "-O", "qcow2", "-o", options, from, to],
        );
        check(&[Layer::qcow2(path)], seed);
    }
}

#[test]
fn external_data_files_read_as_qemu_reads_them() {
    for (seed, more) in [(60, ""), (61, ",data_file_raw=on"), (62, ",extended_l2=on")] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk.qcow2");
        let data = dir.path().join("disk.data");
        create(&path, &format!("data_file={}{more}", text(&data)), SIZE);
        let mut chance = Chance(seed);
        qemu_io(&path, "qcow2", &scribble(&mut chance, SIZE, 65536, 40));
        let layer = Layer {
            data_file: Some(data),
            ..Layer::qcow2(path)
        };
        check(&[layer], seed);
    }
}

#[test]
fn preallocated_images_read_as_qemu_reads_them() {
    for (seed, options) in [
        (70, "preallocation=falloc"),
        (71, "preallocation=full"),
        (72, "preallocation=metadata"),
        (73, "preallocation=metadata,extended_l2=on"),
        (74, "preallocation=metadata,refcount_bits=1,cluster_size=4k"),
    ] {
        check_alone(options, 65536, seed);
    }
}

#[test]
fn what_a_short_backing_file_does_not_cover_reads_as_zeroes() {
    for (seed, format) in [(80, "raw"), (81, "qcow2")] {
        let dir = tempfile::tempdir().expect("a directory");
        let below = dir.path().join("below");
        let short = (1 << 20) + 512 * 5;
        let mut chance = Chance(seed);
        run(
            "qemu-img",
            &[
                "create",
                "-q",
                "-f",
                format,
                text(&below),
                &short.to_string(),
            ],
        );
        let mut commands = scribble(&mut chance, short, 65536, 20);
        // What a file system reserves and zeroes counts as a hole of the file until somebody has read it.
        commands.retain(|command| format == "qcow2" || !command.starts_with("write -z"));
        qemu_io(&below, format, &commands);
        let path = dir.path().join("top.qcow2");
        overlay(&path, "", SIZE, &below, format);
        qemu_io(&path, "qcow2", &scribble(&mut chance, SIZE, 65536, 8));
        let below = match format {
            "raw" => Layer::raw(below),
            _ => Layer::qcow2(below),
        };
        check(&[Layer::qcow2(path), below], seed);
    }
}

/// A chain of five, each layer of another kind and another size.
fn chain(dir: &Path, chance: &mut Chance) -> Vec<Layer> {
    let kinds = [
        ("cluster_size=4k", 3 << 20),
        ("compat=0.10", (4 << 20) + 512),
        ("extended_l2=on,cluster_size=16k", 2 << 20),
        ("compression_type=zstd", SIZE),
        ("cluster_size=2M", SIZE),
    ];
    let mut layers: Vec<Layer> = Vec::new();
    for (n, (options, size)) in kinds.into_iter().enumerate() {
        let path: PathBuf = dir.join(format!("layer{n}.qcow2"));
        match layers.first() {
            None => create(&path, options, size),
            Some(below) => overlay(&path, options, size, &below.path, "qcow2"),
        }
        qemu_io(&path, "qcow2", &scribble(chance, size, 16384, 12));
        layers.insert(0, Layer::qcow2(path));
    }
    layers
}

#[test]
fn chains_of_five_read_as_qemu_reads_them() {
    for seed in 90..93 {
        let dir = tempfile::tempdir().expect("a directory");
        let layers = chain(dir.path(), &mut Chance(seed));
        check(&layers, seed);
    }
}

#[test]
fn internal_snapshots_show_the_disk_as_it_was() {
    for (seed, options) in [(100, ""), (101, "compat=0.10"), (102, "extended_l2=on")] {
        println!("{options} seed {seed}");
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk.qcow2");
        create(&path, options, SIZE);
        let mut chance = Chance(seed);
        let mut truths = Vec::new();
        for name in ["first", "second"] {
            qemu_io(&path, "qcow2", &scribble(&mut chance, SIZE, 65536, 15));
            truths.push(flat(&path, "qcow2"));
            run("qemu-img", &["snapshot", "-c", name, text(&path)]);
        }
        qemu_io(&path, "qcow2", &scribble(&mut chance, SIZE, 65536, 15));
        let layer = Layer::qcow2(path);
        for mode in modes(seed) {
            for (name, truth) in [
                ("1", &truths[0]),
                ("first", &truths[0]),
                ("2", &truths[1]),
                ("second", &truths[1]),
            ] {
                let shown = Options {
                    snapshot: Some(name.to_owned()),
                    ..Options::default()
                };
                let (mut bench, chain) = open(std::slice::from_ref(&layer), mode, &shown);
                check_reads(&mut bench, chain[0], truth, &mut Chance(seed));
            }
        }
        check(&[layer], seed);
    }
}

#[test]
fn a_snapshot_is_only_read_and_has_to_be_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    create(&path, "", SIZE);
    run("qemu-img", &["snapshot", "-c", "snap", text(&path)]);
    let refused = |name: &str, access| {
        let options = Options {
            snapshot: Some(name.to_owned()),
            ..Options::default()
        };
        let mut spec = image(&path, None, Backing::Nothing, options);
        spec.common.access = access;
        let mut bench = Bench::new(Choice::Threads, Mode::Fast);
        match open::open(&bench.current, spec, &mut bench.control) {
            Ok(_) => panic!("opened"),
            Err(error) => error.to_string(),
        }
    };
    let read_only = Access::ReadOnly;
    assert_eq!(refused("2", read_only), "Can't find snapshot '2'");
    assert_eq!(
        refused("snap", Access::ReadWrite),
        "An internal snapshot can only be opened read-only"
    );
}
