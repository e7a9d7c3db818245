//! The options of objects, member by member in the order of QAPI's schema: one table for the command line and for QMP's `object-add`.

use super::error::{Later, Refusal};
use super::options::{
    IothreadOptions, ObjectOptions, ThrottleGroupOptions, ThrottleLimits, ThrottleRate,
};
use super::schema_node::refuse_unless_default;
use super::visit::Object;

/// How long a thread may poll unless told otherwise: longer than QEMU's 32768, so that it covers a read of a fast disk.
pub const POLL_MAX_NS_DEFAULT: u64 = 100_000;
/// QEMU's default for `thread-pool-max`.
const THREAD_POOL_MAX_DEFAULT: i64 = 64;

#[derive(Clone, Copy)]
enum Type {
    Iothread,
    ThrottleGroup,
    TlsCredsX509,
    Unsupported(&'static str),
}

/// What a storage daemon can make of QEMU's object types.
const TYPES: &[(&str, Type)] = &[
    ("authz-list", Type::Unsupported("authz-list")),
    ("authz-list-file", Type::Unsupported("authz-list-file")),
    ("authz-simple", Type::Unsupported("authz-simple")),
    ("iothread", Type::Iothread),
    ("main-loop", Type::Unsupported("main-loop")),
    ("pr-manager-helper", Type::Unsupported("pr-manager-helper")),
    ("secret", Type::Unsupported("secret")),
    ("secret_keyring", Type::Unsupported("secret_keyring")),
    ("thread-context", Type::Unsupported("thread-context")),
    ("throttle-group", Type::ThrottleGroup),
    ("tls-creds-anon", Type::Unsupported("tls-creds-anon")),
    ("tls-creds-psk", Type::Unsupported("tls-creds-psk")),
    ("tls-creds-x509", Type::TlsCredsX509),
];

/// Reads `--object` or `object-add`.
///
/// # Errors
/// What cannot be taken, in QEMU's words.
pub fn object(mut o: Object) -> Result<ObjectOptions, Refusal> {
    let mut later = Later::default();
    let Some(kind) = o.word("qom-type", TYPES)? else {
        return Err(Refusal::missing("qom-type"));
    };
    let id = o.required_string("id")?;
    later.check(super::id_is_well_formed(&id), || {
        Refusal::new(
            "Parameter 'id' expects an identifier\n\
             Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
        )
    });
    let options = match kind {
        Type::Iothread => ObjectOptions::Iothread(iothread(&mut o, id, &mut later)?),
        Type::ThrottleGroup => {
            let limits = throttle_limits(&mut o, &mut later)?;
            ObjectOptions::ThrottleGroup(ThrottleGroupOptions { id, limits })
        }
        Type::TlsCredsX509 => {
            ObjectOptions::TlsCredsX509(super::schema_nbd::tls_creds_x509(&mut o, id, &mut later)?)
        }
        Type::Unsupported(name) => {
            return Err(Refusal::unsupported(format_args!("object type '{name}'")));
        }
    };
    o.finish()?;
    later.into_result()?;
    Ok(options)
}

fn iothread(o: &mut Object, id: String, later: &mut Later) -> Result<IothreadOptions, Refusal> {
    tuning(o, "aio-max-batch", later)?;
    refuse_unless_default(o, "thread-pool-min", later)?;
    let pool_max = o.int64("thread-pool-max")?;
    later.check(
        pool_max.is_none_or(|max| max == THREAD_POOL_MAX_DEFAULT),
        || Refusal::unsupported("'thread-pool-max' other than 64"),
    );
    let poll_max_ns = o.int64("poll-max-ns")?;
    check_range("poll-max-ns", poll_max_ns.unwrap_or(0), later);
    tuning(o, "poll-grow", later)?;
    tuning(o, "poll-shrink", later)?;
    Ok(IothreadOptions {
        id,
        poll_max_ns: poll_max_ns.map_or(POLL_MAX_NS_DEFAULT, i64::unsigned_abs),
    })
}

/// How QEMU's loop adapts, which ours does in its own way.
fn tuning(o: &mut Object, name: &str, later: &mut Later) -> Result<(), Refusal> {
    let value = o.int64(name)?.unwrap_or(0);
    check_range(name, value, later);
    later.check(value == 0, || {
        Refusal::unsupported(format_args!("'{name}' other than 0"))
    });
    Ok(())
}

fn check_range(name: &str, value: i64, later: &mut Later) {
    later.check(value >= 0, || {
        Refusal::new(format!("{name} value must be in range [0, {}]", i64::MAX))
    });
}

/// `limits`, then the older members that begin with `x-`.
fn throttle_limits(o: &mut Object, later: &mut Later) -> Result<ThrottleLimits, Refusal> {
    let mut limits = ThrottleLimits::default();
    if let Some(mut newer) = o.object("limits")? {
        for (kind, rate) in rates(&mut limits) {
            for (part, value) in parts(rate) {
                new_limit(&mut newer, &format!("{kind}{part}"), value)?;
            }
        }
        new_limit(&mut newer, "iops-size", &mut limits.iops_size_bytes)?;
        newer.finish()?;
    }
    for (kind, rate) in rates(&mut limits) {
        for (part, value) in parts(rate) {
            old_limit(o, &format!("x-{kind}{part}"), value, later)?;
        }
    }
    old_limit(o, "x-iops-size", &mut limits.iops_size_bytes, later)?;
    Ok(limits)
}

fn rates(limits: &mut ThrottleLimits) -> [(&'static str, &mut ThrottleRate); 6] {
    [
        ("iops-total", &mut limits.iops_total),
        ("iops-read", &mut limits.iops_read),
        ("iops-write", &mut limits.iops_write),
        ("bps-total", &mut limits.bps_total),
        ("bps-read", &mut limits.bps_read),
        ("bps-write", &mut limits.bps_write),
    ]
}

fn parts(rate: &mut ThrottleRate) -> [(&'static str, &mut u64); 3] {
    [
        ("", &mut rate.average),
        ("-max", &mut rate.max),
        ("-max-length", &mut rate.max_length_s),
    ]
}

fn new_limit(o: &mut Object, name: &str, value: &mut u64) -> Result<(), Refusal> {
    if let Some(said) = o.int64(name)? {
        // A negative one becomes a large one here, as in QEMU: out of every range.
        *value = said.cast_unsigned();
    }
    Ok(())
}

fn old_limit(
    o: &mut Object,
    name: &str,
    value: &mut u64,
    later: &mut Later,
) -> Result<(), Refusal> {
    let Some(said) = o.int64(name)? else {
        return Ok(());
    };
    later.check(said >= 0, || {
        Refusal::new("Property values cannot be negative")
    });
    let is_short = u32::try_from(said).is_ok() || !name.ends_with("-length");
    // The missing space is in the original.
    later.check(is_short, || {
        Refusal::new(format!(
            "{name} value must be in therange [0, {}]",
            u32::MAX
        ))
    });
    *value = said.unsigned_abs();
    Ok(())
}
