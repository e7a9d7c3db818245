//! Block status: what the tables say, cluster by cluster or subcluster by subcluster.
//!
//! The rule: it says what `map` and `read` do, since it asks the same words; an answer goes as far as one slice does, or one
//! table that does not exist.

use super::format::entry::{L1Entry, Part};
use super::{Qcow2, extent};
use crate::io::Io;
use crate::node::NodeId;
use crate::status::{Content, Mapping, Status};
use crate::units::Span;
use ring::Errno;

impl Qcow2 {
    /// What is known of the beginning of `span`, which is not empty.
    pub(super) async fn block_status(&self, io: &Io, span: Span) -> Result<Status, Errno> {
        let _user = self.users.enter();
        let data = io.child(self.data_role())?;
        if let Some(len) = self.absent(io, span)? {
            return Ok(status(Part::Below { host: None }, len, data));
        }
        let slice = self.rest_of_slice(span);
        let view = self.view(io, self.geometry.entry_at(span.at).slice).await?;
        let run = |rest: Span| {
            let run = extent(&self.geometry, rest, |index| view.entry(index));
            run.map_err(|malformed| self.impossible(io, malformed))
        };
        let (part, len) = run(slice)?;
        let mut status = status(part, len, data);
        // Runs that look the same from outside are one: compressed clusters, written and shared ones.
        while status.len < slice.len {
            match run(slice.after(status.len)) {
                Ok((part, len)) if goes_on(status, self::status(part, len, data)) => {
                    status.len += len;
                }
                _ => break,
            }
        }
        Ok(self.refine(io, status).await)
    }

    /// How much from the beginning of `span` is described by tables that do not exist, neither on disk nor in memory.
    fn absent(&self, io: &Io, span: Span) -> Result<Option<u64>, Errno> {
        let table_bytes = self.geometry.table_guest_bytes();
        let mut rest = span;
        while !rest.is_empty() {
            let slice = self.geometry.entry_at(rest.at).slice;
            let index = self.geometry.l1_index(slice);
            let table = self.l2_table(index);
            let slices = self.geometry.table_slices();
            let first = index as u64 * slices;
            let table = match table {
                Ok(table) => table,
                Err(_) if rest.at > span.at => break,
                Err(malformed) => return Err(self.impossible(io, malformed)),
            };
            let in_memory = || (first..first + slices).any(|slice| self.l2.is_changed(slice));
            if table != L1Entry::Absent || in_memory() {
                break;
            }
            rest = rest.after(table_bytes - rest.at % table_bytes);
        }
        let len = span.len - rest.len;
        Ok((len > 0).then_some(len))
    }
}

fn status(part: Part, len: u64, data: NodeId) -> Status {
    let at = |host: Option<u64>| host.map_or(Mapping::None, |host| Mapping::At(data, host));
    let (content, mapping) = match part {
        Part::Below { host } => (Content::Below, at(host)),
        Part::Zero { host } => (Content::Zero, at(host)),
        Part::Data { host, .. } => (Content::Data, at(Some(host))),
        Part::Compressed { .. } => (Content::Data, Mapping::Opaque),
    };
    Status {
        len,
        content,
        mapping,
    }
}

fn goes_on(first: Status, next: Status) -> bool {
    let follows = match (first.mapping, next.mapping) {
        (Mapping::At(a, at), Mapping::At(b, then)) => a == b && at + first.len == then,
        (a, b) => a == b,
    };
    follows && first.content == next.content
}
