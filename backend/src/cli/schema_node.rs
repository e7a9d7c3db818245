//! The options of block nodes, member by member in the order of QAPI's schema: one table for the command line and for QMP's `blockdev-add`.
//!
//! To add an option: take it here, in its schema order, into a field of [`super::options`]. What QEMU has and we do not is refused by name,
//! never taken and forgotten.

use super::error::{Later, Refusal};
use super::options::{
    Aio, BlockdevOptions, ChildRef, DelayOptions, DetectZeroes, Discard, DriverOptions,
    FileOptions, Locking, NodeCommon, NullOptions, RawOptions,
};
use super::visit::{NameOrObject, Object};

/// The default size of `null-co` and `null-aio`.
const NULL_SIZE_BYTES: u64 = 1 << 30;
/// The longest node name, in bytes.
const NODE_NAME_LEN_MAX_BYTES: usize = 31;
/// Sizes of images are whole sectors.
const SECTOR_LEN_BYTES: u64 = 512;

#[derive(Clone, Copy)]
enum Driver {
    File,
    HostDevice,
    Raw,
    NullCo,
    NullAio,
    Delay,
    Unsupported(&'static str),
}

/// Ours, then those that Debian's qemu-storage-daemon has and we do not. What it was not built with is a wrong value for it too.
const DRIVERS: &[(&str, Driver)] = &[
    ("file", Driver::File),
    ("host_device", Driver::HostDevice),
    ("raw", Driver::Raw),
    ("null-co", Driver::NullCo),
    ("null-aio", Driver::NullAio),
    ("x-delay", Driver::Delay),
    ("blkdebug", Driver::Unsupported("blkdebug")),
    ("blklogwrites", Driver::Unsupported("blklogwrites")),
    ("blkreplay", Driver::Unsupported("blkreplay")),
    ("blkverify", Driver::Unsupported("blkverify")),
    ("bochs", Driver::Unsupported("bochs")),
    ("cloop", Driver::Unsupported("cloop")),
    ("compress", Driver::Unsupported("compress")),
    (
        "copy-before-write",
        Driver::Unsupported("copy-before-write"),
    ),
    ("copy-on-read", Driver::Unsupported("copy-on-read")),
    ("dmg", Driver::Unsupported("dmg")),
    ("ftp", Driver::Unsupported("ftp")),
    ("ftps", Driver::Unsupported("ftps")),
    ("gluster", Driver::Unsupported("gluster")),
    ("host_cdrom", Driver::Unsupported("host_cdrom")),
    ("http", Driver::Unsupported("http")),
    ("https", Driver::Unsupported("https")),
    ("iscsi", Driver::Unsupported("iscsi")),
    ("luks", Driver::Unsupported("luks")),
    ("nbd", Driver::Unsupported("nbd")),
    ("nfs", Driver::Unsupported("nfs")),
    ("nvme", Driver::Unsupported("nvme")),
    ("parallels", Driver::Unsupported("parallels")),
    ("preallocate", Driver::Unsupported("preallocate")),
    ("qcow", Driver::Unsupported("qcow")),
    ("qcow2", Driver::Unsupported("qcow2")),
    ("qed", Driver::Unsupported("qed")),
    ("quorum", Driver::Unsupported("quorum")),
    ("rbd", Driver::Unsupported("rbd")),
    ("replication", Driver::Unsupported("replication")),
    ("snapshot-access", Driver::Unsupported("snapshot-access")),
    ("ssh", Driver::Unsupported("ssh")),
    ("throttle", Driver::Unsupported("throttle")),
    ("vdi", Driver::Unsupported("vdi")),
    ("vhdx", Driver::Unsupported("vhdx")),
    ("vmdk", Driver::Unsupported("vmdk")),
    ("vpc", Driver::Unsupported("vpc")),
    ("vvfat", Driver::Unsupported("vvfat")),
];

const DISCARD: &[(&str, Discard)] = &[("ignore", Discard::Ignore), ("unmap", Discard::Unmap)];

const DETECT_ZEROES: &[(&str, DetectZeroes)] = &[
    ("off", DetectZeroes::Off),
    ("on", DetectZeroes::On),
    ("unmap", DetectZeroes::Unmap),
];

const AIO: &[(&str, Aio)] = &[
    ("threads", Aio::Threads),
    ("native", Aio::Native),
    ("io_uring", Aio::IoUring),
];

const LOCKING: &[(&str, Locking)] = &[
    ("auto", Locking::Auto),
    ("on", Locking::On),
    ("off", Locking::Off),
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

impl NodeCommon {
    /// What a root node has where nothing is said.
    pub(super) const ROOT: Self = Self {
        discard: Discard::Ignore,
        cache_direct: false,
        cache_no_flush: false,
        read_only: false,
        auto_read_only: false,
        force_share: false,
        detect_zeroes: DetectZeroes::Off,
    };

    /// What an inline child has where nothing is said: its parent's cache mode and rights, and discards let through, since the parent decides
    /// which discards get that far.
    pub(super) fn for_child(&self) -> Self {
        Self {
            discard: Discard::Unmap,
            detect_zeroes: DetectZeroes::Off,
            ..self.clone()
        }
    }
}

/// What is checked after a node was read, in the order in which QEMU comes to it: children are opened before their parent is.
#[derive(Default)]
struct Checks {
    children: Later,
    own: Later,
}

/// One node and everything below it. Depth is bounded by the parser, hence the recursion.
fn node(
    mut o: Object,
    defaults: &NodeCommon,
    later: &mut Later,
) -> Result<BlockdevOptions, Refusal> {
    let driver = required_word(&mut o, "driver", DRIVERS)?;
    let node_name = o.string("node-name")?;
    let common = common(&mut o, defaults, later)?;
    let mut checks = Checks::default();
    let driver = driver_options(driver, &mut o, &common, &mut checks)?;
    o.finish()?;
    later.check(!common.force_share || common.read_only, || {
        Refusal::new("force-share=on can only be used with read-only images")
    });
    later.merge(checks.children);
    check_node_name(node_name.as_deref(), later);
    check_detect_zeroes(&common, later);
    later.merge(checks.own);
    Ok(BlockdevOptions {
        node_name,
        common,
        driver,
    })
}

fn required_word<T: Copy>(o: &mut Object, name: &str, words: &[(&str, T)]) -> Result<T, Refusal> {
    o.word(name, words)?
        .ok_or_else(|| Refusal::missing(&o.full_name(name)))
}

fn common(o: &mut Object, defaults: &NodeCommon, later: &mut Later) -> Result<NodeCommon, Refusal> {
    let mut common = defaults.clone();
    set(&mut common.discard, o.word("discard", DISCARD)?);
    if let Some(mut cache) = o.object("cache")? {
        set(&mut common.cache_direct, cache.boolean("direct")?);
        set(&mut common.cache_no_flush, cache.boolean("no-flush")?);
        cache.finish()?;
    }
    let active = o.boolean("active")?;
    later.check(active != Some(false), || {
        Refusal::unsupported("'active=off'")
    });
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
        Driver::File => DriverOptions::File(file(o, "file", common, own)?),
        Driver::HostDevice => DriverOptions::HostDevice(file(o, "host_device", common, own)?),
        Driver::Raw => DriverOptions::Raw(raw(o, common, checks)?),
        Driver::NullCo => DriverOptions::NullCo(null(o, own)?),
        Driver::NullAio => DriverOptions::NullAio(null(o, own)?),
        Driver::Delay => DriverOptions::Delay(DelayOptions {
            file: child(o, common, checks)?,
            latency_ns: latency_ns(o, &mut checks.own)?,
        }),
        Driver::Unsupported(name) => {
            return Err(Refusal::unsupported(format_args!("driver '{name}'")));
        }
    })
}

fn child(o: &mut Object, parent: &NodeCommon, checks: &mut Checks) -> Result<ChildRef, Refusal> {
    Ok(match o.name_or_object("file", "BlockdevRef")? {
        NameOrObject::Name(name) => ChildRef::Node(name),
        NameOrObject::Object(o) => {
            let child = node(o, &parent.for_child(), &mut checks.children)?;
            ChildRef::Inline(Box::new(child))
        }
    })
}

fn file(
    o: &mut Object,
    driver: &str,
    common: &NodeCommon,
    later: &mut Later,
) -> Result<FileOptions, Refusal> {
    let filename = o.required_string("filename")?;
    later.check(!filename.is_empty(), || {
        Refusal::new(format!("The '{driver}' block driver requires a file name"))
    });
    let pr_manager = o.string("pr-manager")?;
    later.check(pr_manager.is_none(), || {
        Refusal::unsupported("'pr-manager'")
    });
    let locking = o.word("locking", LOCKING)?.unwrap_or(Locking::Auto);
    let aio = o.word("aio", AIO)?;
    later.check(aio != Some(Aio::Native) || common.cache_direct, || {
        Refusal::new(
            "aio=native was specified, but it requires cache.direct=on, which was not specified.",
        )
    });
    refuse_unless_default(o, "aio-max-batch", later)?;
    // The page cache is dropped when an inactive image becomes active; without inactive nodes nothing ever is.
    let drops = o.boolean("drop-cache")?;
    later.check(drops != Some(true), || {
        Refusal::unsupported("'drop-cache=on'")
    });
    let checks = o.boolean("x-check-cache-dropped")?;
    later.check(checks != Some(true), || {
        Refusal::unsupported("'x-check-cache-dropped=on'")
    });
    Ok(FileOptions {
        filename: filename.into(),
        aio,
        locking,
    })
}

/// A tuning value that we do not have: 0, which leaves it to the program, is all that can be said.
pub(super) fn refuse_unless_default(
    o: &mut Object,
    name: &str,
    later: &mut Later,
) -> Result<(), Refusal> {
    let value = o.int64(name)?.unwrap_or(0);
    later.check(value == 0, || {
        Refusal::unsupported(format_args!("'{name}' other than 0"))
    });
    Ok(())
}

fn raw(o: &mut Object, common: &NodeCommon, checks: &mut Checks) -> Result<RawOptions, Refusal> {
    let file = child(o, common, checks)?;
    let later = &mut checks.own;
    let offset_bytes = not_negative(o, "offset", later)?.unwrap_or(0);
    let size_bytes = not_negative(o, "size", later)?;
    later.check(size_bytes.unwrap_or(0) % SECTOR_LEN_BYTES == 0, || {
        Refusal::new("Specified size is not multiple of 512")
    });
    Ok(RawOptions {
        file,
        offset_bytes,
        size_bytes,
    })
}

fn null(o: &mut Object, later: &mut Later) -> Result<NullOptions, Refusal> {
    Ok(NullOptions {
        size_bytes: not_negative(o, "size", later)?.unwrap_or(NULL_SIZE_BYTES),
        latency_ns: latency_ns(o, later)?,
        read_zeroes: o.boolean("read-zeroes")?.unwrap_or(false),
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

fn latency_ns(o: &mut Object, later: &mut Later) -> Result<u64, Refusal> {
    let latency_ns = o.uint64("latency-ns")?.unwrap_or(0);
    later.check(i64::try_from(latency_ns).is_ok(), || {
        Refusal::new("latency-ns is invalid")
    });
    Ok(latency_ns)
}
