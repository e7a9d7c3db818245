//! QEMU's opinion of files on a simulated disk: written out, checked by qemu-img, and read by it.

use super::stack::{Format, Layer, Stack, file_name};
use ring::FileId;
use ring::sim::Images;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;
use tests::qemu_img::qemu_img;

/// The files of a stack on a real file system.
#[derive(Debug)]
pub struct Oracle<'a> {
    dir: TempDir,
    stack: &'a Stack,
}

impl<'a> Oracle<'a> {
    pub fn new(stack: &'a Stack, images: &Images) -> Oracle<'a> {
        let dir = tempfile::tempdir().expect("a directory");
        for (file, bytes) in images {
            let path = dir.path().join(file_name(*file));
            std::fs::write(path, bytes).expect("written");
        }
        Oracle { dir, stack }
    }

    fn file(&self, file: FileId) -> Value {
        let path = self.dir.path().join(file_name(file));
        json!({"driver": "file", "filename": path})
    }

    fn layer(&self, layer: &Layer, backing: Value) -> Value {
        let mut node = match layer.format {
            Format::Raw => return json!({"driver": "raw", "file": self.file(layer.file)}),
            Format::Qcow2(_) => json!({"driver": "qcow2", "file": self.file(layer.file)}),
        };
        node["backing"] = backing;
        if let Some(data) = layer.data {
            node["data-file"] = self.file(data);
        }
        node
    }

    /// What the guest would read if QEMU served it.
    pub fn read(&self) -> Result<Vec<u8>, String> {
        let mut node = Value::Null;
        for layer in &self.stack.layers {
            node = self.layer(layer, node);
        }
        let out = self.dir.path().join("out");
        let out_name = path(&out);
        let from = format!("json:{node}");
        let converted = qemu_img(["convert", "-O", "raw", &from, &out_name]);
        converted.map_err(|error| error.to_string())?;
        std::fs::read(out).map_err(|error| error.to_string())
    }

    /// Errors: what `qemu-img check` calls corrupt in any of the images. Leaks are none.
    pub fn check(&self) -> Result<(), String> {
        let top = self.stack.top();
        self.stack.qcow2().try_for_each(|layer| {
            // One that was left dirty below the top is never opened for writing, and so never set right.
            let lazy = matches!(layer.format, Format::Qcow2(layout) if layout.lazy_refcounts);
            if lazy && layer.name != top.name {
                return Ok(());
            }
            let node = self.layer(layer, Value::Null);
            let name = format!("json:{node}");
            let mut check = Command::new("qemu-img");
            let output = check.args(["check", &name]).output();
            let output = output.map_err(|error| error.to_string())?;
            match output.status.code() {
                Some(0 | 3) => Ok(()),
                _ => Err(format!("qemu-img check of {}: {output:?}", layer.name)),
            }
        })
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}
