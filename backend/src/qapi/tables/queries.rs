//! What is known of nodes (qapi/block-core.json).

use super::create::QCOW2_COMPRESSION_TYPE;
use super::nodes::{BLOCK_PERMISSION, BLOCKDEV_DETECT_ZEROES_OPTIONS, BLOCKDEV_DRIVER};
use crate::qapi::{
    BOOL, Case, Enum, INT, NUMBER, Object, SIZE, STR, Type, UINT32, UINT64, enumeration, object,
    opt, req, union,
};

/// Arguments of `query-named-block-nodes`.
pub static QUERY_NAMED_BLOCK_NODES_ARG: Object =
    object("q_obj_query-named-block-nodes-arg", &[opt("flat", BOOL)]);

/// `BlockDeviceInfo`
pub static BLOCK_DEVICE_INFO: Object = object(
    "BlockDeviceInfo",
    &[
        req("file", STR),
        opt("node-name", STR),
        req("ro", BOOL),
        req("drv", STR),
        opt("backing_file", STR),
        req("backing_file_depth", INT),
        req("active", BOOL),
        req("encrypted", BOOL),
        req("detect_zeroes", Type::Enum(&BLOCKDEV_DETECT_ZEROES_OPTIONS)),
        req("bps", INT),
        req("bps_rd", INT),
        req("bps_wr", INT),
        req("iops", INT),
        req("iops_rd", INT),
        req("iops_wr", INT),
        req("image", Type::Object(&IMAGE_INFO)),
        opt("bps_max", INT),
        opt("bps_rd_max", INT),
        opt("bps_wr_max", INT),
        opt("iops_max", INT),
        opt("iops_rd_max", INT),
        opt("iops_wr_max", INT),
        opt("bps_max_length", INT),
        opt("bps_rd_max_length", INT),
        opt("bps_wr_max_length", INT),
        opt("iops_max_length", INT),
        opt("iops_rd_max_length", INT),
        opt("iops_wr_max_length", INT),
        opt("iops_size", INT),
        opt("group", STR),
        req("cache", Type::Object(&BLOCKDEV_CACHE_INFO)),
        req("write_threshold", INT),
        opt(
            "dirty-bitmaps",
            Type::Array(&Type::Object(&BLOCK_DIRTY_INFO)),
        ),
        // Ours: see the README.
        opt("x-bitmap-journal", Type::Object(&X_BITMAP_JOURNAL_INFO)),
    ],
);

/// `XBitmapJournalInfo`, our own: what keeps a node's bitmaps through a crash.
pub static X_BITMAP_JOURNAL_INFO: Object = object(
    "XBitmapJournalInfo",
    &[
        req("path", STR),
        req("state", Type::Enum(&X_BITMAP_JOURNAL_STATE)),
        req("region-size", INT),
        req("regions", INT),
    ],
);

/// `XBitmapJournalState`, our own.
pub static X_BITMAP_JOURNAL_STATE: Enum =
    enumeration("XBitmapJournalState", &["at-rest", "kept", "given-up"]);

/// `ImageInfo`
pub static IMAGE_INFO: Object = object(
    "ImageInfo",
    &[
        req("filename", STR),
        req("format", STR),
        opt("dirty-flag", BOOL),
        opt("actual-size", INT),
        req("virtual-size", INT),
        opt("cluster-size", SIZE),
        opt("encrypted", BOOL),
        opt("compressed", BOOL),
        opt("backing-filename", STR),
        opt("full-backing-filename", STR),
        opt("backing-filename-format", STR),
        opt("snapshots", Type::Array(&Type::Object(&SNAPSHOT_INFO))),
        opt("format-specific", Type::Object(&IMAGE_INFO_SPECIFIC)),
        opt("backing-image", Type::Object(&IMAGE_INFO)),
    ],
);

/// `SnapshotInfo`
pub static SNAPSHOT_INFO: Object = object(
    "SnapshotInfo",
    &[
        req("id", STR),
        req("name", STR),
        req("vm-state-size", INT),
        req("date-sec", INT),
        req("date-nsec", INT),
        req("vm-clock-sec", INT),
        req("vm-clock-nsec", INT),
        opt("icount", INT),
    ],
);

/// `ImageInfoSpecific`
pub static IMAGE_INFO_SPECIFIC: Object = union(
    "ImageInfoSpecific",
    &[req("type", Type::Enum(&IMAGE_INFO_SPECIFIC_KIND))],
    "type",
    &[
        Case {
            word: "qcow2",
            object: &IMAGE_INFO_SPECIFIC_QCOW2_WRAPPER,
        },
        Case {
            word: "file",
            object: &IMAGE_INFO_SPECIFIC_FILE_WRAPPER,
        },
    ],
);

/// `ImageInfoSpecificKind`
pub static IMAGE_INFO_SPECIFIC_KIND: Enum =
    enumeration("ImageInfoSpecificKind", &["qcow2", "file"]);

/// `ImageInfoSpecificQCow2Wrapper`
pub static IMAGE_INFO_SPECIFIC_QCOW2_WRAPPER: Object = object(
    "ImageInfoSpecificQCow2Wrapper",
    &[req("data", Type::Object(&IMAGE_INFO_SPECIFIC_QCOW2))],
);

/// `ImageInfoSpecificQCow2`
pub static IMAGE_INFO_SPECIFIC_QCOW2: Object = object(
    "ImageInfoSpecificQCow2",
    &[
        req("compat", STR),
        opt("data-file", STR),
        opt("data-file-raw", BOOL),
        opt("extended-l2", BOOL),
        opt("lazy-refcounts", BOOL),
        opt("corrupt", BOOL),
        req("refcount-bits", INT),
        opt("bitmaps", Type::Array(&Type::Object(&QCOW2_BITMAP_INFO))),
        req("compression-type", Type::Enum(&QCOW2_COMPRESSION_TYPE)),
    ],
);

/// `Qcow2BitmapInfo`
pub static QCOW2_BITMAP_INFO: Object = object(
    "Qcow2BitmapInfo",
    &[
        req("name", STR),
        req("granularity", UINT32),
        req("flags", Type::Array(&Type::Enum(&QCOW2_BITMAP_INFO_FLAGS))),
    ],
);

/// `Qcow2BitmapInfoFlags`
pub static QCOW2_BITMAP_INFO_FLAGS: Enum = enumeration("Qcow2BitmapInfoFlags", &["in-use", "auto"]);

/// `ImageInfoSpecificFileWrapper`
pub static IMAGE_INFO_SPECIFIC_FILE_WRAPPER: Object = object(
    "ImageInfoSpecificFileWrapper",
    &[req("data", Type::Object(&IMAGE_INFO_SPECIFIC_FILE))],
);

/// `ImageInfoSpecificFile`
pub static IMAGE_INFO_SPECIFIC_FILE: Object =
    object("ImageInfoSpecificFile", &[opt("extent-size-hint", SIZE)]);

/// `BlockdevCacheInfo`
pub static BLOCKDEV_CACHE_INFO: Object = object(
    "BlockdevCacheInfo",
    &[
        req("writeback", BOOL),
        req("direct", BOOL),
        req("no-flush", BOOL),
    ],
);

/// `BlockDirtyInfo`
pub static BLOCK_DIRTY_INFO: Object = object(
    "BlockDirtyInfo",
    &[
        opt("name", STR),
        req("count", INT),
        req("granularity", UINT32),
        req("recording", BOOL),
        req("busy", BOOL),
        req("persistent", BOOL),
        opt("inconsistent", BOOL),
    ],
);

/// `BlockInfo`
pub static BLOCK_INFO: Object = object(
    "BlockInfo",
    &[
        req("device", STR),
        opt("qdev", STR),
        req("type", STR),
        req("removable", BOOL),
        req("locked", BOOL),
        opt("inserted", Type::Object(&BLOCK_DEVICE_INFO)),
        opt("tray_open", BOOL),
        opt("io-status", Type::Enum(&BLOCK_DEVICE_IO_STATUS)),
    ],
);

/// `BlockDeviceIoStatus`
pub static BLOCK_DEVICE_IO_STATUS: Enum =
    enumeration("BlockDeviceIoStatus", &["ok", "failed", "nospace"]);

/// Arguments of `query-blockstats`.
pub static QUERY_BLOCKSTATS_ARG: Object =
    object("q_obj_query-blockstats-arg", &[opt("query-nodes", BOOL)]);

/// `BlockStats`
pub static BLOCK_STATS: Object = object(
    "BlockStats",
    &[
        opt("device", STR),
        opt("qdev", STR),
        opt("node-name", STR),
        req("stats", Type::Object(&BLOCK_DEVICE_STATS)),
        opt("driver-specific", Type::Object(&BLOCK_STATS_SPECIFIC)),
        opt("parent", Type::Object(&BLOCK_STATS)),
        opt("backing", Type::Object(&BLOCK_STATS)),
    ],
);

/// `BlockDeviceStats`
pub static BLOCK_DEVICE_STATS: Object = object(
    "BlockDeviceStats",
    &[
        req("rd_bytes", INT),
        req("wr_bytes", INT),
        req("zone_append_bytes", INT),
        req("unmap_bytes", INT),
        req("rd_operations", INT),
        req("wr_operations", INT),
        req("zone_append_operations", INT),
        req("flush_operations", INT),
        req("unmap_operations", INT),
        req("rd_total_time_ns", INT),
        req("wr_total_time_ns", INT),
        req("zone_append_total_time_ns", INT),
        req("flush_total_time_ns", INT),
        req("unmap_total_time_ns", INT),
        req("wr_highest_offset", INT),
        req("rd_merged", INT),
        req("wr_merged", INT),
        req("zone_append_merged", INT),
        req("unmap_merged", INT),
        opt("idle_time_ns", INT),
        req("failed_rd_operations", INT),
        req("failed_wr_operations", INT),
        req("failed_zone_append_operations", INT),
        req("failed_flush_operations", INT),
        req("failed_unmap_operations", INT),
        req("invalid_rd_operations", INT),
        req("invalid_wr_operations", INT),
        req("invalid_zone_append_operations", INT),
        req("invalid_flush_operations", INT),
        req("invalid_unmap_operations", INT),
        req("account_invalid", BOOL),
        req("account_failed", BOOL),
        // Ours, of exports: requests under way.
        opt("x-in-flight", INT),
        req(
            "timed_stats",
            Type::Array(&Type::Object(&BLOCK_DEVICE_TIMED_STATS)),
        ),
        opt(
            "rd_latency_histogram",
            Type::Object(&BLOCK_LATENCY_HISTOGRAM_INFO),
        ),
        opt(
            "wr_latency_histogram",
            Type::Object(&BLOCK_LATENCY_HISTOGRAM_INFO),
        ),
        opt(
            "zone_append_latency_histogram",
            Type::Object(&BLOCK_LATENCY_HISTOGRAM_INFO),
        ),
        opt(
            "flush_latency_histogram",
            Type::Object(&BLOCK_LATENCY_HISTOGRAM_INFO),
        ),
    ],
);

/// `BlockDeviceTimedStats`
pub static BLOCK_DEVICE_TIMED_STATS: Object = object(
    "BlockDeviceTimedStats",
    &[
        req("interval_length", INT),
        req("min_rd_latency_ns", INT),
        req("max_rd_latency_ns", INT),
        req("avg_rd_latency_ns", INT),
        req("min_wr_latency_ns", INT),
        req("max_wr_latency_ns", INT),
        req("avg_wr_latency_ns", INT),
        req("min_zone_append_latency_ns", INT),
        req("max_zone_append_latency_ns", INT),
        req("avg_zone_append_latency_ns", INT),
        req("min_flush_latency_ns", INT),
        req("max_flush_latency_ns", INT),
        req("avg_flush_latency_ns", INT),
        req("avg_rd_queue_depth", NUMBER),
        req("avg_wr_queue_depth", NUMBER),
        req("avg_zone_append_queue_depth", NUMBER),
    ],
);

/// `BlockLatencyHistogramInfo`
pub static BLOCK_LATENCY_HISTOGRAM_INFO: Object = object(
    "BlockLatencyHistogramInfo",
    &[
        req("boundaries", Type::Array(&UINT64)),
        req("bins", Type::Array(&UINT64)),
    ],
);

/// `BlockStatsSpecific`
pub static BLOCK_STATS_SPECIFIC: Object = union(
    "BlockStatsSpecific",
    &[req("driver", Type::Enum(&BLOCKDEV_DRIVER))],
    "driver",
    &[
        Case {
            word: "file",
            object: &BLOCK_STATS_SPECIFIC_FILE,
        },
        Case {
            word: "host_device",
            object: &BLOCK_STATS_SPECIFIC_FILE,
        },
    ],
);

/// `BlockStatsSpecificFile`
pub static BLOCK_STATS_SPECIFIC_FILE: Object = object(
    "BlockStatsSpecificFile",
    &[
        req("discard-nb-ok", INT),
        req("discard-nb-failed", INT),
        req("discard-bytes-ok", INT),
    ],
);

/// `XDbgBlockGraph`
pub static X_DBG_BLOCK_GRAPH: Object = object(
    "XDbgBlockGraph",
    &[
        req("nodes", Type::Array(&Type::Object(&X_DBG_BLOCK_GRAPH_NODE))),
        req("edges", Type::Array(&Type::Object(&X_DBG_BLOCK_GRAPH_EDGE))),
        // Ours: how long changes of the graph held requests back.
        opt("x-drains", Type::Object(&X_DRAINS)),
    ],
);

/// Ours: all times that requests were held back, since the start.
pub static X_DRAINS: Object = object(
    "XDrains",
    &[
        req("count", INT),
        req("timed-out", INT),
        req("wait-max-ns", INT),
        req("settling-max-ns", INT),
        req("hold-max-ns", INT),
        req("settling", Type::Object(&BLOCK_LATENCY_HISTOGRAM_INFO)),
    ],
);

/// `XDbgBlockGraphNode`
pub static X_DBG_BLOCK_GRAPH_NODE: Object = object(
    "XDbgBlockGraphNode",
    &[
        req("id", INT),
        req("type", Type::Enum(&X_DBG_BLOCK_GRAPH_NODE_TYPE)),
        req("name", STR),
    ],
);

/// `XDbgBlockGraphNodeType`
pub static X_DBG_BLOCK_GRAPH_NODE_TYPE: Enum = enumeration(
    "XDbgBlockGraphNodeType",
    &["block-backend", "block-job", "block-driver"],
);

/// `XDbgBlockGraphEdge`
pub static X_DBG_BLOCK_GRAPH_EDGE: Object = object(
    "XDbgBlockGraphEdge",
    &[
        req("parent", INT),
        req("child", INT),
        req("name", STR),
        req("perm", Type::Array(&Type::Enum(&BLOCK_PERMISSION))),
        req("shared-perm", Type::Array(&Type::Enum(&BLOCK_PERMISSION))),
    ],
);

/// Arguments of `block-latency-histogram-set`.
pub static BLOCK_LATENCY_HISTOGRAM_SET_ARG: Object = object(
    "q_obj_block-latency-histogram-set-arg",
    &[
        req("id", STR),
        opt("boundaries", Type::Array(&UINT64)),
        opt("boundaries-read", Type::Array(&UINT64)),
        opt("boundaries-write", Type::Array(&UINT64)),
        opt("boundaries-zap", Type::Array(&UINT64)),
        opt("boundaries-flush", Type::Array(&UINT64)),
    ],
);
