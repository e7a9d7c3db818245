//! Tables and readers agree: whatever a table lists its reader takes, and it makes a difference; nothing else is taken.
//!
//! Every argument's table is walked, case by case and member by member, in both spellings. Children are written out in place once, and named
//! below that.

use super::super::{schema_chardev, schema_nbd};
use super::*;
use crate::qapi::Type;
use crate::qapi::tables::exports::NBD_SERVER_OPTIONS_LEGACY;
use serde_json::{Map, json};
use std::fmt::Debug;

/// What a reader made of an object, or why it did not.
type Outcome = Result<String, String>;

/// A table and its reader.
struct Argument {
    name: &'static str,
    table: &'static qapi::Object,
    /// What the reader wants besides what the table requires.
    always: &'static [(&'static str, &'static str)],
    read: fn(Object) -> Outcome,
}

fn shown<T: Debug>(result: Result<T, Refusal>) -> Outcome {
    let shown = result.map(|options| format!("{options:?}"));
    shown.map_err(|refusal| refusal.to_string())
}

const ARGUMENTS: &[Argument] = &[
    Argument {
        name: "--blockdev",
        table: &BLOCKDEV_OPTIONS,
        always: &[("node-name", "n")],
        read: |o| shown(blockdev(o)),
    },
    Argument {
        name: "--export",
        table: &BLOCK_EXPORT_OPTIONS,
        always: &[],
        read: |o| shown(export(o)),
    },
    Argument {
        name: "--object",
        table: &OBJECT_OPTIONS,
        always: &[("dir", "/nonexistent")],
        read: |o| shown(object(o)),
    },
    Argument {
        name: "--nbd-server",
        table: &NBD_SERVER_OPTIONS,
        always: &[],
        read: |o| shown(nbd_server(o)),
    },
    Argument {
        name: "nbd-server-start",
        table: &NBD_SERVER_OPTIONS_LEGACY,
        always: &[],
        read: |o| shown(schema_nbd::nbd_server_start(o)),
    },
    Argument {
        name: "--monitor",
        table: &MONITOR_OPTIONS,
        always: &[],
        read: |o| shown(schema_chardev::monitor(o)),
    },
];

/// Where nothing that is said besides makes a difference, since all of it is refused alike.
const REFUSED_ALIKE: &str = "Only socket address types 'unix' and 'fd' are supported";

/// How deep children are written out in place.
const DEPTH_MAX: usize = 1;

/// An optional member: an object without it, and the same with each value that it may have.
struct Variation {
    member: String,
    without: Map<String, Value>,
    with: Vec<Map<String, Value>>,
}

fn plus(object: &Map<String, Value>, name: &str, value: Value) -> Map<String, Value> {
    let mut object = object.clone();
    object.insert(name.to_owned(), value);
    object
}

/// Values of a type. Texts are numbers of descriptors, names, paths and directories all the same.
fn samples(ty: Type, depth: usize) -> Vec<Value> {
    match ty {
        Type::Str => vec![json!("3")],
        Type::Int(_) | Type::Uint(_) | Type::Size => vec![json!(1), json!(4096)],
        Type::Bool => vec![json!(true), json!(false)],
        Type::Number => vec![json!(1.5)],
        Type::Null => vec![Value::Null],
        Type::Any => vec![json!("3")],
        Type::Enum(words) => words.values.iter().map(|word| json!(word)).collect(),
        Type::Object(object) => least(object, depth)
            .into_iter()
            .map(Value::Object)
            .collect(),
        Type::Array(of) => samples(*of, depth)
            .into_iter()
            .map(|v| json!([v]))
            .collect(),
        Type::Alternate(alternate) => {
            let in_place = |ty: &&Type| depth < DEPTH_MAX || !is_a_node(**ty);
            let types = alternate.types.iter().filter(in_place);
            types.flat_map(|ty| samples(*ty, depth + 1)).collect()
        }
    }
}

fn is_a_node(ty: Type) -> bool {
    matches!(ty, Type::Object(object) if std::ptr::eq(object, &BLOCKDEV_OPTIONS))
}

/// A well-formed value of a member.
fn sample(member: &qapi::Member, depth: usize) -> Value {
    match member.name {
        "id" | "node-name" => json!("n"),
        _ => samples(member.ty, depth).remove(0),
    }
}

/// For each case of a union, its members as far as they are required.
fn least(object: &'static qapi::Object, depth: usize) -> Vec<Map<String, Value>> {
    let required = |object: &qapi::Object, into: &mut Map<String, Value>| {
        let members = object.members.iter().filter(|member| !member.optional);
        for member in members
            .filter(|member| !into.contains_key(member.name))
            .collect::<Vec<_>>()
        {
            into.insert(member.name.to_owned(), sample(member, depth));
        }
    };
    let mut all = Vec::new();
    for word in words(object) {
        let mut members = Map::new();
        if let (Some(word), Some(variants)) = (word, &object.variants) {
            members.insert(variants.tag.to_owned(), json!(word));
        }
        required(object, &mut members);
        if let Some(case) = word.and_then(|word| object.case(word)) {
            required(case, &mut members);
        }
        all.push(members);
    }
    all
}

/// The words of a union's deciding member; no word of an object that is none.
fn words(object: &qapi::Object) -> Vec<Option<&'static str>> {
    let Some(variants) = &object.variants else {
        return vec![None];
    };
    let tag = object
        .members
        .iter()
        .find(|member| member.name == variants.tag);
    let Some(Type::Enum(words)) = tag.map(|tag| tag.ty) else {
        panic!("{}: {} is no enumeration", object.name, variants.tag);
    };
    words.values.iter().map(|word| Some(*word)).collect()
}

/// The members that there can be beside those.
fn members_of(
    object: &'static qapi::Object,
    base: &Map<String, Value>,
) -> impl Iterator<Item = &'static qapi::Member> {
    let tag = object.variants.as_ref().map(|variants| variants.tag);
    let word = tag.and_then(|tag| base.get(tag)).and_then(Value::as_str);
    let case = word.and_then(|word| object.case(word));
    let own = object.members.iter();
    own.chain(case.map_or(&[][..], |case| case.members))
}

/// Every optional member of an object and of the objects in it.
fn variations(
    object: &'static qapi::Object,
    base: &Map<String, Value>,
    depth: usize,
) -> Vec<Variation> {
    let members = members_of(object, base);
    let mut all = Vec::new();
    for member in members {
        // An object that may be empty says nothing; what is in it does.
        let says_something = !matches!(member.ty, Type::Object(inner) if is_optional(inner));
        if says_something && member.optional && !base.contains_key(member.name) {
            let values = samples(member.ty, depth).into_iter();
            all.push(Variation {
                member: member.name.to_owned(),
                without: base.clone(),
                with: values.map(|value| plus(base, member.name, value)).collect(),
            });
        }
        for (inner, depth) in objects_in(member.ty, depth) {
            for value in least(inner, depth) {
                let inner = variations(inner, &value, depth);
                all.extend(lifted(base, member, inner));
            }
        }
    }
    all
}

fn is_optional(object: &qapi::Object) -> bool {
    object.members.iter().all(|member| member.optional)
}

fn objects_in(ty: Type, depth: usize) -> Vec<(&'static qapi::Object, usize)> {
    match ty {
        Type::Object(object) => vec![(object, depth)],
        Type::Array(of) => objects_in(*of, depth),
        Type::Alternate(alternate) if depth < DEPTH_MAX => {
            let objects = alternate.types.iter();
            objects.flat_map(|ty| objects_in(*ty, depth + 1)).collect()
        }
        _ => Vec::new(),
    }
}

/// Variations of an inner object, or of one in a list, as those of the outer one.
fn lifted(
    base: &Map<String, Value>,
    member: &qapi::Member,
    inner: Vec<Variation>,
) -> Vec<Variation> {
    let outer = |inner| match member.ty {
        Type::Array(_) => plus(base, member.name, json!([Value::Object(inner)])),
        _ => plus(base, member.name, Value::Object(inner)),
    };
    let lift = |variation: Variation| Variation {
        member: format!("{}.{}", member.name, variation.member),
        without: outer(variation.without),
        with: variation.with.into_iter().map(outer).collect(),
    };
    inner.into_iter().map(lift).collect()
}

/// The same in keyval's spelling; `None` where there is none.
fn spelled(value: &Value, spelling: Spelling) -> Option<Value> {
    let text = |text: &str| Some(Value::String(text.to_owned()));
    match (value, spelling) {
        (value, Spelling::Json) => Some(value.clone()),
        (Value::Null, _) => None,
        (Value::Bool(true), _) => text("on"),
        (Value::Bool(false), _) => text("off"),
        (Value::Number(number), _) => text(&number.to_string()),
        (Value::String(_), _) => Some(value.clone()),
        (Value::Array(items), _) => {
            let items: Option<Vec<_>> = items.iter().map(|item| spelled(item, spelling)).collect();
            items.map(Value::Array)
        }
        (Value::Object(members), _) => spelled_members(members, spelling).map(Value::Object),
    }
}

fn spelled_members(members: &Map<String, Value>, spelling: Spelling) -> Option<Map<String, Value>> {
    let members = members.iter();
    members
        .map(|(name, value)| Some((name.clone(), spelled(value, spelling)?)))
        .collect()
}

impl Argument {
    fn bases(&self) -> Vec<Map<String, Value>> {
        let mut bases = least(self.table, 0);
        for base in &mut bases {
            for (name, value) in self.always {
                if members_of(self.table, base).any(|member| member.name == *name) {
                    base.insert((*name).to_owned(), json!(value));
                }
            }
        }
        bases
    }

    /// Errors of the form are errors of the test.
    fn outcome(&self, members: &Map<String, Value>, spelling: Spelling) -> Option<Outcome> {
        let members = spelled_members(members, spelling)?;
        let (name, shown) = (self.name, Value::Object(members.clone()));
        let object = Object::checked(members, self.table, spelling);
        let object =
            object.unwrap_or_else(|refusal| panic!("{name} {shown}, by its table: {refusal}"));
        let outcome = (self.read)(object);
        if let Err(refusal) = &outcome {
            assert!(
                !is_about_form(refusal),
                "{name} {shown}, by its reader: {refusal}"
            );
        }
        Some(outcome)
    }
}

fn is_about_form(refusal: &str) -> bool {
    let forms = [
        "is unexpected",
        "are unexpected",
        "is missing",
        "does not accept value",
        "expects",
        "expected",
    ];
    forms.iter().any(|form| refusal.contains(form))
}

#[test]
fn every_member_of_a_table_is_taken_and_makes_a_difference() {
    let mut counted = 0;
    for argument in ARGUMENTS {
        for (spelling, base) in spellings(argument.bases()) {
            for Variation {
                member,
                without,
                with,
            } in variations(argument.table, &base, 0)
            {
                let Some(plain) = argument.outcome(&without, spelling) else {
                    continue;
                };
                let outcomes: Vec<Outcome> = with
                    .iter()
                    .filter_map(|with| argument.outcome(with, spelling))
                    .collect();
                let differs = outcomes.iter().any(|outcome| *outcome != plain);
                let alike = plain.as_ref().is_err_and(|why| why == REFUSED_ALIKE);
                assert!(
                    differs || alike || outcomes.is_empty(),
                    "{} {}: '{member}' is taken and ignored",
                    argument.name,
                    Value::Object(without)
                );
                counted += 1;
            }
        }
    }
    assert!(counted > 1000, "only {counted} members were looked at");
}

#[test]
fn all_members_of_a_table_are_taken_together() {
    for argument in ARGUMENTS {
        for (spelling, base) in spellings(argument.bases()) {
            let mut all = base.clone();
            for variation in variations(argument.table, &base, DEPTH_MAX) {
                if let (false, Some(first)) = (
                    variation.member.contains('.'),
                    variation.with.into_iter().next(),
                ) {
                    all.extend(first);
                }
            }
            assert!(argument.outcome(&all, spelling).is_some(), "spelled");
        }
    }
}

#[test]
fn a_member_that_is_in_no_table_is_refused_wherever_it_is() {
    for argument in ARGUMENTS {
        for (spelling, base) in spellings(argument.bases()) {
            let base = spelled_members(&base, spelling).expect("spelled");
            let mut wrong = vec![("x-nosuch".to_owned(), plus(&base, "x-nosuch", json!("3")))];
            for (name, value) in &base {
                if let Value::Object(inner) = value {
                    let inner = plus(inner, "x-nosuch", json!("3"));
                    wrong.push((format!("{name}.x-nosuch"), plus(&base, name, inner.into())));
                }
            }
            for (path, members) in wrong {
                let refusal =
                    Object::checked(members, argument.table, spelling).expect_err("refused");
                assert_eq!(
                    refusal.to_string(),
                    format!("Parameter '{path}' is unexpected")
                );
            }
        }
    }
}

fn spellings(
    bases: Vec<Map<String, Value>>,
) -> impl Iterator<Item = (Spelling, Map<String, Value>)> {
    let both =
        |base: Map<String, Value>| [(Spelling::Keyval, base.clone()), (Spelling::Json, base)];
    bases.into_iter().flat_map(both)
}
