//! What is on offer: exports by name, and the counted list of them.

use crate::queue::Team;
use crate::stats::ExportStats;
use blockgraph::NodeId;
use blockgraph::bitmap::DirtyBitmap;
use blockgraph::driver::nbd::wire::{
    CONTEXT_ALLOCATION, CONTEXT_BITMAP, CONTEXT_DEPTH, ExportHead, Form,
};
use ring::{Choice, Durability};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// May clients write?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// They may.
    Allowed,
    /// They may not.
    Refused,
}

/// Is `qemu:allocation-depth` on offer?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocationDepth {
    /// It is.
    Told,
    /// It is not.
    Hidden,
}

/// What an export is made with.
#[derive(Clone, Debug)]
pub struct NbdExportOptions {
    /// The export's own name on the server.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// The node it shows.
    pub node: NodeId,
    /// Its size; it does not change while it is exported.
    pub size_bytes: u64,
    /// What requests must be multiples of to be fast.
    pub block_bytes: u32,
    /// May clients write?
    pub writes: Writes,
    /// When a write that asks for nothing is durable.
    pub durability: Durability,
    /// Is `qemu:allocation-depth` on offer?
    pub allocation_depth: AllocationDepth,
    /// Dirty bitmaps on offer.
    pub bitmaps: Vec<Arc<DirtyBitmap>>,
    /// Where its connections live.
    pub runs: Runs,
    /// What its clients have asked for.
    pub stats: Arc<ExportStats>,
}

/// Where connections live.
#[derive(Clone, Debug)]
pub enum Runs {
    /// Each on a thread of its own; what carries its I/O out.
    Alone(Choice),
    /// On the threads of an iothread, beside whatever else lives there. A connection does not keep the thread it lives on:
    /// that one would have to wait for its own end.
    On(Weak<Team>),
}

/// An export.
#[derive(Debug)]
pub(super) struct Export {
    pub(super) options: NbdExportOptions,
    closing: AtomicBool,
}

impl Export {
    /// Is it gone, and are its connections to end?
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Size and flags as a client of that form sees them.
    pub(super) fn head(&self, form: Form, contexts: usize) -> ExportHead {
        let mut flags = ExportHead::HAS_FLAGS
            | ExportHead::SEND_FLUSH
            | ExportHead::SEND_FUA
            | ExportHead::SEND_CACHE
            | ExportHead::CAN_MULTI_CONN;
        flags |= match self.options.writes {
            Writes::Allowed => {
                ExportHead::SEND_TRIM | ExportHead::SEND_WRITE_ZEROES | ExportHead::SEND_FAST_ZERO
            }
            Writes::Refused => ExportHead::READ_ONLY,
        };
        if form >= Form::Structured {
            flags |= ExportHead::SEND_DF;
        }
        if form >= Form::Extended && contexts > 0 {
            flags |= ExportHead::BLOCK_STAT_PAYLOAD;
        }
        ExportHead {
            size_bytes: self.options.size_bytes,
            flags,
        }
    }

    /// The contexts it has, in the order they are listed in.
    pub(super) fn contexts(&self) -> Vec<Context> {
        let depth = match self.options.allocation_depth {
            AllocationDepth::Told => Some(Context::Depth),
            AllocationDepth::Hidden => None,
        };
        let bitmaps = (0_u32..).zip(&self.options.bitmaps);
        let bitmaps = bitmaps.map(|(at, _)| Context::Bitmap(at));
        let first = [Some(Context::Allocation), depth];
        first.into_iter().flatten().chain(bitmaps).collect()
    }

    /// The bitmap that stands at that place in the list.
    pub(super) fn bitmap(&self, at: u32) -> Option<&DirtyBitmap> {
        self.options.bitmaps.get(at as usize).map(Arc::as_ref)
    }

    /// What a context is called.
    pub(super) fn name_of(&self, context: Context) -> String {
        match context {
            Context::Allocation => CONTEXT_ALLOCATION.to_owned(),
            Context::Depth => CONTEXT_DEPTH.to_owned(),
            Context::Bitmap(at) => {
                let name = self.bitmap(at).map_or("", DirtyBitmap::name);
                format!("{CONTEXT_BITMAP}{name}")
            }
        }
    }
}

/// What block status can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Context {
    /// Holes and zeroes.
    Allocation,
    /// Which layer of a chain.
    Depth,
    /// What was written: a dirty bitmap, by its place in the export's list.
    Bitmap(u32),
}

impl Context {
    /// What block status calls it.
    pub(super) fn id(self) -> u32 {
        match self {
            Context::Allocation => 0,
            Context::Depth => 1,
            Context::Bitmap(at) => 2 + at,
        }
    }

    /// What a listing may ask for instead of its name: "wildcards" stand for all they begin.
    pub(super) fn wildcards(self) -> &'static [&'static str] {
        match self {
            Context::Allocation => &["base:"],
            Context::Depth => &["qemu:"],
            Context::Bitmap(_) => &["qemu:", CONTEXT_BITMAP],
        }
    }
}

/// Every export of a server.
#[derive(Debug, Default)]
pub(super) struct Exports(Mutex<Vec<Arc<Export>>>);

impl Exports {
    fn list(&self) -> MutexGuard<'_, Vec<Arc<Export>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one; false if the name is taken.
    pub(super) fn add(&self, options: NbdExportOptions) -> bool {
        let mut list = self.list();
        if list.iter().any(|e| e.options.name == options.name) {
            return false;
        }
        list.push(Arc::new(Export {
            options,
            closing: AtomicBool::new(false),
        }));
        true
    }

    /// Takes one away; its connections see it closing.
    pub(super) fn remove(&self, name: &str) -> Option<Arc<Export>> {
        let mut list = self.list();
        let at = list.iter().position(|e| e.options.name == name)?;
        let export = list.remove(at);
        export.closing.store(true, Ordering::Release);
        Some(export)
    }

    /// One by name, as a client sent it.
    pub(super) fn find(&self, name: &[u8]) -> Option<Arc<Export>> {
        let list = self.list();
        let found = list.iter().find(|e| e.options.name.as_bytes() == name);
        found.cloned()
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<Export>> {
        self.list().clone()
    }
}
