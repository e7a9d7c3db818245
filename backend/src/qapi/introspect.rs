//! `query-qmp-schema`: the tables as QEMU's introspection shows them (qapi/introspect.json, `SchemaInfo`).
//!
//! The rule: everything is reached from the commands and events that there are, so what is listed is what dispatches. As in
//! QEMU, names of types are hidden behind numbers, except those of builtin types and arrays of them.

use super::types::{Alternate, Enum, Object, Type};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::ptr;

/// A command or an event to be shown.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// What it takes, or what comes with it.
    pub args: &'static Object,
    /// What it answers; `None` for an event.
    pub returns: Option<Type>,
    /// May it be executed out of band?
    pub oob: bool,
    /// `deprecated`, `unstable`
    pub features: &'static [&'static str],
}

/// The whole schema: commands and events first, then the types they need.
pub fn schema(entries: impl Iterator<Item = Entry>) -> Value {
    let mut listing = Listing::default();
    let shown: Vec<Value> = entries.map(|entry| listing.entry(entry)).collect();
    while let Some(pending) = listing.pending.pop() {
        let info = listing.describe(pending);
        listing.types.push(info);
    }
    let mut all = shown;
    all.append(&mut listing.types);
    Value::Array(all)
}

/// Which type, by where its table is; builtin types by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Table(usize),
    Named(String),
}

#[derive(Default)]
struct Listing {
    names: HashMap<Key, String>,
    numbers: usize,
    pending: Vec<(String, Type)>,
    types: Vec<Value>,
}

impl Listing {
    fn entry(&mut self, entry: Entry) -> Value {
        let mut info = Map::new();
        info.insert("name".into(), entry.name.into());
        if let Some(returns) = entry.returns {
            info.insert("ret-type".into(), self.name(returns).into());
        }
        let kind = match entry.returns {
            Some(_) => "command",
            None => "event",
        };
        info.insert("meta-type".into(), kind.into());
        info.insert(
            "arg-type".into(),
            self.name(Type::Object(entry.args)).into(),
        );
        if entry.oob {
            info.insert("allow-oob".into(), true.into());
        }
        if !entry.features.is_empty() {
            info.insert("features".into(), json!(entry.features));
        }
        Value::Object(info)
    }

    /// The name of a type, which is described later if it has not been yet.
    fn name(&mut self, ty: Type) -> String {
        let (key, name) = match ty {
            Type::Array(of) => {
                let name = format!("[{}]", self.name(*of));
                (Key::Named(name.clone()), Some(name))
            }
            Type::Enum(e) => (Key::Table(ptr::from_ref::<Enum>(e).addr()), None),
            Type::Object(o) => (Key::Table(ptr::from_ref::<Object>(o).addr()), None),
            Type::Alternate(a) => (Key::Table(ptr::from_ref::<Alternate>(a).addr()), None),
            builtin => {
                let name = builtin_name(builtin).to_owned();
                (Key::Named(name.clone()), Some(name))
            }
        };
        if let Some(name) = self.names.get(&key) {
            return name.clone();
        }
        let name = name.unwrap_or_else(|| {
            self.numbers += 1;
            (self.numbers - 1).to_string()
        });
        self.names.insert(key, name.clone());
        self.pending.push((name.clone(), ty));
        name
    }

    fn describe(&mut self, (name, ty): (String, Type)) -> Value {
        match ty {
            Type::Array(of) => {
                json!({"name": name, "element-type": self.name(*of), "meta-type": "array"})
            }
            Type::Enum(e) => {
                let member = |word: &&str| match e.deprecated.contains(word) {
                    true => json!({"name": word, "features": ["deprecated"]}),
                    false => json!({"name": word}),
                };
                let members: Vec<Value> = e.values.iter().map(member).collect();
                json!({"name": name, "members": members, "meta-type": "enum", "values": e.values})
            }
            Type::Object(object) => self.object(name, object),
            Type::Alternate(alternate) => {
                let types = alternate.types.iter();
                let members: Vec<Value> = types.map(|ty| json!({"type": self.name(*ty)})).collect();
                json!({"name": name, "members": members, "meta-type": "alternate"})
            }
            builtin => {
                json!({"name": name, "json-type": json_type(builtin), "meta-type": "builtin"})
            }
        }
    }

    fn object(&mut self, name: String, object: &'static Object) -> Value {
        let mut info = Map::new();
        info.insert("name".into(), name.into());
        let mut members = Vec::with_capacity(object.members.len());
        for member in object.members {
            let mut shown = Map::new();
            shown.insert("name".into(), member.name.into());
            if member.optional {
                shown.insert("default".into(), Value::Null);
            }
            shown.insert("type".into(), self.name(member.ty).into());
            if !member.features.is_empty() {
                shown.insert("features".into(), json!(member.features));
            }
            members.push(Value::Object(shown));
        }
        info.insert("members".into(), members.into());
        info.insert("meta-type".into(), "object".into());
        if let Some(variants) = &object.variants {
            info.insert("tag".into(), variants.tag.into());
            info.insert("variants".into(), self.cases(object, variants.tag));
        }
        Value::Object(info)
    }

    /// Every word of the deciding member has a case; those that bring nothing, the empty object.
    fn cases(&mut self, object: &'static Object, tag: &str) -> Value {
        let member = object.members.iter().find(|member| member.name == tag);
        let words: &[&str] = match member.map(|member| member.ty) {
            Some(Type::Enum(words)) => words.values,
            _ => &[],
        };
        let cases = words.iter().map(|word| {
            let brought = object.case(word).unwrap_or(&super::tables::EMPTY);
            json!({"case": word, "type": self.name(Type::Object(brought))})
        });
        Value::Array(cases.collect())
    }
}

fn builtin_name(ty: Type) -> &'static str {
    match ty {
        Type::Str => "str",
        Type::Int(_) | Type::Uint(_) | Type::Size => "int",
        Type::Bool => "bool",
        Type::Number => "number",
        Type::Null => "null",
        _ => "any",
    }
}

fn json_type(ty: Type) -> &'static str {
    match ty {
        Type::Str => "string",
        Type::Int(_) | Type::Uint(_) | Type::Size => "int",
        Type::Bool => "boolean",
        Type::Number => "number",
        Type::Null => "null",
        _ => "value",
    }
}
