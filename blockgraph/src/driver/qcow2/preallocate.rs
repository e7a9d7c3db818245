//! Guest clusters that get their space before they are written.
//!
//! The rule: what is set aside reads as zeroes, so nothing is asked of a cluster that is in use already.

use super::Qcow2;
use super::alloc::{Content, Run, Want};
use super::format::entry::DataIn;
use super::image_file::ImageFile;
use super::write::Job;
use super::writer::Prepared;
use crate::io::Io;
use crate::node::Outcome;
use crate::request::{Prealloc, Unmap};
use crate::units::Span;
use ring::Errno;

/// Zeroes that are written at once.
const STEP_BYTES: usize = 1 << 20;

impl Qcow2 {
    /// Sets aside space for the clusters that begin in `span` and have none. The disk below reads as zeroes there.
    pub(super) async fn preallocate(&self, io: &Io, span: Span, how: Prealloc) -> Outcome {
        self.open_for_writing(io).await?;
        // The cluster that the disk used to end in may be in use, and shared.
        let cluster = self.geometry.cluster_bytes();
        let skip = span.at.next_multiple_of(cluster) - span.at;
        let mut rest = span.after(skip).widened(cluster);
        while !rest.is_empty() {
            let part = self.rest_of_slice(rest);
            let done = self.preallocate_some(io, part, how).await?;
            self.keep_up(io).await?;
            rest = rest.after(done);
        }
        Ok(())
    }

    /// The beginning of a span of whole clusters in one slice; returns how much.
    async fn preallocate_some(&self, io: &Io, span: Span, how: Prealloc) -> Result<u64, Errno> {
        let bits = self.geometry.cluster_bits();
        let _hold = self.holds.hold(span).await;
        let Job::New(count) = self.job(io, span).await? else {
            return Ok(1 << bits);
        };
        let at = self.geometry.entry_at(span.at);
        self.own_table(io, self.geometry.l1_index(at.slice)).await?;
        let (run, prepared) = self.space(io, span, count).await?;
        let run_span = span.first(run.count << bits);
        self.zero_space(io, run, how).await?;
        self.publish(io, run_span, run, prepared).await?;
        Ok(run_span.len)
    }

    /// Host clusters for the beginning of `span`.
    async fn space(
        &self,
        io: &Io,
        span: Span,
        count: u64,
    ) -> Result<(Run, Option<Prepared<'_>>), Errno> {
        if self.geometry.layout().data == DataIn::DataFile {
            let run = Run {
                first: span.at >> self.geometry.cluster_bits(),
                count,
                // Where the data file was there already it has been zeroed.
                content: Content::Zeroes,
            };
            return Ok((run, None));
        }
        let (run, prepared) = self.allocate(io, Want::UpTo(count)).await?;
        Ok((run, Some(prepared)))
    }

    async fn zero_space(&self, io: &Io, run: Run, how: Prealloc) -> Outcome {
        let bits = self.geometry.cluster_bits();
        let data = ImageFile::new(io, self.data(io)?);
        let (at, len) = (run.first << bits, run.count << bits);
        match how {
            Prealloc::Full => {
                let zeroes = vec![0; STEP_BYTES.min(len as usize)];
                let mut done = 0;
                while done < len {
                    let step = (len - done).min(zeroes.len() as u64);
                    data.write(at + done, &zeroes[..step as usize]).await?;
                    done += step;
                }
                Ok(())
            }
            Prealloc::Falloc => data.zero(at, len, Unmap::Keep).await,
            Prealloc::Metadata | Prealloc::Off if run.content == Content::Zeroes => Ok(()),
            Prealloc::Metadata | Prealloc::Off => data.zero(at, len, Unmap::Allow).await,
        }
    }
}
