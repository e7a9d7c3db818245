//! Users from outside the graph: exports and jobs. The rule: each is a user until what it was given is dropped.

use super::draft::Draft;
use super::{By, Idle, PermError, ROOT, User, Wants};
use crate::graph::Current;
use crate::node::NodeId;
use std::sync::Arc;

/// A user from outside the graph; stops being one on drop.
#[derive(Debug)]
pub struct Attachment {
    current: Arc<Current>,
    node: NodeId,
    ticket: u64,
}

impl Attachment {
    /// The node it uses.
    pub fn node(&self) -> NodeId {
        self.node
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let graph = self.current.get();
        let ticket = self.ticket;
        let keep = |user: &User| !matches!(user.by, By::Outside(by, ..) if by == ticket);
        graph.users.retain(&graph, keep);
    }
}

/// Begins to use `node` for as long as the attachment lives. `who` names the user in messages: `None` is "an unnamed
/// block device", which is how QEMU calls exports. Errors: a conflict with another user here or in another process, or a
/// writer on what is read-only.
pub fn attach(
    current: &Arc<Current>,
    node: NodeId,
    wants: Wants,
    who: Option<String>,
) -> Result<Attachment, PermError> {
    attach_idle(current, node, wants, who, Idle::Refused)
}

/// The same for a job, which says as what it uses the node.
pub fn attach_job(
    current: &Arc<Current>,
    node: NodeId,
    wants: Wants,
    (who, role): (String, &'static str),
) -> Result<Attachment, PermError> {
    attach_by(current, node, wants, (who, Idle::Refused, role))
}

/// The same for a user that may go on while the node is inactive.
pub fn attach_idle(
    current: &Arc<Current>,
    node: NodeId,
    wants: Wants,
    who: Option<String>,
    idle: Idle,
) -> Result<Attachment, PermError> {
    let who = who.unwrap_or_else(|| "an unnamed block device".to_owned());
    attach_by(current, node, wants, (who, idle, ROOT))
}

fn attach_by(
    current: &Arc<Current>,
    node: NodeId,
    wants: Wants,
    (who, idle, role): (String, Idle, &'static str),
) -> Result<Attachment, PermError> {
    let graph = current.get();
    let mut state = graph.users.state();
    let ticket = state.next;
    let mut draft = Draft::new(&graph, state.users.clone());
    draft.set(node, By::Outside(ticket, who, idle, role), wants);
    draft.spread(node)?;
    state.users = draft.commit(&state.users, |id| id)?;
    state.next += 1;
    let current = current.clone();
    Ok(Attachment {
        current,
        node,
        ticket,
    })
}
