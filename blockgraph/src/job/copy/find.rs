//! What there is to copy, found out beforehand: for jobs whose work set is what is known to differ.
//!
//! The rule: a range is looked at and then added, while guests may add it too; so what is in the set may need no copying, and what is
//! not in it needs none.

use super::{CopyError, Look, Parts, Walked, What, WorkSet};
use crate::io::Io;
use crate::job::errors::Failure;
use crate::job::worker::Worker;
use crate::node::NodeId;
use crate::units::Span;
use std::rc::Rc;
use std::sync::Arc;

/// Looks at one go: after so many somebody may want it to end.
const LOOKS_MAX: usize = 256;

/// Adds to `work` all that is to be copied. Errors: a range that cannot be looked at.
pub fn find_work(
    worker: &mut Worker,
    parts: &Rc<dyn Parts>,
    nodes: &[NodeId],
    work: &Arc<WorkSet>,
) -> Result<Walked, CopyError> {
    let mut rest = Span {
        at: 0,
        len: work.size_bytes(),
    };
    while !rest.is_empty() {
        if let Some(cancel) = worker.steer().wish().cancel {
            return Ok(Walked::Cancelled(cancel));
        }
        let (parts, work) = (parts.clone(), work.clone());
        let looked = worker.run(nodes, move |io| async move {
            look_at_some(&io, &*parts, &work, rest).await
        })?;
        rest = looked.map_err(|failure| CopyError::Transfer(failure.errno))?;
    }
    Ok(Walked::All)
}

async fn look_at_some(
    io: &Io,
    parts: &dyn Parts,
    work: &WorkSet,
    mut rest: Span,
) -> Result<Span, Failure> {
    for _ in 0..LOOKS_MAX {
        if rest.is_empty() {
            break;
        }
        let Look { what, len } = parts.look(io, rest).await?;
        if what != What::Skip {
            work.add(rest.first(len));
        }
        rest = rest.after(len.max(1));
    }
    Ok(rest)
}
