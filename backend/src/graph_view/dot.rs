//! For graphviz: `virtioblkd graph --qmp SOCKET --format dot | dot -Tpng >graph.png`.

use super::picture::{Item, Look, Picture};
use std::fmt::Write;

pub(super) fn draw(picture: &Picture) -> String {
    let mut text = String::from(
        "digraph blocks {\n  node [shape=box, fontname=\"sans-serif\", fontsize=11];\n  \
         edge [fontname=\"sans-serif\", fontsize=9];\n",
    );
    for (at, item) in picture.items.iter().enumerate() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  n{at} [label={}{}];", label(item), style(item.look));
    }
    for link in &picture.links {
        let mut words = vec![link.role.as_str(), link.perms.as_str()];
        words.retain(|word| !word.is_empty() && *word != "root");
        let label = match words.is_empty() {
            true => String::new(),
            false => format!(" [label={}]", quoted(&words.join(" "))),
        };
        let _ = writeln!(text, "  n{} -> n{}{label};", link.from, link.to);
    }
    text.push_str("}\n");
    text
}

fn label(item: &Item) -> String {
    let title = match item.name.as_str() {
        "" => item.kind.clone(),
        name => format!("{}\n{name}", item.kind),
    };
    let lines: Vec<&str> = std::iter::once(title.as_str())
        .chain(item.facts.iter().map(String::as_str))
        .collect();
    quoted(&lines.join("\n"))
}

fn style(look: Look) -> &'static str {
    match look {
        Look::Export => ", style=\"filled,rounded\", fillcolor=\"#1f4e79\", fontcolor=white",
        Look::Job => ", style=\"filled,rounded\", fillcolor=\"#f4d58d\"",
        Look::User => ", style=rounded",
        Look::Node => "",
        Look::Filter => ", color=gray60, fontcolor=gray40",
        Look::Implicit => ", color=gray60, fontcolor=gray40, style=dashed",
    }
}

/// A string of the DOT language: only the quotation mark is special to it, and the backslash to what draws labels.
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", escaped.replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped() {
        assert_eq!(quoted("a\"b\\c\nd"), r#""a\"b\\c\nd""#);
    }
}
