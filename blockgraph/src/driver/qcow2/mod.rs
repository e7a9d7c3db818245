//! qcow2: guest clusters anywhere in a file, found by two levels of tables (QEMU's docs/interop/qcow2.txt).
//!
//! The rule: the L2 slices in memory (`cache`) are the truth, and `map` is a lookup in them and nothing more. Whatever needs
//! a slice that is not there, a decompression, an allocation or any change of metadata is served.

mod alloc;
mod bitmaps;
pub mod cache;
pub mod check;
mod close;
mod commit;
mod compress;
pub mod create;
mod damage;
mod discard;
mod edge;
mod extent;
pub mod format;
mod free;
mod gate;
pub mod geometry;
pub mod image_file;
mod map_log;
mod meta;
mod open;
mod overlap;
mod pieces;
mod plan;
mod preallocate;
mod read;
mod refcount;
mod release;
mod replay;
pub mod resize;
mod restructure;
pub mod snapshot;
mod sparse;
mod status;
mod together;
mod traffic;
mod unpack;
mod users;
mod width;
mod write;
mod writer;
mod zero;

pub(crate) use bitmaps::load_bitmaps;
pub use bitmaps::{NotKept, StoreError};
pub use map_log::{Change, MapLog};
pub use open::{Image, Options, Qcow2Error};
pub use overlap::OverlapChecks;
pub use replay::ReplayError;
pub use writer::{PassDiscard, Unref, WriteOptions};

use crate::filter::blkdebug::BlkdebugEvent;
use crate::graph::perm::{Perm, Perms, Wants};
use crate::graph::{Access, Edge, Role};
use crate::hold::Holds;
use crate::io::Io;
use crate::node::{Driver, Info, Limits, Local, Map, Outcome};
use crate::request::{Dir, Kind, Prealloc, Request};
use crate::status::Status;
use crate::units::Span;
use bitmaps::Bitmaps;
use cache::{Cache, Cleaning, View};
use damage::Told;
use extent::extent;
use format::entry::{DataIn, L1Entry, Malformed, Part};
use format::header::Header;
use geometry::Geometry;
use meta::Meta;
use ring::Errno;
use sparse::Sparse;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use traffic::Traffic;
use unpack::Unpacked;
use users::Users;
use writer::Writer;

/// A qcow2 image.
#[derive(Debug)]
pub struct Qcow2 {
    geometry: Geometry,
    size_bytes: AtomicU64,
    limits: Limits,
    access: Access,
    l2: Arc<Cache>,
    _cleaning: Option<Cleaning>,
    /// Never held across an await.
    state: Mutex<Meta>,
    /// Guest clusters being allocated or rewritten: writes to them wait, reads do not.
    holds: Holds,
    /// Who looked a cluster up on the serve path and is not done with it.
    users: Users,
    unpacked: Unpacked,
    sparse: Sparse,
    /// May allocated clusters be written by the mapped path? Not before the header says that somebody writes.
    may_map_writes: AtomicBool,
    writer: Writer,
    /// Requests that change it.
    traffic: Traffic,
    /// Another driver has taken over.
    retired: AtomicBool,
    bitmaps: Bitmaps,
    /// What was said of damage.
    told: Told,
}

impl Qcow2 {
    /// Its sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Its L2 slices.
    pub fn l2(&self) -> &Cache {
        &self.l2
    }

    /// Its header, as on disk.
    pub fn header(&self) -> Header {
        self.meta().header.clone()
    }

    /// Waits until nobody relies any more on what was looked up before the call: then host clusters that nothing refers to
    /// since are free.
    pub async fn quiet(&self, io: &Io) {
        io.grace().await;
        self.users.left().await;
    }

    /// Where its metadata is.
    pub(crate) fn metadata_role(&self) -> Role {
        match self.geometry.layout().data {
            DataIn::Image => Role::Image,
            DataIn::DataFile => Role::Metadata,
        }
    }

    /// Where its guest clusters are.
    pub(crate) fn data_role(&self) -> Role {
        match self.geometry.layout().data {
            DataIn::Image => Role::Image,
            DataIn::DataFile => Role::Data,
        }
    }

    pub(crate) fn meta(&self) -> MutexGuard<'_, Meta> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the guest sees, in bytes.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    fn l2_table(&self, index: usize) -> Result<L1Entry, Malformed> {
        self.meta().l2_table(index)
    }

    /// Tells the image file what is about to be done with it: the places are those where QEMU tells the same.
    pub(crate) fn tell(&self, io: &Io, event: BlkdebugEvent) {
        io.event(self.metadata_role(), event);
    }

    /// Where a slice that is to be read is on disk.
    fn locate(&self, io: &Io, slice: u64) -> Result<cache::OnDisk, Errno> {
        let table = self.l2_table(self.geometry.l1_index(slice));
        match table.map_err(|malformed| self.impossible(io, malformed))? {
            L1Entry::Absent => Ok(cache::OnDisk::Absent),
            L1Entry::Table { at, .. } => {
                let within = self.geometry.slice_in_table(slice);
                let node = io.child(self.metadata_role())?;
                self.tell(io, BlkdebugEvent::L2Load);
                Ok(cache::OnDisk::At(node, at + within))
            }
        }
    }

    /// A slice for reading. Whoever relies on what it says has entered `users` before.
    pub(crate) async fn view(&self, io: &Io, slice: u64) -> Result<View<'_>, Errno> {
        let locate = || self.locate(io, slice);
        self.l2.fetch(io, slice, locate).await
    }
}

impl Driver for Qcow2 {
    fn map(&self, dir: Dir, span: Span) -> Map {
        let at = self.geometry.entry_at(span.at);
        let Some(found) = self.l2.find(at.slice) else {
            return Map::Slow;
        };
        if found.is_blank() {
            let (to, at, len) = (Role::Cow, span.at, self.rest_of_slice(span).len);
            return match (dir, found.holds()) {
                (Dir::Read, true) => Map::Below { to, at, len },
                _ => Map::Slow,
            };
        }
        let run = extent(&self.geometry, span, |index| found.entry(index));
        if !found.holds() {
            return Map::Slow;
        }
        let to = self.data_role();
        match (dir, run) {
            (Dir::Read, Ok((Part::Data { host: at, .. }, len))) => Map::Below { to, at, len },
            (Dir::Read, Ok((Part::Zero { .. }, len))) => Map::Zero { len },
            (Dir::Read, Ok((Part::Below { .. }, len))) => {
                let (to, at) = (Role::Cow, span.at);
                Map::Below { to, at, len }
            }
            (Dir::Write, Ok((Part::Data { host, copied: true }, len)))
                if self.may_map_writes.load(Ordering::Acquire)
                    && self.holds.free(span)
                    && self.may_write(host, len) =>
            {
                Map::Below { to, at: host, len }
            }
            _ => Map::Slow,
        }
    }

    fn serve<'a>(&'a self, io: &'a Io, request: Request) -> Local<'a, Outcome> {
        match request.kind {
            Kind::Read => Box::pin(self.read(io, request.span, request.mem)),
            kind => Box::pin(self.change(io, kind, request.span, request.mem)),
        }
    }

    fn status<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<Status, Errno>> {
        Box::pin(self.block_status(io, span))
    }

    fn allocated<'a>(&'a self, io: &'a Io) -> Local<'a, Result<u64, Errno>> {
        Box::pin(async move {
            let image = io.allocated(io.child(self.metadata_role())?).await?;
            match self.geometry.layout().data {
                DataIn::Image => Ok(image),
                DataIn::DataFile => {
                    let data = io.allocated(io.child(Role::Data)?).await?;
                    Ok(image.saturating_add(data))
                }
            }
        })
    }

    fn unit_bytes(&self) -> u64 {
        self.geometry.subcluster_bytes()
    }

    fn compresses(&self) -> bool {
        self.geometry.layout().data == DataIn::Image
    }

    fn info(&self) -> Info {
        Info {
            size_bytes: self.size_bytes.load(Ordering::Acquire),
            limits: self.limits,
        }
    }

    fn truncate<'a>(&'a self, io: &'a Io, size_bytes: u64, how: Prealloc) -> Local<'a, Outcome> {
        Box::pin(async move { self.resize(io, size_bytes, how).await.map_err(Into::into) })
    }

    fn as_qcow2(&self) -> Option<&Qcow2> {
        Some(self)
    }

    fn close<'a>(&'a self, io: &'a Io) -> Local<'a, Outcome> {
        Box::pin(self.close_image(io))
    }

    fn wants(&self, edge: &Edge, above: Wants) -> Wants {
        match edge.role {
            Role::Cow => of_backing(above),
            role => of_storage(role, self.access, above),
        }
    }
}

fn write_perm() -> Perms {
    Perms::READ_WRITE.without(Perms::READ)
}

fn write_unchanged_perm() -> Perms {
    Perms::ALL.without(Perms::READ_WRITE.or(Perms::RESIZE))
}

/// What is asked of a backing file: to be read, and to stay as it is if our own users rely on that.
fn of_backing(above: Wants) -> Wants {
    let always = Perms::READ.or(write_unchanged_perm());
    let shares = match above.shares.has(Perm::Write) {
        true => always.or(write_perm()).or(Perms::RESIZE),
        false => always,
    };
    let needs = above.needs.and(Perms::READ);
    Wants { needs, shares }
}

/// What is asked of the files: nobody else may write metadata or resize anything, and an image that is open for writing may
/// change its metadata at any time.
fn of_storage(role: Role, access: Access, above: Wants) -> Wants {
    let Wants {
        mut needs,
        mut shares,
    } = above;
    if matches!(role, Role::Image | Role::Metadata) {
        needs = needs.or(Perms::READ);
        if access == Access::ReadWrite {
            needs = needs.or(write_perm()).or(Perms::RESIZE);
        }
        shares = shares.without(write_perm());
    }
    if matches!(role, Role::Image | Role::Data) {
        if needs.has(Perm::WriteUnchanged) {
            needs = needs.or(write_perm());
        }
        if needs.has(Perm::Write) {
            needs = needs.or(Perms::RESIZE);
        }
    }
    shares = shares.without(Perms::RESIZE);
    Wants { needs, shares }
}
