//! Images we make, beside those qemu-img makes with the same options: described alike, found clean, read and written.

use crate::support;
use blockgraph::driver::file::Cache;
use blockgraph::driver::qcow2::create::{CreateError, DataFile, Options, create};
use blockgraph::driver::qcow2::format::header::{Compression, Version};
use blockgraph::request::Prealloc;
use blockgraph::{Mode, NodeId};
use ring::Choice;
use std::path::Path;
use support::{Bench, file, qemu};

fn make(dir: &Path, name: &str, options: &Options) -> Result<(), CreateError> {
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let open = |bench: &mut Bench, name: &str| {
        std::fs::File::create(dir.join(name)).expect("created");
        bench.open(file(&dir.join(name), Cache::Page))
    };
    let node = open(&mut bench, name);
    let mut options = options.clone();
    if let Some(data) = &mut options.data_file {
        data.node = open(&mut bench, &data.name);
    }
    let graph = bench.current.get();
    let ran = bench.control.run(&graph, node, move |io| async move {
        create(&io, node, &options).await
    });
    ran.expect("a turn")
}

/// The same options for qemu-img.
fn for_qemu(options: &Options) -> String {
    let onoff = |on| if on { "on" } else { "off" };
    let mut text = format!(
        "compat={},cluster_size={},refcount_bits={},extended_l2={},lazy_refcounts={}",
        if options.version == Version::V2 {
            "0.10"
        } else {
            "1.1"
        },
        options.cluster_bytes,
        options.refcount_bits,
        onoff(options.extended_l2),
        onoff(options.lazy_refcounts),
    );
    text += match options.preallocation {
        Prealloc::Off => ",preallocation=off",
        Prealloc::Metadata => ",preallocation=metadata",
        Prealloc::Falloc => ",preallocation=falloc",
        Prealloc::Full => ",preallocation=full",
    };
    if options.compression == Compression::Zstd {
        text += ",compression_type=zstd";
    }
    if let Some(backing) = &options.backing_file {
        text += &format!(",backing_file={backing}");
    }
    if let Some(format) = &options.backing_format {
        text += &format!(",backing_fmt={format}");
    }
    if let Some(data) = &options.data_file {
        let raw = onoff(options.data_file_raw);
        text += &format!(",data_file={},data_file_raw={raw}", data.name);
    }
    text
}

fn compare(options: &Options) {
    println!("{options:?}");
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let size = options.size_bytes.to_string();
    if let Some(backing) = &options.backing_file {
        ok_base(dir, backing, options.size_bytes);
    }
    let asked = for_qemu(options);
    qemu::ok(
        dir,
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", &asked, "theirs", &size],
    );
    let theirs = qemu::info(dir, "theirs");
    make(dir, "ours", options).expect("made");
    assert_eq!(qemu::info(dir, "ours"), theirs);
    qemu::check(dir, "ours");
    if options.size_bytes < 65536 {
        return;
    }
    let fill = if options.backing_file.is_some() {
        "read -P 7 0 4k"
    } else {
        "read -P 0 0 4k"
    };
    let end = options.size_bytes - 4096;
    let write = format!("write -P 5 {end} 4k");
    let read = format!("read -P 5 {end} 4k");
    qemu::io(
        dir,
        "ours",
        &[
            fill,
            "read 0 64k",
            &write,
            "write -P 6 20k 30k",
            &read,
            "read -P 6 20k 30k",
        ],
    );
    qemu::check(dir, "ours");
}

fn ok_base(dir: &Path, name: &str, size: u64) {
    std::fs::write(dir.join(name), vec![7; size as usize]).expect("written");
}

const PREALLOC: [Prealloc; 4] = [
    Prealloc::Off,
    Prealloc::Metadata,
    Prealloc::Falloc,
    Prealloc::Full,
];

#[test]
fn every_cluster_size_and_refcount_width_is_as_qemu_img_makes_it() {
    let mut turn = 0;
    for bits in [9, 10, 12, 13, 16, 18, 21] {
        for width in [1, 2, 4, 8, 16, 32, 64] {
            let size = [0, 512, 1 << 20, 3 << 20][turn % 4];
            compare(&Options {
                cluster_bytes: 1 << bits,
                refcount_bits: width,
                preallocation: PREALLOC[turn / 2 % 4],
                lazy_refcounts: turn % 3 == 0,
                ..Options::new(size)
            });
            turn += 1;
        }
    }
}

#[test]
fn version_2_images_are_as_qemu_img_makes_them() {
    for (turn, bits) in [9, 12, 16, 21].into_iter().enumerate() {
        for backing in [None, Some("base")] {
            let prealloc = if backing.is_none() {
                PREALLOC[turn]
            } else {
                Prealloc::Off
            };
            compare(&Options {
                version: Version::V2,
                cluster_bytes: 1 << bits,
                preallocation: prealloc,
                backing_file: backing.map(Into::into),
                backing_format: backing.map(|_| "raw".into()),
                ..Options::new(1 << 20)
            });
        }
    }
}

#[test]
fn every_combination_of_features_is_as_qemu_img_makes_it() {
    for turn in 0..64 {
        let extended_l2 = turn & 1 != 0;
        let backing = turn & 2 != 0;
        let data_file = turn & 4 != 0;
        let data_file_raw = data_file && !backing && turn & 8 != 0;
        let prealloc = PREALLOC[turn / 16];
        compare(&Options {
            cluster_bytes: if turn % 5 == 0 { 16384 } else { 65536 },
            extended_l2,
            compression: if turn & 8 != 0 {
                Compression::Zstd
            } else {
                Compression::Zlib
            },
            backing_file: backing.then(|| "base".into()),
            backing_format: backing.then(|| "raw".into()),
            data_file: data_file.then(|| DataFile {
                node: NodeId(0),
                name: "data".into(),
            }),
            data_file_raw,
            preallocation: if backing && !extended_l2 {
                Prealloc::Off
            } else {
                prealloc
            },
            ..Options::new(1 << 20)
        });
    }
}

#[test]
fn a_large_disk_of_small_clusters_has_a_long_l1_table() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = Options {
        cluster_bytes: 512,
        refcount_bits: 64,
        ..Options::new(128 << 30)
    };
    make(dir.path(), "ours", &options).expect("made");
    qemu::io(
        dir.path(),
        "ours",
        &["write -P 5 127G 4k", "read -P 5 127G 4k"],
    );
    qemu::check(dir.path(), "ours");
}

/// What is asked, and what QSD 10.0.2 answers.
#[test]
fn what_cannot_be_made_is_refused_in_qemu_s_words() {
    let good = || Options::new(1 << 20);
    let with = |change: &dyn Fn(&mut Options)| {
        let mut options = good();
        change(&mut options);
        options
    };
    let data_file = || {
        Some(DataFile {
            node: NodeId(0),
            name: "data".into(),
        })
    };
    let cases: Vec<(Options, &str)> = vec![
        (
            with(&|o| o.size_bytes = 100),
            "Image size must be a multiple of 512 bytes",
        ),
        (
            with(&|o| o.cluster_bytes = 1000),
            "Cluster size must be a power of two between 512 and 2048k",
        ),
        (
            with(&|o| o.cluster_bytes = 256),
            "Cluster size must be a power of two between 512 and 2048k",
        ),
        (
            with(&|o| o.cluster_bytes = 4 << 20),
            "Cluster size must be a power of two between 512 and 2048k",
        ),
        (
            with(&|o| o.cluster_bytes = 0),
            "Cluster size must be a power of two between 512 and 2048k",
        ),
        (
            with(&|o| (o.extended_l2, o.cluster_bytes) = (true, 8192)),
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
        ),
        (
            with(&|o| (o.preallocation, o.backing_file) = (Prealloc::Metadata, Some("b".into()))),
            "Backing file and preallocation can only be used at the same time if extended_l2 is on",
        ),
        (
            with(&|o| o.backing_format = Some("raw".into())),
            "Backing format cannot be used without backing file",
        ),
        (
            with(&|o| (o.version, o.lazy_refcounts) = (Version::V2, true)),
            "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)",
        ),
        (
            with(&|o| o.refcount_bits = 3),
            "Refcount width must be a power of two and may not exceed 64 bits",
        ),
        (
            with(&|o| o.refcount_bits = 128),
            "Refcount width must be a power of two and may not exceed 64 bits",
        ),
        (
            with(&|o| o.refcount_bits = 0),
            "Refcount width must be a power of two and may not exceed 64 bits",
        ),
        (
            with(&|o| (o.version, o.refcount_bits) = (Version::V2, 8)),
            "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)",
        ),
        (
            with(&|o| o.data_file_raw = true),
            "data-file-raw requires data-file",
        ),
        (
            with(&|o| {
                (o.data_file, o.data_file_raw, o.backing_file) =
                    (data_file(), true, Some("b".into()));
            }),
            "Backing file and data-file-raw cannot be used at the same time",
        ),
        (
            with(&|o| (o.version, o.data_file) = (Version::V2, data_file())),
            "External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
        ),
        (
            with(&|o| (o.version, o.extended_l2) = (Version::V2, true)),
            "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
        ),
        (
            with(&|o| (o.version, o.compression) = (Version::V2, Compression::Zstd)),
            "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or \
             greater)",
        ),
        (
            with(&|o| o.size_bytes = 1 << 62),
            "Could not resize image: Failed to grow the L1 table: File too large",
        ),
        (
            with(&|o| o.size_bytes = (1 << 63) - 512),
            "Could not resize image: offset(9223372036854775296) exceeds maximum(9223372035781033984)",
        ),
        (
            with(&|o| o.size_bytes = 1 << 63),
            "Could not resize image: Image size cannot be negative",
        ),
        (
            with(&|o| (o.size_bytes, o.cluster_bytes) = ((128 << 30) + 512, 512)),
            "Could not resize image: Failed to grow the L1 table: File too large",
        ),
        (
            with(&|o| (o.size_bytes, o.preallocation) = (1 << 46, Prealloc::Falloc)),
            "Could not resize image: Failed to resize underlying file: Could not preallocate new data: File too large",
        ),
    ];
    let dir = tempfile::tempdir().expect("a directory");
    for (options, words) in cases {
        let error = make(dir.path(), "none", &options).expect_err(words);
        assert_eq!(error.to_string(), words);
        let left = std::fs::read(dir.path().join("none")).expect("there");
        assert_ne!(
            left.get(..4),
            Some(&b"QFI\xfb"[..]),
            "no half image is left"
        );
    }
}

#[test]
fn names_too_long_for_the_header_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().expect("a directory");
    for (name_bytes, cluster_bytes, fits) in
        [(1023, 65536, true), (1024, 65536, false), (400, 512, false)]
    {
        let name = "x".repeat(name_bytes);
        let options = Options {
            backing_file: Some(name.clone()),
            backing_format: Some("raw".into()),
            cluster_bytes,
            ..Options::new(1 << 20)
        };
        let made = make(dir.path(), "image", &options);
        assert_eq!(made.is_ok(), fits, "{made:?}");
        if let Err(error) = made {
            let why = if name_bytes > 1023 {
                "Invalid argument"
            } else {
                "No space left on device"
            };
            let words = format!("Could not assign backing file '{name}' with format 'raw': {why}");
            assert_eq!(error.to_string(), words);
        }
    }
}
