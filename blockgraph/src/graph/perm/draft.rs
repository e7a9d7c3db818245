//! The users of every node as they would be, before any of it counts.
//!
//! The rule: a node is asked what it wants of its children once all that is wanted of itself is known.

use super::{By, Idle, Perm, PermError, Perms, User, Wants};
use crate::driver::file::LockError;
use crate::graph::{Activity, Body, Graph, Sharing};
use crate::node::NodeId;

/// The users as they would be.
pub(super) struct Draft<'a> {
    graph: &'a Graph,
    /// The generation before, if it is another.
    pub(super) before: Option<&'a Graph>,
    pub(super) users: Vec<User>,
    touched: Vec<NodeId>,
    /// Who used what before, the longest first: those who have come since are named last.
    pub(super) order: Vec<(NodeId, By)>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(graph: &'a Graph, users: Vec<User>) -> Draft<'a> {
        Draft {
            graph,
            before: None,
            users,
            touched: Vec::new(),
            order: Vec::new(),
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
            let above = self.asked(*id);
            let is_used = self.users.iter().any(|user| user.of == *id);
            let node = self.graph.node(*id).ok_or(PermError::Gone)?;
            for edge in node.shape().edges() {
                let mut wants = match node.body() {
                    Body::Driver(driver) if is_used => driver.wants(edge, above),
                    Body::Driver(driver) => driver.wants_unused(edge),
                    Body::Filter(filter) => filter.wants(above),
                };
                let child = self.graph.node(edge.child).ok_or(PermError::Gone)?;
                if child.common().sharing == Sharing::Forced {
                    wants.shares = Perms::ALL;
                }
                match (node.common().activity, child.common().activity) {
                    (Activity::Inactive, _) => {
                        wants.needs = wants.needs.and(Perms::READ);
                        wants.shares = Perms::ALL;
                    }
                    (Activity::Active, Activity::Inactive) => {
                        return Err(PermError::Inactive {
                            child: child.name().to_owned(),
                            option: edge.option,
                            parent: node.name().to_owned(),
                        });
                    }
                    (Activity::Active, Activity::Active) => {}
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
        let node = self.graph.node(id).ok_or(PermError::Gone)?;
        if node.common().activity == Activity::Inactive {
            let busy = |user: &User| matches!(user.by, By::Outside(_, _, Idle::Refused, _));
            return match users().any(busy) {
                true => Err(PermError::NotIdle),
                false => Ok(()),
            };
        }
        let age = |user: &&User| {
            let known = |(of, by): &(NodeId, By)| *of == user.of && *by == user.by;
            self.order.iter().position(known).unwrap_or(usize::MAX)
        };
        let mut by_age: Vec<&User> = users().collect();
        by_age.sort_by_key(age);
        for user in &by_age {
            for other in by_age.iter().filter(|other| other.by != user.by) {
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
        if writes && !node.common().takes_writes() {
            return Err(match self.took_writes(node.name()) {
                true => PermError::BecomesReadOnly(node.name().to_owned()),
                false => PermError::ReadOnly,
            });
        }
        Ok(())
    }

    fn took_writes(&self, name: &str) -> bool {
        let before = self.before.and_then(|graph| graph.node(graph.find(name)?));
        before.is_some_and(|node| node.common().takes_writes())
    }

    /// Tells the drivers; all of them agree, or those that did are told to go back. `was` says where a node was `before`.
    pub(super) fn commit(
        self,
        before: &[User],
        was: impl Fn(NodeId) -> NodeId,
    ) -> Result<Vec<User>, PermError> {
        for (told, id) in self.touched.iter().enumerate() {
            if let Err(error) = self.permit(*id, self.asked(*id)) {
                for id in &self.touched[..told] {
                    // They had just this before, and nobody was asked to leave in between.
                    let _ = self.permit(*id, total(before, was(*id)));
                }
                return Err(error.into());
            }
        }
        Ok(self.users)
    }

    /// What is asked of a node: of one that is inactive, nothing but to be read.
    fn asked(&self, id: NodeId) -> Wants {
        let asked = total(&self.users, id);
        let common = self.graph.node(id).map(|node| node.common());
        match common.map(|common| common.activity) {
            Some(Activity::Inactive) => Wants {
                needs: asked.needs.and(Perms::READ),
                shares: Perms::ALL,
            },
            _ => asked,
        }
    }

    fn permit(&self, id: NodeId, wants: Wants) -> Result<(), LockError> {
        permit(self.graph, id, wants)
    }
}

/// Tells a node what is asked of it.
pub(super) fn permit(graph: &Graph, id: NodeId, wants: Wants) -> Result<(), LockError> {
    match graph.node(id).map(|node| node.body()) {
        Some(Body::Driver(driver)) => driver.permit(wants),
        _ => Ok(()),
    }
}

/// What a node's users need and share together.
pub(super) fn total(users: &[User], id: NodeId) -> Wants {
    let of = users.iter().filter(|user| user.of == id);
    of.fold(Wants::NOTHING, |sum, user| sum.both(user.wants))
}
