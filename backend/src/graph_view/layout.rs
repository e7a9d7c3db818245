//! Where boxes and lines go: layers from top to bottom, few crossings, children below their parents.
//!
//! The rule: pure arithmetic on sizes, the same for the same input; every step is bounded by the number of boxes and lines.
//! It is Sugiyama's scheme: layers by longest path, a point in each layer that a line passes, order by barycentres, places by
//! least squares.

/// A box to be placed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Size {
    pub(super) width: f64,
    pub(super) height: f64,
    /// The first layer it may be in.
    pub(super) layer_min: usize,
}

/// A line to be drawn, by places in the list of boxes.
pub(super) type Line = (usize, usize);

/// Where everything went.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Layout {
    /// Upper left corners.
    pub(super) boxes: Vec<(f64, f64)>,
    /// The points each line passes, from parent to child.
    pub(super) lines: Vec<Vec<(f64, f64)>>,
    pub(super) width: f64,
    pub(super) height: f64,
}

const GAP_X: f64 = 28.0;
const GAP_Y: f64 = 56.0;
const SWEEPS: usize = 12;
/// Lines beyond the layers' number of boxes times this are not routed around boxes: bounds the work.
const POINTS_MAX: usize = 20_000;

/// A box, or a point where a line passes a layer.
#[derive(Debug)]
struct Spot {
    layer: usize,
    width: f64,
    above: Vec<usize>,
    below: Vec<usize>,
    x: f64,
}

struct Scheme {
    spots: Vec<Spot>,
    layers: Vec<Vec<usize>>,
    /// The spots each line passes.
    routes: Vec<Vec<usize>>,
}

pub(super) fn layout(boxes: &[Size], lines: &[Line]) -> Layout {
    let mut scheme = Scheme::new(boxes, lines);
    scheme.order();
    scheme.place();
    scheme.finish(boxes)
}

/// The longest path from the top to each box. Lines in a circle, of which no graph has any, stop making it longer.
fn layers_of(boxes: &[Size], lines: &[Line]) -> Vec<usize> {
    let mut layers: Vec<usize> = boxes.iter().map(|size| size.layer_min).collect();
    for _ in 0..boxes.len() {
        let mut changed = false;
        for (from, to) in lines {
            let least = (layers[*from] + 1).min(boxes.len());
            if layers[*to] < least {
                layers[*to] = least;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    layers
}

impl Scheme {
    fn new(boxes: &[Size], lines: &[Line]) -> Scheme {
        let layers_of = layers_of(boxes, lines);
        let count = layers_of.iter().max().map_or(0, |last| last + 1);
        let spot = |layer, width| Spot {
            layer,
            width,
            above: Vec::new(),
            below: Vec::new(),
            x: 0.0,
        };
        let sizes = boxes.iter().zip(&layers_of);
        let mut scheme = Scheme {
            spots: sizes
                .map(|(size, layer)| spot(*layer, size.width))
                .collect(),
            layers: vec![Vec::new(); count],
            routes: Vec::new(),
        };
        for (from, to) in lines {
            let mut route = vec![*from];
            let (first, last) = (layers_of[*from] + 1, layers_of[*to]);
            if scheme.spots.len() + last.saturating_sub(first) <= POINTS_MAX {
                for layer in first..last {
                    route.push(scheme.spots.len());
                    scheme.spots.push(spot(layer, 0.0));
                }
            }
            route.push(*to);
            for pair in route.windows(2) {
                scheme.spots[pair[0]].below.push(pair[1]);
                scheme.spots[pair[1]].above.push(pair[0]);
            }
            scheme.routes.push(route);
        }
        scheme.first_order();
        scheme
    }

    /// As a walk from the tops down comes by.
    fn first_order(&mut self) {
        let mut seen = vec![false; self.spots.len()];
        let tops = (0..self.spots.len()).filter(|at| self.spots[*at].above.is_empty());
        let mut ahead: Vec<usize> = tops.chain(0..self.spots.len()).collect();
        ahead.reverse();
        while let Some(at) = ahead.pop() {
            if !std::mem::replace(&mut seen[at], true) {
                self.layers[self.spots[at].layer].push(at);
                ahead.extend(self.spots[at].below.iter().rev());
            }
        }
    }

    /// Sorts each layer by where its neighbours are, down and up again, and keeps the order with the fewest crossings.
    fn order(&mut self) {
        let mut best = (self.crossings(), self.layers.clone());
        for sweep in 0..SWEEPS {
            let down = sweep % 2 == 0;
            let count = self.layers.len();
            for step in 1..count {
                let layer = if down { step } else { count - 1 - step };
                self.sort_layer(layer, down);
            }
            let crossings = self.crossings();
            if crossings < best.0 {
                best = (crossings, self.layers.clone());
            }
        }
        self.layers = best.1;
    }

    fn sort_layer(&mut self, layer: usize, down: bool) {
        let ranks = self.ranks();
        let mut keyed: Vec<(f64, usize)> = Vec::new();
        for (place, at) in self.layers[layer].iter().enumerate() {
            let spot = &self.spots[*at];
            let neighbours = if down { &spot.above } else { &spot.below };
            let sum: f64 = neighbours.iter().map(|n| ranks[*n]).sum();
            let key = match neighbours.len() {
                0 => place as f64,
                count => sum / count as f64,
            };
            keyed.push((key, *at));
        }
        keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
        self.layers[layer] = keyed.into_iter().map(|(_, at)| at).collect();
    }

    /// Each spot's place in its layer.
    fn ranks(&self) -> Vec<f64> {
        let mut ranks = vec![0.0; self.spots.len()];
        for layer in &self.layers {
            for (place, at) in layer.iter().enumerate() {
                ranks[*at] = place as f64;
            }
        }
        ranks
    }

    fn crossings(&self) -> usize {
        let ranks = self.ranks();
        let mut crossings = 0;
        for layer in &self.layers {
            let mut pairs: Vec<(f64, f64)> = Vec::new();
            for at in layer {
                let below = self.spots[*at].below.iter();
                pairs.extend(below.map(|child| (ranks[*at], ranks[*child])));
            }
            for (place, one) in pairs.iter().enumerate() {
                let others = pairs[place + 1..].iter();
                crossings += others
                    .filter(|two| (one.0 - two.0) * (one.1 - two.1) < 0.0)
                    .count();
            }
        }
        crossings
    }

    /// Moves spots towards their neighbours, layer by layer, never closer to each other than they may be.
    fn place(&mut self) {
        for layer in 0..self.layers.len() {
            let packed = vec![0.0; self.layers[layer].len()];
            self.settle(layer, &packed);
        }
        for sweep in 0..SWEEPS {
            let down = sweep % 2 == 0;
            let count = self.layers.len();
            for step in 0..count {
                let layer = if down { step } else { count - 1 - step };
                let wishes: Vec<f64> = self.layers[layer]
                    .iter()
                    .map(|at| self.wish(*at, down))
                    .collect();
                self.settle(layer, &wishes);
            }
        }
    }

    /// Where a spot would like its middle: under what is above it, or over what is below.
    fn wish(&self, at: usize, down: bool) -> f64 {
        let spot = &self.spots[at];
        let (near, far) = match down {
            true => (&spot.above, &spot.below),
            false => (&spot.below, &spot.above),
        };
        let near = if near.is_empty() { far } else { near };
        match near.len() {
            0 => spot.x,
            count => near.iter().map(|n| self.spots[*n].x).sum::<f64>() / count as f64,
        }
    }

    /// The places nearest to the wishes (least squares) that keep order and distances: blocks that would overlap merge and
    /// move together.
    fn settle(&mut self, layer: usize, wishes: &[f64]) {
        // Of each block: the sum of its wishes, its count, and where its first spot is from the first of all.
        let mut blocks: Vec<(f64, f64)> = Vec::new();
        let mut offsets = Vec::new();
        let mut offset = 0.0;
        for (place, at) in self.layers[layer].iter().enumerate() {
            if place > 0 {
                let before = self.layers[layer][place - 1];
                let (a, b) = (self.spots[before].width, self.spots[*at].width);
                offset += (a + b) / 2.0 + GAP_X;
            }
            offsets.push(offset);
            blocks.push((wishes[place] - offset, 1.0));
            while let [.., (a, m), (b, n)] = blocks[..]
                && a / m > b / n
            {
                blocks.truncate(blocks.len() - 2);
                blocks.push((a + b, m + n));
            }
        }
        let mut at = 0;
        for (sum, count) in blocks {
            for _ in 0..count as usize {
                self.spots[self.layers[layer][at]].x = sum / count + offsets[at];
                at += 1;
            }
        }
    }

    fn finish(self, boxes: &[Size]) -> Layout {
        let left = |spot: &Spot| spot.x - spot.width / 2.0;
        let leftmost = self.spots.iter().map(left).fold(f64::INFINITY, f64::min);
        let x = |at: usize| self.spots[at].x - leftmost;
        let mut tops = Vec::new();
        let mut heights = Vec::new();
        let mut y = 0.0;
        for layer in &self.layers {
            let heights_of = layer
                .iter()
                .filter_map(|at| boxes.get(*at))
                .map(|size| size.height);
            let height = heights_of.fold(0.0, f64::max);
            tops.push(y);
            heights.push(height);
            y += height + GAP_Y;
        }
        let layer = |at: usize| self.spots[at].layer;
        let lines = self.routes.iter().map(|route| {
            let mut points = Vec::new();
            for (step, at) in route.iter().enumerate() {
                let (top, height) = (tops[layer(*at)], heights[layer(*at)]);
                let own = boxes.get(*at).map_or(height, |size| size.height);
                if step > 0 {
                    points.push((x(*at), top));
                }
                if step + 1 < route.len() {
                    points.push((x(*at), top + own));
                }
            }
            points
        });
        let right = |spot: &Spot| spot.x + spot.width / 2.0 - leftmost;
        Layout {
            lines: lines.collect(),
            boxes: (0..boxes.len())
                .map(|at| (x(at) - boxes[at].width / 2.0, tops[layer(at)]))
                .collect(),
            width: self.spots.iter().map(right).fold(0.0, f64::max),
            height: (y - GAP_Y).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxes(count: usize) -> Vec<Size> {
        let size = Size {
            width: 100.0,
            height: 40.0,
            layer_min: 0,
        };
        vec![size; count]
    }

    fn overlap(layout: &Layout) -> bool {
        let all = &layout.boxes;
        let close = |a: &(f64, f64), b: &(f64, f64)| {
            (a.0 - b.0).abs() < 100.0 + GAP_X - 0.001 && (a.1 - b.1).abs() < 40.0
        };
        let pairs = all.iter().enumerate();
        pairs
            .into_iter()
            .any(|(at, a)| all[at + 1..].iter().any(|b| close(a, b)))
    }

    #[test]
    fn a_child_is_below_its_parents_and_under_their_middle() {
        let layout = layout(&boxes(3), &[(0, 2), (1, 2)]);
        let [(ax, ay), (bx, by), (cx, cy)] = layout.boxes[..] else {
            panic!("three boxes");
        };
        assert_eq!((ay, by, cy), (0.0, 0.0, 40.0 + GAP_Y));
        assert!((cx - (ax + bx) / 2.0).abs() < 0.01, "{ax} {bx} {cx}");
        assert!((layout.width - 228.0).abs() < 0.01);
        assert!(!overlap(&layout));
    }

    #[test]
    fn crossings_that_can_be_avoided_are() {
        // As written down, the two lines cross.
        let size = Scheme::new(&boxes(4), &[(0, 3), (1, 2)]);
        let mut scheme = size;
        scheme.layers = vec![vec![0, 1], vec![2, 3]];
        assert_eq!(scheme.crossings(), 1);
        scheme.order();
        assert_eq!(scheme.crossings(), 0);
    }

    #[test]
    fn a_line_past_a_layer_keeps_clear_of_its_boxes() {
        let layout = layout(&boxes(3), &[(0, 1), (1, 2), (0, 2)]);
        let (x, y) = layout.boxes[1];
        for (px, py) in &layout.lines[2] {
            let inside = (x..=x + 100.0).contains(px) && (y + 1.0..y + 39.0).contains(py);
            assert!(!inside, "{px} {py} in {x} {y}");
        }
        assert_eq!(layout.lines[2].len(), 4);
    }

    #[test]
    fn no_input_hangs_or_overlaps() {
        assert_eq!(layout(&[], &[]), Layout::default());
        let circle = layout(&boxes(3), &[(0, 1), (1, 2), (2, 0), (1, 1)]);
        assert_eq!(circle.boxes.len(), 3);
        let mut seed = 7u64;
        for _ in 0..50 {
            let mut next = |below: usize| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 33) as usize % below
            };
            let count = 2 + next(12);
            let mut lines = Vec::new();
            for _ in 0..next(20) {
                let to = 1 + next(count - 1);
                lines.push((next(to), to));
            }
            let drawn = layout(&boxes(count), &lines);
            assert!(!overlap(&drawn), "{lines:?}");
            assert_eq!(drawn, layout(&boxes(count), &lines));
        }
    }
}
