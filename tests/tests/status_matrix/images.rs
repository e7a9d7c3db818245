//! The images of the matrix, made by the real qemu-img and qemu-io.

use std::path::{Path, PathBuf};
use std::process::Command;

/// An image, and how it is to be opened.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) name: String,
    /// Topmost first: what is below the first is named by the image above it.
    pub(crate) layers: Vec<Layer>,
    /// Filters are put above each layer here, and nowhere in QEMU: they must not be seen.
    pub(crate) filters: usize,
}

/// One file of a chain.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) path: PathBuf,
    pub(crate) format: &'static str,
}

/// A null disk has no file: its path says which.
pub(crate) const NULL: &str = "null-co";

pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a name of this test's making")
}

fn layer(dir: &Path, name: &str, format: &'static str, create: &str, io: &[&str]) -> Layer {
    let path = dir.join(name);
    let create = create.replace("DIR", text(dir));
    let mut args = vec!["create", "-q", "-f", format];
    let (size, options) = create.split_once(' ').unwrap_or((&create, ""));
    args.extend(options.split_whitespace());
    args.extend([text(&path), size]);
    run("qemu-img", &args);
    for command in io {
        let said = run(
            "qemu-io",
            &["-f", format, "-d", "unmap", "-c", command, text(&path)],
        );
        assert!(!said.contains("failed"), "{name}: {command}: {said}");
    }
    Layer { path, format }
}

/// Clusters of every kind: data, shared zeroes, zeroes with space, given back, nothing.
const EVERY_KIND: &[&str] = &[
    "write -P 1 0 192k",
    "write -P 2 256k 64k",
    "write -z 256k 64k",
    "write -z -u 384k 64k",
    "write -P 3 512k 64k",
    "discard 512k 64k",
    "write -P 4 704k 4k",
    "write -z 708k 4k",
    "write -P 5 960k 128k",
];

/// Single images: name, format, size and options, what is done to them.
#[rustfmt::skip]
const SINGLE: &[(&str, &str, &str, &[&str])] = &[
    ("raw-empty", "raw", "2M", &[]),
    ("raw-full", "raw", "1M -o preallocation=full", &["write -P 1 0 1M"]),
    ("raw-holes", "raw", "2M", &["write -P 1 64k 64k", "write -P 2 512k 256k"]),
    ("raw-hole-last", "raw", "2M", &["write -P 1 0 1M"]),
    ("raw-zeroes", "raw", "1M", &["write -P 1 0 1M", "write -z -u 256k 256k"]),
    ("raw-odd", "raw", "1000k", &["write -P 1 996k 4k"]),
    ("empty", "qcow2", "2M", &[]),
    ("every-kind", "qcow2", "2M", EVERY_KIND),
    ("v2", "qcow2", "2M -o compat=0.10", &["write -P 1 0 192k", "write -P 3 512k 64k", "discard 512k 64k"]),
    ("lazy", "qcow2", "2M -o lazy_refcounts=on", EVERY_KIND),
    ("clusters-512", "qcow2", "2M -o cluster_size=512", EVERY_KIND),
    ("clusters-4k", "qcow2", "2M -o cluster_size=4k", EVERY_KIND),
    ("clusters-2M", "qcow2", "16M -o cluster_size=2M", &["write -P 1 0 2M", "write -z 4M 2M", "write -P 2 8M 4k"]),
    ("refcount-1", "qcow2", "2M -o refcount_bits=1", EVERY_KIND),
    ("refcount-64", "qcow2", "2M -o refcount_bits=64", EVERY_KIND),
    ("subclusters", "qcow2", "2M -o extended_l2=on,cluster_size=64k", EVERY_KIND),
    ("subclusters-4k", "qcow2", "2M -o extended_l2=on,cluster_size=128k",
     &["write -P 1 0 4k", "write -z 8k 4k", "write -P 2 128k 128k", "write -z 132k 8k", "discard 160k 8k"]),
    ("subclusters-zero", "qcow2", "2M -o extended_l2=on,cluster_size=64k",
     &["write -z 0 64k", "write -P 1 2k 2k", "write -z -u 130k 10k", "write -P 7 192k 64k", "write -z 192k 64k"]),
    ("zlib", "qcow2", "2M", &["write -c -P 1 0 64k", "write -c -P 2 64k 64k", "write -P 3 128k 64k", "write -c -P 4 1M 64k"]),
    ("zstd", "qcow2", "2M -o compression_type=zstd", &["write -c -P 1 0 64k", "write -P 3 128k 64k", "write -c -P 4 1M 64k"]),
    ("zlib-4k", "qcow2", "2M -o cluster_size=4k", &["write -c -P 1 0 4k", "write -c -P 2 4k 4k", "write -P 3 12k 4k"]),
    ("compressed-subclusters", "qcow2", "2M -o extended_l2=on", &["write -c -P 1 0 64k", "write -P 3 66k 2k"]),
    ("data-file", "qcow2", "2M -o data_file=DIR/data-file.raw", EVERY_KIND),
    ("data-file-raw", "qcow2", "2M -o data_file=DIR/data-file-raw.raw,data_file_raw=on", EVERY_KIND),
    ("data-file-subclusters", "qcow2", "2M -o data_file=DIR/dfs.raw,extended_l2=on", EVERY_KIND),
    ("metadata", "qcow2", "2M -o preallocation=metadata", &["write -P 1 64k 64k"]),
    ("falloc", "qcow2", "2M -o preallocation=falloc", &["write -P 1 64k 64k"]),
    ("full", "qcow2", "2M -o preallocation=full", &["write -P 1 64k 64k"]),
    ("odd-size", "qcow2", "1500k", &["write -P 1 1408k 92k", "write -z 0 64k"]),
    ("snapshot", "qcow2", "2M", EVERY_KIND),
];

/// Of a chain: format, size and options, what is done to it.
type Part = (&'static str, &'static str, &'static [&'static str]);

/// Chains: name, then the layers from the base up.
#[rustfmt::skip]
const CHAINS: &[(&str, &[Part])] = &[
    ("chain-2", &[("qcow2", "2M", EVERY_KIND), ("qcow2", "2M", &["write -P 9 64k 64k", "write -z 128k 64k", "write -P 8 1M 64k"])]),
    ("chain-2-raw", &[("raw", "2M", &["write -P 1 0 256k", "write -P 2 1M 64k"]), ("qcow2", "2M", &["write -z 64k 64k", "write -P 8 512k 64k"])]),
    ("short-base", &[("qcow2", "640k", EVERY_KIND_SMALL), ("qcow2", "2M", &["write -P 9 64k 64k", "write -P 8 1M 64k"])]),
    ("short-raw", &[("raw", "600k", &["write -P 1 0 600k"]), ("qcow2", "2M", &["write -z 64k 64k", "write -P 8 1M 64k"])]),
    ("short-middle", &[("qcow2", "2M", EVERY_KIND), ("qcow2", "700k", &["write -P 9 64k 64k"]), ("qcow2", "2M", &["write -P 8 1M 64k"])]),
    ("short-all", &[("qcow2", "256k", &["write -P 1 0 256k"]), ("qcow2", "512k", &["write -P 2 64k 64k"]), ("qcow2", "1M", &["write -P 3 320k 64k"]), ("qcow2", "2M", &["write -P 4 1200k 64k"])]),
    ("long-base", &[("qcow2", "4M", &["write -P 1 0 4M"]), ("qcow2", "1M", &["write -z 0 64k"])]),
    ("chain-3-clusters", &[("qcow2", "2M -o cluster_size=4k", EVERY_KIND), ("qcow2", "2M -o cluster_size=2M", &[]), ("qcow2", "2M -o cluster_size=64k", &["write -P 6 960k 64k"])]),
    ("chain-4", &[("raw", "2M", &["write -P 1 0 2M"]), ("qcow2", "2M", &["write -P 2 0 64k"]), ("qcow2", "2M", &["write -z 128k 64k"]), ("qcow2", "2M", &["write -P 3 256k 64k"])]),
    ("chain-5", &[("qcow2", "2M", EVERY_KIND), ("qcow2", "2M", &["write -P 2 0 64k"]), ("qcow2", "1M", &["write -z 128k 64k"]), ("qcow2", "2M", &["write -P 3 256k 64k"]), ("qcow2", "3M", &["write -P 4 2M 64k"])]),
    ("subclusters-on-data", &[("qcow2", "2M", &["write -P 1 0 2M"]), ("qcow2", "2M -o extended_l2=on", &["write -P 2 2k 2k", "write -z 6k 2k", "write -P 3 64k 64k", "discard 80k 4k"])]),
    ("subclusters-on-short", &[("qcow2", "100k", &["write -P 1 0 100k"]), ("qcow2", "2M -o extended_l2=on", &["write -P 2 98k 2k", "write -z 64k 2k"])]),
    ("compressed-base", &[("qcow2", "2M", &["write -c -P 1 0 64k", "write -c -P 2 128k 64k"]), ("qcow2", "2M", &["write -P 3 128k 4k"])]),
    ("data-file-on-base", &[("qcow2", "2M", EVERY_KIND), ("qcow2", "2M -o data_file=DIR/overlay-data.raw", &["write -P 3 128k 64k", "write -z 0 64k"])]),
];

const EVERY_KIND_SMALL: &[&str] = &[
    "write -P 1 0 192k",
    "write -z 256k 64k",
    "write -P 4 600k 4k",
];

/// All of them.
pub(crate) fn all(dir: &Path) -> Vec<Image> {
    let mut images = Vec::new();
    for (name, format, create, io) in SINGLE {
        let layers = vec![layer(dir, name, format, create, io)];
        if *name == "snapshot" {
            let path = text(&layers[0].path);
            run("qemu-img", &["snapshot", "-c", "s", path]);
            run(
                "qemu-io",
                &["-f", "qcow2", "-c", "write -P 9 128k 64k", path],
            );
        }
        images.push(image(name, layers));
    }
    for (name, parts) in CHAINS {
        let mut layers: Vec<Layer> = Vec::new();
        for (at, (format, create, io)) in parts.iter().enumerate() {
            let mut create = (*create).to_owned();
            if let Some(below) = layers.first() {
                create += &format!(" -b {} -F {}", text(&below.path), below.format);
            }
            let name = format!("{name}.{at}");
            layers.insert(0, layer(dir, &name, format, &create, io));
        }
        images.push(image(name, layers));
    }
    for filters in [1, 3] {
        let with: Vec<Image> = images
            .iter()
            .filter(|image| image.layers.len() > 1)
            .cloned()
            .collect();
        for mut image in with.into_iter().filter(|image| image.filters == 0).take(5) {
            image.name += &format!("-filters-{filters}");
            image.filters = filters;
            images.push(image);
        }
    }
    for reads in ["off", "on"] {
        let layer = Layer {
            path: reads.into(),
            format: NULL,
        };
        images.push(image(&format!("null-{reads}"), vec![layer]));
    }
    images
}

fn image(name: &str, layers: Vec<Layer>) -> Image {
    Image {
        name: name.to_owned(),
        layers,
        filters: 0,
    }
}
