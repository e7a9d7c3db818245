//! The options of objects, member by member in the order of QAPI's schema: one table for the command line and for QMP's `object-add`.

use super::error::{Later, Refusal};
use super::options::{
    IothreadOptions, ObjectOptions, ThrottleGroupOptions, ThrottleLimits, ThrottleRate,
};
use super::visit::Object;

/// How long a thread may poll unless told otherwise: longer than QEMU's 32768, so that it covers a read of a fast disk.
pub const POLL_MAX_NS_DEFAULT: u64 = 100_000;

#[derive(Clone, Copy)]
enum Type {
    Iothread,
    ThrottleGroup,
    TlsCredsX509,
}

const TYPES: &[(&str, Type)] = &[
    ("iothread", Type::Iothread),
    ("throttle-group", Type::ThrottleGroup),
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
            let limits = group_limits(&mut o, &mut later)?;
            ObjectOptions::ThrottleGroup(ThrottleGroupOptions { id, limits })
        }
        Type::TlsCredsX509 => {
            ObjectOptions::TlsCredsX509(super::schema_nbd::tls_creds_x509(&mut o, id, &mut later)?)
        }
    };
    o.finish()?;
    later.into_result()?;
    Ok(options)
}

fn iothread(o: &mut Object, id: String, later: &mut Later) -> Result<IothreadOptions, Refusal> {
    let [poll_max_ns, poll_grow, poll_shrink] = ["poll-max-ns", "poll-grow", "poll-shrink"]
        .map(|name| poll_parameter(name, o.int64(name), later));
    Ok(IothreadOptions {
        id,
        poll_max_ns: poll_max_ns?.unwrap_or(POLL_MAX_NS_DEFAULT),
        poll_grow: poll_grow?.unwrap_or(0),
        poll_shrink: poll_shrink?.unwrap_or(0),
    })
}

fn poll_parameter(
    name: &str,
    value: Result<Option<i64>, Refusal>,
    later: &mut Later,
) -> Result<Option<u64>, Refusal> {
    let value = value?;
    check_range(name, value.unwrap_or(0), later);
    Ok(value.map(i64::unsigned_abs))
}

fn check_range(name: &str, value: i64, later: &mut Later) {
    later.check(value >= 0, || {
        Refusal::new(format!("{name} value must be in range [0, {}]", i64::MAX))
    });
}

/// `limits`, then the older members that begin with `x-`.
fn group_limits(o: &mut Object, later: &mut Later) -> Result<ThrottleLimits, Refusal> {
    let mut limits = match o.object("limits")? {
        Some(newer) => throttle_limits(newer)?,
        None => ThrottleLimits::default(),
    };
    for (kind, rate) in rates(&mut limits) {
        for (part, value) in parts(rate) {
            old_limit(o, &format!("x-{kind}{part}"), value, later)?;
        }
    }
    old_limit(o, "x-iops-size", &mut limits.iops_size_bytes, later)?;
    Ok(limits)
}

/// Reads a group's `limits`.
///
/// # Errors
/// What cannot be taken, in QEMU's words.
pub fn throttle_limits(mut o: Object) -> Result<ThrottleLimits, Refusal> {
    let mut limits = ThrottleLimits::default();
    for (kind, rate) in rates(&mut limits) {
        for (part, value) in parts(rate) {
            new_limit(&mut o, &format!("{kind}{part}"), value)?;
        }
    }
    new_limit(&mut o, "iops-size", &mut limits.iops_size_bytes)?;
    o.finish()?;
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
