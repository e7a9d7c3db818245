//! `drive-backup`: a backup whose target is a file, which is made for it.
//!
//! The rule: the target's node has no name of its own and is the job's alone: it goes with it, and the file stays, even where the job
//! came to nothing.

use super::{BackupWanted, Sync};
use crate::daemon::chains::name_of;
use crate::daemon::executor::Daemon;
use crate::daemon::jobs::Group;
use crate::daemon::snapshot::NewImage;
use blockgraph::NodeId;
use blockgraph::graph::edit::Edit;
use serde_json::{Value, json};
use std::io::Read;

/// What `drive-backup` is asked for.
#[derive(Debug)]
pub(crate) struct DriveWanted {
    /// Its target is the file's name.
    pub(crate) backup: BackupWanted,
    /// The file's format; the source's, or what the file looks like.
    pub(crate) format: Option<String>,
    /// Is the file to be made?
    pub(crate) mode: NewImage,
}

impl Daemon {
    /// The same as [`Daemon::make_backup`].
    pub(in crate::daemon) fn make_drive_backup(
        &mut self,
        wanted: DriveWanted,
        group: Option<Group>,
    ) -> Result<String, String> {
        let DriveWanted {
            mut backup,
            format,
            mode,
        } = wanted;
        let source = self.lookup(&backup.device)?;
        let graph = self.kept_graph();
        let layer = graph.skip_filters(source);
        self.check_free(&name_of(&graph, source))?;
        let kind = match graph.node(layer).map(|node| node.kind()) {
            Some("qcow2") => "qcow2",
            // A protocol's own.
            _ => "raw",
        };
        let below = match backup.sync {
            Sync::Top => graph.cow_child(layer),
            Sync::None => Some(source),
            _ => None,
        };
        if below.is_none() && backup.sync == Sync::Top {
            backup.sync = Sync::Full;
        }
        drop(graph);
        let path = backup.target.clone();
        let format = match (format, mode) {
            (Some(format), _) => format,
            (None, NewImage::AbsolutePaths) => kind.to_owned(),
            (None, NewImage::Existing) => looks_like(&path)?.to_owned(),
        };
        if !matches!(format.as_str(), "qcow2" | "raw") {
            return Err(format!("Unknown file format '{format}'"));
        }
        if mode == NewImage::AbsolutePaths {
            self.make_target(source, below, &path, &format)?;
        }
        backup.target = self.open_target(&backup, &path, &format)?;
        let made = self.make_backup(backup, group);
        if made.is_err() {
            self.drop_unused();
        }
        made
    }

    fn make_target(
        &mut self,
        source: NodeId,
        below: Option<NodeId>,
        path: &str,
        format: &str,
    ) -> Result<(), String> {
        match (format, below) {
            ("qcow2", below) => self.make_image(source, below, path),
            (_, Some(_)) => Err("Backing file not supported for file format 'raw'".to_owned()),
            (_, None) => self.make_raw(source, path),
        }
    }

    /// Opens the target; says what its node is called. Nobody owns it.
    fn open_target(
        &mut self,
        backup: &BackupWanted,
        path: &str,
        format: &str,
    ) -> Result<String, String> {
        let mut node = json!({
            "driver": format, "node-name": "target", "discard": "unmap", "detect-zeroes": "unmap",
            "file": {"driver": "file", "filename": path},
        });
        if backup.sync == Sync::None {
            let source = self.lookup(&backup.device)?;
            node["backing"] = Value::from(name_of(&self.current.get(), source));
        }
        let node = self.open_unnamed(node)?;
        let name = name_of(&self.current.get(), node);
        let mut edit = Edit::begin(&self.current);
        edit.disown(node);
        let (_, leaving) = edit.commit().map_err(|error| error.to_string())?;
        self.edited(leaving);
        Ok(name)
    }
}

/// The format of an image that nobody says anything of.
fn looks_like(path: &str) -> Result<&'static str, String> {
    let error = |error: std::io::Error| {
        let why = crate::process::error_text(&error);
        format!("Could not open '{path}': {why}")
    };
    let mut file = std::fs::File::open(path).map_err(error)?;
    let mut magic = [0; 4];
    let is_long = file.read_exact(&mut magic).is_ok();
    Ok(match is_long && magic == *b"QFI\xfb" {
        true => "qcow2",
        false => "raw",
    })
}
