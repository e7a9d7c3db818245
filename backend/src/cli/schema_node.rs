//! The options of block nodes, member by member in the order of QAPI's schema: one table for the command line and for QMP's `blockdev-add`.
//!
//! To add an option: write it into `qapi/tables/nodes.rs`, and take it here, in the same order, into a field of [`super::options`]. A member
//! of the table that is not taken here fails a test, and so does one that is taken and forgotten.

mod blkdebug;
mod file;
mod filters;
mod nbd;
mod plain;
mod qcow2;

use super::error::{Later, Refusal};
use super::options::{BlockdevOptions, ChildRef, DetectZeroes, Discard, DriverOptions, NodeCommon};
use super::visit::{NameOrObject, Object};

/// The longest node name, in bytes.
const NODE_NAME_LEN_MAX_BYTES: usize = 31;

#[derive(Clone, Copy)]
enum Driver {
    File,
    HostDevice,
    Raw,
    NullCo,
    NullAio,
    Delay,
    Qcow2,
    CopyOnRead,
    CopyBeforeWrite,
    SnapshotAccess,
    Throttle,
    Compress,
    Preallocate,
    Blkdebug,
    Nbd,
}

const DRIVERS: &[(&str, Driver)] = &[
    ("file", Driver::File),
    ("host_device", Driver::HostDevice),
    ("raw", Driver::Raw),
    ("null-co", Driver::NullCo),
    ("null-aio", Driver::NullAio),
    ("x-delay", Driver::Delay),
    ("throttle", Driver::Throttle),
    ("qcow2", Driver::Qcow2),
    ("preallocate", Driver::Preallocate),
    ("copy-on-read", Driver::CopyOnRead),
    ("copy-before-write", Driver::CopyBeforeWrite),
    ("snapshot-access", Driver::SnapshotAccess),
    ("compress", Driver::Compress),
    ("nbd", Driver::Nbd),
    ("blkdebug", Driver::Blkdebug),
];

const DISCARD: &[(&str, Discard)] = &[("ignore", Discard::Ignore), ("unmap", Discard::Unmap)];

const DETECT_ZEROES: &[(&str, DetectZeroes)] = &[
    ("off", DetectZeroes::Off),
    ("on", DetectZeroes::On),
    ("unmap", DetectZeroes::Unmap),
];

/// Reads a root node: `--blockdev`, `blockdev-add`.
///
/// # Errors
/// What cannot be taken, in QEMU's words.
pub fn blockdev(root: Object) -> Result<BlockdevOptions, Refusal> {
    let mut later = Later::default();
    let node = node(root, &NodeCommon::ROOT, &mut later)?;
    if node.node_name.is_none() {
        return Err(Refusal::new(
            "'node-name' must be specified for the root node",
        ));
    }
    later.into_result()?;
    Ok(node)
}

/// Reads a node that is to be opened anew: its name may be missing.
///
/// # Errors
/// What cannot be taken, in QEMU's words.
pub fn reopened_blockdev(root: Object) -> Result<BlockdevOptions, Refusal> {
    child_blockdev(root, &NodeCommon::ROOT)
}

/// Reads a node that is somebody's child, with what it inherits.
///
/// # Errors
/// What cannot be taken, in QEMU's words.
pub fn child_blockdev(child: Object, inherited: &NodeCommon) -> Result<BlockdevOptions, Refusal> {
    let mut later = Later::default();
    let node = node(child, inherited, &mut later)?;
    later.into_result()?;
    Ok(node)
}

impl NodeCommon {
    /// What a root node has where nothing is said.
    pub(super) const ROOT: Self = Self {
        discard: Discard::Ignore,
        cache_direct: false,
        cache_no_flush: false,
        active: true,
        read_only: false,
        auto_read_only: false,
        force_share: false,
        detect_zeroes: DetectZeroes::Off,
    };

    /// What an inline backing child has where nothing is said: as any child, but never written to.
    pub(crate) fn for_backing(&self) -> Self {
        Self {
            read_only: true,
            auto_read_only: false,
            ..self.for_child()
        }
    }

    /// What an inline child has where nothing is said: its parent's cache mode and rights, and discards let through, since the parent decides
    /// which discards get that far.
    pub(crate) fn for_child(&self) -> Self {
        Self {
            discard: Discard::Unmap,
            detect_zeroes: DetectZeroes::Off,
            ..self.clone()
        }
    }
}

/// What is checked after a node was read, in the order in which QEMU comes to it: the child called `file` is opened before its parent, other
/// children by the parent as it opens, the backing child last.
#[derive(Default)]
struct Checks {
    file: Later,
    own: Later,
    backing: Later,
}

/// One node and everything below it. Depth is bounded by the parser, hence the recursion.
fn node(
    mut o: Object,
    defaults: &NodeCommon,
    later: &mut Later,
) -> Result<BlockdevOptions, Refusal> {
    let given = o.given();
    let driver = required_word(&mut o, "driver", DRIVERS)?;
    let node_name = o.string("node-name")?;
    let common = common(&mut o, defaults)?;
    let mut checks = Checks::default();
    let driver = driver_options(driver, &mut o, &common, &mut checks)?;
    o.finish()?;
    later.check(!common.force_share || common.read_only, || {
        Refusal::new("force-share=on can only be used with read-only images")
    });
    later.merge(checks.file);
    check_node_name(node_name.as_deref(), later);
    check_detect_zeroes(&common, later);
    later.merge(checks.own);
    later.merge(checks.backing);
    Ok(BlockdevOptions {
        node_name,
        common,
        driver,
        given,
    })
}

fn required_word<T: Copy>(o: &mut Object, name: &str, words: &[(&str, T)]) -> Result<T, Refusal> {
    o.word(name, words)?
        .ok_or_else(|| Refusal::missing(o.full_name(name)))
}

fn common(o: &mut Object, defaults: &NodeCommon) -> Result<NodeCommon, Refusal> {
    let mut common = defaults.clone();
    set(&mut common.discard, o.word("discard", DISCARD)?);
    if let Some(mut cache) = o.object("cache")? {
        set(&mut common.cache_direct, cache.boolean("direct")?);
        set(&mut common.cache_no_flush, cache.boolean("no-flush")?);
        cache.finish()?;
    }
    set(&mut common.active, o.boolean("active")?);
    set(&mut common.read_only, o.boolean("read-only")?);
    set(&mut common.auto_read_only, o.boolean("auto-read-only")?);
    set(&mut common.force_share, o.boolean("force-share")?);
    set(
        &mut common.detect_zeroes,
        o.word("detect-zeroes", DETECT_ZEROES)?,
    );
    Ok(common)
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn check_node_name(name: Option<&str>, later: &mut Later) {
    let Some(name) = name else { return };
    later.check(super::id_is_well_formed(name), || {
        Refusal::new(format!("Invalid node-name: '{name}'"))
    });
    later.check(name.len() <= NODE_NAME_LEN_MAX_BYTES, || {
        Refusal::new("Node name too long")
    });
}

fn check_detect_zeroes(common: &NodeCommon, later: &mut Later) {
    let unmaps_zeroes = common.detect_zeroes == DetectZeroes::Unmap;
    later.check(!unmaps_zeroes || common.discard == Discard::Unmap, || {
        Refusal::new(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
        )
    });
}

fn driver_options(
    driver: Driver,
    o: &mut Object,
    common: &NodeCommon,
    checks: &mut Checks,
) -> Result<DriverOptions, Refusal> {
    let own = &mut checks.own;
    Ok(match driver {
        Driver::File => DriverOptions::File(file::read(o, "file", common, own)?),
        Driver::HostDevice => DriverOptions::HostDevice(file::read(o, "host_device", common, own)?),
        Driver::Raw => DriverOptions::Raw(plain::raw(o, common, checks)?),
        Driver::NullCo => DriverOptions::NullCo(plain::null(o, own)?),
        Driver::NullAio => DriverOptions::NullAio(plain::null(o, own)?),
        Driver::Delay => DriverOptions::Delay(plain::delay(o, common, checks)?),
        Driver::Qcow2 => DriverOptions::Qcow2(Box::new(qcow2::read(o, common, checks)?)),
        Driver::CopyOnRead => DriverOptions::CopyOnRead(filters::copy_on_read(o, common, checks)?),
        Driver::CopyBeforeWrite => {
            DriverOptions::CopyBeforeWrite(filters::copy_before_write(o, common, checks)?)
        }
        Driver::SnapshotAccess => {
            DriverOptions::SnapshotAccess(plain::snapshot_access(o, common, checks)?)
        }
        Driver::Throttle => DriverOptions::Throttle(filters::throttle(o, common, checks)?),
        Driver::Compress => DriverOptions::Compress(filters::compress(o, common, checks)?),
        Driver::Preallocate => DriverOptions::Preallocate(filters::preallocate(o, common, checks)?),
        Driver::Blkdebug => DriverOptions::Blkdebug(Box::new(blkdebug::read(o, common, own)?)),
        Driver::Nbd => DriverOptions::Nbd(Box::new(nbd::read(o, own)?)),
    })
}

/// The child `file`, which nearly every driver has.
fn file_child(
    o: &mut Object,
    parent: &NodeCommon,
    checks: &mut Checks,
) -> Result<ChildRef, Refusal> {
    child(o, "file", &parent.for_child(), &mut checks.file)
}

fn child(
    o: &mut Object,
    name: &str,
    defaults: &NodeCommon,
    later: &mut Later,
) -> Result<ChildRef, Refusal> {
    let member = o.name_or_object(name, "BlockdevRef")?;
    child_of(member, defaults, later)
}

fn child_of(
    member: NameOrObject,
    defaults: &NodeCommon,
    later: &mut Later,
) -> Result<ChildRef, Refusal> {
    Ok(match member {
        NameOrObject::Name(name) => ChildRef::Node(name),
        NameOrObject::Object(o) => ChildRef::Inline(Box::new(node(o, defaults, later)?)),
    })
}

/// QAPI's `int` where only sizes make sense.
fn not_negative(o: &mut Object, name: &str, later: &mut Later) -> Result<Option<u64>, Refusal> {
    let Some(value) = o.int64(name)? else {
        return Ok(None);
    };
    later.check(value >= 0, || Refusal::out_of_range(name, value));
    Ok(Some(value.unsigned_abs()))
}
