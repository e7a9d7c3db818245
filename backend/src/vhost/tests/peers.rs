//! The vhost crate's front end.
