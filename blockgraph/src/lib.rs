//! Disks as a graph of drivers and filters. No virtio, no JSON, no sockets of its own, and no unsafe.
//!
//! One idea: a node answers where bytes live as a pure lookup (`map`), and the core submits them straight to the
//! thread's ring; whatever needs more than a lookup runs as async code (`serve`) and comes back for what lies below.
#![forbid(unsafe_code)]

pub mod bitmap;
pub mod blocking;
pub mod clock;
pub mod digest;
pub mod driver;
pub mod filter;
pub mod graph;
pub mod hold;
pub mod io;
pub mod job;
pub mod lane;
pub mod map;
pub mod mode;
pub mod node;
pub mod notice;
pub mod pin;
pub mod report;
pub mod request;
pub mod status;
pub mod tls;
pub mod units;
mod waiting;

pub use graph::{Common, Current, Graph};
pub use io::Io;
pub use lane::{Event, Lane, Started};
pub use mode::Mode;
pub use node::{Driver, Filter, Info, Limits, Local, Map, NodeId, Outcome};
pub use request::{Dir, Kind, Request, Unmap};
pub use units::Span;
