//! What a backup job copies: what its copy-before-write filter has still to copy, through that filter.
//!
//! The rule: the filter knows what is copied, and whoever copies holds the clusters meanwhile, so guests and the job never copy
//! the same, and nothing twice. Nodes go by their names: filters may come in between them.

use super::copy::{Look, Parts, What};
use super::errors::Failure;
use crate::filter::copy_before_write::CopyBeforeWrite;
use crate::graph::status::{Until, status_above};
use crate::graph::{Body, Role};
use crate::io::Io;
use crate::node::{Driver, Local};
use crate::units::Span;
use ring::Errno;
use std::sync::Arc;

/// As far is looked ahead for what is alike.
const LOOK_BYTES: u64 = 1 << 20;

/// Which layers of the source are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layers {
    /// Whatever it reads as.
    All,
    /// What the top layer has itself.
    Top,
}

/// Copies through the filter of that name.
#[derive(Debug)]
pub struct Backup {
    /// Its name.
    pub filter: String,
    /// Of what.
    pub layers: Layers,
}

fn filter(driver: &dyn Driver) -> Result<&CopyBeforeWrite, Failure> {
    let filter = driver.as_copy_before_write();
    filter.ok_or(Failure::read(Errno::IO))
}

impl Backup {
    /// The filter, and the way to nodes as it has it.
    fn find(&self, io: &Io) -> Result<(Arc<dyn Driver>, Io), Failure> {
        let lost = Failure::read(Errno::IO);
        let id = io.graph().find(&self.filter).ok_or(lost)?;
        match io.graph().node(id).map(|node| node.body()) {
            Some(Body::Driver(driver)) => Ok((driver.clone(), io.at(id))),
            _ => Err(lost),
        }
    }

    async fn look_at(&self, io: &Io, span: Span) -> Result<Look, Failure> {
        let (driver, io) = self.find(io)?;
        let filter = filter(&*driver)?;
        let skip = |len| Look {
            what: What::Skip,
            len,
        };
        let Some(run) = filter.next_todo(span, LOOK_BYTES) else {
            return Ok(skip(span.len));
        };
        if run.at > span.at {
            return Ok(skip(run.at - span.at));
        }
        let part = span.first(run.len);
        let (what, len) = match self.layers {
            Layers::All => (What::Data, part.len),
            Layers::Top => top_layer(&io, filter, part).await?,
        };
        Ok(Look { what, len })
    }

    async fn copy_parts(&self, io: &Io, span: Span) -> Result<(), Failure> {
        let mut rest = span;
        while !rest.is_empty() {
            let look = self.look_at(io, rest).await?;
            let part = rest.first(look.len);
            if look.what != What::Skip {
                let (driver, io) = self.find(io)?;
                filter(&*driver)?.copy(&io, part).await?;
            }
            rest = rest.after(part.len);
        }
        Ok(())
    }
}

/// What the beginning of `span`, which begins with a cluster, is in the top layer. Clusters that it has nothing of are not to be
/// copied from now on, by anybody.
async fn top_layer(io: &Io, filter: &CopyBeforeWrite, span: Span) -> Result<(What, u64), Failure> {
    let source = io.child(Role::Filtered).map_err(Failure::read)?;
    let layer = Until::Including(io.graph().skip_filters(source));
    let found = status_above(io, source, layer, span).await;
    let found = found.map_err(Failure::read)?;
    let (alike, cluster) = (span.first(found.status.len), filter.cluster_bytes());
    if found.is_allocated() {
        let len = span.first(alike.len.next_multiple_of(cluster)).len;
        return Ok((What::Data, len));
    }
    let whole = match alike.end() == span.end() {
        true => alike,
        false => span.first(alike.len - alike.len % cluster),
    };
    if whole.is_empty() {
        return Ok((What::Data, span.first(cluster).len));
    }
    filter.skip(whole);
    Ok((What::Skip, whole.len))
}

impl Parts for Backup {
    fn look<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<Look, Failure>> {
        Box::pin(self.look_at(io, span))
    }

    fn copy<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<(), Failure>> {
        Box::pin(self.copy_parts(io, span))
    }
}
