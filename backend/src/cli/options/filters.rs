//! The options of filters, and of the throttle groups that some of them belong to.

use super::ChildRef;

/// `copy-on-read`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOnReadOptions {
    /// The filtered child.
    pub file: ChildRef,
    /// Nothing is copied from this node or from below it.
    pub bottom: Option<String>,
}

/// `copy-before-write`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyBeforeWriteOptions {
    /// The filtered child.
    pub file: ChildRef,
    /// Where old data is copied to.
    pub target: ChildRef,
    /// `bitmap`: what the snapshot has; `None`: everything.
    pub bitmap: Option<NodeBitmap>,
    /// `on-cbw-error`
    pub on_error: OnCbwError,
    /// `cbw-timeout`; 0: none.
    pub timeout_s: u32,
    /// `min-cluster-size`; 0: as the target likes it.
    pub min_cluster_bytes: u64,
}

/// A bitmap by the names of its node and its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeBitmap {
    /// The node's.
    pub node: String,
    /// The bitmap's.
    pub name: String,
}

/// What becomes of a guest write whose copy fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCbwError {
    /// It fails.
    BreakGuestWrite,
    /// It is done, and the snapshot is given up.
    BreakSnapshot,
}

/// `throttle`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThrottleOptions {
    /// The group, which exists.
    pub group: String,
    /// The filtered child.
    pub file: ChildRef,
}

/// `compress`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompressOptions {
    /// The filtered child.
    pub file: ChildRef,
}

/// `preallocate`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreallocateOptions {
    /// The filtered child.
    pub file: ChildRef,
    /// The file's end is a multiple of this; 0: of 1.
    pub align_bytes: u64,
    /// How much further than asked the file is made.
    pub size_bytes: u64,
}

/// `blkdebug`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlkdebugOptions {
    /// The filtered child.
    pub image: ChildRef,
    /// A file with more rules.
    pub config: Option<String>,
    /// What the node pretends it can do at most.
    pub limits: BlkdebugLimits,
    /// Errors to be made.
    pub inject_error: Vec<InjectError>,
    /// How the state changes.
    pub set_state: Vec<SetState>,
    /// What it needs of its child beyond what its users need.
    pub take_child_perms: Vec<ChildPerm>,
    /// What it does not let others do.
    pub unshare_child_perms: Vec<ChildPerm>,
}

/// Limits a `blkdebug` node claims; `None`: its child's. They fit each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlkdebugLimits {
    /// `align`
    pub align_bytes: Option<u32>,
    /// `max-transfer`
    pub max_transfer_bytes: Option<u32>,
    /// `opt-write-zero`
    pub opt_write_zero_bytes: Option<u32>,
    /// `max-write-zero`
    pub max_write_zero_bytes: Option<u32>,
    /// `opt-discard`
    pub opt_discard_bytes: Option<u32>,
    /// `max-discard`
    pub max_discard_bytes: Option<u32>,
}

/// `inject-error`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InjectError {
    /// When (QAPI's BlkdebugEvent).
    pub event: &'static str,
    /// Only in this state; 0: in any.
    pub state: i64,
    /// Only requests of this kind; `None`: reads, writes, zero writes, discards and flushes.
    pub io_type: Option<IoType>,
    /// Which error.
    pub errno: i64,
    /// Only requests that touch this sector of 512 bytes.
    pub sector: Option<u64>,
    /// Only the first time.
    pub once: bool,
    /// Before the request is given a chance to wait.
    pub immediately: bool,
}

/// `set-state`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetState {
    /// When.
    pub event: &'static str,
    /// Only in this state; 0: in any.
    pub state: i64,
    /// The state from then on.
    pub new_state: i64,
}

/// QAPI's BlkdebugIOType.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoType {
    /// `read`
    Read,
    /// `write`
    Write,
    /// `write-zeroes`
    WriteZeroes,
    /// `discard`
    Discard,
    /// `flush`
    Flush,
    /// `block-status`
    BlockStatus,
}

/// QAPI's BlockPermission, as far as a child can be asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildPerm {
    /// `consistent-read`
    ConsistentRead,
    /// `write`
    Write,
    /// `write-unchanged`
    WriteUnchanged,
    /// `resize`
    Resize,
}

/// `--object throttle-group`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThrottleGroupOptions {
    /// Well formed, not known to be free.
    pub id: String,
    /// Its limits; whether they fit each other is the group's to say.
    pub limits: ThrottleLimits,
}

/// The limits of a throttle group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ThrottleLimits {
    /// Bytes read and written.
    pub bps_total: ThrottleRate,
    /// Bytes read.
    pub bps_read: ThrottleRate,
    /// Bytes written.
    pub bps_write: ThrottleRate,
    /// Requests.
    pub iops_total: ThrottleRate,
    /// Reads.
    pub iops_read: ThrottleRate,
    /// Writes.
    pub iops_write: ThrottleRate,
    /// A larger request counts as several of this size; 0: as one.
    pub iops_size_bytes: u64,
}

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThrottleRate {
    /// Per second, in the long run; 0: no limit.
    pub average: u64,
    /// Per second, in a burst; 0: no bursts.
    pub max: u64,
    /// How long a burst may last, in seconds.
    pub max_length_s: u64,
}

impl Default for ThrottleRate {
    fn default() -> ThrottleRate {
        ThrottleRate {
            average: 0,
            max: 0,
            max_length_s: 1,
        }
    }
}
