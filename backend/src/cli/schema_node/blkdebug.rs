//! `blkdebug`: errors made to order.

use super::{child, not_negative};
use crate::cli::error::{Later, Refusal};
use crate::cli::options::{
    BlkdebugLimits, BlkdebugOptions, ChildPerm, InjectError, IoType, NodeCommon, SetState,
};
use crate::cli::visit::Object;

/// QEMU's name for input/output error in `errno`, when nothing is said.
const EIO: i64 = 5;

const IO_TYPES: &[(&str, IoType)] = &[
    ("read", IoType::Read),
    ("write", IoType::Write),
    ("write-zeroes", IoType::WriteZeroes),
    ("discard", IoType::Discard),
    ("flush", IoType::Flush),
    ("block-status", IoType::BlockStatus),
];

const PERMS: &[(&str, ChildPerm)] = &[
    ("consistent-read", ChildPerm::ConsistentRead),
    ("write", ChildPerm::Write),
    ("write-unchanged", ChildPerm::WriteUnchanged),
    ("resize", ChildPerm::Resize),
];

/// QAPI's BlkdebugEvent. Each stands for itself: which of them ever happen is the drivers' business.
#[rustfmt::skip]
const EVENTS: &[&str] = &[
    "l1_update", "l1_grow_alloc_table", "l1_grow_write_table", "l1_grow_activate_table",
    "l2_load", "l2_update", "l2_update_compressed", "l2_alloc_cow_read", "l2_alloc_write",
    "read_aio", "read_backing_aio", "read_compressed", "write_aio", "write_compressed",
    "vmstate_load", "vmstate_save", "cow_read", "cow_write",
    "reftable_load", "reftable_grow", "reftable_update",
    "refblock_load", "refblock_update", "refblock_update_part", "refblock_alloc",
    "refblock_alloc_hookup", "refblock_alloc_write", "refblock_alloc_write_blocks",
    "refblock_alloc_write_table", "refblock_alloc_switch_table",
    "cluster_alloc", "cluster_alloc_bytes", "cluster_free", "flush_to_os", "flush_to_disk",
    "pwritev_rmw_head", "pwritev_rmw_after_head", "pwritev_rmw_tail", "pwritev_rmw_after_tail",
    "pwritev", "pwritev_zero", "pwritev_done", "empty_image_prepare",
    "l1_shrink_write_table", "l1_shrink_free_l2_clusters", "cor_write", "cluster_alloc_space",
    "none",
];

pub(super) fn read(
    o: &mut Object,
    common: &NodeCommon,
    own: &mut Later,
) -> Result<BlkdebugOptions, Refusal> {
    let image = child(o, "image", &common.for_child(), own)?;
    let config = o.string("config")?;
    let limits = limits(o, own)?;
    let inject_error = o.each("inject-error", inject_error)?.unwrap_or_default();
    let set_state = o.each("set-state", set_state)?.unwrap_or_default();
    let take_child_perms = o.words("take-child-perms", PERMS)?.unwrap_or_default();
    let unshare_child_perms = o.words("unshare-child-perms", PERMS)?.unwrap_or_default();
    Ok(BlkdebugOptions {
        image,
        config,
        limits,
        inject_error,
        set_state,
        take_child_perms,
        unshare_child_perms,
    })
}

fn limits(o: &mut Object, later: &mut Later) -> Result<BlkdebugLimits, Refusal> {
    let align = not_negative(o, "align", later)?.unwrap_or(0);
    let max_transfer = not_negative32(o, "max-transfer", later)?;
    let opt_write_zero = not_negative32(o, "opt-write-zero", later)?;
    let max_write_zero = not_negative32(o, "max-write-zero", later)?;
    let opt_discard = not_negative32(o, "opt-discard", later)?;
    let max_discard = not_negative32(o, "max-discard", later)?;
    let fits = align < i32::MAX as u64 && (align == 0 || align.is_power_of_two());
    constrain("align", align, fits, later);
    let unit = if fits { align.max(1) } else { 1 };
    let whole = |value: u64, unit: u64| value.is_multiple_of(unit.max(1));
    constrain(
        "max-transfer",
        max_transfer,
        whole(max_transfer, unit),
        later,
    );
    constrain(
        "opt-write-zero",
        opt_write_zero,
        whole(opt_write_zero, unit),
        later,
    );
    let most = whole(max_write_zero, unit.max(opt_write_zero));
    constrain("max-write-zero", max_write_zero, most, later);
    constrain("opt-discard", opt_discard, whole(opt_discard, unit), later);
    let most = whole(max_discard, unit.max(opt_discard));
    constrain("max-discard", max_discard, most, later);
    let said = |bytes: u64| u32::try_from(bytes).ok().filter(|bytes| *bytes != 0);
    Ok(BlkdebugLimits {
        align_bytes: said(align),
        max_transfer_bytes: said(max_transfer),
        opt_write_zero_bytes: said(opt_write_zero),
        max_write_zero_bytes: said(max_write_zero),
        opt_discard_bytes: said(opt_discard),
        max_discard_bytes: said(max_discard),
    })
}

fn constrain(name: &str, value: u64, holds: bool, later: &mut Later) {
    later.check(holds, || {
        Refusal::new(format!("Cannot meet constraints with {name} {value}"))
    });
}

fn not_negative32(o: &mut Object, name: &str, later: &mut Later) -> Result<u64, Refusal> {
    let value = o.int32(name)?.unwrap_or(0);
    later.check(value >= 0, || Refusal::out_of_range(name, value.into()));
    Ok(value.unsigned_abs().into())
}

fn event(o: &mut Object) -> Result<&'static str, Refusal> {
    let Some(text) = o.string("event")? else {
        return Err(Refusal::missing(o.full_name("event")));
    };
    let known = EVENTS.iter().find(|event| **event == text);
    known
        .copied()
        .ok_or_else(|| Refusal::wrong_value("event", &text))
}

fn inject_error(o: &mut Object) -> Result<InjectError, Refusal> {
    Ok(InjectError {
        event: event(o)?,
        state: o.int64("state")?.unwrap_or(0),
        io_type: o.word("iotype", IO_TYPES)?,
        errno: o.int64("errno")?.unwrap_or(EIO),
        sector: o.int64("sector")?.and_then(|sector| sector.try_into().ok()),
        once: o.boolean("once")?.unwrap_or(false),
        immediately: o.boolean("immediately")?.unwrap_or(false),
    })
}

fn set_state(o: &mut Object) -> Result<SetState, Refusal> {
    Ok(SetState {
        event: event(o)?,
        state: o.int64("state")?.unwrap_or(0),
        new_state: o
            .int64("new_state")?
            .ok_or_else(|| Refusal::missing(o.full_name("new_state")))?,
    })
}
