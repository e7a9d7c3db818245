//! From what the command line says of a node to what the graph opens, and from the graph's refusals to messages.
//!
//! The rule: a pure mapping; every default is filled in already, and nothing is opened here.

mod nbd;
mod qcow2;

use crate::cli::{
    self, BlkdebugOptions, BlockdevOptions, ChildPerm, ChildRef, DriverOptions, InjectError,
    IoType, NodeCommon, Refusal, SetState, ThrottleLimits, ThrottleRate,
};
use blockgraph::bitmap::BitmapName;
use blockgraph::driver::file::{Cache, FileKind, FileOptions, Flushes, Locking, OpenMode};
use blockgraph::driver::null::Reads;
use blockgraph::driver::raw::Window;
use blockgraph::filter::blkdebug::{self, BlkdebugEvent};
use blockgraph::filter::copy_before_write::{CbwOptions, OnCbwError};
use blockgraph::filter::throttle;
use blockgraph::graph::open::{
    Child, DriverSpec, FileSpec, FilterSpec, NodeSpec, NullKind, NullSpec, OpenError,
};
use blockgraph::graph::perm::{PermError, Perms};
use blockgraph::graph::reopen::ReopenError;
use blockgraph::graph::{Access, Activity, Caching, DetectZeroes, DiscardPolicy, Sharing};
use blockgraph::node::Engine;

const NS_PER_S: u64 = 1_000_000_000;

/// The node that `options` ask for, with its inline children.
///
/// # Errors
/// A driver that this version has no engine for.
pub fn node_spec(options: BlockdevOptions) -> Result<NodeSpec, Refusal> {
    let BlockdevOptions {
        node_name,
        common,
        driver,
        given: _,
    } = options;
    let driver = match driver {
        DriverOptions::File(file) => file_spec(file, &common, FileKind::Regular),
        DriverOptions::HostDevice(file) => file_spec(file, &common, FileKind::Device),
        DriverOptions::Raw(raw) => DriverSpec::Raw {
            file: child(raw.file)?,
            window: Window {
                offset_bytes: raw.offset_bytes,
                size_bytes: raw.size_bytes,
            },
            journal: raw.bitmap_journal.map(Into::into),
        },
        DriverOptions::NullCo(null) => null_spec(&null, NullKind::Co),
        DriverOptions::NullAio(null) => null_spec(&null, NullKind::Aio),
        DriverOptions::Delay(delay) => DriverSpec::Delay {
            file: child(delay.file)?,
            latency_ns: delay.latency_ns,
        },
        DriverOptions::Qcow2(image) => qcow2::spec(*image, &common)?,
        DriverOptions::CopyOnRead(cor) => filter(FilterSpec::CopyOnRead {
            file: child(cor.file)?,
            bottom: cor.bottom,
        }),
        DriverOptions::CopyBeforeWrite(cbw) => filter(FilterSpec::CopyBeforeWrite {
            file: child(cbw.file)?,
            target: child(cbw.target)?,
            bitmap: cbw.bitmap.map(|bitmap| BitmapName {
                node: bitmap.node,
                name: bitmap.name,
            }),
            options: CbwOptions {
                on_error: match cbw.on_error {
                    cli::OnCbwError::BreakGuestWrite => OnCbwError::BreakGuestWrite,
                    cli::OnCbwError::BreakSnapshot => OnCbwError::BreakSnapshot,
                },
                timeout_ns: u64::from(cbw.timeout_s) * NS_PER_S,
                min_cluster_bytes: cbw.min_cluster_bytes,
            },
        }),
        DriverOptions::SnapshotAccess(snapshot) => DriverSpec::SnapshotAccess {
            file: child(snapshot.file)?,
        },
        DriverOptions::Throttle(throttle) => filter(FilterSpec::Throttle {
            file: child(throttle.file)?,
            group: throttle.group,
        }),
        DriverOptions::Compress(compress) => filter(FilterSpec::Compress {
            file: child(compress.file)?,
        }),
        DriverOptions::Preallocate(preallocate) => filter(FilterSpec::Preallocate {
            file: child(preallocate.file)?,
            align_bytes: preallocate.align_bytes,
            ahead_bytes: preallocate.size_bytes,
        }),
        DriverOptions::Blkdebug(debug) => filter(blkdebug_spec(*debug)?),
        DriverOptions::Nbd(nbd) => nbd::spec(*nbd, &common),
    };
    Ok(NodeSpec {
        name: node_name,
        common: node_common(&common),
        driver,
    })
}

fn filter(spec: FilterSpec) -> DriverSpec {
    DriverSpec::Filter(Box::new(spec))
}

fn blkdebug_spec(debug: BlkdebugOptions) -> Result<FilterSpec, Refusal> {
    let limits = debug.limits;
    let perms = |perms: &[ChildPerm]| perms.iter().map(perm).fold(Perms::NONE, Perms::or);
    let options = blkdebug::Options {
        inject_error: debug.inject_error.iter().filter_map(inject_error).collect(),
        set_state: debug.set_state.iter().filter_map(set_state).collect(),
        pretended: blkdebug::Pretended {
            align: limits.align_bytes,
            max_transfer: limits.max_transfer_bytes,
            opt_write_zero: limits.opt_write_zero_bytes,
            max_write_zero: limits.max_write_zero_bytes,
            opt_discard: limits.opt_discard_bytes,
            max_discard: limits.max_discard_bytes,
        },
        takes: perms(&debug.take_child_perms),
        unshares: perms(&debug.unshare_child_perms),
    };
    Ok(FilterSpec::Blkdebug {
        image: child(debug.image)?,
        config: debug.config.map(Into::into),
        options,
    })
}

/// Both tables of events are QAPI's, so none is unknown.
fn inject_error(rule: &InjectError) -> Option<blkdebug::InjectError> {
    Some(blkdebug::InjectError {
        event: BlkdebugEvent::parse(rule.event)?,
        state: rule.state,
        io_type: rule.io_type.map(|io_type| match io_type {
            IoType::Read => blkdebug::IoType::Read,
            IoType::Write => blkdebug::IoType::Write,
            IoType::WriteZeroes => blkdebug::IoType::WriteZeroes,
            IoType::Discard => blkdebug::IoType::Discard,
            IoType::Flush => blkdebug::IoType::Flush,
            IoType::BlockStatus => blkdebug::IoType::BlockStatus,
        }),
        errno: i32::try_from(rule.errno).unwrap_or(libc::EIO),
        sector: rule.sector,
        once: rule.once,
        immediately: rule.immediately,
    })
}

fn set_state(rule: &SetState) -> Option<blkdebug::SetState> {
    Some(blkdebug::SetState {
        event: BlkdebugEvent::parse(rule.event)?,
        state: rule.state,
        new_state: rule.new_state,
    })
}

fn perm(perm: &ChildPerm) -> Perms {
    match perm {
        ChildPerm::ConsistentRead => Perms::READ,
        ChildPerm::Write => Perms::WRITE,
        ChildPerm::WriteUnchanged => Perms::WRITE_UNCHANGED,
        ChildPerm::Resize => Perms::RESIZE,
    }
}

/// The limits of a throttle group, as its engine has them.
pub fn throttle_limits(limits: &ThrottleLimits) -> throttle::Limits {
    let rate = |rate: ThrottleRate| throttle::Rate {
        avg: rate.average,
        max: rate.max,
        max_length_s: rate.max_length_s,
    };
    throttle::Limits {
        bps_total: rate(limits.bps_total),
        bps_read: rate(limits.bps_read),
        bps_write: rate(limits.bps_write),
        iops_total: rate(limits.iops_total),
        iops_read: rate(limits.iops_read),
        iops_write: rate(limits.iops_write),
        iops_size: limits.iops_size_bytes,
    }
}

fn child(child: ChildRef) -> Result<Child, Refusal> {
    Ok(match child {
        ChildRef::Node(name) => Child::Named(name),
        ChildRef::Inline(options) => Child::Inline(Box::new(node_spec(*options)?)),
    })
}

fn node_common(common: &NodeCommon) -> blockgraph::Common {
    blockgraph::Common {
        access: match common.read_only {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        },
        discard: match common.discard {
            cli::Discard::Ignore => DiscardPolicy::Ignore,
            cli::Discard::Unmap => DiscardPolicy::Unmap,
        },
        detect_zeroes: match common.detect_zeroes {
            cli::DetectZeroes::Off => DetectZeroes::Off,
            cli::DetectZeroes::On => DetectZeroes::On,
            cli::DetectZeroes::Unmap => DetectZeroes::Unmap,
        },
        activity: match common.active {
            true => Activity::Active,
            false => Activity::Inactive,
        },
        sharing: match common.force_share {
            true => Sharing::Forced,
            false => Sharing::Asked,
        },
        caching: Caching {
            cache: cache(common),
            flushes: flushes(common),
        },
    }
}

fn open_mode(common: &NodeCommon) -> OpenMode {
    match (common.read_only, common.auto_read_only) {
        (true, _) => OpenMode::ReadOnly,
        (false, true) => OpenMode::Auto,
        (false, false) => OpenMode::ReadWrite,
    }
}

fn file_spec(file: cli::FileOptions, common: &NodeCommon, kind: FileKind) -> DriverSpec {
    let options = FileOptions {
        filename: file.filename,
        kind,
        mode: open_mode(common),
        cache: cache(common),
        flushes: flushes(common),
        locking: match file.locking {
            cli::Locking::Off => Locking::Off,
            cli::Locking::On => Locking::On,
            cli::Locking::Auto => Locking::Auto,
        },
        engine: match file.aio {
            None => Engine::Any,
            Some(cli::Aio::Threads) => Engine::Threads,
            Some(cli::Aio::Native) => Engine::Native,
            Some(cli::Aio::IoUring) => Engine::Uring,
        },
    };
    DriverSpec::File(FileSpec { options })
}

fn cache(common: &NodeCommon) -> Cache {
    match common.cache_direct {
        true => Cache::Direct,
        false => Cache::Page,
    }
}

fn flushes(common: &NodeCommon) -> Flushes {
    match common.cache_no_flush {
        true => Flushes::Nothing,
        false => Flushes::Sync,
    }
}

fn null_spec(null: &cli::NullOptions, kind: NullKind) -> DriverSpec {
    DriverSpec::Null(NullSpec {
        kind,
        size_bytes: null.size_bytes,
        reads: match null.read_zeroes {
            true => Reads::Zeroes,
            false => Reads::Untouched,
        },
        latency_ns: null.latency_ns,
    })
}

/// A refusal to open, as the command line's user reads it: a hint goes on a line of its own.
pub fn open_refusal(error: &OpenError) -> Refusal {
    Refusal::new(with_hint(error.to_string(), error.hint()))
}

/// A refusal to open nodes anew, likewise.
pub fn reopen_refusal(error: &ReopenError) -> Refusal {
    Refusal::new(with_hint(error.to_string(), error.hint()))
}

/// A refusal to attach an export, likewise.
pub fn perm_refusal(error: &PermError) -> Refusal {
    Refusal::new(with_hint(error.to_string(), error.hint()))
}

fn with_hint(message: String, hint: Option<String>) -> String {
    match hint {
        Some(hint) => format!("{message}\n{hint}"),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{FileOptions as CliFile, RawOptions};

    fn common(cache_direct: bool, discard: cli::Discard) -> NodeCommon {
        NodeCommon {
            discard,
            cache_direct,
            cache_no_flush: true,
            active: true,
            read_only: false,
            auto_read_only: true,
            force_share: false,
            detect_zeroes: cli::DetectZeroes::Unmap,
        }
    }

    #[test]
    fn an_inline_chain_keeps_every_option_of_every_node() {
        let file = BlockdevOptions {
            node_name: None,
            common: common(true, cli::Discard::Unmap),
            driver: DriverOptions::HostDevice(CliFile {
                filename: "/dev/x".into(),
                aio: Some(cli::Aio::Native),
                locking: cli::Locking::Off,
            }),
            given: cli::Given::nothing(),
        };
        let raw = BlockdevOptions {
            node_name: Some("r".into()),
            common: common(false, cli::Discard::Ignore),
            driver: DriverOptions::Raw(RawOptions {
                file: ChildRef::Inline(Box::new(file)),
                offset_bytes: 512,
                size_bytes: Some(1024),
                bitmap_journal: None,
            }),
            given: cli::Given::nothing(),
        };
        let spec = node_spec(raw).expect("supported");
        assert_eq!(spec.name.as_deref(), Some("r"));
        assert_eq!(spec.common.discard, DiscardPolicy::Ignore);
        assert_eq!(spec.common.detect_zeroes, DetectZeroes::Unmap);
        let DriverSpec::Raw {
            file: Child::Inline(file),
            window,
            journal: None,
        } = spec.driver
        else {
            panic!("raw with an inline child")
        };
        assert_eq!((window.offset_bytes, window.size_bytes), (512, Some(1024)));
        assert_eq!(file.common.discard, DiscardPolicy::Unmap);
        let expected = FileOptions {
            filename: "/dev/x".into(),
            kind: FileKind::Device,
            mode: OpenMode::Auto,
            cache: Cache::Direct,
            flushes: Flushes::Nothing,
            locking: Locking::Off,
            engine: Engine::Native,
        };
        assert_eq!(
            file.driver,
            DriverSpec::File(FileSpec { options: expected })
        );
    }

    #[test]
    fn a_hint_goes_below_the_message() {
        let refusal = with_hint("Failed".into(), Some("Is it so?".into()));
        assert_eq!(refusal, "Failed\nIs it so?");
    }
}
