//! Opens the filters that have few options.
//!
//! The rule: what a filter needs of its child or of another object is looked up here, once, and it is refused in QEMU's words
//! if that is not to be had.

use super::{Child, Made, OpenError, Opening};
use crate::bitmap::{BitmapError, BitmapName, find};
use crate::filter::blkdebug::{self, Blkdebug};
use crate::filter::compress::Compress;
use crate::filter::copy_before_write::{CbwError, CbwOptions, CopyBeforeWrite};
use crate::filter::copy_on_read::{self, BottomError, CopyOnRead};
use crate::filter::preallocate::Preallocate;
use crate::filter::throttle::{GroupError, Throttle};
use crate::graph::{Body, Common, Edge, Role, Shape};
use crate::node::NodeId;
use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;

/// A filter to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilterSpec {
    /// `throttle`
    Throttle {
        /// What it throttles.
        file: Child,
        /// The group it belongs to ([`crate::Graph::throttle_groups`]).
        group: String,
    },
    /// `copy-on-read`
    CopyOnRead {
        /// Where it copies to.
        file: Child,
        /// The last layer it copies from, by name.
        bottom: Option<String>,
    },
    /// `copy-before-write`
    CopyBeforeWrite {
        /// What guests write.
        file: Child,
        /// Where old data is copied to.
        target: Child,
        /// What the snapshot has; `None`: everything.
        bitmap: Option<BitmapName>,
        /// How.
        options: CbwOptions,
    },
    /// `compress`
    Compress {
        /// What compresses.
        file: Child,
    },
    /// `preallocate`
    Preallocate {
        /// What grows ahead of time.
        file: Child,
        /// To a multiple of so many bytes; 0 is 1.
        align_bytes: u64,
        /// How much further than asked.
        ahead_bytes: u64,
    },
    /// `blkdebug`
    Blkdebug {
        /// Whose requests are to fail.
        image: Child,
        /// A file with more rules.
        config: Option<PathBuf>,
        /// The rest.
        options: blkdebug::Options,
    },
}

/// Why a filter cannot be opened; the texts are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FilterError {
    /// No such group.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// No such bottom.
    #[error(transparent)]
    Bottom(#[from] BottomError),
    /// No such bitmap.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
    /// No such clusters.
    #[error(transparent)]
    Cbw(#[from] CbwError),
    /// A config file that makes no sense.
    #[error(transparent)]
    Config(#[from] blkdebug::ConfigError),
    /// A format that does not compress.
    #[error("Compression is not supported for underlying format: {0}")]
    Uncompressed(&'static str),
}

impl Opening<'_> {
    #[inline(never)]
    pub(super) fn make_filter(
        &mut self,
        spec: FilterSpec,
        common: Common,
        depth: usize,
    ) -> Result<Made, OpenError> {
        let access = common.access;
        let made = |kind: &'static str, child: NodeId, body: Body| Made {
            kind,
            body,
            shape: Shape::filter(child),
            files: Vec::new(),
            access,
        };
        match spec {
            FilterSpec::Throttle { file, group } => {
                let group = self.graph.throttle_groups().get(&group);
                let group = group.map_err(FilterError::from)?;
                let (child, _) = self.child(file, depth)?;
                let throttle = Arc::new(Throttle::new(group));
                Ok(made("throttle", child, Body::Filter(throttle)))
            }
            FilterSpec::CopyOnRead { file, bottom } => {
                let (child, below) = self.child(file, depth)?;
                let check = |name: &String| copy_on_read::check_bottom(&self.graph, child, name);
                let checked = bottom.as_ref().map(check).transpose();
                checked.map_err(FilterError::from)?;
                let driver = Arc::new(CopyOnRead::new(below, bottom));
                Ok(made("copy-on-read", child, Body::Driver(driver)))
            }
            FilterSpec::CopyBeforeWrite {
                file,
                target,
                bitmap,
                options,
            } => {
                let (child, below) = self.child(file, depth)?;
                let (target, _) = self.child(target, depth)?;
                let wanted =
                    bitmap.map(|BitmapName { node, name }| find(&self.graph, &node, &name));
                let wanted = wanted.transpose().map_err(FilterError::from)?;
                let wanted = wanted.as_ref().map(|found| &*found.bitmap);
                let unit = self.graph.unit_bytes(target);
                let driver = CopyBeforeWrite::new(below, unit, options, wanted);
                let driver = Arc::new(driver.map_err(FilterError::from)?);
                let mut made = made("copy-before-write", child, Body::Driver(driver));
                made.shape = Shape::Filter {
                    below: Edge::file(Role::Filtered, child),
                    also: Some(Edge {
                        role: Role::Target,
                        option: "target",
                        child: target,
                    }),
                };
                Ok(made)
            }
            FilterSpec::Compress { file } => {
                let (child, below) = self.child(file, depth)?;
                self.check_compresses(child)?;
                let driver = Arc::new(Compress::new(below));
                Ok(made("compress", child, Body::Driver(driver)))
            }
            FilterSpec::Preallocate {
                file,
                align_bytes,
                ahead_bytes,
            } => {
                let (child, below) = self.child(file, depth)?;
                let driver = Arc::new(Preallocate::new(below, align_bytes, ahead_bytes));
                Ok(made("preallocate", child, Body::Driver(driver)))
            }
            FilterSpec::Blkdebug {
                image,
                config,
                mut options,
            } => {
                let described = blkdebug::described(&options, config.as_deref());
                if let Some(path) = config {
                    let config = blkdebug::read_config(&path).map_err(FilterError::from)?;
                    options.inject_error.extend(config.inject_error);
                    options.set_state.extend(config.set_state);
                }
                let (child, below) = self.child(image, depth)?;
                let driver = Arc::new(Blkdebug::new(below, options).called(described));
                let mut made = made("blkdebug", child, Body::Driver(driver));
                made.shape = Shape::Filter {
                    below: Edge {
                        role: Role::Filtered,
                        option: "image",
                        child,
                    },
                    also: None,
                };
                Ok(made)
            }
        }
    }

    fn check_compresses(&self, child: NodeId) -> Result<(), FilterError> {
        let direct = self.graph.node(child).map_or("", |node| node.kind());
        let format = self.graph.node(self.graph.skip_filters(child));
        match format.map(|node| node.body()) {
            Some(Body::Driver(driver)) if driver.compresses() => Ok(()),
            _ => Err(FilterError::Uncompressed(direct)),
        }
    }
}
