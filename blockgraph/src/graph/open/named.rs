//! Opens what an image names, through the gate.

use super::super::Common;
use super::super::gate::{self, Format, GateError, Inherited, Named, Parsed, UnknownFormat};
use super::{Child, NodeSpec, OpenError, Opening};
use crate::driver::qcow2::format::header;
use crate::driver::qcow2::{Image, Qcow2Error};
use crate::node::{FileIdentity, NodeId};

impl Opening<'_> {
    /// The file below a node, if there is one.
    pub(super) fn identity(&self, id: NodeId) -> Option<FileIdentity> {
        let origin = gate::origin(&self.graph, id).ok()?;
        Some(origin.identity)
    }

    pub(super) fn stored_data_file(
        &self,
        image: &Image,
        inherited: &Inherited,
    ) -> Result<Child, OpenError> {
        let name = image.data_file().ok_or(Qcow2Error::DataFileRequired)?;
        let spec = gate::data_storage(name, inherited);
        gate::check_loop(&spec, &self.above)?;
        Ok(Child::Inline(Box::new(spec)))
    }

    /// Opens the backing file that the image in `file` names, and so on down the chain.
    pub(super) fn stored_backing(
        &mut self,
        stored: &header::Backing,
        file: NodeId,
        common: Common,
        named: &Named,
        depth: usize,
    ) -> Result<NodeId, OpenError> {
        let spec = self.backing_spec(stored, file, common, named, depth)?;
        self.node(*spec, depth + 1)
    }

    #[inline(never)]
    fn backing_spec(
        &mut self,
        stored: &header::Backing,
        file: NodeId,
        common: Common,
        named: &Named,
        depth: usize,
    ) -> Result<Box<NodeSpec>, OpenError> {
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
        Ok(Box::new(spec))
    }

    fn looks_like_qcow2(&mut self, storage: NodeId) -> Result<bool, OpenError> {
        let probe = move |io| async move { Image::is_one(&io, storage).await };
        let probed = self.run(storage, probe).and_then(|probed| probed);
        let what = "the beginning of the backing file";
        Ok(probed.map_err(|errno| Qcow2Error::Read { what, errno })?)
    }
}
