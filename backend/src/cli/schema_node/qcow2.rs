//! `qcow2`. What depends on the image itself (its version, its cluster size, whether it has a data file) is checked when it is opened.

use super::{Checks, child_of, file_child, not_negative};
use crate::cli::error::{Later, Refusal};
use crate::cli::options::{
    Backing, ImageNames, NodeCommon, OverlapChecks, Qcow2CacheOptions, Qcow2Options,
};
use crate::cli::visit::{NameOrObject, Object, WordOrObject};

#[derive(Clone, Copy)]
enum Template {
    None,
    Constant,
    Cached,
    All,
}

const TEMPLATES: &[(&str, Template)] = &[
    ("none", Template::None),
    ("constant", Template::Constant),
    ("cached", Template::Cached),
    ("all", Template::All),
];

const IMAGE_NAMES: &[(&str, ImageNames)] =
    &[("paths", ImageNames::Paths), ("any", ImageNames::Any)];

pub(super) fn read(
    o: &mut Object,
    common: &NodeCommon,
    checks: &mut Checks,
) -> Result<Qcow2Options, Refusal> {
    let file = file_child(o, common, checks)?;
    let backing = backing(o, common, &mut checks.backing)?;
    let lazy_refcounts = o.boolean("lazy-refcounts")?;
    let pass_discard_request = o.boolean("pass-discard-request")?;
    let pass_discard_snapshot = o.boolean("pass-discard-snapshot")?.unwrap_or(true);
    let pass_discard_other = o.boolean("pass-discard-other")?.unwrap_or(false);
    let discard_no_unref = o.boolean("discard-no-unref")?.unwrap_or(false);
    let overlap_check = overlap_check(o)?;
    // The data file is opened before the other options are looked at, so its complaints come first.
    let mut later = Later::default();
    let cache = cache(o, &mut later)?;
    let data_file = match o.name_or_object_if_any("data-file", "BlockdevRef")? {
        Some(member) => Some(child_of(member, &common.for_child(), &mut checks.own)?),
        None => None,
    };
    checks.own.merge(later);
    let snapshot = o.string("x-snapshot")?;
    let image_names = o.word("x-image-names", IMAGE_NAMES)?;
    let probe_backing = o.boolean("x-probe-backing")?.unwrap_or(false);
    let bitmap_journal = o.string("x-bitmap-journal")?;
    Ok(Qcow2Options {
        file,
        backing,
        data_file,
        lazy_refcounts,
        pass_discard_request: pass_discard_request.unwrap_or(passes_discards(common)),
        pass_discard_snapshot,
        pass_discard_other,
        discard_no_unref,
        overlap_check,
        cache,
        snapshot,
        image_names: image_names.unwrap_or(ImageNames::Paths),
        probe_backing,
        bitmap_journal,
    })
}

/// A guest's discards go to the host where the node takes discards at all.
fn passes_discards(common: &NodeCommon) -> bool {
    common.discard == crate::cli::options::Discard::Unmap
}

fn backing(o: &mut Object, common: &NodeCommon, later: &mut Later) -> Result<Backing, Refusal> {
    if o.null("backing") {
        return Ok(Backing::Nothing);
    }
    let member = o.name_or_object_if_any("backing", "BlockdevRefOrNull")?;
    Ok(match member {
        None => Backing::AsTheImageSays,
        // QEMU's old way to say null.
        Some(NameOrObject::Name(name)) if name.is_empty() => Backing::Nothing,
        Some(member) => Backing::Child(child_of(member, &common.for_backing(), later)?),
    })
}

fn cache(o: &mut Object, later: &mut Later) -> Result<Qcow2CacheOptions, Refusal> {
    let size_bytes = not_negative(o, "cache-size", later)?;
    let l2_size_bytes = not_negative(o, "l2-cache-size", later)?;
    let l2_entry_size_bytes = not_negative(o, "l2-cache-entry-size", later)?;
    let refcount_size_bytes = not_negative(o, "refcount-cache-size", later)?;
    let all = [size_bytes, l2_size_bytes, refcount_size_bytes];
    later.check(all.contains(&None), || {
        Refusal::new(
            "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time",
        )
    });
    let sizes = [
        ("l2-cache-size", l2_size_bytes),
        ("refcount-cache-size", refcount_size_bytes),
    ];
    for (name, part) in sizes {
        let exceeds = matches!((part, size_bytes), (Some(part), Some(size)) if part > size);
        later.check(!exceeds, || {
            Refusal::new(format!("{name} may not exceed cache-size"))
        });
    }
    // Negative ones wrap in QEMU and are too big.
    let interval = o.int64("cache-clean-interval")?.map(u32::try_from);
    later.check(!matches!(interval, Some(Err(_))), || {
        Refusal::new("Cache clean interval too big")
    });
    Ok(Qcow2CacheOptions {
        size_bytes,
        l2_size_bytes,
        l2_entry_size_bytes,
        refcount_size_bytes,
        clean_interval_s: interval.and_then(Result::ok),
    })
}

fn overlap_check(o: &mut Object) -> Result<OverlapChecks, Refusal> {
    match o.word_or_object("overlap-check", TEMPLATES, "Qcow2OverlapChecks")? {
        None => Ok(template(Template::Cached)),
        Some(WordOrObject::Word(word)) => Ok(template(word)),
        Some(WordOrObject::Object(flags)) => overlap_flags(flags),
    }
}

fn overlap_flags(mut o: Object) -> Result<OverlapChecks, Refusal> {
    let mut checks = template(o.word("template", TEMPLATES)?.unwrap_or(Template::Cached));
    let flags = [
        ("main-header", &mut checks.main_header),
        ("active-l1", &mut checks.active_l1),
        ("active-l2", &mut checks.active_l2),
        ("refcount-table", &mut checks.refcount_table),
        ("refcount-block", &mut checks.refcount_block),
        ("snapshot-table", &mut checks.snapshot_table),
        ("inactive-l1", &mut checks.inactive_l1),
        ("inactive-l2", &mut checks.inactive_l2),
        ("bitmap-directory", &mut checks.bitmap_directory),
    ];
    for (name, flag) in flags {
        super::set(flag, o.boolean(name)?);
    }
    o.finish()?;
    Ok(checks)
}

/// What each template checks: `constant` what never moves, `cached` what is in memory anyhow.
fn template(template: Template) -> OverlapChecks {
    let constant = !matches!(template, Template::None);
    let cached = matches!(template, Template::Cached | Template::All);
    OverlapChecks {
        main_header: constant,
        active_l1: cached,
        active_l2: cached,
        refcount_table: constant,
        refcount_block: cached,
        snapshot_table: constant,
        inactive_l1: cached,
        inactive_l2: matches!(template, Template::All),
        bitmap_directory: constant,
    }
}
