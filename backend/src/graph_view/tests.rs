//! Pictures of one graph, compared with what they were when somebody looked at them. `BLESS=1` writes them anew.

use super::answers::{Answers, Kind};
use super::command::Format;
use super::render;
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

/// What qemu-storage-daemon 10.0.2 answered about a mirror job on a throttled overlay, cut down to what is read, and figures
/// of two exports.
const ANSWERS: &str = include_str!("golden/answers.json");

fn answers() -> Answers {
    let all: Value = serde_json::from_str(ANSWERS).unwrap();
    let mut answers = Answers::read(&all["graph"], &all["named"]);
    answers.read_users(Some(&all["exports"]), Some(&all["jobs"]));
    answers.measure(&all["before"], &all["after"], Duration::from_secs(2));
    answers
}

fn check(name: &str, format: Format) {
    let drawn = render(&answers(), format);
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/graph_view/golden");
    let path = dir.join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &drawn).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert!(drawn == golden, "{name} has changed; it is now:\n{drawn}");
}

#[test]
fn the_text_is_as_it_was() {
    check("graph.txt", Format::Text);
}

#[test]
fn the_dot_is_as_it_was() {
    check("graph.dot", Format::Dot);
}

#[test]
fn the_svg_is_as_it_was() {
    check("graph.svg", Format::Svg);
}

#[test]
fn the_order_of_the_answers_does_not_matter() {
    let mut shuffled = answers();
    shuffled.nodes.reverse();
    shuffled.edges.reverse();
    shuffled.exports.reverse();
    for format in [Format::Text, Format::Dot, Format::Svg] {
        assert_eq!(render(&answers(), format), render(&shuffled, format));
    }
}

#[test]
fn answers_that_make_no_sense_are_drawn_as_far_as_they_do() {
    let mut odd = answers();
    // A circle, a line to nowhere, two nodes of one name, nothing known of any.
    let (first, second) = (odd.nodes[0].id, odd.nodes[1].id);
    let edge = |parent, child| super::answers::GraphEdge {
        parent,
        child,
        name: "file".to_owned(),
        perms: String::new(),
    };
    odd.edges.extend([edge(first, second), edge(second, first)]);
    odd.edges.extend([edge(first, first), edge(first, 4711)]);
    odd.nodes[1].name = odd.nodes[0].name.clone();
    odd.infos.clear();
    for format in [Format::Text, Format::Dot, Format::Svg] {
        let drawn = render(&odd, format);
        let drivers = odd.nodes.iter().filter(|node| node.kind == Kind::Driver);
        for node in drivers {
            assert!(drawn.contains(&node.name), "{} in {drawn}", node.name);
        }
    }
    assert_eq!(render(&Answers::default(), Format::Text), "");
    let junk = Answers::read(&Value::from(7), &serde_json::json!([7, {"node-name": 7}]));
    assert_eq!(junk, Answers::default());
}
