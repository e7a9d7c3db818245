//! Opens qcow2 images: the file first, then what the image says it has besides.

use super::super::gate::{Inherited, Named};
use super::super::perm::{Perms, Wants};
use super::super::{Access, Activity, Body, Common, Edge, Role, Shape};
use super::{Child, Made, OpenError, Opening};
use crate::bitmap::{DirtyBitmap, Keeping};
use crate::driver::qcow2::check::{CheckError, repair_dirty};
use crate::driver::qcow2::format::bitmap_dir::Stored;
use crate::driver::qcow2::{Image, Options, Qcow2, Qcow2Error, load_bitmaps};
use crate::io::Io;
use crate::node::{Driver, Info, NodeId};
use std::path::PathBuf;
use std::sync::Arc;

/// A qcow2 image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Spec {
    /// The image.
    pub file: Child,
    /// Where its guest data is, for an image that has it in another file.
    pub data_file: Option<Child>,
    /// What is below it.
    pub backing: Backing,
    /// How it is to be used.
    pub options: Options,
    /// How what it names is opened.
    pub named: Named,
    /// The file beside it that keeps its bitmaps through a crash, if any.
    pub journal: Option<PathBuf>,
}

/// What is below an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// What the image says.
    Stored,
    /// Nothing, whatever the image says (`backing: null`).
    Nothing,
    /// That node, whatever the image says.
    Node(Child),
}

/// What the image may do: nothing is written to one that another process has.
pub(in crate::graph) fn rights(common: Common) -> Access {
    match common.takes_writes() {
        true => Access::ReadWrite,
        false => Access::ReadOnly,
    }
}

/// Did its last writer not close it?
pub(in crate::graph) fn repair_wanted(image: &Qcow2) -> bool {
    let bits = image.header().incompatible;
    bits.dirty && !bits.corrupt
}

/// Has it bitmaps of which the image does not say that they are in use, and may it say so?
pub(in crate::graph) fn has_bitmaps_to_record(common: Common, driver: &dyn Driver) -> bool {
    let image = driver.as_qcow2().filter(|_| common.takes_writes());
    let bitmaps = image.map(|image| image.bitmaps()).unwrap_or_default();
    bitmaps.iter().any(|bitmap| bitmap.stored == Stored::Whole)
}

/// Those that the image has as they are stay so, if it is not written.
pub(in crate::graph) fn set_readonly(bitmaps: &[Arc<DirtyBitmap>], access: Access) {
    for bitmap in bitmaps {
        if bitmap.keeping() == Keeping::Persistent {
            bitmap.set_readonly(access == Access::ReadOnly);
        }
    }
}

#[inline(never)]
fn body(image: Box<Image>, storage: Info, access: Access) -> Result<Body, OpenError> {
    Ok(Body::Driver(Arc::new(image.driver(storage, access)?)))
}

impl Opening<'_> {
    pub(super) fn make_qcow2(
        &mut self,
        spec: Qcow2Spec,
        common: Common,
        depth: usize,
    ) -> Result<Made, OpenError> {
        let Qcow2Spec {
            file,
            data_file,
            backing,
            options,
            named,
            journal: _,
        } = spec;
        let (file, mut storage) = self.child(file, depth)?;
        let mut image = self.load(file, &options)?;
        let access = rights(common);
        if image.needs_repair() && access == Access::ReadWrite {
            self.repair(file)?;
            image = self.load(file, &options)?;
        }
        let above = self.above.len();
        self.above.extend(self.identity(file));
        let data = self.data_file(data_file, &image, common, &named, depth)?;
        if let Some((data, info)) = data {
            storage = info;
            self.above.extend(self.identity(data));
        }
        let data = data.map(|(data, _)| data);
        let backing = match (backing, image.backing()) {
            (Backing::Node(child), _) => Some(self.child(child, depth).map(|(id, _)| id)),
            (Backing::Nothing, _) | (Backing::Stored, None) => None,
            (Backing::Stored, Some(stored)) => {
                Some(self.stored_backing(stored, file, common, &named, depth))
            }
        };
        let backing = backing.transpose().map_err(OpenError::of_backing)?;
        self.above.truncate(above);
        if common.activity == Activity::Active {
            self.bitmaps = self.load_bitmaps(file, &image, access)?;
        }
        let body = body(image, storage, access)?;
        let edge = |role, option, child| Edge {
            role,
            option,
            child,
        };
        let role = match data {
            None => Role::Image,
            Some(_) => Role::Metadata,
        };
        Ok(Made {
            kind: "qcow2",
            body,
            shape: Shape::Format {
                file: edge(role, "file", file),
                data: data.map(|data| edge(Role::Data, "data-file", data)),
                backing: backing.map(|below| edge(Role::Cow, "backing", below)),
            },
            files: Vec::new(),
            access: common.access,
        })
    }

    #[inline(never)]
    fn load(&mut self, file: NodeId, options: &Options) -> Result<Box<Image>, OpenError> {
        let options = options.clone();
        let load = move |io| async move { Image::load(&io, file, &options).await };
        let loaded = self.run(file, load).map_err(|errno| Qcow2Error::Read {
            what: "qcow2 header",
            errno,
        })?;
        Ok(Box::new(loaded?))
    }

    /// What its bitmaps say, the newest first.
    #[inline(never)]
    fn load_bitmaps(
        &mut self,
        file: NodeId,
        image: &Image,
        access: Access,
    ) -> Result<Vec<Arc<DirtyBitmap>>, OpenError> {
        let all = image.bitmaps();
        if all.0.is_empty() {
            return Ok(Vec::new());
        }
        let load = move |io: Io| async move { load_bitmaps(&io, file, all).await };
        let loaded = self.run(file, load).map_err(CheckError::File);
        let mut loaded = loaded.map_err(Qcow2Error::Repair)??;
        loaded.reverse();
        set_readonly(&loaded, access);
        Ok(loaded)
    }

    /// Whoever may write an image says first that its bitmaps are in use: nothing in memory has to be in the image from then on.
    pub(super) fn record_bitmaps(&mut self, id: NodeId) -> Result<(), OpenError> {
        let Some(node) = self.graph.node(id) else {
            return Ok(());
        };
        let Body::Driver(driver) = node.body().clone() else {
            return Ok(());
        };
        if !has_bitmaps_to_record(node.common(), &*driver) {
            return Ok(());
        }
        let work = move |io: Io| async move {
            match driver.as_qcow2() {
                Some(image) => image.record_bitmaps(&io).await,
                None => Ok(()),
            }
        };
        let recorded = self.run(id, work).and_then(|recorded| recorded);
        Ok(recorded.map_err(Qcow2Error::BitmapsInUse)?)
    }

    /// Its last writer did not close it. Nobody else may write it while its refcounts are set right.
    #[inline(never)]
    fn repair(&mut self, file: NodeId) -> Result<(), OpenError> {
        let wants = Wants {
            needs: Perms::READ_WRITE.or(Perms::RESIZE),
            shares: Perms::READ,
        };
        let users = self.graph.users.clone();
        let ticket = users.lend(&self.graph, file, wants, "a repair")?;
        let repaired = self.run(file, move |io| async move { repair_dirty(&io, file).await });
        users.give_back(&self.graph, ticket);
        let repaired = repaired.map_err(CheckError::File).and_then(|done| done);
        repaired.map_err(Qcow2Error::Repair)?;
        Ok(())
    }

    #[inline(never)]
    fn data_file(
        &mut self,
        given: Option<Child>,
        image: &Image,
        common: Common,
        named: &Named,
        depth: usize,
    ) -> Result<Option<(NodeId, Info)>, OpenError> {
        let child = match (given, image.has_data_file()) {
            // Opened all the same, as in QEMU: what is wrong with it is said first.
            (Some(child), false) => {
                self.child(child, depth)?;
                return Err(Qcow2Error::DataFileStray.into());
            }
            (None, false) => return Ok(None),
            (Some(child), true) => child,
            (None, true) => self.stored_data_file(image, &Inherited::child(common, named))?,
        };
        self.child(child, depth).map(Some)
    }
}
