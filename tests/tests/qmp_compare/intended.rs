//! The differences from qemu-storage-daemon that are meant to be there.

use crate::diff::Difference;

/// One of them.
pub(crate) struct Intended {
    /// What was asked begins with this, or contains it.
    pub(crate) of: &'static str,
    /// The member contains this.
    pub(crate) at: &'static str,
    /// Why we differ.
    pub(crate) why: &'static str,
}

impl Intended {
    /// Is it that one?
    pub(crate) fn covers(&self, difference: &Difference) -> bool {
        difference.of.contains(self.of) && difference.at.contains(self.at)
    }
}

/// Commands that the script cannot have succeed.
pub(crate) const NOT_IN_SCRIPT: &[&str] = &[
    // Compared elsewhere: with QEMU, as QSD has them not, or by their own tests.
    "add-fd",
    "remove-fd",
    "query-fdsets",
    "block-latency-histogram-set",
    "query-qmp-schema",
    "ringbuf-read",
    "ringbuf-write",
    // Compared in stories of block jobs (qmp_graph).
    "block-stream",
    "block-commit",
    "block-job-set-speed",
    "block-job-cancel",
    "block-job-pause",
    "block-job-resume",
    "block-job-complete",
    "block-job-dismiss",
    "block-job-finalize",
    // Compared in stories of images (qmp_graph).
    "blockdev-snapshot-delete-internal-sync",
    // A job that makes an image is over before it can be asked for these.
    "job-pause",
    "job-resume",
    "job-cancel",
    "job-complete",
    "job-finalize",
    "change-backing-file",
    // Compared by bitmaps_compare and by the stories of qmp_graph.
    "transaction",
    "blockdev-backup",
    "blockdev-mirror",
    "block-job-change",
    "drive-backup",
    "blockdev-snapshot-internal-sync",
];

/// All of them.
pub(crate) const INTENDED: &[Intended] = &[
    Intended {
        of: "greeting",
        at: "QMP.version.package",
        why: "the package is ours",
    },
    Intended {
        of: r#""execute":"query-version""#,
        at: "return.package",
        why: "the package is ours",
    },
    Intended {
        of: r#""execute":"query-commands""#,
        at: "return",
        why: "we have other commands, and query-qmp-schema's test says which",
    },
    Intended {
        of: r#""driver":"qcow2","node-name":"bad","file":"f""#,
        at: "error.desc",
        why: "we look at the image before we ask for the permissions that it needs",
    },
    Intended {
        of: r#""path":"/objects/io0","property":"poll-max-ns""#,
        at: "return",
        why: "a thread of ours polls a little longer: see the README",
    },
    Intended {
        of: r#""typename":"iothread""#,
        at: "return",
        why: "what we do not have (thread-pool-min and -max, aio-max-batch) is not there",
    },
    Intended {
        of: "x-debug-query-block-graph",
        at: "return.x-drains",
        why: "how long requests were held back is ours",
    },
    Intended {
        of: "x-debug-query-block-graph",
        at: "return.edges",
        why: "copy-on-read lets nobody write below it, since what it read would overwrite that",
    },
    Intended {
        of: r#""size":1048576,"detect-zeroes":"unmap""#,
        at: "",
        why: "QSD looks at the discard option that the node had before",
    },
    Intended {
        of: "query-named-block-nodes",
        at: "image.virtual-size",
        why: "our images take up other space, and a filter has its child's size at once",
    },
    Intended {
        of: "query-named-block-nodes",
        at: "image.actual-size",
        why: "our images take up other space",
    },
    Intended {
        of: r#""execute":"query-named-block-nodes","arguments":{"flat":false}"#,
        at: "dirty-bitmaps",
        why: "QSD shows the maps of a copy-before-write filter as bitmaps without names",
    },
    Intended {
        of: "query-blockstats",
        at: "return",
        why: "exports have real figures",
    },
    Intended {
        of: r#""addr":{"type":"fd""#,
        at: "error.desc",
        why: "descriptors that we were started with can be named at any time",
    },
];
