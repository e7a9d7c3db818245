//! Opens the filters that have few options.
//!
//! The rule: what a filter needs of its child or of another object is looked up here, once, and it is refused in QEMU's words
//! if that is not to be had.

use super::{Child, Made, OpenError, Opening};
use crate::filter::compress::Compress;
use crate::filter::copy_on_read::{self, BottomError, CopyOnRead};
use crate::filter::throttle::{GroupError, Throttle};
use crate::graph::{Body, Common, Shape};
use crate::node::NodeId;
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
    /// `compress`
    Compress {
        /// What compresses.
        file: Child,
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
    /// A format that does not compress.
    #[error("Compression is not supported for underlying format: {0}")]
    Uncompressed(&'static str),
}

impl Opening<'_> {
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
                let find = |name: String| copy_on_read::bottom(&self.graph, child, &name);
                let bottom = bottom.map(find).transpose().map_err(FilterError::from)?;
                let driver = Arc::new(CopyOnRead::new(below, bottom));
                Ok(made("copy-on-read", child, Body::Driver(driver)))
            }
            FilterSpec::Compress { file } => {
                let (child, below) = self.child(file, depth)?;
                self.check_compresses(child)?;
                let driver = Arc::new(Compress::new(below));
                Ok(made("compress", child, Body::Driver(driver)))
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
