//! A picture for a browser: no script, no font of its own, nothing fetched.

use super::layout::{Layout, Size, layout};
use super::picture::{Item, Link, Look, Picture};
use std::fmt::Write;

/// How wide a character is at most, on average, in parts of the font's size: fonts differ, boxes must hold them all.
const CHAR_WIDTH: f64 = 0.6;
const TITLE_PX: f64 = 13.0;
const FACT_PX: f64 = 11.0;
const LINE_PX: f64 = 16.0;
const PADDING_PX: f64 = 12.0;
const MARGIN_PX: f64 = 24.0;
const WIDTH_MIN_PX: f64 = 96.0;

const STYLE: &str = "\
text{font-family:'DejaVu Sans',Verdana,Helvetica,Arial,sans-serif;font-size:11px;fill:#334155}
.title{font-size:13px;font-weight:bold;fill:#0f172a}
.kind{font-weight:normal;fill:#475569}
rect{fill:#ffffff;stroke:#64748b;stroke-width:1.2}
.export rect{fill:#1f4e79;stroke:#163a5a}
.export text{fill:#dbeafe}
.export .title,.export .kind{fill:#ffffff}
.job rect{fill:#fef3c7;stroke:#b45309}
.user rect{fill:#f1f5f9;stroke:#64748b}
.filter rect,.implicit rect{fill:#f8fafc;stroke:#cbd5e1}
.filter .title,.implicit .title{fill:#64748b;font-weight:normal}
.filter text,.filter .kind,.implicit text,.implicit .kind{fill:#94a3b8}
.implicit rect{stroke-dasharray:5 4}
path{fill:none;stroke:#94a3b8;stroke-width:1.4}
.cow path{stroke-dasharray:6 3}
.role{font-size:10px;fill:#64748b;stroke:#ffffff;stroke-width:4px;paint-order:stroke}
";

pub(super) fn draw(picture: &Picture) -> String {
    let sizes: Vec<Size> = picture.items.iter().map(size).collect();
    let lines: Vec<_> = picture
        .links
        .iter()
        .map(|link| (link.from, link.to))
        .collect();
    let placed = layout(&sizes, &lines);
    let (width, height) = (
        placed.width + 2.0 * MARGIN_PX,
        placed.height + 2.0 * MARGIN_PX,
    );
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\">\n<style>\n{STYLE}</style>\n\
         <rect width=\"100%\" height=\"100%\" style=\"fill:#ffffff;stroke:none\"/>\n\
         <g transform=\"translate({MARGIN_PX:.0} {MARGIN_PX:.0})\">\n"
    );
    for (link, points) in picture.links.iter().zip(&placed.lines) {
        draw_line(&mut svg, link, points);
    }
    for (at, (item, size)) in picture.items.iter().zip(&sizes).enumerate() {
        draw_box(&mut svg, item, *size, &placed, at);
    }
    let mut roles = Vec::new();
    for (link, points) in picture.links.iter().zip(&placed.lines) {
        draw_role(&mut svg, link, points, &mut roles);
    }
    svg.push_str("</g>\n</svg>\n");
    svg
}

fn width_px(text: &str, font_px: f64) -> f64 {
    // Characters of other scripts may be as wide as high.
    let width = |c: char| if c.is_ascii() { CHAR_WIDTH } else { 1.0 };
    text.chars().map(width).sum::<f64>() * font_px
}

fn size(item: &Item) -> Size {
    let title = width_px(&item.name, TITLE_PX * 1.1).max(width_px(&item.kind, TITLE_PX));
    let facts = item.facts.iter().map(|fact| width_px(fact, FACT_PX));
    let width = facts.fold(title, f64::max) + 2.0 * PADDING_PX;
    Size {
        width: width.max(WIDTH_MIN_PX).round(),
        height: lines(item) as f64 * LINE_PX + 2.0 * PADDING_PX - 4.0,
        // Exports and jobs are on top even of what nobody uses.
        layer_min: match item.look {
            Look::Export | Look::Job | Look::User => 0,
            Look::Node | Look::Filter | Look::Implicit => 1,
        },
    }
}

fn lines(item: &Item) -> usize {
    1 + usize::from(!item.name.is_empty()) + item.facts.len()
}

fn class(look: Look) -> &'static str {
    match look {
        Look::Export => "export",
        Look::Job => "job",
        Look::User => "user",
        Look::Node => "node",
        Look::Filter => "filter",
        Look::Implicit => "implicit",
    }
}

fn draw_box(svg: &mut String, item: &Item, size: Size, placed: &Layout, at: usize) {
    let (x, y) = placed.boxes[at];
    let round = match item.look {
        Look::Export | Look::Job | Look::User => 10,
        Look::Node | Look::Filter | Look::Implicit => 3,
    };
    // Writing to a string does not fail.
    let _ = writeln!(
        svg,
        "<g class=\"{}\"><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"{round}\"/>",
        class(item.look),
        size.width,
        size.height,
    );
    let middle = x + size.width / 2.0;
    let mut line_y = y + PADDING_PX + 9.0;
    let mut line = |class: &str, text: &str| {
        let text = escaped(text);
        let _ = writeln!(
            svg,
            "<text x=\"{middle:.1}\" y=\"{line_y:.1}\" text-anchor=\"middle\"{class}>{text}</text>"
        );
        line_y += LINE_PX;
    };
    if !item.name.is_empty() {
        line(" class=\"title\"", &item.name);
    }
    line(" class=\"kind\"", &item.kind);
    for fact in &item.facts {
        line("", fact);
    }
    svg.push_str("</g>\n");
}

/// Down from each point to the next, leaving and arriving upright.
fn draw_line(svg: &mut String, link: &Link, points: &[(f64, f64)]) {
    let [(x, y), rest @ ..] = points else {
        return;
    };
    let class = if link.role == "backing" {
        " class=\"cow\""
    } else {
        ""
    };
    let mut path = format!("M{x:.1} {y:.1}");
    let mut from = (*x, *y);
    for (x, y) in rest {
        let half = (y - from.1) / 2.0;
        let _ = write!(
            path,
            " C{:.1} {:.1} {x:.1} {:.1} {x:.1} {y:.1}",
            from.0,
            from.1 + half,
            y - half
        );
        from = (*x, *y);
    }
    let _ = writeln!(svg, "<g{class}><path d=\"{path}\"/></g>");
}

/// Where along a line its role may stand, the best place first.
const PLACES: [f64; 5] = [0.5, 0.66, 0.34, 0.8, 0.2];
const ROLE_PX: f64 = 10.0;

/// What a role takes up.
#[derive(Clone, Copy, Debug)]
struct Spot {
    x: f64,
    y: f64,
    half_width: f64,
}

impl Spot {
    fn is_clear_of(&self, other: &Spot) -> bool {
        let apart_x = (self.x - other.x).abs() > self.half_width + other.half_width;
        apart_x || (self.y - other.y).abs() > ROLE_PX
    }
}

/// On the line's first part, where no other role is if there is such a place.
fn draw_role(svg: &mut String, link: &Link, points: &[(f64, f64)], taken: &mut Vec<Spot>) {
    let [from, to, ..] = points else {
        return;
    };
    if link.role.is_empty() || link.role == "root" {
        return;
    }
    let half_width = width_px(&link.role, ROLE_PX) / 2.0;
    let spot = |place| {
        let (x, y) = on_curve(*from, *to, place);
        Spot { x, y, half_width }
    };
    let clear = |spot: &Spot| taken.iter().all(|other| spot.is_clear_of(other));
    let found = PLACES.into_iter().map(spot).find(clear);
    let spot = found.unwrap_or_else(|| spot(PLACES[0]));
    taken.push(spot);
    let (x, y) = (spot.x, spot.y + 3.0);
    let role = escaped(&link.role);
    let perms = escaped(&link.perms);
    let _ = writeln!(
        svg,
        "<text class=\"role\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{role}<title>{perms}</title></text>"
    );
}

/// A point of the curve that [`draw_line`] draws, from 0 to 1.
fn on_curve(from: (f64, f64), to: (f64, f64), place: f64) -> (f64, f64) {
    let half = (to.1 - from.1) / 2.0;
    let rest = 1.0 - place;
    let weights = [
        rest.powi(3),
        3.0 * rest.powi(2) * place,
        3.0 * rest * place.powi(2),
        place.powi(3),
    ];
    let sum = |values: [f64; 4]| values.iter().zip(weights).map(|(v, w)| v * w).sum::<f64>();
    (
        sum([from.0, from.0, to.0, to.0]),
        sum([from.1, from.1 + half, to.1 - half, to.1]),
    )
}

/// Text as XML has it.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML 1.0, 2.2: these are no characters, not even escaped.
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_keep_clear_of_each_other() {
        let link = |role: &str| Link {
            from: 0,
            to: 1,
            role: role.to_owned(),
            perms: String::new(),
        };
        let (mut svg, mut taken) = (String::new(), Vec::new());
        for role in ["main node", "source", "target"] {
            let points = [(0.0, 0.0), (30.0, 60.0)];
            draw_role(&mut svg, &link(role), &points, &mut taken);
        }
        let pairs = [(0, 1), (0, 2), (1, 2)];
        assert!(
            pairs.iter().all(|(a, b)| taken[*a].is_clear_of(&taken[*b])),
            "{taken:?}"
        );
        assert_eq!((taken[0].x, taken[0].y), (15.0, 30.0));
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(
            escaped("<a href=\"x\">&'\u{ffff}"),
            "&lt;a href=&quot;x&quot;&gt;&amp;'\u{fffd}"
        );
    }
}
