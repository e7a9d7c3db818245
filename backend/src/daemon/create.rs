//! `blockdev-create`: new images as jobs.

use super::executor::Daemon;
use super::jobs::{Dismissal, Ended, Held, JobKind, Work};
use crate::cli::{ChildRef, CreateFile, CreateQcow2, ImageToCreate};
use crate::open;
use blockgraph::NodeId;
use blockgraph::driver::{file, qcow2};
use blockgraph::graph::perm::{Perms, Wants, attach};

impl Daemon {
    /// Starts a job that makes an image. Errors: the id is taken, or is no id.
    pub(crate) fn create_image(&mut self, job: &str, image: ImageToCreate) -> Result<(), String> {
        self.start_job(
            job,
            JobKind::Create,
            Dismissal::Manual,
            |daemon, held| match image {
                ImageToCreate::File(options) => Ok(file_work(options)),
                ImageToCreate::Qcow2(options) => daemon.qcow2_work(*options, held),
            },
        )
    }

    fn qcow2_work(&mut self, options: CreateQcow2, held: &mut Held) -> Result<Work, String> {
        let CreateQcow2 {
            file,
            data_file,
            mut image,
        } = options;
        let file = self.take_node(file, held)?;
        if let Some(child) = data_file {
            let node = self.take_node(child, held)?;
            let name = self.file_name(node);
            image.data_file = Some(qcow2::create::DataFile { node, name });
        }
        let current = self.current.clone();
        Ok(Box::new(move |seat| {
            let graph = current.get();
            let made = seat.control()?.run(&graph, file, |io| async move {
                qcow2::create::create(&io, file, &image).await
            });
            made.map_err(|error| error.to_string())?
                .map_err(|error| error.to_string())?;
            Ok(Ended::Done)
        }))
    }

    /// Gets hold of a node for writing, opening it if it is written out in place.
    fn take_node(&mut self, child: ChildRef, held: &mut Held) -> Result<NodeId, String> {
        let node = match child {
            ChildRef::Node(name) => {
                let found = self.current.get().find(&name);
                found
                    .ok_or_else(|| format!("Cannot find device='{name}' nor node-name='{name}'"))?
            }
            ChildRef::Inline(options) => {
                let (node, name) = self.open_node(*options)?;
                held.nodes.push(name);
                node
            }
        };
        let wants = Wants {
            needs: Perms::WRITE.or(Perms::RESIZE),
            shares: Perms::ALL,
        };
        let attachment = attach(&self.current, node, wants, None);
        let attachment = attachment.map_err(|e| open::perm_refusal(&e).to_string())?;
        held.attachments.push(attachment);
        Ok(node)
    }

    /// The name by which an image can find that node again.
    fn file_name(&self, node: NodeId) -> String {
        let graph = self.current.get();
        let origin = graph.node(node).and_then(|node| node.origin());
        origin.map_or(String::new(), |origin| origin.path.display().to_string())
    }
}

fn file_work(options: CreateFile) -> Work {
    Box::new(move |seat| {
        // A file that is made is in nobody's graph.
        let nowhere = std::sync::Arc::new(blockgraph::Graph::default());
        let options = file::CreateOptions {
            filename: options.filename,
            size_bytes: options.size_bytes,
            preallocation: options.preallocation,
            copy_on_write: options.copy_on_write,
        };
        let made = seat.control()?.run(&nowhere, NodeId(0), |io| async move {
            file::create(&io, options).await
        });
        made.map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        Ok(Ended::Done)
    })
}
