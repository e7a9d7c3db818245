//! backend

pub mod cli;
pub mod open;
