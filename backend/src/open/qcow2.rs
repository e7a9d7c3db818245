//! The options of qcow2 images, and the names in them that are no paths.

use super::{child, node_spec};
use crate::cli::{
    self, BlockdevOptions, ChildRef, ImageNames, NodeCommon, Object, Qcow2Options, Refusal,
    Spelling, child_blockdev, parse_json,
};
use crate::qapi::tables::nodes::BLOCKDEV_OPTIONS;
use blockgraph::driver::file::{Cache, Flushes};
use blockgraph::driver::qcow2::cache::CacheOptions;
use blockgraph::driver::qcow2::{Options, OverlapChecks, PassDiscard, Unref, WriteOptions};
use blockgraph::graph::gate::{Inherited, Named, Names, Parsed, Parser, UnknownFormat};
use blockgraph::graph::open::{Backing, DriverSpec, Qcow2Spec};
use blockgraph::graph::{Access, Activity, DetectZeroes, DiscardPolicy, Sharing};
use serde_json::Value;

pub(super) fn spec(image: Qcow2Options, common: &NodeCommon) -> Result<DriverSpec, Refusal> {
    let named = named(&image, common);
    Ok(DriverSpec::Qcow2(Box::new(Qcow2Spec {
        options: options(&image),
        file: child(image.file)?,
        data_file: image.data_file.map(child).transpose()?,
        backing: match image.backing {
            cli::Backing::AsTheImageSays => Backing::Stored,
            cli::Backing::Nothing => Backing::Nothing,
            cli::Backing::Child(backing) => Backing::Node(child(backing)?),
        },
        named,
        journal: image.bitmap_journal.map(Into::into),
    })))
}

fn options(image: &Qcow2Options) -> Options {
    Options {
        snapshot: image.snapshot.clone(),
        write: WriteOptions {
            pass_discard: PassDiscard {
                request: image.pass_discard_request,
                snapshot: image.pass_discard_snapshot,
                other: image.pass_discard_other,
            },
            unref: match image.discard_no_unref {
                true => Unref::Keep,
                false => Unref::Free,
            },
            overlap_checks: overlap_checks(image.overlap_check),
            lazy_refcounts: image.lazy_refcounts,
        },
        cache: CacheOptions {
            total: image.cache.size_bytes,
            l2: image.cache.l2_size_bytes,
            l2_entry: image.cache.l2_entry_size_bytes,
            refcount: image.cache.refcount_size_bytes,
            clean_interval_s: image.cache.clean_interval_s.map(u64::from),
        },
    }
}

fn overlap_checks(checks: cli::OverlapChecks) -> OverlapChecks {
    OverlapChecks {
        main_header: checks.main_header,
        active_l1: checks.active_l1,
        active_l2: checks.active_l2,
        refcount_table: checks.refcount_table,
        refcount_block: checks.refcount_block,
        snapshot_table: checks.snapshot_table,
        inactive_l1: checks.inactive_l1,
        inactive_l2: checks.inactive_l2,
        bitmap_directory: checks.bitmap_directory,
    }
}

fn named(image: &Qcow2Options, common: &NodeCommon) -> Named {
    Named {
        cache: super::cache(common),
        flushes: super::flushes(common),
        names: match image.image_names {
            ImageNames::Paths => Names::Paths,
            ImageNames::Any => Names::Any(Parser(parse_name)),
        },
        unknown_format: match image.probe_backing {
            false => UnknownFormat::Refuse,
            true => UnknownFormat::Probe,
        },
    }
}

/// A name in an image that is no path, where the user allowed those.
fn parse_name(name: &str, inherited: &Inherited) -> Result<Parsed, String> {
    let Some(json) = name.strip_prefix("json:") else {
        let protocol = name.split(':').next().unwrap_or_default();
        return Err(format!(
            "'{protocol}:' names are not supported by this version; 'json:' is"
        ));
    };
    let wrong = |error: Refusal| format!("Could not parse the JSON options: {error}");
    let Value::Object(members) = parse_json(json).map_err(wrong)? else {
        return Err("Could not parse the JSON options: not an object".to_owned());
    };
    let refused = |error: Refusal| error.to_string();
    let object = Object::checked(members, &BLOCKDEV_OPTIONS, Spelling::Json).map_err(refused)?;
    let options = child_blockdev(object, &common(inherited)).map_err(refused)?;
    check_read_only(&options)?;
    let spec = node_spec(options).map_err(|error| error.to_string())?;
    Ok(Parsed::Node(spec))
}

/// An image may say where its backing file is, but not that it be written to.
fn check_read_only(options: &BlockdevOptions) -> Result<(), String> {
    if !options.common.read_only {
        return Err("a backing file that an image names is read-only".to_owned());
    }
    if options.driver.bitmap_journal().is_some() {
        return Err("a backing file that an image names has no bitmap journal".to_owned());
    }
    options.driver.children().try_for_each(|child| match child {
        ChildRef::Inline(child) => check_read_only(child),
        ChildRef::Node(name) => Err(format!(
            "an image cannot refer to the node '{name}' of this process"
        )),
    })
}

fn common(inherited: &Inherited) -> NodeCommon {
    let Inherited {
        common,
        cache,
        flushes,
    } = inherited;
    NodeCommon {
        discard: match common.discard {
            DiscardPolicy::Ignore => cli::Discard::Ignore,
            DiscardPolicy::Unmap => cli::Discard::Unmap,
        },
        cache_direct: *cache == Cache::Direct,
        cache_no_flush: *flushes == Flushes::Nothing,
        active: common.activity == Activity::Active,
        read_only: common.access == Access::ReadOnly,
        auto_read_only: false,
        force_share: common.sharing == Sharing::Forced,
        detect_zeroes: match common.detect_zeroes {
            DetectZeroes::Off => cli::DetectZeroes::Off,
            DetectZeroes::On => cli::DetectZeroes::On,
            DetectZeroes::Unmap => cli::DetectZeroes::Unmap,
        },
    }
}
