//! Permissions: what each user of a node needs of it, and what it lets others do meanwhile.
//!
//! The rule: a user is a parent node or somebody outside (an export, a job). What a node's users need and share together
//! decides what it needs and shares of its children, down to the files, whose locks tell other processes. A change is
//! checked all the way down before any of it counts.

mod attach;
mod draft;
mod error;
mod set;

pub use attach::{Attachment, attach, attach_idle, attach_job};
pub use error::PermError;
pub use set::{Perm, Perms, Wants};

use super::Graph;
use crate::node::NodeId;
use crate::report::{self, Use};
use draft::Draft;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// As what most users from outside the graph use a node.
const ROOT: &str = "root";

/// Who uses a node.
#[derive(Clone, Debug, PartialEq, Eq)]
enum By {
    Parent(NodeId, &'static str),
    /// Its ticket, what it is called, and as what it uses the node.
    Outside(u64, String, Idle, &'static str),
}

/// May a user from outside the graph go on while its node is inactive?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// It needs an active one.
    Refused,
    /// It asks for nothing then but to read (QEMU's `allow-inactive=`).
    Allowed,
}

#[derive(Clone, Debug)]
struct User {
    of: NodeId,
    by: By,
    wants: Wants,
}

impl User {
    fn shown(&self) -> Use {
        let (by, option) = match &self.by {
            By::Parent(parent, option) => (report::User::Parent(*parent), *option),
            By::Outside(ticket, who, _, role) => {
                (report::User::Outside(*ticket, who.clone()), *role)
            }
        };
        Use {
            by,
            of: self.of,
            option,
            wants: self.wants,
        }
    }

    fn describe(&self, graph: &Graph) -> String {
        let name = |id| graph.node(id).map_or("", |node| node.name());
        let (who, edge) = match &self.by {
            By::Parent(parent, option) => (format!("node '{}'", name(*parent)), *option),
            By::Outside(_, who, _, role) => (who.clone(), *role),
        };
        format!("{who} (uses node '{}' as '{edge}' child)", name(self.of))
    }
}

/// The users before they agreed upon something else.
#[derive(Debug)]
#[must_use = "it has to be published, or taken back"]
pub(super) struct Agreed(Vec<User>);

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
        state.users = draft.commit(&state.users, |id| id)?;
        Ok(())
    }

    /// Is anybody outside the graph attached to `node`?
    pub(super) fn is_attached(&self, node: NodeId) -> bool {
        let state = self.state();
        let mut users = state.users.iter().filter(|user| user.of == node);
        users.any(|user| matches!(user.by, By::Outside(..)))
    }

    /// Is it somebody's disk: is anybody outside the graph attached to it who is no job?
    pub(super) fn is_root(&self, node: NodeId) -> bool {
        let state = self.state();
        let mut users = state.users.iter().filter(|user| user.of == node);
        users.any(|user| matches!(user.by, By::Outside(.., ROOT)))
    }

    /// Is a job attached to it as to a part of what it works on?
    pub(super) fn is_part(&self, node: NodeId) -> bool {
        let state = self.state();
        let mut users = state.users.iter().filter(|user| user.of == node);
        users.any(|user| matches!(&user.by, By::Outside(.., role) if *role != ROOT))
    }

    /// Does anybody rely on what is read from `node`?
    pub(super) fn is_read(&self, node: NodeId) -> bool {
        let state = self.state();
        draft::total(&state.users, node)
            .needs
            .has(Perm::ConsistentRead)
    }

    /// Every use of a node of `graph`.
    pub(super) fn all(&self, graph: &Graph) -> Vec<Use> {
        let state = self.state();
        let known = state
            .users
            .iter()
            .filter(|user| graph.node(user.of).is_some());
        let mut uses: Vec<Use> = known.map(User::shown).collect();
        uses.sort_by_key(|one| match &one.by {
            report::User::Parent(id) => (1, u64::from(id.0)),
            report::User::Outside(ticket, _) => (0, *ticket),
        });
        uses
    }

    /// Every node of `graph` says anew what it asks of its children. Nodes of `before` that are not in it ask what they
    /// asked, until they are closed; `moved` says where those were that are somewhere else now.
    pub(super) fn rebuild(
        &self,
        graph: &Graph,
        before: &Graph,
        moved: &BTreeMap<NodeId, NodeId>,
    ) -> Result<Agreed, PermError> {
        let was = |now: NodeId| moved.get(&now).copied().unwrap_or(now);
        let is_now = |was: NodeId| {
            moved
                .iter()
                .find(|(_, from)| **from == was)
                .map(|(to, _)| *to)
        };
        let mut state = self.state();
        let stays = |user: &User| match user.by {
            By::Outside(..) => Some(user.clone()),
            By::Parent(parent, _) => {
                let left = graph.node(parent).is_none() && is_now(parent).is_none();
                let of = is_now(user.of).unwrap_or(user.of);
                let user = User { of, ..user.clone() };
                // A filter that was taken out asks for nothing of its own: those above it now ask themselves.
                let was_there = before.node(parent);
                let asks = was_there.is_some_and(|node| node.shape().filtered().is_none());
                (left && asks && graph.node(of).is_some()).then_some(user)
            }
        };
        let users = state.users.iter().filter_map(stays).collect();
        let mut draft = Draft::new(graph, users);
        let now = |id| is_now(id).unwrap_or(id);
        let order = state.users.iter().map(|user| match &user.by {
            By::Parent(parent, option) => (now(user.of), By::Parent(now(*parent), option)),
            outside => (user.of, outside.clone()),
        });
        draft.order = order.collect();
        draft.before = Some(before);
        draft.ask(&graph.all_parents_first())?;
        let users = draft.commit(&state.users, was)?;
        Ok(Agreed(std::mem::replace(&mut state.users, users)))
    }

    /// Takes back what was agreed upon since; `before` is the graph of that time.
    pub(super) fn restore(&self, agreed: Agreed, before: &Graph) {
        let mut state = self.state();
        state.users = agreed.0;
        for id in before.all_parents_first() {
            // They had just this before.
            let _ = draft::permit(before, id, draft::total(&state.users, id));
        }
    }

    /// Nodes that are not in `graph` ask for nothing any more.
    pub(super) fn forget(&self, graph: &Graph) {
        // Less is asked than before, so there is nothing to refuse.
        let fewer = self.rebuild(graph, graph, &BTreeMap::new());
        debug_assert!(fewer.is_ok());
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
        let by = By::Outside(ticket, who.to_owned(), Idle::Refused, ROOT);
        draft.set(node, by, wants);
        draft.spread(node)?;
        state.users = draft.commit(&state.users, |id| id)?;
        state.next += 1;
        Ok(Ticket(ticket))
    }

    /// No longer.
    pub(super) fn give_back(&self, graph: &Graph, ticket: Ticket) {
        let keep = |user: &User| !matches!(user.by, By::Outside(by, ..) if by == ticket.0);
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
        if let Ok(users) = draft.commit(&state.users, |id| id) {
            state.users = users;
        }
    }
}

/// Names somebody outside who uses a node.
#[derive(Debug)]
pub(super) struct Ticket(u64);
