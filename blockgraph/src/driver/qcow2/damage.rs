//! Metadata that cannot be: what is said of it, and what becomes of the image.
//!
//! The rule: whoever meets it when about to write marks the image corrupt, and nothing is written from then on; whoever
//! meets it when reading fails and that is all. Each of the two is told once for an open image, as in QEMU.

use super::Qcow2;
use super::format::bitmap_dir::BitmapError;
use super::format::entry::Malformed;
use super::format::header::Version;
use super::overlap::Section;
use super::writer::Gate;
use crate::io::Io;
use crate::notice::{Fatal, Notice};
use crate::units::Span;
use ring::Errno;
use std::sync::atomic::{AtomicBool, Ordering};

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    msg: String,
    /// Bytes of the file that would have been overwritten, if it is about that.
    place: Option<Span>,
}

impl Damage {
    /// What was about to be written in `place` is where metadata is. The words are QEMU's.
    pub(crate) fn overlap(with: Section, place: Span) -> Damage {
        Damage {
            msg: format!("Preventing invalid write on metadata (overlaps with {with})"),
            place: Some(place),
        }
    }

    /// Refcounts contradict what the tables say.
    pub(crate) fn refcounts() -> Damage {
        Damage {
            msg: "Refcounts contradict the references to clusters".to_owned(),
            place: None,
        }
    }
}

impl From<Malformed> for Damage {
    fn from(malformed: Malformed) -> Damage {
        Damage {
            msg: malformed.to_string(),
            place: None,
        }
    }
}

impl From<BitmapError> for Damage {
    fn from(error: BitmapError) -> Damage {
        Damage {
            msg: error.to_string(),
            place: None,
        }
    }
}

/// What was told already.
#[derive(Debug, Default)]
pub(crate) struct Told {
    fatal: AtomicBool,
    other: AtomicBool,
}

impl Qcow2 {
    /// Metadata is impossible: nothing is written any more, and the header says why if it still can.
    pub(crate) async fn corrupt(&self, io: &Io, damage: Damage) {
        self.shut();
        if self.told.fatal.swap(true, Ordering::AcqRel) {
            return;
        }
        self.notify(io, damage, Fatal::Yes);
        let (version, mut bits) = {
            let header = &self.meta().header;
            (header.version, header.incompatible)
        };
        bits.corrupt = true;
        if version == Version::V3 && self.write_incompatible(io, bits).await.is_ok() {
            self.meta().header.incompatible.corrupt = true;
        }
    }

    /// Nothing is written any more.
    pub(super) fn shut(&self) {
        self.writer.advance(Gate::Corrupt);
        self.may_map_writes.store(false, Ordering::Release);
    }

    /// Metadata that is to be read is impossible: the request fails.
    pub(crate) fn impossible(&self, io: &Io, malformed: Malformed) -> Errno {
        let told = &self.told;
        if !told.fatal.load(Ordering::Acquire) && !told.other.swap(true, Ordering::AcqRel) {
            self.notify(io, malformed.into(), Fatal::No);
        }
        Errno::IO
    }

    /// Metadata that is to be changed is impossible.
    pub(super) async fn malformed(&self, io: &Io, malformed: Malformed) -> Errno {
        self.corrupt(io, malformed.into()).await;
        Errno::IO
    }

    fn notify(&self, io: &Io, damage: Damage, fatal: Fatal) {
        let Damage { msg, place } = damage;
        let node = io.graph().node(io.here()).map(|node| node.name());
        let node = node.unwrap_or_default().to_owned();
        match fatal {
            Fatal::Yes => tracing::error!(
                node,
                "qcow2: Marking image as corrupt: {msg}; further corruption events will be suppressed"
            ),
            Fatal::No => tracing::error!(
                node,
                "qcow2: Image is corrupt: {msg}; further non-fatal corruption events will be suppressed"
            ),
        }
        io.graph().notices().post(Notice::ImageCorrupted {
            node,
            msg,
            offset: place.map(|place| place.at),
            size: place.map(|place| place.len),
            fatal,
        });
    }
}
