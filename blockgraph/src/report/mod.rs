//! What is known of nodes, for whoever asks: names, sizes, images, and who uses what.
//!
//! The rule: reports are plain data, gathered at one generation of the graph; what nobody knows is missing from them, and
//! nothing here changes anything. Sizes and snapshots are asked of the nodes themselves, by [`images`], as async code.

mod image;
mod node;
mod uses;

pub use image::{
    BackingReport, BitmapFlags, BitmapReport, DataFileReport, ImageReport, Qcow2Report,
    SnapshotReport, Specific, StorageReport, images,
};
pub use node::{Layers, NodeReport, nodes};
pub use uses::{Use, User, uses};
