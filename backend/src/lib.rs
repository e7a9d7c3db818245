//! backend

pub mod cli;
pub mod vhost;
