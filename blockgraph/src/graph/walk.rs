//! Walks by role: what is below a node, said by what it is to the node and never by the option it came from.
//!
//! The rule: a filter is no layer. Whoever asks about data, sizes or a backing chain asks past filters, in whatever place
//! they are (`skip_filters`); whoever asks about what the user built asks past those alone that a job put there
//! (`skip_implicit`).

use super::{Body, Graph, Role};
use crate::map::DEPTH_MAX;
use crate::node::{NodeId, Origin, Zeroing};
use crate::request::Unmap;
use std::collections::BTreeSet;

impl Graph {
    /// Would a write of zeroes to `top` be faster than a write of data? A host that has not been asked yet is trusted once.
    pub fn zeroes_fast(&self, top: NodeId, unmap: Unmap) -> bool {
        let mut id = self.skip_filters(top);
        for _ in 0..DEPTH_MAX {
            let Some(node) = self.node(id) else {
                return false;
            };
            let Body::Driver(driver) = node.body() else {
                return false;
            };
            match driver.zeroing(unmap) {
                Zeroing::Fast => return true,
                Zeroing::Written => return false,
                Zeroing::Below(role) => match node.shape().child(role) {
                    Some(child) => id = self.skip_filters(child),
                    None => return false,
                },
            }
        }
        false
    }

    /// The image whose map says where what is written to `id` goes, if one does: `id` itself, or what is below it through
    /// filters and raw nodes alone.
    pub fn mapping_image(&self, id: NodeId) -> Option<NodeId> {
        let mut id = self.skip_filters(id);
        for _ in 0..DEPTH_MAX {
            let node = self.node(id)?;
            let Body::Driver(driver) = node.body() else {
                return None;
            };
            if driver.as_qcow2().is_some() {
                return Some(id);
            }
            id = self.skip_filters(node.shape().child(Role::Image)?);
        }
        None
    }

    /// The file that `id` is in, past filters and formats on the way, if it is in one of this machine.
    pub fn file_origin(&self, id: NodeId) -> Option<&Origin> {
        super::gate::origin(self, id).ok()
    }

    /// The first node from `id` down that is no filter: `id` itself if it is none.
    pub fn skip_filters(&self, id: NodeId) -> NodeId {
        self.skip(id, |_| true)
    }

    /// The first node from `id` down that is no filter a job put there.
    pub fn skip_implicit(&self, id: NodeId) -> NodeId {
        self.skip(id, |id| self.is_implicit(id))
    }

    fn skip(&self, mut id: NodeId, skips: impl Fn(NodeId) -> bool) -> NodeId {
        for _ in 0..DEPTH_MAX {
            let filtered = self.node(id).and_then(|node| node.shape().filtered());
            match filtered.filter(|_| skips(id)) {
                Some(below) => id = below,
                None => break,
            }
        }
        id
    }

    /// `top` and every node below it, each before its children. No node is its own descendant.
    pub fn parents_first(&self, top: NodeId) -> Vec<NodeId> {
        self.order([top])
    }

    /// Every node, each before its children.
    pub fn all_parents_first(&self) -> Vec<NodeId> {
        self.order(self.nodes().map(|(id, _)| id))
    }

    /// By depth first search, without recursion: a node is done when all below it are.
    fn order(&self, tops: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
        let mut seen = BTreeSet::new();
        let mut done = Vec::new();
        for top in tops {
            let mut path = vec![(top, false)];
            while let Some((id, below_done)) = path.pop() {
                if below_done {
                    done.push(id);
                } else if seen.insert(id) {
                    path.push((id, true));
                    let edges = self
                        .node(id)
                        .into_iter()
                        .flat_map(|node| node.shape().edges());
                    path.extend(edges.map(|edge| (edge.child, false)));
                }
            }
        }
        done.reverse();
        done
    }

    /// Where `id` reads what it does not have. A filter has no such child, what it filters may.
    pub fn cow_child(&self, id: NodeId) -> Option<NodeId> {
        self.node(id)?.shape().child(Role::Cow)
    }

    /// Where `id` stores guest data. A filter stores none.
    pub fn storage_child(&self, id: NodeId) -> Option<NodeId> {
        let shape = self.node(id)?.shape();
        shape.child(Role::Data).or(shape.child(Role::Image))
    }

    /// The layer below the layer that `id` is or filters.
    pub fn next_layer(&self, id: NodeId) -> Option<NodeId> {
        let below = self.cow_child(self.skip_filters(id))?;
        Some(self.skip_filters(below))
    }

    /// The layers of the backing chain from `top` down, topmost first; filters between them are passed over.
    pub fn chain(&self, top: NodeId) -> impl Iterator<Item = NodeId> {
        let top = Some(self.skip_filters(top));
        std::iter::successors(top, |id| self.next_layer(*id)).take(DEPTH_MAX)
    }
}

#[cfg(test)]
mod tests {
    use crate::driver::null::{Null, Reads};
    use crate::filter::delay::Delay;
    use crate::graph::{Body, Common, Edge, Graph, NewNode, Role, Shape};
    use crate::node::NodeId;
    use std::sync::Arc;

    fn add(graph: &mut Graph, shape: Shape) -> NodeId {
        let body = match &shape {
            Shape::Filter { .. } => Body::Filter(Arc::new(Delay::new(0))),
            _ => Body::Driver(Arc::new(Null::new(1 << 20, Reads::Zeroes, 0))),
        };
        let name = format!("n{}", graph.next_id().0);
        graph.insert(NewNode {
            name,
            kind: "test",
            common: Common::default(),
            body,
            shape,
            files: Vec::new(),
        })
    }

    fn layer(graph: &mut Graph, backing: Option<NodeId>) -> NodeId {
        let file = add(graph, Shape::Leaf);
        let backing = backing.map(|child| Edge {
            role: Role::Cow,
            option: "backing",
            child,
        });
        let shape = Shape::Format {
            file: Edge::file(Role::Image, file),
            data: None,
            backing,
        };
        add(graph, shape)
    }

    #[test]
    fn filters_break_no_chain_wherever_they_are() {
        let mut graph = Graph::default();
        let base = layer(&mut graph, None);
        let on_base = add(&mut graph, Shape::filter(base));
        let on_that = add(&mut graph, Shape::filter(on_base));
        let middle = layer(&mut graph, Some(on_that));
        let top = layer(&mut graph, Some(middle));
        let on_top = add(&mut graph, Shape::filter(top));
        let chain: Vec<NodeId> = graph.chain(on_top).collect();
        assert_eq!(chain, [top, middle, base]);
        assert_eq!(graph.cow_child(middle), Some(on_that));
        assert_eq!(graph.next_layer(middle), Some(base));
        assert_eq!(
            (graph.cow_child(on_top), graph.cow_child(base)),
            (None, None)
        );
    }

    #[test]
    fn parents_come_before_their_children_however_often_those_are_shared() {
        let mut graph = Graph::default();
        let mut below = layer(&mut graph, None);
        // Two ways down from each: as many paths as 2 to the 200.
        for _ in 0..200 {
            let backing = Some(Edge {
                role: Role::Cow,
                option: "backing",
                child: below,
            });
            let shape = Shape::Format {
                file: Edge::file(Role::Image, below),
                data: None,
                backing,
            };
            below = add(&mut graph, shape);
        }
        let order = graph.parents_first(below);
        assert_eq!(order.len(), 202);
        assert_eq!(order.len(), graph.all_parents_first().len());
        let place = |id| order.iter().position(|other| *other == id).expect("there");
        for (id, node) in graph.nodes() {
            assert!(
                node.shape()
                    .edges()
                    .all(|edge| place(edge.child) > place(id))
            );
        }
    }

    #[test]
    fn only_filters_of_jobs_are_implicit() {
        let mut graph = Graph::default();
        let disk = layer(&mut graph, None);
        let users = add(&mut graph, Shape::filter(disk));
        let jobs = add(&mut graph, Shape::filter(users));
        graph.set_implicit(jobs);
        assert_eq!(graph.skip_implicit(jobs), users);
        assert_eq!(graph.skip_filters(jobs), disk);
        assert_eq!(graph.skip_implicit(disk), disk);
    }

    #[test]
    fn guest_data_is_stored_in_the_data_child_if_there_is_one() {
        let mut graph = Graph::default();
        let (file, data) = (add(&mut graph, Shape::Leaf), add(&mut graph, Shape::Leaf));
        let external = add(
            &mut graph,
            Shape::Format {
                file: Edge::file(Role::Metadata, file),
                data: Some(Edge {
                    role: Role::Data,
                    option: "data-file",
                    child: data,
                }),
                backing: None,
            },
        );
        let image = add(&mut graph, Shape::image(file));
        let filter = add(&mut graph, Shape::filter(image));
        assert_eq!(graph.storage_child(external), Some(data));
        assert_eq!(graph.storage_child(image), Some(file));
        assert_eq!(graph.storage_child(filter), None);
        assert_eq!(graph.storage_child(file), None);
    }
}
