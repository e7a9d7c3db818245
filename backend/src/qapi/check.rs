//! Holds a value against its type, member by member in the order of the schema, as QEMU's input visitor does: take what is
//! known, then refuse what is left.
//!
//! The rule: the first thing that is wrong is what is reported, in QEMU's words; they differ between the two spellings.

use serde_json::{Map, Value};

use super::path::{Brackets, Path};
use super::types::{Alternate, Enum, Object, Type};
use crate::cli::{Refusal, Spelling, scalar};

/// Holds the outermost object of an argument against its type.
///
/// # Errors
/// What is wrong with it, in QEMU's words.
pub fn check_members(
    members: &Map<String, Value>,
    object: &Object,
    spelling: Spelling,
) -> Result<(), Refusal> {
    let checker = Checker { spelling };
    checker.object(members, object, &Path::Root)
}

/// Holds a single member, in JSON's spelling, against a type.
///
/// # Errors
/// What is wrong with it, in QEMU's words.
pub fn check_member(name: &str, value: &Value, ty: Type) -> Result<(), Refusal> {
    let checker = Checker {
        spelling: Spelling::Json,
    };
    checker.value(value, ty, &Path::Member(&Path::Root, name))
}

/// Holds a value, in JSON's spelling, against a type: an answer, or what comes with an event.
///
/// # Errors
/// What is wrong with it.
pub fn check(value: &Value, ty: Type) -> Result<(), Refusal> {
    let checker = Checker {
        spelling: Spelling::Json,
    };
    checker.value(value, ty, &Path::Root)
}

struct Checker {
    spelling: Spelling,
}

/// Depth is bounded by the parser of what is checked, hence the recursion.
impl Checker {
    fn value(&self, value: &Value, ty: Type, path: &Path<'_>) -> Result<(), Refusal> {
        match ty {
            Type::Any => Ok(()),
            Type::Str => self.string(value, path).map(drop),
            Type::Enum(words) => self.word(value, words, path),
            Type::Bool => self.boolean(value, path),
            Type::Int(bits) => self.signed(value, bits, path),
            Type::Uint(bits) => self.unsigned(value, bits, path),
            Type::Size => self.size(value, path),
            Type::Number => self.number(value, path),
            Type::Null => match value {
                Value::Null => Ok(()),
                _ => Err(Refusal::wrong_type(path, "null")),
            },
            Type::Object(object) => match value {
                Value::Object(members) => self.object(members, object, path),
                _ => Err(Refusal::wrong_type(path, "object")),
            },
            Type::Alternate(alternate) => self.alternate(value, alternate, path),
            Type::Array(of) => self.array(value, *of, path),
        }
    }

    fn object(
        &self,
        members: &Map<String, Value>,
        object: &Object,
        path: &Path<'_>,
    ) -> Result<(), Refusal> {
        let mut known = Vec::with_capacity(members.len());
        self.members(members, object, path, &mut known)?;
        match members.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some(left) => Err(Refusal::unexpected(Path::Member(path, left))),
        }
    }

    fn members(
        &self,
        members: &Map<String, Value>,
        object: &Object,
        path: &Path<'_>,
        known: &mut Vec<&'static str>,
    ) -> Result<(), Refusal> {
        for member in object.members {
            let here = Path::Member(path, member.name);
            match members.get(member.name) {
                Some(value) => self.value(value, member.ty, &here)?,
                None if member.optional => {}
                None => return Err(Refusal::missing(here)),
            }
            known.push(member.name);
        }
        let tag = object.variants.as_ref().map(|variants| variants.tag);
        let word = tag.and_then(|tag| members.get(tag)).and_then(Value::as_str);
        match word.and_then(|word| object.case(word)) {
            None => Ok(()),
            Some(case) => self.members(members, case, path, known),
        }
    }

    fn array(&self, value: &Value, of: Type, path: &Path<'_>) -> Result<(), Refusal> {
        let Value::Array(items) = value else {
            return Err(Refusal::wrong_type(path, "array"));
        };
        let brackets = match self.spelling {
            Spelling::Json => Brackets::Square,
            Spelling::Keyval => Brackets::Dot,
        };
        let mut items = items.iter().enumerate();
        items.try_for_each(|(at, item)| self.value(item, of, &Path::Element(path, at, brackets)))
    }

    fn alternate(
        &self,
        value: &Value,
        alternate: &Alternate,
        path: &Path<'_>,
    ) -> Result<(), Refusal> {
        let fits = |ty: &&Type| {
            matches!(
                (value, ty),
                (Value::String(_), Type::Str | Type::Enum(_))
                    | (Value::Object(_), Type::Object(_))
                    | (Value::Null, Type::Null)
                    | (Value::Array(_), Type::Array(_))
                    | (Value::Bool(_), Type::Bool)
                    | (Value::Number(_), Type::Int(_) | Type::Uint(_) | Type::Size)
            )
        };
        match alternate.types.iter().find(fits) {
            Some(ty) => self.value(value, *ty, path),
            None => Err(Refusal::wrong_type(path.last(), alternate.name)),
        }
    }

    fn string<'v>(&self, value: &'v Value, path: &Path<'_>) -> Result<&'v str, Refusal> {
        value
            .as_str()
            .ok_or_else(|| self.not_a_scalar(path, "string"))
    }

    fn word(&self, value: &Value, words: &Enum, path: &Path<'_>) -> Result<(), Refusal> {
        let text = self.string(value, path)?;
        // QEMU names an enumeration's member without its path.
        match words.values.contains(&text) {
            true => Ok(()),
            false => Err(Refusal::wrong_value(path.last(), text)),
        }
    }

    fn boolean(&self, value: &Value, path: &Path<'_>) -> Result<(), Refusal> {
        match (value, self.spelling) {
            (Value::Bool(_), Spelling::Json) => Ok(()),
            (Value::String(text), Spelling::Keyval) => match scalar::boolean(text) {
                Some(_) => Ok(()),
                None => Err(Refusal::expects(path, "'on' or 'off'")),
            },
            _ => Err(self.not_a_scalar(path, "boolean")),
        }
    }

    fn signed(&self, value: &Value, bits: u8, path: &Path<'_>) -> Result<(), Refusal> {
        let value = match (value, self.spelling) {
            (Value::String(text), Spelling::Keyval) => {
                scalar::int64(text).ok_or_else(|| Refusal::expects(path, "integer"))?
            }
            (Value::Number(number), Spelling::Json) => number
                .as_i64()
                .ok_or_else(|| self.not_a_scalar(path, "integer"))?,
            _ => return Err(self.not_a_scalar(path, "integer")),
        };
        let max = i64::MAX >> (64 - bits.clamp(1, 64));
        match (-max - 1..=max).contains(&value) {
            true => Ok(()),
            false => Err(Refusal::expects(path.last(), &format!("int{bits}_t"))),
        }
    }

    fn unsigned(&self, value: &Value, bits: u8, path: &Path<'_>) -> Result<(), Refusal> {
        let value = self.uint64(value, path, scalar::uint64, "integer")?;
        let max = u64::MAX >> (64 - bits.clamp(1, 64));
        match value <= max {
            true => Ok(()),
            false => Err(Refusal::expects(path.last(), &format!("uint{bits}_t"))),
        }
    }

    fn size(&self, value: &Value, path: &Path<'_>) -> Result<(), Refusal> {
        self.uint64(value, path, scalar::size, "size").map(drop)
    }

    fn uint64(
        &self,
        value: &Value,
        path: &Path<'_>,
        read: fn(&str) -> Option<u64>,
        what: &str,
    ) -> Result<u64, Refusal> {
        match (value, self.spelling) {
            (Value::String(text), Spelling::Keyval) => {
                read(text).ok_or_else(|| Refusal::expects(path, what))
            }
            (_, Spelling::Keyval) => Err(self.not_a_scalar(path, what)),
            // QEMU lets a negative integer wrap here; range checks follow.
            (value, Spelling::Json) => (value.as_u64())
                .or_else(|| value.as_i64().map(|value| value as u64))
                .ok_or_else(|| Refusal::expects(path, "uint64")),
        }
    }

    fn number(&self, value: &Value, path: &Path<'_>) -> Result<(), Refusal> {
        match (value, self.spelling) {
            (Value::Number(_), Spelling::Json) => Ok(()),
            (Value::String(text), Spelling::Keyval) if text.parse::<f64>().is_ok() => Ok(()),
            _ => Err(self.not_a_scalar(path, "number")),
        }
    }

    fn not_a_scalar(&self, path: &Path<'_>, expected: &str) -> Refusal {
        match self.spelling {
            Spelling::Keyval => Refusal::new(format!("Parameters '{path}.*' are unexpected")),
            Spelling::Json => Refusal::wrong_type(path, expected),
        }
    }
}
