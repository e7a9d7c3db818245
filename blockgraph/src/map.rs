//! THE FAST PATH: walks from a node down to file extents by pure lookups, or gives up.
//!
//! Eight rules make it sound:
//! 1. `map` and `ready` change nothing; a walk may be abandoned half-way. Tokens, counters and bits move in `begin`/`end`.
//! 2. Pin the graph generation first, look up second; drop the pin at completion. Otherwise a discard can free the
//!    cluster between lookup and I/O.
//! 3. A freed host cluster waits in quarantine until every pin older than the free is gone.
//! 4. Dirty bits are set in `end`: after the data landed, before the guest is told. Earlier, and a job can clear the bit
//!    and read old data.
//! 5. Allocation is prepare, data, commit, always in `serve`; dropping the prepared object undoes it.
//! 6. Ranges held by someone (read-modify-write, copy-on-read, a fleecing read of the source) make `ready` answer false
//!    or `map` answer slow: that is all "serialising" means.
//! 7. A lock that is not free means `Slow`, never a wait, on a queue thread.
//! 8. Short transfers, EINTR and a full submission queue are the ring's business; no node sees them, and no guest does:
//!    full means stop popping.

use crate::graph::{Body, Graph, Role};
use crate::node::{Map, NodeId};
use crate::request::Dir;
use crate::units::Span;
use ring::FileId;

/// A request in more pieces than this serves.
pub const PIECES_MAX: usize = 8;
/// A request through more filters, or written to more parts of nodes with bitmaps, than this serves.
pub const PASSED_MAX: usize = 8;
/// A graph deeper than this serves (and `graph::open` refuses to build one).
pub const DEPTH_MAX: usize = 250;
/// A thread with a lane has this much stack, in bytes: what a layer asks of the one below is polled from within what it
/// was asked itself, [`DEPTH_MAX`] times at the most. A test makes do with a quarter, without optimization.
pub const LANE_STACK_BYTES: usize = 8 << 20;

/// Where one piece of a request lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At that offset of that file.
    File(FileId, u64),
    /// Zeroes.
    Zero,
    /// Nowhere.
    Void,
}

/// A piece of a request: `len` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it lives.
    pub place: Place,
    /// Length in bytes.
    pub len: u64,
}

/// A filter the walk passed, or a node with a bitmap that records, and the span it was asked about (in its own coordinates).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// The node.
    pub node: NodeId,
    /// What it was asked.
    pub span: Span,
}

/// What a successful walk found. Kept by the caller and used again: nothing here allocates.
#[derive(Clone, Debug)]
pub struct Plan {
    pieces: [Piece; PIECES_MAX],
    piece_count: usize,
    passed: [Passed; PASSED_MAX],
    passed_count: usize,
    filter_count: usize,
}

impl Default for Plan {
    fn default() -> Plan {
        let piece = Piece {
            place: Place::Void,
            len: 0,
        };
        let passed = Passed {
            node: NodeId(0),
            span: Span { at: 0, len: 0 },
        };
        Plan {
            pieces: [piece; PIECES_MAX],
            piece_count: 0,
            passed: [passed; PASSED_MAX],
            passed_count: 0,
            filter_count: 0,
        }
    }
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// The plan says where every byte lives.
    Mapped,
    /// Some layer has to serve.
    Slow,
}

impl Plan {
    /// The pieces in order; their lengths add up to the span's.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces[..self.piece_count]
    }

    /// The filters and the nodes with bitmaps passed, topmost first.
    pub fn passed(&self) -> &[Passed] {
        &self.passed[..self.passed_count]
    }

    fn push_piece(&mut self, piece: Piece) -> Option<()> {
        *self.pieces.get_mut(self.piece_count)? = piece;
        self.piece_count += 1;
        Some(())
    }

    fn push_passed(&mut self, passed: Passed) -> Option<()> {
        *self.passed.get_mut(self.passed_count)? = passed;
        self.passed_count += 1;
        Some(())
    }

    fn push_filter(&mut self, passed: Passed) -> Option<()> {
        self.filter_count += 1;
        self.push_passed(passed)
    }

    /// Notes that `node` has to mark its bitmaps: once, for all the pieces that lie together in it.
    #[cold]
    fn push_marked(&mut self, node: NodeId, span: Span) -> Option<()> {
        for known in &mut self.passed[..self.passed_count] {
            let old = known.span;
            if known.node == node && old.at <= span.at && span.at <= old.end() {
                known.span.len = old.end().max(span.end()) - old.at;
                return Some(());
            }
        }
        self.push_passed(Passed { node, span })
    }
}

/// Walks `span` of `top`; the span is not empty and lies within the node.
pub fn walk(graph: &Graph, top: NodeId, dir: Dir, span: Span, plan: &mut Plan) -> Walk {
    plan.piece_count = 0;
    plan.passed_count = 0;
    plan.filter_count = 0;
    let Some(start) = pass_filters(graph, top, dir, span, plan) else {
        return Walk::Slow;
    };
    let on_top = plan.filter_count;
    let mut rest = span;
    while !rest.is_empty() {
        let Some(piece) = descend(graph, start, dir, rest, plan) else {
            return Walk::Slow;
        };
        // A filter must see a request once and whole: one below a driver passes it in one piece, or it serves.
        if plan.filter_count > on_top && piece.len != span.len {
            return Walk::Slow;
        }
        rest = rest.after(piece.len);
        if plan.push_piece(piece).is_none() {
            return Walk::Slow;
        }
    }
    Walk::Mapped
}

/// Passes the filters on top, which see the whole span, and says what they filter; `None` means slow.
fn pass_filters(
    graph: &Graph,
    top: NodeId,
    dir: Dir,
    span: Span,
    plan: &mut Plan,
) -> Option<NodeId> {
    let mut id = top;
    for _ in 0..DEPTH_MAX {
        let node = graph.node(id)?;
        let Body::Filter(filter) = node.body() else {
            return Some(id);
        };
        if (dir == Dir::Write && node.writes_serve()) || !filter.ready(dir, span) {
            return None;
        }
        plan.push_filter(Passed { node: id, span })?;
        id = node.shape().filtered()?;
    }
    None
}

/// Finds where the beginning of `span` lives; `None` means slow.
#[inline]
fn descend(graph: &Graph, top: NodeId, dir: Dir, mut span: Span, plan: &mut Plan) -> Option<Piece> {
    let mut id = top;
    // Has a layer above asked that the next one decide by itself?
    let mut local = false;
    for _ in 0..DEPTH_MAX {
        let node = graph.node(id)?;
        if dir == Dir::Write && node.writes_serve() {
            return None;
        }
        let to = match node.body() {
            Body::Filter(filter) => {
                if !filter.ready(dir, span) {
                    return None;
                }
                plan.push_filter(Passed { node: id, span })?;
                Role::Filtered
            }
            Body::Driver(driver) => {
                if dir == Dir::Write && node.bitmaps().is_recording() {
                    if !node.bitmaps().covers(span) {
                        return None;
                    }
                    plan.push_marked(id, span)?;
                }
                let (to, at, len) = match driver.map(dir, span) {
                    Map::Below { to, .. } if local && to == Role::Cow => return None,
                    Map::Below { to, at, len } => {
                        local = local && to == Role::Filtered;
                        (to, at, len)
                    }
                    Map::Local { to, at, len } => {
                        local = true;
                        (to, at, len)
                    }
                    answer => return piece(answer, dir, span.len),
                };
                span.at = at;
                span.len = len.min(span.len);
                if span.is_empty() {
                    return None;
                }
                to
            }
        };
        let asked = span.len;
        let zeroes = Map::Zero { len: asked };
        let Some(child) = node.shape().child(to) else {
            return match to {
                Role::Cow => piece(zeroes, dir, asked),
                _ => None,
            };
        };
        span = within(graph, child, to, span)?;
        if span.is_empty() {
            return piece(zeroes, dir, asked);
        }
        id = child;
    }
    None
}

/// What of `span` is within `child`, which is asked for all of it. What a backing file is too short for reads as zeroes; of
/// another child nobody asks for more than there is, or it has to be served.
#[inline]
fn within(graph: &Graph, child: NodeId, to: Role, span: Span) -> Option<Span> {
    if to == Role::Filtered {
        return Some(span);
    }
    let size = graph.size_bytes(child)?;
    if span.end() <= size {
        return Some(span);
    }
    (to == Role::Cow).then(|| span.first(size.saturating_sub(span.at)))
}

#[inline]
fn piece(answer: Map, dir: Dir, len_max: u64) -> Option<Piece> {
    let (place, len) = match answer {
        Map::File { file, at, len } => (Place::File(file, at), len),
        // Writing to what reads as zeroes is an allocation, or a driver's mistake: either way it serves.
        Map::Zero { len } if dir == Dir::Read => (Place::Zero, len),
        Map::Void { len } => (Place::Void, len),
        Map::Zero { .. } | Map::Slow | Map::Below { .. } | Map::Local { .. } => return None,
    };
    let len = len.min(len_max);
    (len > 0).then_some(Piece { place, len })
}
