//! Where two values differ, member by member.

use serde_json::{Map, Value};
use std::fmt;

/// One place where two replies to a message differ.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    /// What was asked.
    pub(crate) of: String,
    /// Which member: `return.0.image.filename`.
    pub(crate) at: String,
    theirs: Option<Value>,
    ours: Option<Value>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<Value>| match value {
            None => "nothing".to_owned(),
            Some(value) => value.to_string(),
        };
        let (theirs, ours) = (show(&self.theirs), show(&self.ours));
        write!(
            f,
            "{}\n  at {}\n    QSD: {theirs}\n    we:  {ours}",
            self.of, self.at
        )
    }
}

/// Every difference between the replies to `of`.
pub(crate) fn differences(of: &str, theirs: &Value, ours: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(of, "", Some(theirs), Some(ours), &mut found);
    found
}

fn compare(
    of: &str,
    at: &str,
    theirs: Option<&Value>,
    ours: Option<&Value>,
    found: &mut Vec<Difference>,
) {
    match (theirs, ours) {
        (Some(Value::Object(theirs)), Some(Value::Object(ours))) => {
            for name in names(theirs, ours) {
                let (theirs, ours) = (theirs.get(name), ours.get(name));
                compare(of, &below(at, name), theirs, ours, found);
            }
        }
        (Some(Value::Array(theirs)), Some(Value::Array(ours))) => {
            for n in 0..theirs.len().max(ours.len()) {
                compare(
                    of,
                    &below(at, &n.to_string()),
                    theirs.get(n),
                    ours.get(n),
                    found,
                );
            }
        }
        (theirs, ours) if theirs.map(plain) == ours.map(plain) => {}
        (theirs, ours) => found.push(Difference {
            of: of.to_owned(),
            at: at.to_owned(),
            theirs: theirs.cloned(),
            ours: ours.cloned(),
        }),
    }
}

fn names<'a>(theirs: &'a Map<String, Value>, ours: &'a Map<String, Value>) -> Vec<&'a String> {
    let more = ours.keys().filter(|name| !theirs.contains_key(*name));
    theirs.keys().chain(more).collect()
}

fn below(at: &str, name: &str) -> String {
    match at {
        "" => name.to_owned(),
        at => format!("{at}.{name}"),
    }
}

/// Generated node names end in digits that mean nothing.
fn plain(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(without_generated_names(text)),
        other => other.clone(),
    }
}

fn without_generated_names(text: &str) -> String {
    let mut parts = text.split("#block");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str("#block");
        plain.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    plain
}
