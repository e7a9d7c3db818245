//! Opens qcow2 images: the file first, then what the image says it has besides.

use super::super::gate::{self, Format, GateError, Inherited, Named, Parsed, UnknownFormat};
use super::super::{Body, Common, Edge, Role, Shape};
use super::{Child, Made, OpenError, Opening};
use crate::driver::qcow2::format::header;
use crate::driver::qcow2::{Image, Options, Qcow2Error};
use crate::node::{FileIdentity, NodeId};
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
        let load = move |io| async move { Image::load(&io, file, &options).await };
        let image = self.run(file, load).map_err(|errno| Qcow2Error::Read {
            what: "qcow2 header",
            errno,
        })??;
        let above = self.above.len();
        self.above.extend(self.identity(file));
        let inherited = Inherited::child(common, &named);
        let data = match (data_file, image.has_data_file()) {
            (Some(_), false) => return Err(Qcow2Error::DataFileStray.into()),
            (Some(child), true) => Some(child),
            (None, true) => Some(self.stored_data_file(&image, &inherited)?),
            (None, false) => None,
        };
        let data = match data {
            None => None,
            Some(child) => {
                let (data, info) = self.child(child, depth)?;
                storage = info;
                self.above.extend(self.identity(data));
                Some(data)
            }
        };
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

    /// The file below a node, if there is one.
    fn identity(&self, id: NodeId) -> Option<FileIdentity> {
        let origin = gate::origin(&self.graph, id).ok()?;
        Some(origin.identity)
    }

    fn stored_data_file(&self, image: &Image, inherited: &Inherited) -> Result<Child, OpenError> {
        let name = image.data_file().ok_or(Qcow2Error::DataFileRequired)?;
        let spec = gate::data_storage(name, inherited);
        gate::check_loop(&spec, &self.above)?;
        Ok(Child::Inline(Box::new(spec)))
    }

    /// Opens the backing file that the image in `file` names, and so on down the chain.
    fn stored_backing(
        &mut self,
        stored: &header::Backing,
        file: NodeId,
        common: Common,
        named: &Named,
        depth: usize,
    ) -> Result<NodeId, OpenError> {
        let name = &stored.name;
        let format = stored.format.as_deref().map(Format::stored).transpose()?;
        let inherited = Inherited::backing(common, named);
        let parsed = gate::backing(&self.graph, file, name, &inherited, named)?;
        if let Parsed::Storage(spec) = &parsed {
            gate::check_loop(spec, &self.above)?;
        }
        let spec = match (format, parsed, named.unknown_format) {
            (Some(format), parsed, _) => gate::formatted(parsed, format, &inherited, named),
            (None, Parsed::Node(spec), _) => spec,
            (None, Parsed::Storage(_), UnknownFormat::Refuse) => {
                return Err(GateError::NoFormat(name.clone()).into());
            }
            (None, Parsed::Storage(spec), UnknownFormat::Probe) => {
                let storage = self.node(spec, depth + 1)?;
                if !self.looks_like_qcow2(storage)? {
                    return Err(GateError::NotProbed(name.clone()).into());
                }
                let storage = self.graph.node(storage).map_or("", |node| node.name());
                let storage = Child::Named(storage.to_owned());
                gate::on(storage, Format::Qcow2, &inherited, named)
            }
        };
        self.node(spec, depth + 1)
    }

    fn looks_like_qcow2(&mut self, storage: NodeId) -> Result<bool, OpenError> {
        let probe = move |io| async move { Image::is_one(&io, storage).await };
        let probed = self.run(storage, probe).and_then(|probed| probed);
        let what = "the beginning of the backing file";
        Ok(probed.map_err(|errno| Qcow2Error::Read { what, errno })?)
    }
}
