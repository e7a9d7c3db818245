//! What an edit may do to links between nodes. The rule: each checks what the graph alone can tell; who may do what is
//! checked with the whole, in [`Edit::commit`].

use super::{Edit, EditError};
use crate::graph::{Body, Common, Edge, NewNode, Node, Role, Shape};
use crate::node::NodeId;
use std::sync::Arc;

/// A filter to be put into the graph; its child follows from where.
#[derive(Debug)]
pub struct NewFilter {
    /// Its node-name.
    pub name: String,
    /// Its driver's name.
    pub kind: &'static str,
    /// Options every node has.
    pub common: Common,
    /// What it does.
    pub body: Body,
}

impl Edit {
    /// Makes `child` the child of that role of `parent`, in place of the one it has.
    pub fn replace_child(
        &mut self,
        parent: NodeId,
        role: Role,
        child: NodeId,
    ) -> Result<(), EditError> {
        let shape = self.node(parent)?.shape().clone();
        let Some(option) = shape.edges().find(|e| e.role == role).map(|e| e.option) else {
            return Err(EditError::NoChild(self.name(parent)));
        };
        self.check_link(parent, option, Some(child))?;
        self.redirect(parent, |edge| {
            if edge.role == role {
                edge.child = child;
            }
        });
        Ok(())
    }

    /// Makes `child` what `parent` reads where it has nothing, or nothing at all. Errors: it is no format.
    pub fn set_backing(&mut self, parent: NodeId, child: Option<NodeId>) -> Result<(), EditError> {
        self.check_link(parent, "backing", child)?;
        let mut shape = self.node(parent)?.shape().clone();
        let Shape::Format { backing, .. } = &mut shape else {
            return Err(EditError::NoChild(self.name(parent)));
        };
        *backing = child.map(|child| Edge {
            role: Role::Cow,
            option: "backing",
            child,
        });
        self.reshape(parent, shape);
        Ok(())
    }

    /// May that child of `parent` be another?
    fn check_link(
        &self,
        parent: NodeId,
        option: &'static str,
        child: Option<NodeId>,
    ) -> Result<(), EditError> {
        if let Some(child) = child {
            self.node(child)?;
            if self.graph.parents_first(child).contains(&parent) {
                return Err(EditError::Cycle {
                    child: self.name(child),
                    option,
                    parent: self.name(parent),
                });
            }
        }
        let mut edges = self.node(parent)?.shape().edges();
        let before = edges.find(|edge| edge.option == option);
        match before {
            Some(edge) if Some(edge.child) != child && self.graph.is_frozen(parent, edge) => {
                Err(EditError::Frozen {
                    child: self.name(edge.child),
                    option,
                    parent: self.name(parent),
                })
            }
            _ => Ok(()),
        }
    }

    /// Puts a filter between `below` and all its users. It takes the node's place; says where the node is now.
    pub fn insert_above(&mut self, below: NodeId, filter: NewFilter) -> Result<NodeId, EditError> {
        let node = self.slot(below)?.clone();
        let place = self.graph.insert_arc(node);
        let NewFilter {
            name,
            kind,
            common,
            body,
        } = filter;
        let above = Node::new(NewNode {
            name,
            kind,
            common,
            body,
            shape: Shape::filter(place),
            files: Vec::new(),
        });
        self.graph.nodes[below.0 as usize] = Some(Arc::new(above));
        self.note_move(below, place);
        Ok(place)
    }

    /// The same of a filter that needs something besides. Whatever that reads from `below` it goes on reading from there, not
    /// from the filter.
    pub fn insert_above_with(
        &mut self,
        below: NodeId,
        filter: NewFilter,
        also: Edge,
    ) -> Result<NodeId, EditError> {
        let needed = self.graph.parents_first(also.child);
        let place = self.insert_above(below, filter)?;
        for parent in needed {
            self.redirect(parent, |edge| {
                if edge.child == below {
                    edge.child = place;
                }
            });
        }
        if let Some(Some(node)) = self.graph.nodes.get_mut(below.0 as usize) {
            let shape = Shape::Filter {
                below: Edge::file(Role::Filtered, place),
                also: Some(also),
            };
            *node = Arc::new(node.with_shape(shape));
        }
        Ok(place)
    }

    /// A job put that filter there, and not the user.
    pub fn mark_implicit(&mut self, filter: NodeId) {
        self.graph.set_implicit(filter);
    }

    /// Takes a filter out: its users use what it filtered. Errors: something is attached to both.
    pub fn remove_filter(&mut self, filter: NodeId) -> Result<NodeId, EditError> {
        let Some(below) = self.node(filter)?.shape().filtered() else {
            return Err(EditError::NoChild(self.name(filter)));
        };
        self.put_in_place(filter, below)
    }

    /// All who use `old` use `new` instead, which is somewhere below it; `old` is no longer in the graph, though what it used may
    /// be. Says where `new` is now. Errors: something is attached to both, or a filter relies on one of the links to `old`.
    pub fn replace(&mut self, old: NodeId, new: NodeId) -> Result<NodeId, EditError> {
        for (parent, node) in self.graph.nodes() {
            let mut edges = node.shape().edges().filter(|edge| edge.child == old);
            if let Some(edge) = edges.find(|edge| self.graph.is_frozen(parent, edge)) {
                return Err(EditError::Frozen {
                    child: self.name(old),
                    option: edge.option,
                    parent: self.name(parent),
                });
            }
        }
        self.put_in_place(old, new)
    }

    fn put_in_place(&mut self, old: NodeId, new: NodeId) -> Result<NodeId, EditError> {
        let users = &self.graph.users;
        let (kept, gone) = match (users.is_attached(old), users.is_attached(new)) {
            (true, true) => return Err(EditError::Attached(self.name(new))),
            (true, false) => (old, new),
            (false, _) => (new, old),
        };
        for set in [&mut self.graph.implicit, &mut self.graph.asked_for] {
            set.remove(&old);
        }
        if kept == old {
            self.graph.nodes[old.0 as usize] = Some(self.slot(new)?.clone());
            self.note_move(new, old);
        }
        self.graph.nodes[gone.0 as usize] = None;
        for parent in self.graph.all_parents_first() {
            self.redirect(parent, |edge| {
                if edge.child == gone {
                    edge.child = kept;
                }
            });
        }
        Ok(kept)
    }

    /// Removes a node, and with it those of its children that were opened for it and that nobody else uses.
    pub fn remove(&mut self, name: &str) -> Result<(), EditError> {
        let owned = || name.to_owned();
        let id = self
            .graph
            .find(name)
            .ok_or_else(|| EditError::NotFound(owned()))?;
        if let Some(parent) = self.graph.backed(id) {
            let parent = self.name(parent);
            let node = owned();
            return Err(EditError::Busy { node, parent });
        }
        if self.graph.users.is_attached(id) {
            return Err(EditError::Attached(owned()));
        }
        if !self.graph.asked_for.contains(&id) {
            return Err(EditError::NotOwned(owned()));
        }
        if self.is_child(id) {
            return Err(EditError::Needed(owned()));
        }
        self.graph.asked_for.remove(&id);
        let mut unused = vec![id];
        while let Some(id) = unused.pop() {
            let children: Vec<NodeId> = self.node(id)?.shape().edges().map(|e| e.child).collect();
            self.graph.implicit.remove(&id);
            self.graph.nodes[id.0 as usize] = None;
            let left_over = |child: &NodeId| {
                self.graph.node(*child).is_some()
                    && !self.graph.asked_for.contains(child)
                    && !self.graph.users.is_attached(*child)
                    && !self.is_child(*child)
            };
            unused.extend(children.into_iter().filter(left_over));
        }
        Ok(())
    }

    fn note_move(&mut self, from: NodeId, to: NodeId) {
        for set in [&mut self.graph.implicit, &mut self.graph.asked_for] {
            if set.remove(&from) {
                set.insert(to);
            }
        }
        let first = self.moved.remove(&from).unwrap_or(from);
        self.moved.insert(to, first);
    }
}
