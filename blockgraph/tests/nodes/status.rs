//! Block status through chains of scripted layers with filters in any place, against a model that decides byte by byte.

use crate::support;
use blockgraph::graph::status::{
    End, Found, Until, is_allocated, is_allocated_above, status, status_above,
};
use blockgraph::graph::{Body, Edge, Graph, NewNode, Role, Shape};
use blockgraph::node::{Driver, Info, Limits, Local, Map, NodeId, Outcome};
use blockgraph::request::{Dir, Request};
use blockgraph::status::{Content, Mapping, Status};
use blockgraph::{Mode, Span, filter};
use ring::{Choice, Errno};
use std::sync::Arc;
use support::{Bench, Chance, common, span};

/// A layer whose every byte says what the test wants: runs of equal bytes are its extents.
#[derive(Clone, Debug)]
struct Scripted(Vec<(Content, bool)>);

impl Driver for Scripted {
    fn map(&self, _dir: Dir, _span: Span) -> Map {
        Map::Slow
    }

    fn serve<'a>(&'a self, _io: &'a blockgraph::Io, _request: Request) -> Local<'a, Outcome> {
        Box::pin(async { Err(Errno::NOTSUP) })
    }

    fn status<'a>(
        &'a self,
        io: &'a blockgraph::Io,
        span: Span,
    ) -> Local<'a, Result<Status, Errno>> {
        let asked = &self.0[span.at as usize..(span.at + span.len) as usize];
        let (content, mapped) = asked[0];
        let len = asked.iter().take_while(|byte| **byte == asked[0]).count() as u64;
        let mapping = match mapped {
            true => Mapping::At(io.here(), span.at),
            false => Mapping::None,
        };
        Box::pin(async move {
            Ok(Status {
                len,
                content,
                mapping,
            })
        })
    }

    fn info(&self) -> Info {
        Info {
            size_bytes: self.0.len() as u64,
            limits: Limits::PLAIN,
        }
    }
}

/// A chain, topmost layer first, and for each layer the node to ask for it: the layer or a filter of it.
struct Chain {
    bench: Bench,
    layers: Vec<(NodeId, Scripted)>,
    handles: Vec<NodeId>,
}

fn insert(graph: &mut Graph, body: Body, shape: Shape) -> NodeId {
    let name = format!("n{}", graph.next_id().0);
    graph.insert(NewNode {
        name,
        kind: "scripted",
        common: common(),
        body,
        shape,
        files: Vec::new(),
    })
}

/// `scripts` topmost first; above each layer as many filters as `filters` says.
fn chain(scripts: Vec<Scripted>, mut filters: impl FnMut() -> u64) -> Chain {
    let bench = Bench::new(Choice::Threads, Mode::Fast);
    let mut graph = (*bench.current.get()).clone();
    let file = insert(
        &mut graph,
        Body::Driver(Arc::new(Scripted(Vec::new()))),
        Shape::Leaf,
    );
    let (mut layers, mut handles) = (Vec::new(), Vec::new());
    for script in scripts.into_iter().rev() {
        let backing = handles.last().map(|child| Edge {
            role: Role::Cow,
            option: "backing",
            child: *child,
        });
        let shape = Shape::Format {
            file: Edge::file(Role::Image, file),
            data: None,
            backing,
        };
        let layer = insert(&mut graph, Body::Driver(Arc::new(script.clone())), shape);
        let mut handle = layer;
        for _ in 0..filters() {
            let delay = Body::Filter(Arc::new(filter::delay::Delay::new(0)));
            handle = insert(&mut graph, delay, Shape::filter(handle));
        }
        layers.push((layer, script));
        handles.push(handle);
    }
    bench.current.publish(graph);
    layers.reverse();
    handles.reverse();
    Chain {
        bench,
        layers,
        handles,
    }
}

impl Chain {
    fn above(&mut self, top: NodeId, until: Until, asked: Span) -> Result<Found, Errno> {
        let graph = self.bench.current.get();
        let ran = self.bench.control.run(&graph, top, move |io| async move {
            let found = status_above(&io, top, until, asked).await;
            let allocated = is_allocated_above(&io, top, until, asked).await;
            let expected = found.map(|found| (found.allocation_depth(), found.status.len));
            assert_eq!(allocated, expected);
            found
        });
        ran.expect("a control")
    }

    fn alone(&mut self, node: NodeId, asked: Span) -> Result<Status, Errno> {
        let graph = self.bench.current.get();
        let ran = self.bench.control.run(&graph, node, move |io| async move {
            let status = status(&io, node, asked).await;
            let allocated = is_allocated(&io, node, asked).await;
            let expected = status.map(|status| (status.is_local(), status.len));
            assert_eq!(allocated, expected);
            status
        });
        ran.expect("a control")
    }

    /// What the model says of one byte: how the walk ends, how many layers it asks, what the last one says.
    fn model(&self, top: usize, last: Option<usize>, at: u64) -> (End, u32, (Content, bool)) {
        let mut said = (Content::Below, false);
        let mut depth = 0;
        for (layer, (_, script)) in self.layers.iter().enumerate().skip(top) {
            if last.is_some_and(|last| layer > last) {
                return (End::Deferred, depth, said);
            }
            depth += 1;
            let Some(byte) = script.0.get(at as usize) else {
                return (End::Short, depth, (Content::Zero, false));
            };
            said = *byte;
            if said.0 != Content::Below {
                return (End::Decided, depth, said);
            }
        }
        match last {
            Some(_) => (End::Deferred, depth, said),
            None => (End::Nowhere, depth, said),
        }
    }
}

fn summary(found: &Found) -> (End, u32, (Content, bool)) {
    let said = (found.status.content, found.status.is_mapped());
    (found.end, found.depth, said)
}

fn script(chance: &mut Chance) -> Scripted {
    let contents = [Content::Below, Content::Below, Content::Data, Content::Zero];
    let mut bytes = Vec::new();
    for _ in 0..1 + chance.below(6) {
        let byte = (contents[chance.below(4) as usize], chance.below(2) == 1);
        let run = 1 + chance.below(20) as usize;
        bytes.extend(std::iter::repeat_n(byte, run));
    }
    Scripted(bytes)
}

#[test]
fn every_byte_of_a_chain_is_what_its_layers_say_with_filters_anywhere() {
    for seed in 0..300 {
        println!("seed {seed}");
        let mut chance = Chance(seed);
        let count = 1 + chance.below(5);
        let scripts = (0..count).map(|_| script(&mut chance)).collect();
        let mut chain = chain(scripts, || chance.below(3));
        let size = chain.layers[0].1.0.len() as u64;
        let base = chance.below(count) as usize;
        let base_node = chain.handles[base];
        let walks = [
            (Until::Bottom, None),
            (Until::Including(base_node), Some(base)),
            (Until::Above(base_node), base.checked_sub(1)),
        ];
        for (until, last) in walks {
            let top = chain.handles[0];
            let mut at = 0;
            while at < size {
                let found = chain.above(top, until, span(at, size - at)).expect("found");
                if base == 0 && matches!(until, Until::Above(_)) {
                    assert_eq!((found.end, found.depth), (End::Deferred, 0));
                    break;
                }
                for byte in at..at + found.status.len {
                    let expected = chain.model(0, last, byte);
                    assert_eq!(summary(&found), expected, "byte {byte} until {until:?}");
                }
                at += found.status.len;
            }
        }
    }
}

const DATA: (Content, bool) = (Content::Data, true);
const ZERO: (Content, bool) = (Content::Zero, false);
const BELOW: (Content, bool) = (Content::Below, false);

fn bytes(runs: &[((Content, bool), usize)]) -> Scripted {
    let runs = runs
        .iter()
        .map(|(byte, len)| std::iter::repeat_n(*byte, *len));
    Scripted(runs.flatten().collect())
}

#[test]
fn what_is_past_a_short_backing_file_is_zero_and_allocated_in_that_file() {
    let top = bytes(&[(BELOW, 100)]);
    let short = bytes(&[(BELOW, 60)]);
    let base = bytes(&[(DATA, 100)]);
    let mut chain = chain(vec![top, short, base], || 1);
    let top = chain.handles[0];
    let found = chain
        .above(top, Until::Bottom, span(0, 100))
        .expect("found");
    assert_eq!((found.status.len, found.depth), (60, 3));
    assert!(found.is_data());
    let found = chain
        .above(top, Until::Bottom, span(60, 40))
        .expect("found");
    assert_eq!(
        (found.end, found.status.len, found.depth),
        (End::Short, 40, 2)
    );
    assert!(found.is_allocated() && found.is_zero() && !found.is_data());
    // The short one is not in the asked part: what is there is for those below to say.
    let until = Until::Above(chain.handles[1]);
    let found = chain.above(top, until, span(60, 40)).expect("found");
    assert_eq!((found.end, found.allocation_depth()), (End::Deferred, 0));
    assert!(!found.is_zero());
}

#[test]
fn a_chain_that_decides_nowhere_reads_as_zeroes_and_is_allocated_nowhere() {
    let mut chain = chain(vec![bytes(&[(BELOW, 10)]), bytes(&[(BELOW, 10)])], || 0);
    let top = chain.handles[0];
    let found = chain.above(top, Until::Bottom, span(0, 10)).expect("found");
    assert_eq!((found.end, found.depth), (End::Nowhere, 2));
    assert!(found.is_zero() && !found.is_allocated() && !found.is_data());
}

#[test]
fn a_filter_says_what_it_filters_and_nothing_of_its_own() {
    let script = bytes(&[(ZERO, 5), (DATA, 5), (BELOW, 5)]);
    let mut chain = chain(vec![script], || 2);
    let (filter, layer) = (chain.handles[0], chain.layers[0].0);
    for at in [0, 3, 5, 12] {
        let asked = span(at, 15 - at);
        assert_eq!(chain.alone(filter, asked), chain.alone(layer, asked));
    }
    let data = chain.alone(filter, span(6, 9)).expect("a status");
    assert_eq!((data.len, data.offset()), (4, Some((layer, 6))));
}

#[test]
fn past_the_end_of_the_top_there_is_no_status() {
    let mut chain = chain(vec![bytes(&[(DATA, 10)])], || 1);
    let top = chain.handles[0];
    assert_eq!(chain.alone(top, span(10, 5)), Err(Errno::INVAL));
    let above = chain.above(top, Until::Bottom, span(10, 5));
    assert_eq!(above, Err(Errno::INVAL));
    let across = chain.alone(top, span(8, 5)).expect("a status");
    assert_eq!(across.len, 2);
}
