//! JSON as QEMU reads and writes it: strings also in single quotes, every message in QEMU's words, members in QEMU's order.
//!
//! The rule: input is taken byte by byte (`lex.rs`, `build.rs`), so it does not matter how it was cut into packets, and what is
//! kept of an unfinished message is bounded. serde_json gives the tree and nothing else: its messages, quotes, treatment of
//! duplicates and spelling of numbers are others.

mod build;
mod lex;
mod parse;
mod text;
mod write;

pub use parse::{Reader, Step, parse};
pub use text::Nul;
pub use write::{Layout, in_order, write};

/// What a reader takes.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Nesting.
    pub depth_max: usize,
    /// May a string have a NUL in it?
    pub nul: Nul,
}
