//! What bitmaps say into the journal, and epochs that end.
//!
//! The rule: what is stored is written where nothing was that counts, and durable before the header leads to it. Nothing here
//! waits for requests: an epoch that cannot end yet is looked at again later.

use super::content;
use super::format::{CONTENT_AT, Content, Header, Phase, header_at};
use super::{EPOCH, Journal, Stage, date_ns};
use crate::bitmap::dirty::DirtyBitmap;
use crate::io::Io;
use crate::node::Outcome;
use crate::notice::Notice;
use crate::units::Span;
use ring::{Durability, Errno, Mem, Op, SyncLevel};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What is held for the whole of something.
pub(super) const ONE: Span = Span { at: 0, len: 1 };
/// Bytes that are written at once.
const STEP_BYTES: usize = 1 << 20;
/// How soon an epoch that could not end is looked at again.
const SOON: Duration = Duration::from_millis(20);

/// Which epochs count from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counting {
    /// Those that did.
    AsBefore,
    /// This one and later ones.
    FromThis,
}

impl Journal {
    /// The disk may be written from now on; `bitmaps` are all there is to know. Nothing is under way. Errors: the journal does not say
    /// so.
    pub(crate) async fn begin(&self, io: &Io, bitmaps: &[Arc<DirtyBitmap>]) -> Outcome {
        {
            let mut state = self.state();
            // Nothing counts any more of what an earlier writer left.
            state.epoch += 2;
            state.since = None;
            state.grace = None;
            for covered in &self.covered {
                covered.store(0, Ordering::SeqCst);
            }
        }
        if self.state().sequence == 0 {
            // The first thing in the file is that it is a journal.
            self.put_header(io, Phase::Clean, 1, 0, Content::default())
                .await?;
            self.state().sequence = 1;
        }
        self.put(io, bitmaps, Phase::InUse, Counting::FromThis)
            .await?;
        self.state().stage = Stage::Kept;
        Ok(())
    }

    /// Stores what bitmaps say now, so that a crash does not bring back what they said before. Errors: it says that still.
    pub(crate) async fn store(&self, io: &Io, bitmaps: &[Arc<DirtyBitmap>]) -> Outcome {
        if self.state().stage != Stage::Kept {
            return Ok(());
        }
        self.put(io, bitmaps, Phase::InUse, Counting::AsBefore)
            .await?;
        // What was written before is dirty no more, maybe: this epoch ends as soon as it can.
        let mut state = self.state();
        if state.since.is_some() {
            state.since = Instant::now().checked_sub(EPOCH).or(state.since);
            drop(state);
            io.graph().notices().post(Notice::JournalDue);
        }
        Ok(())
    }

    /// The disk is not written any more, and nothing is under way: the journal says what there is, or that there is nothing where the
    /// image has it (`kept_by_image`). Errors: it goes on as if the disk were in use.
    pub(crate) async fn end(
        &self,
        io: &Io,
        bitmaps: &[Arc<DirtyBitmap>],
        kept_by_image: bool,
    ) -> Outcome {
        if self.state().stage == Stage::AtRest {
            return Ok(());
        }
        let (bitmaps, phase) = match (self.is_home(), kept_by_image) {
            (true, _) => (bitmaps, Phase::Clean),
            (false, true) => (&[][..], Phase::Clean),
            (false, false) => (bitmaps, Phase::InUse),
        };
        self.put(io, bitmaps, phase, Counting::FromThis).await?;
        let mut state = self.state();
        state.stage = Stage::AtRest;
        state.since = None;
        state.grace = None;
        Ok(())
    }

    /// Ends an epoch that has lasted long enough, if it can. Says when to look again; `None`: when something is written.
    pub(crate) async fn look(
        &self,
        io: &Io,
        bitmaps: &[Arc<DirtyBitmap>],
    ) -> Result<Option<Duration>, Errno> {
        let Some((grace, since)) = self.times() else {
            return Ok(None);
        };
        if let Some(grace) = grace {
            if self.is_over(io, grace) {
                self.put(io, bitmaps, Phase::InUse, Counting::FromThis)
                    .await?;
                self.state().grace = None;
            } else if since.is_none_or(|since| since.elapsed() >= EPOCH) {
                // The date says how long somebody may have been writing.
                self.write_date(io).await?;
                self.state().since = Some(Instant::now());
            }
        } else if since.is_some_and(|since| since.elapsed() >= EPOCH) {
            self.end_epoch(io).await;
        }
        let Some((grace, since)) = self.times() else {
            return Ok(None);
        };
        let left = since.map(|since| EPOCH.saturating_sub(since.elapsed()));
        Ok(match grace {
            Some(_) => Some(SOON),
            None => left,
        })
    }

    /// `None` if it is not kept up.
    fn times(&self) -> Option<(Option<u64>, Option<Instant>)> {
        let state = self.state();
        (state.stage == Stage::Kept).then_some((state.grace, state.since))
    }

    /// The next one begins, with a map in which nothing is covered.
    async fn end_epoch(&self, io: &Io) {
        let _turn = self.mapping.hold(ONE).await;
        let mut state = self.state();
        if state.from_epoch != state.epoch || state.stage != Stage::Kept {
            return;
        }
        state.epoch += 1;
        state.since = None;
        state.regions_before = self.count();
        for covered in &self.covered {
            covered.store(0, Ordering::SeqCst);
        }
        state.grace = Some(io.begin_grace());
    }

    /// Has all ended that began in the epoch before?
    fn is_over(&self, io: &Io, grace: u64) -> bool {
        let before = (self.state().epoch + 1) % 2;
        self.served[before as usize].load(Ordering::SeqCst) == 0 && io.has_passed(grace)
    }

    async fn put(
        &self,
        io: &Io,
        bitmaps: &[Arc<DirtyBitmap>],
        phase: Phase,
        counting: Counting,
    ) -> Outcome {
        let _turn = self.storing.hold(ONE).await;
        let (bytes, len) = content::encode(bitmaps)?;
        let (at, from_epoch, sequence) = {
            let state = self.state();
            let from_epoch = match counting {
                Counting::AsBefore => state.from_epoch,
                Counting::FromThis => state.epoch,
            };
            let at = free_place(&state.content, state.content_in_doubt, bytes.len() as u64);
            (at, from_epoch, state.sequence + 1)
        };
        let crc = crc32fast::hash(&bytes[..len as usize]);
        let content = Content { at, len, crc };
        self.put_bytes(io, at, &bytes).await?;
        self.state().content_in_doubt = Some(content);
        self.put_header(io, phase, sequence, from_epoch, content)
            .await?;
        let mut state = self.state();
        state.sequence = sequence;
        state.from_epoch = from_epoch;
        if from_epoch == state.epoch {
            state.regions_before = 0;
        }
        state.content = content;
        state.content_in_doubt = None;
        Ok(())
    }

    /// The journal says that it is worth nothing.
    pub(super) async fn write_void(&self, io: &Io) -> Outcome {
        let _turn = self.storing.hold(ONE).await;
        let (sequence, from_epoch, content) = {
            let state = self.state();
            (state.sequence + 1, state.from_epoch, state.content)
        };
        self.put_header(io, Phase::Void, sequence, from_epoch, content)
            .await?;
        self.state().sequence = sequence;
        Ok(())
    }

    async fn put_header(
        &self,
        io: &Io,
        phase: Phase,
        sequence: u64,
        from_epoch: u64,
        content: Content,
    ) -> Outcome {
        let (subject, changed_ns) = self.subject();
        let header = Header {
            phase,
            sequence,
            from_epoch,
            written_ns: date_ns(),
            subject,
            changed_ns: match phase {
                Phase::Clean => changed_ns,
                Phase::InUse | Phase::Void => 0,
            },
            content,
        };
        let mem = Mem::zeroed(super::format::BLOCK_BYTES).ok_or(Errno::NOMEM)?;
        mem.store(0, &header.encode());
        let op = Op::Write {
            file: self.file.id(),
            at: header_at(sequence),
            durability: Durability::Through,
        };
        io.file(op, mem).await?;
        self.state().dated = Some(Instant::now());
        Ok(())
    }

    async fn put_bytes(&self, io: &Io, at: u64, bytes: &[u8]) -> Outcome {
        let file = self.file.id();
        let mut at = at;
        for step in bytes.chunks(STEP_BYTES) {
            let mem = Mem::zeroed(step.len()).ok_or(Errno::NOMEM)?;
            mem.store(0, step);
            let durability = Durability::Cached;
            let op = Op::Write {
                file,
                at,
                durability,
            };
            io.file(op, mem).await?;
            at += step.len() as u64;
        }
        let level = SyncLevel::Data;
        io.file(Op::Sync { file, level }, Mem::none()).await
    }
}

/// Where `len` bytes have room beside what counts, as near to the beginning as can be.
fn free_place(content: &Content, in_doubt: Option<Content>, len: u64) -> u64 {
    let mut taken: Vec<Content> = in_doubt.into_iter().chain([*content]).collect();
    taken.retain(|content| content.len > 0);
    taken.sort_by_key(|content| content.at);
    let mut at = CONTENT_AT;
    for content in taken {
        if at + len <= content.at {
            break;
        }
        at = at.max(content.end());
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_is_never_written_over_and_the_file_does_not_grow_for_ever() {
        let content = |at, len| Content { at, len, crc: 0 };
        let none = Content::default();
        assert_eq!(free_place(&none, None, 4096), CONTENT_AT);
        let first = content(CONTENT_AT, 5000);
        assert_eq!(free_place(&first, None, 4096), CONTENT_AT + 8192);
        let second = content(CONTENT_AT + 8192, 5000);
        assert_eq!(free_place(&second, None, 8192), CONTENT_AT);
        assert_eq!(free_place(&second, None, 8193), CONTENT_AT + 16384);
        let both = Some(content(CONTENT_AT, 4096));
        assert_eq!(free_place(&second, both, 4096), CONTENT_AT + 4096);
        assert_eq!(free_place(&second, both, 8192), CONTENT_AT + 16384);
    }
}
