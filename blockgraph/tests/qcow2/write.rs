//! qcow2 images of every kind, made by the real qemu-img, written by us: `qemu-img check` finds nothing, and what QEMU reads
//! is what a model says.

use crate::support;
use blockgraph::Mode;
use blockgraph::driver::qcow2::Options;
use blockgraph::graph::open::Backing;
use std::path::PathBuf;
use support::qcow2::{create, flat, overlay, qemu_io, scribble};
use support::writes::{Habits, below, change, close, compare, image, judge};
use support::{Bench, Chance, engines, modes};

/// Not a whole number of any cluster.
const SIZE: u64 = (3 << 20) + 3 * 512;

/// An image and how it is used.
struct Case {
    dir: tempfile::TempDir,
    options: &'static str,
    size: u64,
    data_file: bool,
    /// Format of the image below, and its size.
    backing: Option<(&'static str, u64)>,
    habits: Habits,
    open: Options,
}

fn cluster(options: &str) -> u64 {
    let named = options
        .split(',')
        .find_map(|option| option.strip_prefix("cluster_size="));
    named.map_or(65536, |bytes| bytes.parse().expect("a number"))
}

impl Case {
    fn new(options: &'static str) -> Case {
        let unit = cluster(options).min(131_072);
        Case {
            dir: tempfile::tempdir().expect("a directory"),
            options,
            size: SIZE,
            data_file: false,
            backing: None,
            habits: Habits {
                unit,
                units_max: (262_144 / unit).clamp(2, 64),
                at_once: 6,
            },
            open: Options::default(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk.qcow2")
    }

    fn data_path(&self) -> Option<PathBuf> {
        self.data_file.then(|| self.dir.path().join("disk.data"))
    }

    fn below_path(&self) -> PathBuf {
        self.dir.path().join("below")
    }

    /// Makes the image with what is below it; returns what it reads as.
    fn make(&self, seed: u64) -> Vec<u8> {
        let data = self.data_path();
        let options = match &data {
            Some(data) => format!("{},data_file={}", self.options, data.display()),
            None => self.options.to_owned(),
        };
        let _ = std::fs::remove_file(self.path());
        match self.backing {
            None => create(&self.path(), options.trim_start_matches(','), self.size),
            Some((format, size)) => {
                self.make_below(format, size, seed);
                overlay(
                    &self.path(),
                    &options,
                    self.size,
                    &self.below_path(),
                    format,
                );
            }
        }
        flat(&self.path(), "qcow2")
    }

    fn make_below(&self, format: &str, size: u64, seed: u64) {
        let path = self.below_path();
        let _ = std::fs::remove_file(&path);
        match format {
            "raw" => {
                let file = std::fs::File::create(&path).expect("created");
                file.set_len(size).expect("sized");
            }
            _ => create(&path, "", size),
        }
        qemu_io(&path, format, &scribble(&mut Chance(seed), size, 65536, 12));
    }

    fn run(&self, seed: u64, mode: Mode, count: usize) {
        println!("{} {:?} {mode:?} seed {seed}", self.options, self.backing);
        let mut model = self.make(seed);
        let mut chance = Chance(seed);
        for _ in 0..2 {
            self.session(&mut model, mode, &mut chance, count);
            judge(&self.path(), None, &model);
        }
    }

    fn session(&self, model: &mut [u8], mode: Mode, chance: &mut Chance, count: usize) {
        let engine = engines().pop().expect("at least the pool");
        let mut bench = Bench::new(engine, mode);
        let backing = match self.backing {
            None => Backing::Nothing,
            Some((format, _)) => below(&self.below_path(), format),
        };
        let data = self.data_path();
        let spec = image(&self.path(), data.as_deref(), backing, self.open.clone());
        let node = bench.open(spec);
        change(&mut bench, node, model, chance, self.habits, count);
        compare(&mut bench, node, model);
        assert_eq!(close(&mut bench, node), Ok(()));
    }

    fn all_modes(&self, seed: u64, count: usize) {
        for mode in modes(seed) {
            self.run(seed, mode, count);
        }
    }
}

#[test]
fn every_cluster_size() {
    for bits in [9, 10, 12, 14, 16, 18, 21] {
        let options = format!("cluster_size={}", 1u64 << bits);
        let case = Case::new(options.leak());
        case.all_modes(bits, 40);
    }
}

#[test]
fn every_refcount_width() {
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        let options = format!("cluster_size=4096,refcount_bits={bits}");
        let case = Case::new(options.leak());
        case.all_modes(bits, 40);
    }
}

#[test]
fn small_clusters_with_wide_refcounts_grow_their_tables() {
    let case = Case {
        size: 24 << 20,
        habits: Habits {
            unit: 65536,
            units_max: 16,
            at_once: 3,
        },
        ..Case::new("cluster_size=512,refcount_bits=64")
    };
    case.all_modes(64, 40);
}

#[test]
fn version_2_images() {
    for options in ["compat=0.10", "compat=0.10,cluster_size=4096"] {
        Case::new(options).all_modes(2, 60);
    }
    let backing = Some(("raw", 2 << 20));
    let case = Case {
        backing,
        ..Case::new("compat=0.10,cluster_size=16384")
    };
    case.all_modes(2, 60);
}

#[test]
fn subclusters() {
    for options in [
        "extended_l2=on,cluster_size=16384",
        "extended_l2=on,cluster_size=65536",
        "extended_l2=on,cluster_size=131072",
    ] {
        Case::new(options).all_modes(3, 60);
        let backing = Some(("qcow2", SIZE));
        let case = Case {
            backing,
            ..Case::new(options)
        };
        case.all_modes(4, 60);
    }
}

#[test]
fn images_with_something_below() {
    for (format, size) in [
        ("raw", SIZE),
        ("raw", 1 << 20),
        ("qcow2", SIZE),
        ("qcow2", 8 << 20),
    ] {
        for options in ["", "cluster_size=4096"] {
            let backing = Some((format, size));
            let case = Case {
                backing,
                ..Case::new(options)
            };
            case.all_modes(5, 50);
        }
    }
}

#[test]
fn images_with_a_data_file() {
    for options in [
        "",
        "cluster_size=4096",
        "extended_l2=on",
        "data_file_raw=on",
    ] {
        let case = Case {
            data_file: true,
            ..Case::new(options)
        };
        case.all_modes(6, 50);
    }
}

#[test]
fn a_raw_data_file_reads_as_the_disk() {
    let case = Case {
        data_file: true,
        ..Case::new("data_file_raw=on")
    };
    for mode in modes(7) {
        case.run(7, mode, 50);
        let data = case.data_path().expect("a data file");
        let raw = std::fs::read(data).expect("read");
        let disk = flat(&case.path(), "qcow2");
        assert!(raw[..disk.len()] == disk[..], "{mode:?}");
    }
}

#[test]
fn late_refcounts() {
    for options in [
        "lazy_refcounts=on",
        "lazy_refcounts=on,cluster_size=512,refcount_bits=64",
    ] {
        Case::new(options).all_modes(8, 50);
    }
}

#[test]
fn the_smallest_caches() {
    let cache = blockgraph::driver::qcow2::cache::CacheOptions {
        l2: Some(0),
        l2_entry: Some(512),
        refcount: Some(0),
        ..Default::default()
    };
    for options in [
        "cluster_size=4096",
        "cluster_size=512,refcount_bits=64",
        "extended_l2=on",
    ] {
        let open = Options {
            cache,
            ..Options::default()
        };
        let case = Case {
            open,
            ..Case::new(options)
        };
        case.all_modes(9, 40);
    }
}

#[test]
fn preallocated_images() {
    for options in [
        "preallocation=metadata",
        "preallocation=falloc,cluster_size=4096",
    ] {
        Case::new(options).all_modes(10, 40);
    }
}
