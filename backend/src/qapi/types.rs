//! What a type can be: QAPI's kinds, no more (QEMU's docs/devel/qapi-code-gen.rst).

/// A type of a member, an argument or an answer.
#[derive(Clone, Copy, Debug)]
pub enum Type {
    /// A string.
    Str,
    /// A signed integer of that many bits.
    Int(u8),
    /// An unsigned integer of that many bits.
    Uint(u8),
    /// Bytes: an unsigned integer that may have a suffix where it is written as text.
    Size,
    /// true or false.
    Bool,
    /// A number that may have a fraction.
    Number,
    /// null
    Null,
    /// Anything.
    Any,
    /// One of a closed set of words.
    Enum(&'static Enum),
    /// Members by name.
    Object(&'static Object),
    /// One of several types, told apart by their JSON types.
    Alternate(&'static Alternate),
    /// A list.
    Array(&'static Type),
}

/// A string.
pub const STR: Type = Type::Str;
/// QAPI's `int`.
pub const INT: Type = Type::Int(64);
/// As its name says.
pub const INT16: Type = Type::Int(16);
/// As its name says.
pub const INT32: Type = Type::Int(32);
/// As its name says.
pub const INT64: Type = Type::Int(64);
/// As its name says.
pub const UINT8: Type = Type::Uint(8);
/// As its name says.
pub const UINT16: Type = Type::Uint(16);
/// As its name says.
pub const UINT32: Type = Type::Uint(32);
/// As its name says.
pub const UINT64: Type = Type::Uint(64);
/// Bytes.
pub const SIZE: Type = Type::Size;
/// true or false.
pub const BOOL: Type = Type::Bool;
/// A number that may have a fraction.
pub const NUMBER: Type = Type::Number;
/// null
pub const NULL: Type = Type::Null;
/// Anything.
pub const ANY: Type = Type::Any;

/// A closed set of words.
#[derive(Debug)]
pub struct Enum {
    /// QAPI's name; shown nowhere but in the messages about alternates.
    pub name: &'static str,
    /// The words, in order.
    pub values: &'static [&'static str],
    /// Those of them that will go.
    pub deprecated: &'static [&'static str],
}

impl Enum {
    /// The same, of which these words will go.
    pub const fn deprecating(self, deprecated: &'static [&'static str]) -> Enum {
        Enum { deprecated, ..self }
    }
}

/// Members by name; a union if one of them says which further members there are.
#[derive(Debug)]
pub struct Object {
    /// QAPI's name.
    pub name: &'static str,
    /// Those it always has, a base's first.
    pub members: &'static [Member],
    /// The member that decides, and what it decides.
    pub variants: Option<Variants>,
}

/// What a union's deciding member decides.
#[derive(Debug)]
pub struct Variants {
    /// The deciding member, an enumeration among the object's members.
    pub tag: &'static str,
    /// What each of its words brings; words that are not here bring nothing.
    pub cases: &'static [Case],
}

/// What a word of a deciding member brings.
#[derive(Debug)]
pub struct Case {
    /// The word.
    pub word: &'static str,
    /// Further members.
    pub object: &'static Object,
}

/// A member of an object.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub ty: Type,
    /// May it be left out?
    pub optional: bool,
    /// `deprecated`, `unstable`
    pub features: &'static [&'static str],
}

impl Member {
    /// The same, which may change or go from one version to the next.
    pub const fn unstable(self) -> Member {
        Member {
            features: &["unstable"],
            ..self
        }
    }

    /// The same, which will go.
    pub const fn deprecated(self) -> Member {
        Member {
            features: &["deprecated"],
            ..self
        }
    }
}

/// One of several types, of which no two look alike in JSON.
#[derive(Debug)]
pub struct Alternate {
    /// QAPI's name, for messages.
    pub name: &'static str,
    /// The types.
    pub types: &'static [Type],
}

/// A member that has to be there.
pub const fn req(name: &'static str, ty: Type) -> Member {
    Member {
        name,
        ty,
        optional: false,
        features: &[],
    }
}

/// A member that may be left out.
pub const fn opt(name: &'static str, ty: Type) -> Member {
    Member {
        name,
        ty,
        optional: true,
        features: &[],
    }
}

/// An object that is no union.
pub const fn object(name: &'static str, members: &'static [Member]) -> Object {
    Object {
        name,
        members,
        variants: None,
    }
}

/// A union.
pub const fn union(
    name: &'static str,
    members: &'static [Member],
    tag: &'static str,
    cases: &'static [Case],
) -> Object {
    Object {
        name,
        members,
        variants: Some(Variants { tag, cases }),
    }
}

/// A closed set of words.
pub const fn enumeration(name: &'static str, values: &'static [&'static str]) -> Enum {
    Enum {
        name,
        values,
        deprecated: &[],
    }
}

/// One of several types.
pub const fn alternate(name: &'static str, types: &'static [Type]) -> Alternate {
    Alternate { name, types }
}

impl Type {
    /// What an object's property of that type is said to be of.
    pub fn qom_name(self) -> &'static str {
        match self {
            Type::Int(_) | Type::Uint(_) | Type::Size => "int",
            Type::Bool => "bool",
            Type::Enum(words) => words.name,
            Type::Object(object) => object.name,
            _ => "string",
        }
    }
}

impl Object {
    /// What a word of the deciding member brings, if anything.
    pub fn case(&self, word: &str) -> Option<&'static Object> {
        let cases = self.variants.as_ref()?.cases;
        let case = cases.iter().find(|case| case.word == word);
        case.map(|case| case.object)
    }
}
