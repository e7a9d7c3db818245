//! Opens qcow2 images: the file first, then what the image says it has besides.

use super::super::gate::{Inherited, Named};
use super::super::perm::{Perms, Wants};
use super::super::{Access, Body, Common, Edge, Role, Shape};
use super::{Child, Made, OpenError, Opening};
use crate::driver::qcow2::check::{CheckError, repair_dirty};
use crate::driver::qcow2::{Image, Options, Qcow2Error};
use crate::node::{Info, NodeId};
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
        } = spec;
        let (file, mut storage) = self.child(file, depth)?;
        let mut image = self.load(file, &options)?;
        if image.needs_repair() && common.access == Access::ReadWrite {
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
        let qcow2 = image.driver(storage, common.access)?;
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
            body: Body::Driver(Arc::new(qcow2)),
            shape: Shape::Format {
                file: edge(role, "file", file),
                data: data.map(|data| edge(Role::Data, "data-file", data)),
                backing: backing.map(|below| edge(Role::Cow, "backing", below)),
            },
            files: Vec::new(),
            access: common.access,
        })
    }

    fn load(&mut self, file: NodeId, options: &Options) -> Result<Image, OpenError> {
        let options = options.clone();
        let load = move |io| async move { Image::load(&io, file, &options).await };
        let loaded = self.run(file, load).map_err(|errno| Qcow2Error::Read {
            what: "qcow2 header",
            errno,
        })?;
        Ok(loaded?)
    }

    /// Its last writer did not close it. Nobody else may write it while its refcounts are set right.
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
