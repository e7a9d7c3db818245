//! A tree for a terminal.
//!
//! The rule: a thing that several use is drawn in full where it comes first, and named where it comes again. No recursion:
//! how deep a graph is is up to whoever answered.

use super::picture::{Item, Link, Look, Picture};

/// A line still to be drawn.
struct Ahead<'a> {
    at: usize,
    link: Option<&'a Link>,
    /// What stands before the line, and before those below it.
    lead: String,
    below: String,
}

pub(super) fn draw(picture: &Picture) -> String {
    let mut text = String::new();
    let mut drawn = vec![false; picture.items.len()];
    let mut tops = picture.tops();
    // A graph in a circle has no top; whoever sends one is shown it all the same.
    tops.extend(0..picture.items.len());
    for top in tops {
        if !drawn[top] {
            tree(picture, top, &mut drawn, &mut text);
        }
    }
    if let Some(note) = &picture.note {
        text.push_str(note);
        text.push('\n');
    }
    text
}

fn tree(picture: &Picture, top: usize, drawn: &mut [bool], text: &mut String) {
    let mut ahead = vec![Ahead {
        at: top,
        link: None,
        lead: String::new(),
        below: String::new(),
    }];
    while let Some(next) = ahead.pop() {
        let again = std::mem::replace(&mut drawn[next.at], true);
        text.push_str(&next.lead);
        text.push_str(&line(&picture.items[next.at], next.link, again));
        text.push('\n');
        if again {
            continue;
        }
        let children: Vec<&Link> = picture.children(next.at).collect();
        for (place, link) in children.iter().enumerate().rev() {
            let (branch, trunk) = match place + 1 == children.len() {
                true => ("└─ ", "   "),
                false => ("├─ ", "│  "),
            };
            ahead.push(Ahead {
                at: link.to,
                link: Some(link),
                lead: format!("{}{branch}", next.below),
                below: format!("{}{trunk}", next.below),
            });
        }
    }
}

fn line(item: &Item, link: Option<&Link>, again: bool) -> String {
    let role = link.map_or("", |link| link.role.as_str());
    let mut line = match role {
        "" | "root" => String::new(),
        role => format!("{role}: "),
    };
    line.push_str(&item.kind);
    if !item.name.is_empty() {
        line.push(' ');
        line.push_str(&item.name);
    }
    match item.look {
        Look::Export => line.insert_str(0, "export "),
        Look::Job => line.insert_str(0, "job "),
        Look::Filter => line.push_str(" (filter)"),
        Look::Implicit => line.push_str(" (filter of a job)"),
        Look::User | Look::Node => {}
    }
    if again {
        line.push_str(", see above");
    } else if !item.facts.is_empty() {
        line.push_str(": ");
        line.push_str(&item.facts.join(", "));
    }
    line
}
