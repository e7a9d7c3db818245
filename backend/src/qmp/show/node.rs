//! `BlockDeviceInfo`

use super::image::image_info;
use super::{name, object};
use blockgraph::bitmap::{BitmapReport, JournalReport, JournalStage, Keeping, State};
use blockgraph::driver::file::{Cache, Flushes};
use blockgraph::graph::{Access, Activity, DetectZeroes};
use blockgraph::report::NodeReport;
use serde_json::{Value, json};

/// A node. Limits are those of devices, of which there are none here: a throttle filter's are its group's.
pub(in crate::qmp) fn node_info(node: &NodeReport) -> Value {
    let filename = node.layers.first().map(|image| name::text(&image.filename));
    let caching = node.common.caching;
    let mut info = object([
        ("node-name", Some(json!(node.name))),
        ("drv", Some(json!(node.kind))),
        ("file", Some(json!(filename.unwrap_or_default()))),
        ("ro", Some(json!(node.common.access == Access::ReadOnly))),
        (
            "backing_file",
            node.backing.as_ref().map(|b| json!(name::text(b))),
        ),
        (
            "backing_file_depth",
            Some(json!(node.layers.len().saturating_sub(1))),
        ),
        (
            "active",
            Some(json!(node.common.activity == Activity::Active)),
        ),
        ("encrypted", Some(json!(false))),
        (
            "detect_zeroes",
            Some(json!(detect_zeroes(node.common.detect_zeroes))),
        ),
        ("image", Some(image_info(&node.layers))),
        (
            "cache",
            Some(json!({
                // Writes are cached until they are flushed: an export may ask for more, a node does not.
                "writeback": true,
                "direct": caching.cache == Cache::Direct,
                "no-flush": caching.flushes == Flushes::Nothing,
            })),
        ),
        // QAPI's int has a sign, and QEMU shows what it holds.
        (
            "write_threshold",
            Some(json!(node.write_threshold.cast_signed())),
        ),
        ("dirty-bitmaps", bitmaps(&node.bitmaps)),
        ("x-bitmap-journal", node.journal.as_ref().map(journal)),
    ]);
    for limit in ["bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"] {
        info[limit] = json!(0);
    }
    info
}

/// `XBitmapJournalInfo`, our own.
fn journal(journal: &JournalReport) -> Value {
    json!({
        "path": journal.path.display().to_string(),
        "state": match journal.stage {
            JournalStage::AtRest => "at-rest",
            JournalStage::Kept => "kept",
            JournalStage::GivenUp => "given-up",
        },
        "region-size": journal.region_bytes,
        "regions": journal.regions,
    })
}

/// `BlockDirtyInfo` of each; nothing where there are none.
fn bitmaps(bitmaps: &[BitmapReport]) -> Option<Value> {
    let shown = bitmaps.iter().map(|bitmap| {
        let inconsistent = bitmap.state == State::Inconsistent;
        object([
            ("name", Some(json!(bitmap.name))),
            ("count", Some(json!(bitmap.dirty_bytes))),
            ("granularity", Some(json!(bitmap.granularity_bytes))),
            ("recording", Some(json!(bitmap.state == State::Recording))),
            ("busy", Some(json!(bitmap.busy))),
            (
                "persistent",
                Some(json!(bitmap.keeping == Keeping::Persistent)),
            ),
            ("inconsistent", inconsistent.then(|| json!(true))),
        ])
    });
    (!bitmaps.is_empty()).then(|| shown.collect())
}

fn detect_zeroes(detect: DetectZeroes) -> &'static str {
    match detect {
        DetectZeroes::Off => "off",
        DetectZeroes::On => "on",
        DetectZeroes::Unmap => "unmap",
    }
}
