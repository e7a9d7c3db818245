//! Our check beside `qemu-img check`: the same figures for good images, and damaged ones set right.

use crate::support;
use blockgraph::Mode;
use blockgraph::driver::file::Cache;
use blockgraph::driver::qcow2::Options;
use blockgraph::driver::qcow2::check::{CheckError, Repair, Report, check, repair_dirty};
use blockgraph::graph::open::{Backing, DriverSpec, NodeSpec, Qcow2Spec};
use blockgraph::graph::perm::{Perms, Wants, attach};
use blockgraph::graph::{Access, Common};
use ring::Choice;
use std::os::unix::fs::FileExt;
use std::path::Path;
use support::{Bench, Chance, file, inline, qemu};

fn run_check(path: &Path, repair: Repair) -> Result<Report, CheckError> {
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let node = bench.open(file(path, Cache::Page));
    let graph = bench.current.get();
    let ran = bench.control.run(&graph, node, move |io| async move {
        check(&io, node, repair).await
    });
    ran.expect("a turn")
}

/// A figure of `qemu-img check --output=json`; what is not told is 0.
fn figure(json: &str, key: &str) -> u64 {
    let line = json
        .lines()
        .find(|line| line.contains(&format!("\"{key}\"")));
    let number = line.and_then(|line| line.split(": ").nth(1));
    number.map_or(0, |number| {
        number.trim_end_matches(',').parse().expect("a number")
    })
}

fn theirs(dir: &Path, image: &str) -> String {
    let output = qemu::run(
        dir,
        "qemu-img",
        &["check", "--output=json", "-f", "qcow2", image],
    );
    String::from_utf8(output.stdout).expect("text")
}

fn compare_figures(dir: &Path, image: &str) {
    let ours = run_check(&dir.join(image), Repair::Nothing).expect("checked");
    let json = theirs(dir, image);
    let told = [
        ("corruptions", ours.corruptions),
        ("leaks", ours.leaks),
        ("total-clusters", ours.total_clusters),
        ("allocated-clusters", ours.allocated_clusters),
        ("compressed-clusters", ours.compressed_clusters),
        ("fragmented-clusters", ours.fragmented_clusters),
        ("image-end-offset", ours.image_end_offset),
    ];
    for (key, ours_says) in told {
        assert_eq!(ours_says, figure(&json, key), "{key}: {ours:#?}\n{json}");
    }
}

/// Images of every kind, made and written by QEMU's tools: options, and what is done to them.
const IMAGES: &[(&str, &[&str])] = &[
    ("compat=0.10", &["write 0 1M", "write 3M 100k"]),
    (
        "compat=0.10,cluster_size=512",
        &["write 0 1M", "write 3M 100k", "discard 0 64k"],
    ),
    (
        "cluster_size=512,refcount_bits=1",
        &["write 0 1M", "write 3M 100k"],
    ),
    (
        "cluster_size=1k,refcount_bits=2",
        &["write 0 1M", "write -z 4M 1M", "write -z -u 0 64k"],
    ),
    (
        "cluster_size=2k,refcount_bits=4",
        &["write 0 1M", "discard 64k 128k"],
    ),
    (
        "cluster_size=4k,refcount_bits=8",
        &["write 0 1M", "write 3M 100k"],
    ),
    (
        "cluster_size=64k,refcount_bits=32",
        &["write 0 1M", "write 30M 100k"],
    ),
    (
        "cluster_size=2M,refcount_bits=64",
        &["write 0 1M", "write 30M 100k"],
    ),
    (
        "extended_l2=on",
        &[
            "write 0 10k",
            "write 100k 3k",
            "write -z 1M 2k",
            "write -z 2M 64k",
        ],
    ),
    (
        "extended_l2=on,cluster_size=16k",
        &["write 0 10k", "write 100k 3k", "discard 0 4k"],
    ),
    (
        "preallocation=metadata",
        &["write 0 10k", "write -z 64k 64k"],
    ),
    ("preallocation=metadata,extended_l2=on", &["write 0 10k"]),
    ("data_file=data", &["write 0 1M", "write -z 2M 64k"]),
    (
        "data_file=data,data_file_raw=on",
        &["write 0 1M", "write -z 2M 64k"],
    ),
    (
        "cluster_size=64k",
        &[
            "write -c 0 64k",
            "write -c 64k 64k",
            "write -c 1M 64k",
            "write 128k 64k",
        ],
    ),
    (
        "cluster_size=2M",
        &["write -c 0 2M", "write -c 2M 2M", "write 0 10k"],
    ),
    (
        "cluster_size=64k,compression_type=zstd",
        &["write -c 0 64k", "write -c 64k 64k"],
    ),
    ("lazy_refcounts=on", &["write 0 1M", "write 3M 100k"]),
];

fn prepare(dir: &Path, options: &str, commands: &[&str]) {
    qemu::ok(
        dir,
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", options, "image", "32M"],
    );
    qemu::io(dir, "image", commands);
}

/// With snapshots between the writes, where the refcounts are wide enough, and with bitmaps.
fn add_history(dir: &Path, options: &str) {
    if options.contains("data_file") || options.contains("refcount_bits=1") {
        return;
    }
    qemu::ok(dir, "qemu-img", &["snapshot", "-c", "one", "image"]);
    qemu::io(dir, "image", &["write -P 9 64k 200k"]);
    qemu::ok(dir, "qemu-img", &["snapshot", "-c", "two", "image"]);
    if !options.contains("compat=0.10") {
        qemu::ok(
            dir,
            "qemu-img",
            &["bitmap", "--add", "--enable", "-g", "64k", "image", "bits"],
        );
        qemu::io(dir, "image", &["write -P 8 0 100k"]);
    }
}

#[test]
fn sound_images_have_the_figures_that_qemu_img_tells() {
    for (options, commands) in IMAGES {
        println!("{options} {commands:?}");
        let dir = tempfile::tempdir().expect("a directory");
        prepare(dir.path(), options, commands);
        compare_figures(dir.path(), "image");
        add_history(dir.path(), options);
        compare_figures(dir.path(), "image");
        let ours = run_check(&dir.path().join("image"), Repair::Nothing).expect("checked");
        assert!(ours.is_clean(), "{ours:#?}");
    }
}

/// Where the first refcount block is, and how it is damaged.
fn damage(path: &Path, chance: &mut Chance) {
    let image = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("opened");
    let word = |at: u64| {
        let mut bytes = [0; 8];
        image.read_exact_at(&mut bytes, at).expect("read");
        u64::from_be_bytes(bytes)
    };
    let block = word(word(48));
    let cluster = 1 << (word(16) as u32);
    for _ in 0..=chance.below(6) {
        let at = block + chance.below(cluster.min(40));
        image
            .write_all_at(&[chance.next() as u8 & 3], at)
            .expect("written");
    }
}

#[test]
fn damaged_refcounts_are_found_as_qemu_img_finds_them_and_set_right() {
    for seed in 0..24 {
        let mut chance = Chance(seed);
        let (options, commands) = IMAGES[chance.below(IMAGES.len() as u64) as usize];
        println!("seed {seed}: {options}");
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        prepare(dir, options, commands);
        add_history(dir, options);
        std::fs::copy(dir.join("image"), dir.join("good")).expect("copied");
        damage(&dir.join("image"), &mut chance);
        compare_figures(dir, "image");
        let repaired = run_check(&dir.join("image"), Repair::Everything).expect("repaired");
        assert!(repaired.is_clean(), "{repaired:#?}");
        qemu::check(dir, "image");
        qemu::ok(
            dir,
            "qemu-img",
            &[
                "compare", "-q", "-f", "qcow2", "-F", "qcow2", "image", "good",
            ],
        );
    }
}

#[test]
fn leaks_alone_are_freed_where_only_that_is_asked() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    prepare(dir, "refcount_bits=16", &["write 0 1M"]);
    // Cluster 100 of 64 KiB: far past the end of what is used.
    let image = std::fs::OpenOptions::new()
        .write(true)
        .open(dir.join("image"))
        .expect("opened");
    image.set_len(200 << 16).expect("sized");
    image
        .write_all_at(&[0, 1], (2 << 16) + 200)
        .expect("written");
    let found = run_check(&dir.join("image"), Repair::Nothing).expect("checked");
    assert_eq!((found.leaks, found.corruptions), (1, 0));
    let fixed = run_check(&dir.join("image"), Repair::Leaks).expect("repaired");
    assert_eq!((fixed.leaks, fixed.leaks_fixed), (0, 1));
    qemu::check(dir, "image");
}

/// The refcount table gone, its blocks misplaced, shared or past the end: new ones are made.
#[test]
fn refcounts_that_cannot_be_written_are_made_anew() {
    let words: [(&str, u64); 5] = [
        ("no block", 0),
        ("not aligned", 0x20200),
        ("past the end", 1 << 40),
        ("the header", 1 << 63),
        ("the L1 table", 0x30000),
    ];
    for (turn, (options, commands)) in IMAGES.iter().enumerate() {
        for (what, word) in [words[turn % 5], words[(turn + 2) % 5]] {
            println!("{options}: {what}");
            let dir = tempfile::tempdir().expect("a directory");
            let dir = dir.path();
            prepare(dir, options, commands);
            add_history(dir, options);
            std::fs::copy(dir.join("image"), dir.join("good")).expect("copied");
            let path = dir.join("image");
            let image = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path);
            let image = image.expect("opened");
            let mut table = [0; 8];
            image.read_exact_at(&mut table, 48).expect("read");
            let table = u64::from_be_bytes(table);
            image
                .write_all_at(&word.to_be_bytes(), table)
                .expect("written");
            let found = run_check(&path, Repair::Nothing).expect("checked");
            assert!(found.corruptions > 0);
            let repaired = run_check(&path, Repair::Everything).expect("repaired");
            assert!(repaired.is_clean(), "{repaired:#?}");
            qemu::check(dir, "image");
            qemu::ok(
                dir,
                "qemu-img",
                &[
                    "compare", "-q", "-f", "qcow2", "-F", "qcow2", "image", "good",
                ],
            );
            qemu::io(dir, "image", &["write -P 3 9M 1M", "read -P 3 9M 1M"]);
            qemu::check(dir, "image");
        }
    }
}

fn qcow2(path: &Path, access: Access) -> NodeSpec {
    let mut spec = file(path, Cache::Page);
    spec.common.access = access;
    NodeSpec {
        name: None,
        common: Common {
            access,
            ..spec.common
        },
        driver: DriverSpec::Qcow2(Box::new(Qcow2Spec {
            file: inline(spec),
            data_file: None,
            backing: Backing::Nothing,
            options: Options::default(),
            named: blockgraph::graph::gate::Named::default(),
            journal: None,
        })),
    }
}

fn killed_writer(dir: &Path) {
    prepare(dir, "lazy_refcounts=on", &["write 0 1M"]);
    let killed = [
        "-f",
        "qcow2",
        "-c",
        "write -P 5 4M 1M",
        "-c",
        "flush",
        "-c",
        "abort",
        "image",
    ];
    qemu::run(dir, "qemu-io", &killed);
    assert!(qemu::info(dir, "image").contains("\"dirty-flag\": true"));
}

#[test]
fn a_dirty_image_is_repaired_when_it_is_opened_for_writing_and_not_when_for_reading() {
    for (access, dirty) in [(Access::ReadOnly, true), (Access::ReadWrite, false)] {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        killed_writer(dir);
        let mut bench = Bench::new(Choice::Threads, Mode::Fast);
        let node = bench.open(qcow2(&dir.join("image"), access));
        assert_eq!(bench.read(node, 4 << 20, 512), vec![5; 512]);
        drop(bench);
        let info = qemu::info(dir, "image");
        assert!(info.contains(&format!("\"dirty-flag\": {dirty}")), "{info}");
    }
}

#[test]
fn a_dirty_image_that_is_corrupt_too_is_refused_for_writing() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    killed_writer(dir.path());
    let image = std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("opened");
    image.write_all_at(&[3], 79).expect("written");
    let bench = Bench::new(Choice::Threads, Mode::Fast);
    let refused = support::open(&bench.current, qcow2(&path, Access::ReadWrite));
    assert_eq!(
        refused.expect_err("corrupt").to_string(),
        "qcow2: Image is corrupt; cannot be opened read/write"
    );
}

/// A writer elsewhere would not see what a repair does.
#[test]
fn an_image_that_another_writer_has_open_is_not_repaired() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    killed_writer(dir.path());
    let before = std::fs::read(&path).expect("read");
    let mut other = Bench::new(Choice::Threads, Mode::Fast);
    let node = other.open(file(&path, Cache::Page));
    let wants = Wants {
        needs: Perms::READ_WRITE,
        shares: Perms::READ,
    };
    let _user = attach(&other.current, node, wants, None).expect("attached");
    let bench = Bench::new(Choice::Threads, Mode::Fast);
    let refused = support::open(&bench.current, qcow2(&path, Access::ReadWrite));
    assert_eq!(
        refused.expect_err("locked").to_string(),
        "Failed to get \"write\" lock"
    );
    assert!(std::fs::read(&path).expect("read") == before);
}

/// With lazy refcounts a killed writer leaves the dirty bit and refcounts of zero for what it wrote.
#[test]
fn an_image_left_dirty_is_repaired_and_no_longer_says_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    prepare(dir, "lazy_refcounts=on", &["write 0 1M"]);
    let killed = [
        "-f",
        "qcow2",
        "-c",
        "write -P 5 4M 1M",
        "-c",
        "flush",
        "-c",
        "abort",
        "image",
    ];
    qemu::run(dir, "qemu-io", &killed);
    assert!(qemu::info(dir, "image").contains("\"dirty-flag\": true"));
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let node = bench.open(file(&dir.join("image"), Cache::Page));
    let graph = bench.current.get();
    let ran = bench.control.run(&graph, node, move |io| async move {
        repair_dirty(&io, node).await
    });
    let report = ran.expect("a turn").expect("repaired");
    assert!(report.corruptions_fixed > 0, "{report:#?}");
    drop(bench);
    assert!(qemu::info(dir, "image").contains("\"dirty-flag\": false"));
    qemu::check(dir, "image");
    qemu::io(dir, "image", &["read -P 5 4M 1M"]);
}
