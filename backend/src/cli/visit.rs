//! Reads an object member by member, as QEMU's input visitor does: take what is known, then refuse what is left.
//!
//! An object has been held against its table (`qapi`) before anybody reads it, so what is refused here is refused where table and reader
//! disagree, which a test rules out.
//!
//! Two spellings of the same values. In keyval form every leaf is a string and is parsed by the type asked for; in JSON form a leaf has a type and
//! must have the right one. The messages differ between the two, as they do in QEMU.

use serde_json::{Map, Value};

use super::error::Refusal;
use super::options::Given;
use super::scalar;
use crate::qapi;

/// How leaves are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// Strings.
    Keyval,
    /// JSON's types.
    Json,
}

/// An object being taken apart.
#[derive(Debug)]
pub struct Object {
    spelling: Spelling,
    /// What stands before a member's name in messages: empty, or a path with its dot.
    prefix: String,
    members: Map<String, Value>,
}

/// A member that is either a name or an object in place.
#[derive(Debug)]
pub(crate) enum NameOrObject {
    Name(String),
    Object(Object),
}

/// A member that is either a word of a closed set or an object in place.
#[derive(Debug)]
pub(crate) enum WordOrObject<T> {
    Word(T),
    Object(Object),
}

impl Object {
    /// The outermost object of an argument or a command, held against its type.
    ///
    /// # Errors
    /// What is wrong with it, in QEMU's words.
    pub fn checked(
        members: Map<String, Value>,
        table: &qapi::Object,
        spelling: Spelling,
    ) -> Result<Self, Refusal> {
        qapi::check_members(&members, table, spelling)?;
        Ok(Self::root(members, spelling))
    }

    /// The same of an option that has no table.
    pub(super) fn root(members: Map<String, Value>, spelling: Spelling) -> Self {
        Self {
            spelling,
            prefix: String::new(),
            members,
        }
    }

    /// What is in it now.
    pub(super) fn given(&self) -> Given {
        Given {
            spelling: self.spelling,
            members: self.members.clone(),
        }
    }

    /// All that is left, as an object of its own.
    pub(crate) fn split(&mut self) -> Object {
        Object {
            spelling: self.spelling,
            prefix: self.prefix.clone(),
            members: std::mem::take(&mut self.members),
        }
    }

    /// Every member must have been taken.
    ///
    /// # Errors
    /// Names one that was not.
    pub(crate) fn finish(self) -> Result<(), Refusal> {
        match self.members.keys().next() {
            None => Ok(()),
            Some(left) => Err(Refusal::unexpected(self.full_name(left))),
        }
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.not_a_scalar(name, "string")),
        }
    }

    /// Whatever it is.
    pub(crate) fn required_any(&mut self, name: &str) -> Result<Value, Refusal> {
        let value = self.take(name);
        value.ok_or_else(|| Refusal::missing(self.full_name(name)))
    }

    pub(crate) fn required_string(&mut self, name: &str) -> Result<String, Refusal> {
        self.string(name)?
            .ok_or_else(|| Refusal::missing(self.full_name(name)))
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        match (self.take(name), self.spelling) {
            (None, _) => Ok(None),
            (Some(Value::Bool(value)), Spelling::Json) => Ok(Some(value)),
            (Some(Value::String(text)), Spelling::Keyval) => match scalar::boolean(&text) {
                Some(value) => Ok(Some(value)),
                None => Err(Refusal::expects(self.full_name(name), "'on' or 'off'")),
            },
            _ => Err(self.not_a_scalar(name, "boolean")),
        }
    }

    pub(crate) fn int64(&mut self, name: &str) -> Result<Option<i64>, Refusal> {
        match (self.take(name), self.spelling) {
            (None, _) => Ok(None),
            (Some(Value::String(text)), Spelling::Keyval) => scalar::int64(&text)
                .map(Some)
                .ok_or_else(|| Refusal::expects(self.full_name(name), "integer")),
            (Some(Value::Number(number)), Spelling::Json) => match number.as_i64() {
                Some(value) => Ok(Some(value)),
                None => Err(self.not_a_scalar(name, "integer")),
            },
            _ => Err(self.not_a_scalar(name, "integer")),
        }
    }

    pub(crate) fn uint64(&mut self, name: &str) -> Result<Option<u64>, Refusal> {
        self.unsigned(name, scalar::uint64, "integer")
    }

    /// A list of numbers.
    pub(crate) fn uint64s(&mut self, name: &str) -> Result<Option<Vec<u64>>, Refusal> {
        let Some(items) = self.list(name)? else {
            return Ok(None);
        };
        let number = |(at, item): (usize, &Value)| {
            let element = || self.element(name, at);
            item.as_u64()
                .ok_or_else(|| Refusal::wrong_type(element(), "uint64"))
        };
        items
            .iter()
            .enumerate()
            .map(number)
            .collect::<Result<_, _>>()
            .map(Some)
    }

    pub(crate) fn uint32(&mut self, name: &str) -> Result<Option<u32>, Refusal> {
        let value = self.uint64(name)?;
        value
            .map(u32::try_from)
            .transpose()
            .map_err(|_| Refusal::expects(name, "uint32_t"))
    }

    pub(crate) fn uint16(&mut self, name: &str) -> Result<Option<u16>, Refusal> {
        let value = self.uint64(name)?;
        value
            .map(u16::try_from)
            .transpose()
            .map_err(|_| Refusal::expects(name, "uint16_t"))
    }

    pub(crate) fn int32(&mut self, name: &str) -> Result<Option<i32>, Refusal> {
        let value = self.int64(name)?;
        value
            .map(i32::try_from)
            .transpose()
            .map_err(|_| Refusal::expects(name, "int32_t"))
    }

    /// Bytes, with suffixes in keyval form.
    pub(crate) fn size(&mut self, name: &str) -> Result<Option<u64>, Refusal> {
        self.unsigned(name, scalar::size, "size")
    }

    fn unsigned(
        &mut self,
        name: &str,
        read: fn(&str) -> Option<u64>,
        what: &str,
    ) -> Result<Option<u64>, Refusal> {
        match (self.take(name), self.spelling) {
            (None, _) => Ok(None),
            (Some(Value::String(text)), Spelling::Keyval) => read(&text)
                .map(Some)
                .ok_or_else(|| Refusal::expects(self.full_name(name), what)),
            (Some(_), Spelling::Keyval) => Err(self.not_a_scalar(name, what)),
            (Some(value), Spelling::Json) => value
                .as_u64()
                // QEMU lets a negative integer wrap here too; range checks follow.
                .or_else(|| value.as_i64().map(|value| value as u64))
                .map(Some)
                .ok_or_else(|| Refusal::expects(self.full_name(name), "uint64")),
        }
    }

    /// One of a closed set of words.
    pub(crate) fn word<T: Copy>(
        &mut self,
        name: &str,
        words: &[(&str, T)],
    ) -> Result<Option<T>, Refusal> {
        let Some(text) = self.string(name)? else {
            return Ok(None);
        };
        word_of(name, &text, words).map(Some)
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Object>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(members)) => Ok(Some(self.below(name, members))),
            Some(_) => Err(Refusal::wrong_type(self.full_name(name), "object")),
        }
    }

    pub(crate) fn required_object(&mut self, name: &str) -> Result<Object, Refusal> {
        self.object(name)?
            .ok_or_else(|| Refusal::missing(self.full_name(name)))
    }

    /// QAPI's alternate of a string and an object; `type_name` is for the message.
    pub(crate) fn name_or_object(
        &mut self,
        name: &str,
        type_name: &str,
    ) -> Result<NameOrObject, Refusal> {
        self.name_or_object_if_any(name, type_name)?
            .ok_or_else(|| Refusal::missing(self.full_name(name)))
    }

    /// The same where it may be left out.
    pub(crate) fn name_or_object_if_any(
        &mut self,
        name: &str,
        type_name: &str,
    ) -> Result<Option<NameOrObject>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(NameOrObject::Name(text))),
            Some(Value::Object(members)) => {
                Ok(Some(NameOrObject::Object(self.below(name, members))))
            }
            Some(_) => Err(Refusal::wrong_type(name, type_name)),
        }
    }

    /// A list of QAPI's alternates of a string and an object.
    pub(crate) fn names_or_objects(
        &mut self,
        name: &str,
        type_name: &str,
    ) -> Result<Option<Vec<NameOrObject>>, Refusal> {
        let Some(items) = self.list(name)? else {
            return Ok(None);
        };
        let items = items.into_iter().enumerate().map(|(at, item)| match item {
            Value::String(text) => Ok(NameOrObject::Name(text)),
            Value::Object(members) => {
                let name = self.element(name, at);
                Ok(NameOrObject::Object(self.below(&name, members)))
            }
            // QEMU has no name for an element, and says so.
            _ => Err(Refusal::wrong_type("null", type_name)),
        });
        items.collect::<Result<_, _>>().map(Some)
    }

    /// QAPI's alternate of an enumeration and an object.
    pub(crate) fn word_or_object<T: Copy>(
        &mut self,
        name: &str,
        words: &[(&str, T)],
        type_name: &str,
    ) -> Result<Option<WordOrObject<T>>, Refusal> {
        match self.name_or_object_if_any(name, type_name)? {
            None => Ok(None),
            Some(NameOrObject::Object(object)) => Ok(Some(WordOrObject::Object(object))),
            Some(NameOrObject::Name(text)) => {
                word_of(name, &text, words).map(|word| Some(WordOrObject::Word(word)))
            }
        }
    }

    /// Takes `null`, and says whether it was there; anything else is left.
    pub(crate) fn null(&mut self, name: &str) -> bool {
        let is_null = self.members.get(name).is_some_and(Value::is_null);
        is_null && self.take(name).is_some()
    }

    /// A list of objects, each read by `read` and then finished.
    pub(crate) fn each<T>(
        &mut self,
        name: &str,
        mut read: impl FnMut(&mut Object) -> Result<T, Refusal>,
    ) -> Result<Option<Vec<T>>, Refusal> {
        let Some(items) = self.list(name)? else {
            return Ok(None);
        };
        let items = items.into_iter().enumerate().map(|(at, item)| {
            let name = self.element(name, at);
            let Value::Object(members) = item else {
                return Err(Refusal::wrong_type(self.full_name(&name), "object"));
            };
            let mut object = self.below(&name, members);
            let read = read(&mut object)?;
            object.finish().map(|()| read)
        });
        items.collect::<Result<_, _>>().map(Some)
    }

    /// A list of words of a closed set.
    pub(crate) fn words<T: Copy>(
        &mut self,
        name: &str,
        words: &[(&str, T)],
    ) -> Result<Option<Vec<T>>, Refusal> {
        let Some(items) = self.list(name)? else {
            return Ok(None);
        };
        let items = items.into_iter().enumerate().map(|(at, item)| match item {
            // QEMU has no name for an element, and says so.
            Value::String(text) => word_of("null", &text, words),
            _ => Err(self.not_a_scalar(&self.element(name, at), "string")),
        });
        items.collect::<Result<_, _>>().map(Some)
    }

    fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(_) => Err(Refusal::wrong_type(self.full_name(name), "array")),
        }
    }

    fn element(&self, name: &str, at: usize) -> String {
        match self.spelling {
            Spelling::Keyval => format!("{name}.{at}"),
            Spelling::Json => format!("{name}[{at}]"),
        }
    }

    /// The member's name with the path before it, as it appears in messages.
    pub(crate) fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Keeps the order of what is left, so that `finish` names the first.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.members.shift_remove(name)
    }

    fn below(&self, name: &str, members: Map<String, Value>) -> Object {
        Object {
            spelling: self.spelling,
            prefix: format!("{}{name}.", self.prefix),
            members,
        }
    }

    fn not_a_scalar(&self, name: &str, expected: &str) -> Refusal {
        let name = self.full_name(name);
        match self.spelling {
            Spelling::Keyval => Refusal::new(format!("Parameters '{name}.*' are unexpected")),
            Spelling::Json => Refusal::wrong_type(name, expected),
        }
    }
}

fn word_of<T: Copy>(name: &str, text: &str, words: &[(&str, T)]) -> Result<T, Refusal> {
    let known = words.iter().find(|(word, _)| *word == text);
    // QEMU names an enumeration's member without its path.
    known
        .map(|(_, value)| *value)
        .ok_or_else(|| Refusal::wrong_value(name, text))
}
