//! What a stream job copies: what layers below have and the top has not, into the top, through a copy-on-read filter above it.
//!
//! The rule: the filter decides and copies, as it does for reads of guests, so the two never disagree, and a guest's write is
//! never replaced. Nodes go by their names: filters may come in between them.

use super::copy::{Look, Parts, What};
use super::errors::Failure;
use crate::filter::copy_on_read::CopyOnRead;
use crate::graph::Body;
use crate::io::Io;
use crate::node::{Driver, Local};
use crate::units::Span;
use ring::Errno;
use std::sync::Arc;

/// Copies through the filter of that name.
#[derive(Debug)]
pub struct Stream {
    /// Its name.
    pub filter: String,
}

impl Stream {
    /// The filter, and the way to nodes as it has it.
    fn filter(&self, io: &Io) -> Result<(Arc<dyn Driver>, Io), Errno> {
        let id = io.graph().find(&self.filter).ok_or(Errno::IO)?;
        match io.graph().node(id).map(|node| node.body()) {
            Some(Body::Driver(driver)) => Ok((driver.clone(), io.at(id))),
            _ => Err(Errno::IO),
        }
    }

    async fn look_at(&self, io: &Io, span: Span) -> Result<Look, Errno> {
        let (driver, io) = self.filter(io)?;
        let (copy, len) = copier(&*driver)?.look(&io, span).await?;
        let what = if copy { What::Data } else { What::Skip };
        Ok(Look { what, len })
    }

    async fn populate(&self, io: &Io, span: Span) -> Result<(), Errno> {
        let (driver, io) = self.filter(io)?;
        copier(&*driver)?.populate(&io, span).await
    }
}

fn copier(driver: &dyn Driver) -> Result<&CopyOnRead, Errno> {
    driver.as_copy_on_read().ok_or(Errno::IO)
}

/// Whatever fails, QEMU calls it a read.
impl Parts for Stream {
    fn look<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<Look, Failure>> {
        Box::pin(async move { self.look_at(io, span).await.map_err(Failure::read) })
    }

    fn copy<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<(), Failure>> {
        Box::pin(async move { self.populate(io, span).await.map_err(Failure::read) })
    }
}
