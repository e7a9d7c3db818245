//! backend

pub mod cli;
pub mod process;
