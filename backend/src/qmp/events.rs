//! Every event: its name and the type of what comes with it.

use crate::qapi;
use crate::qapi::tables::exports::BLOCK_EXPORT_DELETED_ARG;
use crate::qapi::tables::jobs::{
    BLOCK_JOB_CANCELLED_ARG, BLOCK_JOB_COMPLETED_ARG, BLOCK_JOB_ERROR_ARG, BLOCK_JOB_PENDING_ARG,
    BLOCK_JOB_READY_ARG, JOB_STATUS_CHANGE_ARG,
};
use crate::qapi::tables::node_commands::{BLOCK_IMAGE_CORRUPTED_ARG, BLOCK_WRITE_THRESHOLD_ARG};

/// An event.
#[derive(Debug)]
pub struct EventKind {
    /// Its name.
    pub name: &'static str,
    /// What comes with it.
    pub data: &'static qapi::Object,
}

/// An export is gone.
pub static BLOCK_EXPORT_DELETED: EventKind = EventKind {
    name: "BLOCK_EXPORT_DELETED",
    data: &BLOCK_EXPORT_DELETED_ARG,
};

/// A write went beyond a node's threshold.
pub static BLOCK_WRITE_THRESHOLD: EventKind = EventKind {
    name: "BLOCK_WRITE_THRESHOLD",
    data: &BLOCK_WRITE_THRESHOLD_ARG,
};

/// A job is in another state.
pub static JOB_STATUS_CHANGE: EventKind = EventKind {
    name: "JOB_STATUS_CHANGE",
    data: &JOB_STATUS_CHANGE_ARG,
};

/// A block job is over, well or not.
pub static BLOCK_JOB_COMPLETED: EventKind = EventKind {
    name: "BLOCK_JOB_COMPLETED",
    data: &BLOCK_JOB_COMPLETED_ARG,
};

/// A block job was told to end, and has.
pub static BLOCK_JOB_CANCELLED: EventKind = EventKind {
    name: "BLOCK_JOB_CANCELLED",
    data: &BLOCK_JOB_CANCELLED_ARG,
};

/// A transfer of a block job failed.
pub static BLOCK_JOB_ERROR: EventKind = EventKind {
    name: "BLOCK_JOB_ERROR",
    data: &BLOCK_JOB_ERROR_ARG,
};

/// A block job could be completed now.
pub static BLOCK_JOB_READY: EventKind = EventKind {
    name: "BLOCK_JOB_READY",
    data: &BLOCK_JOB_READY_ARG,
};

/// A block job waits to be finalized.
pub static BLOCK_JOB_PENDING: EventKind = EventKind {
    name: "BLOCK_JOB_PENDING",
    data: &BLOCK_JOB_PENDING_ARG,
};

/// An image's metadata is not what it should be.
pub static BLOCK_IMAGE_CORRUPTED: EventKind = EventKind {
    name: "BLOCK_IMAGE_CORRUPTED",
    data: &BLOCK_IMAGE_CORRUPTED_ARG,
};

/// Every event.
pub static ALL: &[&EventKind] = &[
    &BLOCK_EXPORT_DELETED,
    &BLOCK_WRITE_THRESHOLD,
    &JOB_STATUS_CHANGE,
    &BLOCK_JOB_COMPLETED,
    &BLOCK_JOB_CANCELLED,
    &BLOCK_JOB_ERROR,
    &BLOCK_JOB_READY,
    &BLOCK_JOB_PENDING,
    &BLOCK_IMAGE_CORRUPTED,
];
