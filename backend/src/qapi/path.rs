//! Where in an argument something is, put into words only when something is wrong there.

use std::fmt;

/// A member, and what it is in; the outermost object has no name.
#[derive(Clone, Copy, Debug)]
pub(super) enum Path<'a> {
    Root,
    Member(&'a Path<'a>, &'a str),
    /// Written `[n]`, or `.n` in keyval form.
    Element(&'a Path<'a>, usize, Brackets),
}

/// How elements are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Brackets {
    Square,
    Dot,
}

impl<'a> Path<'a> {
    /// The last name alone: what QEMU has in messages about an enumeration or an alternate. An element has none.
    pub(super) fn last(&self) -> &'a str {
        match self {
            Path::Member(_, name) => name,
            Path::Root | Path::Element(..) => "null",
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => f.write_str("null"),
            Path::Member(Path::Root, name) => f.write_str(name),
            Path::Member(above, name) => write!(f, "{above}.{name}"),
            Path::Element(above, at, Brackets::Square) => write!(f, "{above}[{at}]"),
            Path::Element(above, at, Brackets::Dot) => write!(f, "{above}.{at}"),
        }
    }
}
