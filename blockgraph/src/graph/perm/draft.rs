//! The users of every node as they would be, before any of it counts.
//!
//! The rule: a node is asked what it wants of its children once all that is wanted of itself is known.

use super::{By, Perm, PermError, Perms, User, Wants};
use crate::driver::file::LockError;
use crate::graph::{Access, Body, Graph, Sharing};
use crate::node::NodeId;

/// The users as they would be.
pub(super) struct Draft<'a> {
    graph: &'a Graph,
    pub(super) users: Vec<User>,
    touched: Vec<NodeId>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(graph: &'a Graph, users: Vec<User>) -> Draft<'a> {
        Draft {
            graph,
            users,
            touched: Vec::new(),
        }
    }

    /// Works out what all below `top` is asked for now, and whether that may be.
    pub(super) fn spread(&mut self, top: NodeId) -> Result<(), PermError> {
        self.ask(&self.graph.parents_first(top))
    }

    /// The same for these, parents first.
    pub(super) fn ask(&mut self, nodes: &[NodeId]) -> Result<(), PermError> {
        for id in nodes {
            self.check(*id)?;
            self.touched.push(*id);
            let above = total(&self.users, *id);
            let node = self.graph.node(*id).ok_or(PermError::Gone)?;
            for edge in node.shape().edges() {
                let mut wants = match node.body() {
                    Body::Driver(driver) => driver.wants(edge, above),
                    Body::Filter(_) => above,
                };
                let child = self.graph.node(edge.child).ok_or(PermError::Gone)?;
                if child.common().sharing == Sharing::Forced {
                    wants.shares = Perms::ALL;
                }
                self.set(edge.child, By::Parent(*id, edge.option), wants);
            }
        }
        Ok(())
    }

    pub(super) fn set(&mut self, of: NodeId, by: By, wants: Wants) {
        match self.users.iter_mut().find(|u| u.of == of && u.by == by) {
            Some(user) => user.wants = wants,
            None => self.users.push(User { of, by, wants }),
        }
    }

    fn check(&self, id: NodeId) -> Result<(), PermError> {
        let users = || self.users.iter().filter(|user| user.of == id);
        for user in users() {
            for other in users().filter(|other| other.by != user.by) {
                let perms = user.wants.needs.without(other.wants.shares);
                if !perms.is_empty() {
                    return Err(PermError::Conflict {
                        node: self.graph.node(id).map_or("", |n| n.name()).to_owned(),
                        perms,
                        needs: user.describe(self.graph),
                        refuses: other.describe(self.graph),
                    });
                }
            }
        }
        let needs = total(&self.users, id).needs;
        let writes = needs.has(Perm::Write) || needs.has(Perm::WriteUnchanged);
        let node = self.graph.node(id).ok_or(PermError::Gone)?;
        if writes && node.common().access == Access::ReadOnly {
            return Err(PermError::ReadOnly);
        }
        Ok(())
    }

    /// Tells the drivers; all of them agree, or those that did are told to go back. `was` says where a node was `before`.
    pub(super) fn commit(
        self,
        before: &[User],
        was: impl Fn(NodeId) -> NodeId,
    ) -> Result<Vec<User>, PermError> {
        for (told, id) in self.touched.iter().enumerate() {
            if let Err(error) = self.permit(*id, total(&self.users, *id)) {
                for id in &self.touched[..told] {
                    // They had just this before, and nobody was asked to leave in between.
                    let _ = self.permit(*id, total(before, was(*id)));
                }
                return Err(error.into());
            }
        }
        Ok(self.users)
    }

    fn permit(&self, id: NodeId, wants: Wants) -> Result<(), LockError> {
        match self.graph.node(id).map(|node| node.body()) {
            Some(Body::Driver(driver)) => driver.permit(wants),
            _ => Ok(()),
        }
    }
}

/// What a node's users need and share together.
fn total(users: &[User], id: NodeId) -> Wants {
    let of = users.iter().filter(|user| user.of == id);
    of.fold(Wants::NOTHING, |sum, user| sum.both(user.wants))
}
