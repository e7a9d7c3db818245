//! backend

pub mod cli;
