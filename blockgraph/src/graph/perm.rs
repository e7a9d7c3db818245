//! Permissions: what each user of a node needs of it, and what it lets others do meanwhile.
//!
//! The rule: a user is a parent node or somebody outside (an export, a job). What a node's users need and share together
//! decides what it needs and shares of its children, down to the files, whose locks tell other processes. A change is
//! checked all the way down before any of it counts.

use super::{Access, Body, Current, Graph};
use crate::driver::file::LockError;
use crate::node::NodeId;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thiserror::Error;

/// One thing to be permitted. The numbers are those of the lock bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Perm {
    /// Reads see what was written last.
    ConsistentRead = 0,
    /// Writes that change what is read.
    Write = 1,
    /// Writes that do not (filling a hole with what was read there).
    WriteUnchanged = 2,
    /// A new size.
    Resize = 3,
}

impl Perm {
    /// Every one, in the order of their numbers.
    pub const EACH: [Perm; 4] = [
        Perm::ConsistentRead,
        Perm::Write,
        Perm::WriteUnchanged,
        Perm::Resize,
    ];
}

impl fmt::Display for Perm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Perm::ConsistentRead => "consistent read",
            Perm::Write => "write",
            Perm::WriteUnchanged => "write unchanged",
            Perm::Resize => "resize",
        })
    }
}

/// A set of permissions; shown as QEMU lists them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Perms([bool; 4]);

impl Perms {
    /// None.
    pub const NONE: Perms = Perms([false; 4]);
    /// All.
    pub const ALL: Perms = Perms([true; 4]);
    /// Reading.
    pub const READ: Perms = Perms([true, false, false, false]);
    /// Reading and writing.
    pub const READ_WRITE: Perms = Perms([true, true, false, false]);
    /// Changing the size.
    pub const RESIZE: Perms = Perms([false, false, false, true]);

    /// Is that one in it?
    pub fn has(self, perm: Perm) -> bool {
        self.0[perm as usize]
    }

    /// Is none in it?
    pub fn is_empty(self) -> bool {
        self == Perms::NONE
    }

    /// What is in either.
    pub fn or(self, other: Perms) -> Perms {
        self.with(other, |a, b| a || b)
    }

    /// What is in both.
    pub fn and(self, other: Perms) -> Perms {
        self.with(other, |a, b| a && b)
    }

    /// What is in this one alone.
    pub fn without(self, other: Perms) -> Perms {
        self.with(other, |a, b| a && !b)
    }

    fn with(self, other: Perms, how: impl Fn(bool, bool) -> bool) -> Perms {
        Perms(std::array::from_fn(|at| how(self.0[at], other.0[at])))
    }
}

impl fmt::Display for Perms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Perm::EACH.iter().filter(|perm| self.has(**perm));
        let names: Vec<String> = names.map(Perm::to_string).collect();
        f.write_str(&names.join(", "))
    }
}

/// What a user needs of a node, and what it lets others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants {
    /// What it does itself.
    pub needs: Perms,
    /// What others may do.
    pub shares: Perms,
}

impl Wants {
    /// Nothing needed, all shared.
    pub const NOTHING: Wants = Wants {
        needs: Perms::NONE,
        shares: Perms::ALL,
    };

    /// An export that reads.
    pub const READ: Wants = Wants {
        needs: Perms::READ,
        shares: Perms::ALL,
    };

    /// An export that reads and writes.
    pub const READ_WRITE: Wants = Wants {
        needs: Perms::READ_WRITE,
        shares: Perms::ALL,
    };

    fn both(self, other: Wants) -> Wants {
        Wants {
            needs: self.needs.or(other.needs),
            shares: self.shares.and(other.shares),
        }
    }
}

/// Why a node may not be used so; the texts are QEMU's.
#[derive(Debug, Error)]
pub enum PermError {
    /// Two users disagree.
    #[error(
        "Permission conflict on node '{node}': permissions '{perms}' are both required by {needs} and unshared by \
         {refuses}."
    )]
    Conflict {
        /// On which node.
        node: String,
        /// About what.
        perms: Perms,
        /// Who needs it.
        needs: String,
        /// Who does not let others have it.
        refuses: String,
    },
    /// A writer on a node that takes no writes.
    #[error("Block node is read-only")]
    ReadOnly,
    /// There is no such node any more.
    #[error("Failed to find node")]
    Gone,
    /// Another process disagrees.
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl PermError {
    /// What QEMU prints on a line of its own below the message, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            PermError::Lock(lock) => Some(lock.hint()),
            _ => None,
        }
    }
}

/// Who uses a node.
#[derive(Clone, Debug, PartialEq, Eq)]
enum By {
    Parent(NodeId, &'static str),
    Outside(u64, String),
}

#[derive(Clone, Debug)]
struct User {
    of: NodeId,
    by: By,
    wants: Wants,
}

impl User {
    fn describe(&self, graph: &Graph) -> String {
        let name = |id| graph.node(id).map_or("", |node| node.name());
        let (who, edge) = match &self.by {
            By::Parent(parent, option) => (format!("node '{}'", name(*parent)), *option),
            By::Outside(_, who) => (who.clone(), "root"),
        };
        format!("{who} (uses node '{}' as '{edge}' child)", name(self.of))
    }
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    users: Vec<User>,
}

/// Every user of every node; shared by all generations of a graph.
#[derive(Debug, Default)]
pub struct Users(Mutex<State>);

impl Users {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new node begins to use its children.
    pub(super) fn connect(&self, graph: &Graph, parent: NodeId) -> Result<(), PermError> {
        let mut state = self.state();
        let mut draft = Draft::new(graph, state.users.clone());
        draft.spread(parent)?;
        state.users = draft.commit(&state.users)?;
        Ok(())
    }

    /// A node that never came to be stops using its children.
    pub(super) fn disconnect(&self, graph: &Graph, parent: NodeId) {
        let keep = |user: &User| !matches!(user.by, By::Parent(by, _) if by == parent);
        self.retain(graph, keep);
    }

    /// Somebody outside uses a node of a generation in the making, until [`Users::give_back`]. Errors: a conflict.
    pub(super) fn lend(
        &self,
        graph: &Graph,
        node: NodeId,
        wants: Wants,
        who: &str,
    ) -> Result<Ticket, PermError> {
        let mut state = self.state();
        let ticket = state.next;
        let mut draft = Draft::new(graph, state.users.clone());
        draft.set(node, By::Outside(ticket, who.to_owned()), wants);
        draft.spread(node)?;
        state.users = draft.commit(&state.users)?;
        state.next += 1;
        Ok(Ticket(ticket))
    }

    /// No longer.
    pub(super) fn give_back(&self, graph: &Graph, ticket: Ticket) {
        let keep = |user: &User| !matches!(user.by, By::Outside(by, _) if by == ticket.0);
        self.retain(graph, keep);
    }

    fn retain(&self, graph: &Graph, keep: impl Fn(&User) -> bool) {
        let mut state = self.state();
        let users = state.users.iter().filter(|user| keep(user)).cloned();
        let mut draft = Draft::new(graph, users.collect());
        let gone: Vec<NodeId> = state
            .users
            .iter()
            .filter(|user| !keep(user))
            .map(|user| user.of)
            .collect();
        // Less is asked than before, so there is nothing to refuse.
        let fewer = gone.into_iter().try_for_each(|node| draft.spread(node));
        debug_assert!(fewer.is_ok());
        if let Ok(users) = draft.commit(&state.users) {
            state.users = users;
        }
    }
}

/// Names somebody outside who uses a node.
#[derive(Debug)]
pub(super) struct Ticket(u64);

/// The users as they would be.
struct Draft<'a> {
    graph: &'a Graph,
    users: Vec<User>,
    touched: Vec<NodeId>,
}

impl<'a> Draft<'a> {
    fn new(graph: &'a Graph, users: Vec<User>) -> Draft<'a> {
        Draft {
            graph,
            users,
            touched: Vec::new(),
        }
    }

    /// Works out what all below `top` is asked for now, and whether that may be.
    fn spread(&mut self, top: NodeId) -> Result<(), PermError> {
        let mut todo = vec![top];
        while let Some(id) = todo.pop() {
            self.check(id)?;
            if !self.touched.contains(&id) {
                self.touched.push(id);
            }
            let above = total(&self.users, id);
            let node = self.graph.node(id).ok_or(PermError::Gone)?;
            for edge in node.shape().edges() {
                let mut wants = match node.body() {
                    Body::Driver(driver) => driver.wants(edge, above),
                    Body::Filter(_) => above,
                };
                let child = self.graph.node(edge.child).ok_or(PermError::Gone)?;
                if child.common().sharing == super::Sharing::Forced {
                    wants.shares = Perms::ALL;
                }
                self.set(edge.child, By::Parent(id, edge.option), wants);
                todo.push(edge.child);
            }
        }
        Ok(())
    }

    fn set(&mut self, of: NodeId, by: By, wants: Wants) {
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

    /// Tells the drivers; all of them agree, or those that did are told to go back.
    fn commit(self, before: &[User]) -> Result<Vec<User>, PermError> {
        for (told, id) in self.touched.iter().enumerate() {
            if let Err(error) = self.permit(*id, total(&self.users, *id)) {
                for id in &self.touched[..told] {
                    // They had just this before, and nobody was asked to leave in between.
                    let _ = self.permit(*id, total(before, *id));
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
        let keep = |user: &User| !matches!(user.by, By::Outside(by, _) if by == ticket);
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
    let graph = current.get();
    let mut state = graph.users.state();
    let ticket = state.next;
    let mut draft = Draft::new(&graph, state.users.clone());
    let who = who.unwrap_or_else(|| "an unnamed block device".to_owned());
    draft.set(node, By::Outside(ticket, who), wants);
    draft.spread(node)?;
    state.users = draft.commit(&state.users)?;
    state.next += 1;
    let current = current.clone();
    Ok(Attachment {
        current,
        node,
        ticket,
    })
}
