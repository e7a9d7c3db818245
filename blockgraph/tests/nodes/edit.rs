//! Edits of a graph in use: who sees what, what is refused in which words, and when nodes that leave are closed.

use crate::support;
use blockgraph::filter::delay::Delay;
use blockgraph::graph::edit::{Edit, EditError, LeaveError, NewFilter};
use blockgraph::graph::open::Child;
use blockgraph::graph::perm::{Wants, attach};
use blockgraph::graph::{Body, Common, NewNode, Role, Shape};
use blockgraph::node::{Driver, Info, Limits, Local, Map, NodeId, Outcome};
use blockgraph::request::{Dir, Request};
use blockgraph::status::{Content, Mapping, Status};
use blockgraph::{Io, Kind, Mode, Span, Started};
use ring::{Choice, Errno, Mem};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::{Bench, common, file, image, named, raw, span};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Reads as one byte everywhere, once it may; notes that it was closed.
#[derive(Debug)]
struct Plain {
    byte: u8,
    may_read: Arc<AtomicBool>,
    closed: Arc<Mutex<Vec<u8>>>,
}

impl Driver for Plain {
    fn map(&self, _dir: Dir, _span: Span) -> Map {
        Map::Slow
    }

    fn serve<'a>(&'a self, io: &'a Io, request: Request) -> Local<'a, Outcome> {
        Box::pin(async move {
            while !self.may_read.load(Ordering::SeqCst) {
                io.sleep(100_000).await;
            }
            request.mem.store(0, &vec![self.byte; request.mem.len()]);
            Ok(())
        })
    }

    fn status<'a>(&'a self, _io: &'a Io, span: Span) -> Local<'a, Result<Status, Errno>> {
        let (content, mapping) = (Content::Data, Mapping::Opaque);
        let len = span.len;
        let status = Status {
            len,
            content,
            mapping,
        };
        Box::pin(async move { Ok(status) })
    }

    fn info(&self) -> Info {
        Info {
            size_bytes: 1 << 20,
            limits: Limits::PLAIN,
        }
    }

    fn close<'a>(&'a self, _io: &'a Io) -> Local<'a, Outcome> {
        Box::pin(async {
            self.closed.lock().expect("not poisoned").push(self.byte);
            Ok(())
        })
    }
}

struct Place {
    bench: Bench,
    may_read: Arc<AtomicBool>,
    closed: Arc<Mutex<Vec<u8>>>,
}

fn place() -> Place {
    Place {
        bench: Bench::new(Choice::Threads, Mode::Fast),
        may_read: Arc::new(AtomicBool::new(true)),
        closed: Arc::default(),
    }
}

impl Place {
    /// A disk of `byte`s, named after it.
    fn plain(&mut self, byte: u8) -> NodeId {
        let mut graph = (*self.bench.current.get()).clone();
        let plain = Plain {
            byte,
            may_read: self.may_read.clone(),
            closed: self.closed.clone(),
        };
        let id = graph.insert(NewNode {
            name: format!("plain{byte}"),
            kind: "plain",
            common: common(),
            body: Body::Driver(Arc::new(plain)),
            shape: Shape::Leaf,
            files: Vec::new(),
        });
        self.bench.current.publish(graph);
        id
    }

    fn raw_on(&mut self, name: &str, child: &str) -> NodeId {
        let spec = raw(Child::Named(child.to_owned()), Default::default());
        self.bench.open(named(spec, name))
    }

    fn edit(
        &mut self,
        edit: impl FnOnce(&mut Edit) -> Result<(), EditError>,
    ) -> Result<(), String> {
        let mut draft = Edit::begin(&self.bench.current);
        edit(&mut draft).map_err(|error| error.to_string())?;
        let (_, leaving) = draft.commit().map_err(|error| error.to_string())?;
        self.bench.lane.begin_batch();
        self.bench.lane.end_batch();
        let finished = leaving.finish(&mut self.bench.control, soon());
        finished.map_err(|(error, _)| error.to_string())
    }

    fn closed(&self) -> Vec<u8> {
        self.closed.lock().expect("not poisoned").clone()
    }
}

fn delay(name: &str) -> NewFilter {
    NewFilter {
        name: name.to_owned(),
        kind: "x-delay",
        common: Common::default(),
        body: Body::Filter(Arc::new(Delay::new(0))),
    }
}

#[test]
fn another_child_is_read_from_the_next_request_on() {
    let mut place = place();
    let (_, two) = (place.plain(1), place.plain(2));
    let top = place.raw_on("top", "plain1");
    assert_eq!(place.bench.read(top, 0, 512), [1; 512]);
    let replaced = place.edit(|edit| edit.replace_child(top, Role::Image, two));
    assert_eq!(replaced, Ok(()));
    assert_eq!(place.bench.read(top, 0, 512), [2; 512]);
    assert_eq!(place.closed(), [], "the other is there still");
}

#[test]
fn no_node_becomes_its_own_descendant_and_nothing_has_children_it_has_no_use_for() {
    let mut place = place();
    let one = place.plain(1);
    let middle = place.raw_on("middle", "plain1");
    let top = place.raw_on("top", "middle");
    let generation = place.bench.current.generation();
    let cycle = place.edit(|edit| edit.replace_child(middle, Role::Image, top));
    let expected = "Making 'top' a file child of 'middle' would create a cycle";
    assert_eq!(cycle, Err(expected.to_owned()));
    let itself = place.edit(|edit| edit.replace_child(middle, Role::Image, middle));
    let expected = "Making 'middle' a file child of 'middle' would create a cycle";
    assert_eq!(itself, Err(expected.to_owned()));
    let none = place.edit(|edit| edit.replace_child(top, Role::Cow, one));
    assert_eq!(none, Err("Node 'top' has no such child".to_owned()));
    assert_eq!(place.bench.current.generation(), generation);
}

#[test]
fn a_filter_takes_the_place_of_what_it_filters_and_gives_it_back() {
    let mut place = place();
    let one = place.plain(1);
    let top = place.raw_on("top", "plain1");
    let current = place.bench.current.clone();
    let export = attach(&current, top, Wants::READ_WRITE, None).expect("attached");
    let inserted = place.edit(|edit| edit.insert_above(top, delay("f")).map(drop));
    assert_eq!(inserted, Ok(()));
    let graph = current.get();
    assert_eq!(
        graph.find("f"),
        Some(export.node()),
        "whoever was attached sees it"
    );
    let moved = graph.find("top").expect("there");
    assert_eq!(graph.skip_filters(export.node()), moved);
    assert_eq!(place.bench.read(export.node(), 0, 512), [1; 512]);
    assert_eq!(place.bench.read(moved, 0, 512), [1; 512]);
    assert_eq!(graph.storage_child(moved), Some(one));
    // Whoever has a generation is waited for.
    drop(graph);
    let removed = place.edit(|edit| edit.remove_filter(top).map(drop));
    assert_eq!(removed, Ok(()));
    assert_eq!(current.get().find("top"), Some(export.node()));
    assert_eq!(current.get().find("f"), None);
    assert_eq!(place.bench.read(export.node(), 0, 512), [1; 512]);
    drop(export);
    assert_eq!(place.edit(|edit| edit.remove("top")), Ok(()));
}

#[test]
fn a_filter_in_a_chain_is_taken_out_from_between_its_neighbours() {
    let mut place = place();
    place.plain(1);
    let middle = place.raw_on("middle", "plain1");
    let top = place.raw_on("top", "middle");
    let other = place.raw_on("other", "middle");
    let current = place.bench.current.clone();
    assert_eq!(
        place.edit(|edit| edit.insert_above(middle, delay("f")).map(drop)),
        Ok(())
    );
    let graph = current.get();
    for above in [top, other] {
        assert_eq!(graph.storage_child(above), graph.find("f"));
    }
    let filter = graph.find("f").expect("there");
    drop(graph);
    assert_eq!(
        place.edit(|edit| edit.remove_filter(filter).map(drop)),
        Ok(())
    );
    let graph = current.get();
    for above in [top, other] {
        assert_eq!(graph.storage_child(above), graph.find("middle"));
        assert_eq!(place.bench.read(above, 0, 512), [1; 512]);
    }
}

#[test]
fn a_node_is_removed_only_by_its_owner_and_only_when_nobody_uses_it() {
    let mut place = place();
    place.plain(1);
    let top = place.raw_on("top", "plain1");
    let current = place.bench.current.clone();
    let refused = |place: &mut Place, name: &str, why: &str| {
        let removed = place.edit(|edit| edit.remove(name));
        assert_eq!(removed, Err(why.to_owned()));
    };
    refused(
        &mut place,
        "nobody",
        "Failed to find node with node-name='nobody'",
    );
    refused(
        &mut place,
        "plain1",
        "Node plain1 is not owned by the monitor",
    );
    let export = attach(&current, top, Wants::READ, None).expect("attached");
    refused(&mut place, "top", "Node top is in use");
    drop(export);
    let above = place.raw_on("above", "top");
    refused(&mut place, "top", "Block device top is in use");
    assert_eq!(place.edit(|edit| edit.remove("above")), Ok(()));
    assert!(current.get().node(above).is_none());
    assert_eq!(place.edit(|edit| edit.remove("top")), Ok(()));
    assert_eq!(place.closed(), [1], "nobody else had it");
}

#[test]
fn a_node_that_leaves_is_closed_when_its_last_request_has_ended_and_not_before() {
    let mut place = place();
    place.may_read.store(false, Ordering::SeqCst);
    place.plain(7);
    let top = place.raw_on("top", "plain7");
    let mem = Mem::zeroed(512).expect("memory");
    let started = place.bench.start(top, Kind::Read, span(0, 512), &mem, 1);
    assert_eq!(started, Started::Pending);
    let mut edit = Edit::begin(&place.bench.current);
    edit.remove("top").expect("removed");
    let (graph, leaving) = edit.commit().expect("committed");
    assert_eq!(graph.nodes().count(), 0);
    assert_eq!(leaving.names(), ["top", "plain7"]);
    place.bench.lane.begin_batch();
    place.bench.lane.end_batch();
    let (error, leaving) = leaving
        .finish(&mut place.bench.control, Instant::now())
        .expect_err("a request is under way");
    assert!(matches!(error, LeaveError::StillUsed), "{error}");
    assert_eq!(place.closed(), []);
    place.may_read.store(true, Ordering::SeqCst);
    assert_eq!(place.bench.wait(), (1, Ok(())));
    let mut byte = [0];
    mem.load(0, &mut byte);
    assert_eq!(byte, [7], "it ended on the generation it began on");
    let leaving = leaving.expect("handed back");
    leaving
        .finish(&mut place.bench.control, soon())
        .expect("finished");
    assert_eq!(place.closed(), [7]);
}

/// How many descriptors of this process are of that file.
fn descriptors(path: &Path) -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").expect("listed");
    let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    links.filter(|link| link == path).count()
}

#[test]
fn the_file_of_a_node_that_left_is_closed_by_every_thread() {
    for choice in support::engines() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = image(dir.path(), 1 << 20);
        let mut place = place();
        place.bench = Bench::new(choice, Mode::Fast);
        let spec = file(&path, blockgraph::driver::file::Cache::Page);
        let node = place.bench.open(named(spec, "f"));
        place.bench.write(node, 0, &[5; 512]).expect("written");
        assert_eq!(descriptors(&path), 1);
        assert_eq!(place.edit(|edit| edit.remove("f")), Ok(()));
        // Each thread does when it next looks.
        place.bench.lane.begin_batch();
        place.bench.lane.end_batch();
        let again = file(&path, blockgraph::driver::file::Cache::Page);
        let node = place.bench.open(named(again, "f"));
        assert_eq!(place.bench.read(node, 0, 512), [5; 512]);
        assert_eq!(descriptors(&path), 1);
    }
}

#[test]
fn an_edit_that_may_not_be_changes_nothing_and_names_both_parents() {
    let mut place = place();
    place.plain(3);
    let unused = place.plain(4);
    let writer = place.raw_on("writer", "plain3");
    let current = place.bench.current.clone();
    let _writes = attach(&current, writer, Wants::READ_WRITE, None).expect("attached");
    let write = Wants::READ_WRITE.needs.without(Wants::READ.needs);
    let guarded = Wants {
        shares: Wants::READ.shares.without(write),
        ..Wants::READ
    };
    let _guard = attach(&current, unused, guarded, None).expect("attached");
    let generation = current.generation();
    let refused = place.edit(|edit| edit.replace_child(writer, Role::Image, unused));
    let expected = "Permission conflict on node 'plain4': permissions 'write' are both required by node 'writer' (uses \
                    node 'plain4' as 'file' child) and unshared by an unnamed block device (uses node 'plain4' as 'root' \
                    child).";
    assert_eq!(refused, Err(expected.to_owned()));
    assert_eq!(current.generation(), generation);
    assert_eq!(place.bench.read(writer, 0, 512), [3; 512]);
}
