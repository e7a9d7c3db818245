//! The types of options, commands and events, as QAPI's schema has them, written down once as data.
//!
//! The rule: what is accepted, what is answered and what `query-qmp-schema` says all come from these tables, so none of them
//! can say anything else. A member that is not here does not exist for a user.

mod check;
pub mod introspect;
mod path;
pub mod tables;
mod types;

pub use check::{check, check_member, check_members};
pub use types::{
    ANY, Alternate, BOOL, Case, Enum, INT, INT16, INT32, INT64, Member, NULL, NUMBER, Object, SIZE,
    STR, Type, UINT8, UINT16, UINT32, UINT64, alternate, enumeration, object, opt, req, union,
};
