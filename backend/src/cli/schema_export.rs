//! The options of exports, member by member in the order of QAPI's schema: one table for the command line and for QMP's `block-export-add`.

use super::error::{Later, Refusal};
use super::options::{
    ExportAddress, ExportKind, ExportOptions, NUM_QUEUES_DEFAULT, NUM_QUEUES_MAX,
    VhostUserBlkOptions,
};
use super::visit::Object;
use std::path::PathBuf;

/// `logical-block-size` goes up to here, as in QEMU.
const BLOCK_SIZE_MAX_BYTES: u64 = 2 << 20;
/// GET_ID's answer (virtio 1.2, 5.2.6: "20 bytes").
const SERIAL_LEN_MAX_BYTES: usize = 20;

#[derive(Clone, Copy)]
enum Type {
    VhostUserBlk,
    Nbd,
}

const TYPES: &[(&str, Type)] = &[("vhost-user-blk", Type::VhostUserBlk), ("nbd", Type::Nbd)];

#[derive(Clone, Copy)]
enum Socket {
    Inet,
    Unix,
    Fd,
    ConnectedFd,
}

const SOCKETS: &[(&str, Socket)] = &[
    ("inet", Socket::Inet),
    ("unix", Socket::Unix),
    ("fd", Socket::Fd),
    ("connected-fd", Socket::ConnectedFd),
];

/// Reads `--export` or `block-export-add`.
///
/// # Errors
/// What cannot be taken, in QEMU's words.
pub fn export(mut o: Object) -> Result<ExportOptions, Refusal> {
    let mut later = Later::default();
    let Some(kind) = o.word("type", TYPES)? else {
        return Err(Refusal::missing("type"));
    };
    let id = o.required_string("id")?;
    later.check(super::id_is_well_formed(&id), || {
        Refusal::new("Invalid block export id")
    });
    let fixed_iothread = o.boolean("fixed-iothread")?.unwrap_or(false);
    let iothread = o.string("iothread")?;
    let node_name = o.required_string("node-name")?;
    let writable = o.boolean("writable")?.unwrap_or(false);
    let writethrough = o.boolean("writethrough")?.unwrap_or(false);
    let allow_inactive = o.boolean("allow-inactive")?.unwrap_or(false);
    let takes_inactive = matches!(kind, Type::Nbd);
    later.check(!allow_inactive || takes_inactive, || {
        Refusal::new("Export type does not support inactive exports")
    });
    let kind = match kind {
        Type::VhostUserBlk => ExportKind::VhostUserBlk(vhost_user_blk(&mut o, &mut later)?),
        Type::Nbd => ExportKind::Nbd(super::schema_nbd::nbd_export(&mut o, &mut later)?),
    };
    o.finish()?;
    later.into_result()?;
    Ok(ExportOptions {
        id,
        node_name,
        writable,
        writethrough,
        iothread,
        fixed_iothread,
        allow_inactive,
        kind,
    })
}

fn vhost_user_blk(o: &mut Object, later: &mut Later) -> Result<VhostUserBlkOptions, Refusal> {
    let addr = o.required_object("addr")?;
    // QEMU looks at what is in the address only after the numbers.
    let mut later_addr = Later::default();
    let addr = address(addr, &mut later_addr)?;
    let block_size = o.size("logical-block-size")?;
    let logical_block_size_bytes = block_size.map(|bytes| logical_block_size(bytes, later));
    let num_queues = o.uint16("num-queues")?.unwrap_or(NUM_QUEUES_DEFAULT);
    later.check(num_queues > 0, || {
        Refusal::new("num-queues must be greater than 0")
    });
    later.check(num_queues <= NUM_QUEUES_MAX, || {
        Refusal::new(format!(
            "num-queues must not be greater than {NUM_QUEUES_MAX}"
        ))
    });
    let serial = o.string("serial")?;
    let serial_len_bytes = serial.as_ref().map_or(0, String::len);
    later.check(serial_len_bytes <= SERIAL_LEN_MAX_BYTES, || {
        Refusal::new(format!(
            "serial must not be longer than {SERIAL_LEN_MAX_BYTES} bytes"
        ))
    });
    let require_safe_del = o.boolean("require-safe-del")?.unwrap_or(false);
    later.merge(later_addr);
    Ok(VhostUserBlkOptions {
        addr,
        logical_block_size_bytes: logical_block_size_bytes.flatten(),
        num_queues,
        serial,
        require_safe_del,
    })
}

/// `None` for 0, which stands for the default, as in QEMU.
fn logical_block_size(bytes: u64, later: &mut Later) -> Option<u32> {
    let fits = (512..=BLOCK_SIZE_MAX_BYTES).contains(&bytes) && bytes.is_power_of_two();
    later.check(fits || bytes == 0, || {
        Refusal::new("parameter logical-block-size must be a power of 2 between 512 and 2097152")
    });
    u32::try_from(bytes).ok().filter(|_| fits)
}

fn address(mut o: Object, later: &mut Later) -> Result<ExportAddress, Refusal> {
    let Some(socket) = o.word("type", SOCKETS)? else {
        return Err(Refusal::missing(o.full_name("type")));
    };
    let address = match socket {
        Socket::Unix => ExportAddress::Unix(unix_path(&mut o, later)?),
        Socket::Fd => ExportAddress::ListeningFd(fd(&mut o, later)?),
        Socket::ConnectedFd => ExportAddress::ConnectedFd(fd(&mut o, later)?),
        Socket::Inet => internet(&mut o, later)?,
    };
    o.finish()?;
    Ok(address)
}

/// The path of a socket to be bound.
pub(super) fn unix_path(o: &mut Object, later: &mut Later) -> Result<PathBuf, Refusal> {
    let path = o.required_string("path")?;
    // QEMU binds a made-up name then and tells nobody.
    later.check(!path.is_empty(), || {
        Refusal::new("'addr.path' must not be empty")
    });
    later.check(path.len() < UNIX_PATH_LEN_BYTES, || {
        Refusal::new(format!(
            "UNIX socket path '{path}' is too long\nPath must be less than {UNIX_PATH_LEN_BYTES} bytes"
        ))
    });
    Ok(path.into())
}

/// `sun_path` of unix(7), with its terminating NUL.
pub(super) const UNIX_PATH_LEN_BYTES: usize = 108;

/// The number of a descriptor.
pub(super) fn fd(o: &mut Object, later: &mut Later) -> Result<i32, Refusal> {
    let text = o.required_string("str")?;
    // Too large for a descriptor is a number all the same: no such descriptor.
    let number = super::scalar::int64(&text).map(|fd| i32::try_from(fd).unwrap_or(-1));
    later.check(number.is_some(), || {
        Refusal::new(format!("Unable to parse FD number {text}"))
    });
    later.check(number.unwrap_or(-1) >= 0, || {
        Refusal::new(format!("File descriptor '{text}' is not a socket"))
    });
    Ok(number.unwrap_or(-1))
}

/// Addresses that QEMU can spell and no vhost-user server can have: always refused, once read.
fn internet(o: &mut Object, later: &mut Later) -> Result<ExportAddress, Refusal> {
    super::schema_nbd::inet(o, &mut Later::default())?;
    later.check(false, || {
        Refusal::new("Only socket address types 'unix' and 'fd' are supported")
    });
    Ok(ExportAddress::ListeningFd(-1))
}
