//! `key=value,…` arguments as a tree of objects, lists and strings.
//!
//! The grammar is QEMU's: dots nest, a fragment of digits is a list index, `,,` is a comma in a value, the first key may be left out where one is
//! implied, `help` and `?` alone ask for help, the last of two equal keys wins. The rule: every leaf is a string; what it means is decided by
//! whoever asks for it. One limit is ours: [`DEPTH_MAX`], so that no argument can exhaust the stack.

use serde_json::{Map, Value};

use super::error::Refusal;

/// The deepest nesting of an argument, in either form. QEMU allows 1024 in JSON; nothing real comes near this.
pub(crate) const DEPTH_MAX: usize = 64;
/// The longest fragment of a dotted key, in bytes.
const FRAGMENT_LEN_MAX_BYTES: usize = 127;

/// An argument in `key=value` form.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Keyval {
    /// The top level; leaves are strings.
    pub(super) members: Map<String, Value>,
    /// Whether `help` or `?` was among the parameters.
    pub(super) help: bool,
}

/// Reads `text`; `implied` is the key of a first parameter that has none, if it may have none.
///
/// # Errors
/// In QEMU's words: a wrong key, a missing `=`, keys used as leaf and as object, lists with gaps.
pub(super) fn parse(text: &str, implied: Option<&str>) -> Result<Keyval, Refusal> {
    let mut members = Map::new();
    let mut help = false;
    let mut rest = text;
    let mut implied = implied;
    while !rest.is_empty() {
        let (parameter, after) = split_parameter(rest, implied.take());
        match parameter {
            Parameter::Help => help = true,
            Parameter::Implied { key, value } => insert(&mut members, key, value.to_owned())?,
            Parameter::Bare(key) => return Err(bare_key(&mut members, key)),
            Parameter::Pair { key, value } => insert(&mut members, key, value)?,
        }
        rest = after;
    }
    Ok(Keyval { members, help })
}

/// Turns objects whose keys are all indexes into lists, everywhere.
///
/// # Errors
/// Indexes mixed with names, and gaps.
pub(super) fn listify(members: Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
    let mut path = String::new();
    members
        .into_iter()
        .map(|(key, value)| {
            let value = listify_value(value, &mut path, &key)?;
            Ok((key, value))
        })
        .collect()
}

enum Parameter<'a> {
    Help,
    Implied { key: &'a str, value: &'a str },
    Bare(&'a str),
    Pair { key: &'a str, value: String },
}

/// The first parameter of `text` and what comes after its comma.
fn split_parameter<'a>(text: &'a str, implied: Option<&'a str>) -> (Parameter<'a>, &'a str) {
    let end = text.find(['=', ',']).unwrap_or(text.len());
    let (key, tail) = text.split_at(end);
    if let Some(value) = tail.strip_prefix('=') {
        let (value, after) = split_value(value);
        return (Parameter::Pair { key, value }, after);
    }
    let after = tail.strip_prefix(',').unwrap_or(tail);
    let parameter = match (key, implied) {
        ("help" | "?", _) => Parameter::Help,
        ("", _) | (_, None) => Parameter::Bare(key),
        (value, Some(key)) => Parameter::Implied { key, value },
    };
    (parameter, after)
}

/// A value up to its comma, `,,` undone, and what comes after.
pub(super) fn split_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let Some((before, after)) = rest.split_once(',') else {
            value.push_str(rest);
            return (value, "");
        };
        value.push_str(before);
        let Some(after_second) = after.strip_prefix(',') else {
            return (value, after);
        };
        value.push(',');
        rest = after_second;
    }
}

/// What is wrong with a key that has no value: its own spelling, then its place in the tree, then the missing `=`.
fn bare_key(members: &mut Map<String, Value>, key: &str) -> Refusal {
    match descend(members, key) {
        Err(refusal) => refusal,
        Ok(_) => Refusal::new(format!("Expected '=' after parameter '{key}'")),
    }
}

fn insert(members: &mut Map<String, Value>, key: &str, value: String) -> Result<(), Refusal> {
    let (place, last) = descend(members, key)?;
    match place.get(last) {
        Some(Value::Object(_)) => Err(inconsistent(key)),
        _ => {
            place.insert(last.to_owned(), Value::String(value));
            Ok(())
        }
    }
}

/// The object that the last fragment of `key` belongs to, made if need be, and that fragment.
fn descend<'m, 'k>(
    members: &'m mut Map<String, Value>,
    key: &'k str,
) -> Result<(&'m mut Map<String, Value>, &'k str), Refusal> {
    let fragments = fragments(key)?;
    let (last, parents) = fragments.split_last().expect("a key has a fragment");
    let mut cur = members;
    let mut used_bytes = 0;
    for fragment in parents {
        used_bytes += fragment.len();
        let next = cur
            .entry(*fragment)
            .or_insert_with(|| Value::Object(Map::new()));
        cur = next
            .as_object_mut()
            .ok_or_else(|| inconsistent(&key[..used_bytes]))?;
        used_bytes += ".".len();
    }
    Ok((cur, last))
}

fn inconsistent(key: &str) -> Refusal {
    Refusal::new(format!("Parameters '{key}.*' used inconsistently"))
}

/// The fragments of a dotted key, each a QAPI name or, after the first, an index.
fn fragments(key: &str) -> Result<Vec<&str>, Refusal> {
    let mut fragments = Vec::new();
    let mut rest = key;
    loop {
        let len = fragment_len(rest, fragments.is_empty());
        let (fragment, tail) = rest.split_at(len);
        if len == 0 || !(tail.is_empty() || tail.starts_with('.')) {
            return Err(Refusal::new(format!("Invalid parameter '{key}'")));
        }
        if len > FRAGMENT_LEN_MAX_BYTES {
            let part = if len == key.len() { "" } else { " fragment" };
            return Err(Refusal::new(format!(
                "Parameter{part} '{fragment}' is too long"
            )));
        }
        fragments.push(fragment);
        if fragments.len() > DEPTH_MAX {
            return Err(Refusal::new("Parameters are nested too deeply"));
        }
        match tail.strip_prefix('.') {
            Some(next) => rest = next,
            None => return Ok(fragments),
        }
    }
}

/// How many bytes at the start of `text` are one fragment; 0 if none are.
fn fragment_len(text: &str, is_first: bool) -> usize {
    let digits = prefix_len(text, |b| b.is_ascii_digit());
    if digits > 0 && !is_first {
        return digits;
    }
    let vendor = vendor_prefix_len(text);
    let name = &text[vendor..];
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return 0;
    }
    vendor
        + prefix_len(name, |b| {
            b.is_ascii_alphanumeric() || b == b'-' || b == b'_'
        })
}

/// A name may start with `__RFQDN_` (docs/devel/qapi-code-gen, "Naming rules").
fn vendor_prefix_len(text: &str) -> usize {
    let Some(domain) = text.strip_prefix("__") else {
        return 0;
    };
    let len = prefix_len(domain, |b| {
        b.is_ascii_alphanumeric() || b == b'-' || b == b'.'
    });
    match domain[len..].starts_with('_') && len > 0 {
        true => "__".len() + len + "_".len(),
        false => 0,
    }
}

fn prefix_len(text: &str, accept: impl Fn(u8) -> bool) -> usize {
    text.bytes().take_while(|b| accept(*b)).count()
}

/// The index a fragment stands for; too large ones are all the same, since they leave a gap anyway.
fn index(fragment: &str) -> Option<usize> {
    if !fragment.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    Some(fragment.parse().unwrap_or(usize::MAX))
}

/// Depth is bounded by [`DEPTH_MAX`], hence the recursion.
fn listify_value(value: Value, path: &mut String, key: &str) -> Result<Value, Refusal> {
    let Value::Object(members) = value else {
        return Ok(value);
    };
    let path_len = path.len();
    path.push_str(key);
    path.push('.');
    let members = members
        .into_iter()
        .map(|(key, value)| {
            let value = listify_value(value, path, &key)?;
            Ok((key, value))
        })
        .collect::<Result<Map<_, _>, Refusal>>()?;
    let value = listify_object(members, path);
    path.truncate(path_len);
    value
}

fn listify_object(members: Map<String, Value>, path: &str) -> Result<Value, Refusal> {
    let indexes = members.keys().filter(|key| index(key).is_some()).count();
    if indexes == 0 {
        return Ok(Value::Object(members));
    }
    if indexes != members.len() {
        return Err(Refusal::new(format!(
            "Parameters '{path}*' used inconsistently"
        )));
    }
    let mut elements = vec![None; members.len()];
    for (key, value) in members {
        let slot = index(&key).and_then(|at| elements.get_mut(at));
        // An index beyond the end leaves a gap before it, reported below.
        if let Some(slot) = slot {
            *slot = Some(value);
        }
    }
    let missing = |at| Refusal::new(format!("Parameter '{path}{at}' missing"));
    elements
        .into_iter()
        .enumerate()
        .map(|(at, element)| element.ok_or_else(|| missing(at)))
        .collect::<Result<Vec<_>, _>>()
        .map(Value::Array)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn tree(text: &str) -> Result<Value, String> {
        let keyval = parse(text, Some("implied")).map_err(|refusal| refusal.to_string())?;
        let members = listify(keyval.members).map_err(|refusal| refusal.to_string())?;
        Ok(Value::Object(members))
    }

    #[test]
    fn arguments_become_trees() {
        let cases = [
            ("", json!({})),
            ("x", json!({"implied": "x"})),
            ("a=b", json!({"a": "b"})),
            ("a=b,", json!({"a": "b"})),
            ("a=", json!({"a": ""})),
            ("a==b", json!({"a": "=b"})),
            ("a=1,,2,,,b=c", json!({"a": "1,2,", "b": "c"})),
            ("a=1,a=2", json!({"a": "2"})),
            (
                "x,a.b.c=1,a.d=2",
                json!({"implied": "x", "a": {"b": {"c": "1"}, "d": "2"}}),
            ),
            ("a.1=y,a.0=x", json!({"a": ["x", "y"]})),
            ("a.0.b=x,a.1.b=y", json!({"a": [{"b": "x"}, {"b": "y"}]})),
            ("a.b.0=x", json!({"a": {"b": ["x"]}})),
            ("file=ünï,,cödé", json!({"file": "ünï,cödé"})),
        ];
        for (text, expected) in cases {
            assert_eq!(tree(text), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn help_is_noticed_among_parameters_but_not_as_a_value() {
        let help = |text| parse(text, Some("implied")).unwrap().help;
        assert!(help("help"));
        assert!(help("?"));
        assert!(help("x,help"));
        assert!(help("x,a=b,?"));
        assert!(!help("x,a=help"));
        assert!(!help("helpful"));
        assert!(!help("x,help=on"));
    }

    #[test]
    fn nesting_is_bounded() {
        let key = |fragments: usize| vec!["a"; fragments].join(".");
        assert!(tree(&format!("{}=x", key(DEPTH_MAX))).is_ok());
        let refused = tree(&format!("{}=x", key(DEPTH_MAX + 1)));
        assert_eq!(refused, Err("Parameters are nested too deeply".to_owned()));
        assert!(tree(&format!("{}=x", key(60_000))).is_err());
    }

    #[test]
    fn a_huge_index_costs_no_memory() {
        let refused = tree("a.0=x,a.4294967295=y");
        assert_eq!(refused, Err("Parameter 'a.1' missing".to_owned()));
    }

    /// The inverse of parsing: every leaf with its dotted key.
    fn spell(value: &Value, key: &str, out: &mut Vec<String>) {
        let below = |name: &str| match key {
            "" => name.to_owned(),
            _ => format!("{key}.{name}"),
        };
        match value {
            Value::Object(members) => members
                .iter()
                .for_each(|(name, value)| spell(value, &below(name), out)),
            Value::Array(elements) => elements
                .iter()
                .enumerate()
                .for_each(|(at, value)| spell(value, &below(&at.to_string()), out)),
            Value::String(text) => out.push(format!("{key}={}", text.replace(',', ",,"))),
            other => panic!("not a keyval leaf: {other}"),
        }
    }

    fn a_tree() -> impl Strategy<Value = Value> {
        let leaf = ".{0,8}".prop_map(Value::String);
        let below = leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..4).prop_map(Value::Array),
                prop::collection::hash_map("[a-zA-Z][a-zA-Z0-9_-]{0,6}", inner, 1..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        });
        prop::collection::hash_map("[a-zA-Z][a-zA-Z0-9_-]{0,6}", below, 0..5)
            .prop_map(|members| Value::Object(members.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn what_is_spelled_out_is_read_back(value in a_tree()) {
            let mut parameters = Vec::new();
            spell(&value, "", &mut parameters);
            prop_assert_eq!(tree(&parameters.join(",")), Ok(value));
        }

        #[test]
        fn order_does_not_matter_without_duplicates(value in a_tree()) {
            let mut parameters = Vec::new();
            spell(&value, "", &mut parameters);
            parameters.reverse();
            prop_assert_eq!(tree(&parameters.join(",")), Ok(value));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            let _ = tree(&text);
        }

        #[test]
        fn no_text_of_its_own_alphabet_makes_it_panic(text in "[ab01.,=?_-]{0,40}") {
            let _ = tree(&text);
        }

        #[test]
        fn leaves_are_never_longer_than_the_text(text in "[ab01.,=_-]{0,60}") {
            if let Ok(value) = tree(&text) {
                let mut parameters = Vec::new();
                spell(&value, "", &mut parameters);
                prop_assert!(parameters.len() <= text.len());
            }
        }
    }
}
