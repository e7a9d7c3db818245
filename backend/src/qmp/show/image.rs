//! `ImageInfo`

use super::{name, object};
use blockgraph::driver::qcow2::format::header::{Compression, Version};
use blockgraph::report::{BitmapReport, ImageReport, Qcow2Report, SnapshotReport, Specific};
use serde_json::{Value, json};

/// An image with those below it, topmost first; they are as many as a graph is deep.
pub(super) fn image_info(layers: &[ImageReport]) -> Value {
    let from_below = layers.iter().rev();
    let nested = from_below.fold(None, |below, layer| Some(layer_info(layer, below)));
    nested.unwrap_or(Value::Null)
}

fn layer_info(image: &ImageReport, below: Option<Value>) -> Value {
    let backing = image.backing.as_ref();
    let snapshots: Vec<Value> = image.snapshots.iter().map(snapshot).collect();
    object([
        ("filename", Some(json!(name::text(&image.filename)))),
        ("format", Some(json!(image.format))),
        ("virtual-size", Some(json!(image.size_bytes))),
        ("actual-size", image.allocated_bytes.map(Value::from)),
        ("dirty-flag", image.storage.map(|s| json!(s.is_dirty))),
        (
            "cluster-size",
            image.storage.and_then(|s| s.cluster_bytes).map(Value::from),
        ),
        ("backing-filename", backing.map(|b| json!(b.stored))),
        ("full-backing-filename", backing.map(|b| json!(b.full))),
        (
            "backing-filename-format",
            backing.and_then(|b| b.format.clone()).map(Value::from),
        ),
        (
            "snapshots",
            (!snapshots.is_empty()).then_some(Value::Array(snapshots)),
        ),
        ("format-specific", specific(&image.specific)),
        ("backing-image", below),
    ])
}

/// `SnapshotInfo`
pub(in crate::qmp) fn snapshot(snapshot: &SnapshotReport) -> Value {
    const NS_PER_S: u64 = 1_000_000_000;
    object([
        ("id", Some(json!(snapshot.id))),
        ("name", Some(json!(snapshot.name))),
        ("vm-state-size", Some(json!(snapshot.vm_state_bytes))),
        ("date-sec", Some(json!(snapshot.taken_s))),
        ("date-nsec", Some(json!(snapshot.taken_ns))),
        ("vm-clock-sec", Some(json!(snapshot.vm_clock_ns / NS_PER_S))),
        (
            "vm-clock-nsec",
            Some(json!(snapshot.vm_clock_ns % NS_PER_S)),
        ),
        ("icount", snapshot.icount.map(Value::from)),
    ])
}

fn specific(specific: &Specific) -> Option<Value> {
    match specific {
        Specific::None => None,
        Specific::File => Some(json!({"type": "file", "data": {}})),
        Specific::Qcow2(image) => Some(json!({"type": "qcow2", "data": qcow2(image)})),
    }
}

/// Version 2 has no features to tell of.
fn qcow2(image: &Qcow2Report) -> Value {
    let is_new = image.version != Version::V2;
    let data = image.data_file.as_ref();
    let bitmaps: Vec<Value> = image.bitmaps.iter().map(bitmap).collect();
    let feature = |on: bool| is_new.then_some(json!(on));
    object([
        ("compat", Some(json!(if is_new { "1.1" } else { "0.10" }))),
        (
            "compression-type",
            Some(json!(compression(image.compression))),
        ),
        ("refcount-bits", Some(json!(image.refcount_bits))),
        ("lazy-refcounts", feature(image.has_lazy_refcounts)),
        ("corrupt", feature(image.is_corrupt)),
        ("extended-l2", feature(image.has_extended_l2)),
        (
            "data-file",
            data.and_then(|d| d.name.clone()).map(Value::from),
        ),
        ("data-file-raw", data.map(|d| json!(d.is_raw))),
        (
            "bitmaps",
            (!bitmaps.is_empty()).then_some(Value::Array(bitmaps)),
        ),
    ])
}

fn compression(compression: Compression) -> &'static str {
    match compression {
        Compression::Zlib => "zlib",
        Compression::Zstd => "zstd",
    }
}

fn bitmap(bitmap: &BitmapReport) -> Value {
    let flags = [("in-use", bitmap.flags.in_use), ("auto", bitmap.flags.auto)];
    let flags = flags.into_iter().filter(|(_, on)| *on);
    let flags: Vec<&str> = flags.map(|(name, _)| name).collect();
    json!({"name": bitmap.name, "granularity": bitmap.granularity_bytes, "flags": flags})
}
