//! `blockdev-create`.

use super::ChildRef;
use blockgraph::driver::file::CopyOnWrite;
use blockgraph::driver::qcow2::create;
use blockgraph::request::Prealloc;
use std::path::PathBuf;

/// What kind of image is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageToCreate {
    /// `file`
    File(CreateFile),
    /// `qcow2`
    Qcow2(Box<CreateQcow2>),
}

/// `BlockdevCreateOptionsFile`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateFile {
    /// Relative to the working directory.
    pub filename: PathBuf,
    /// Size in bytes.
    pub size_bytes: u64,
    /// What becomes of its space.
    pub preallocation: Prealloc,
    /// `nocow`
    pub copy_on_write: CopyOnWrite,
}

/// `BlockdevCreateOptionsQcow2`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateQcow2 {
    /// Where the image goes.
    pub file: ChildRef,
    /// Where guest data goes, if not there.
    pub data_file: Option<ChildRef>,
    /// The rest.
    pub image: create::Options,
}
