//! What a backup job leaves in the graph: nothing but what its bitmap says.

use super::BitmapMode;
use crate::daemon::executor::Daemon;
use crate::daemon::jobs::Finish;
use blockgraph::Span;
use blockgraph::bitmap::Frozen;
use blockgraph::filter::copy_before_write::CopyBeforeWrite;
use blockgraph::graph::perm::Attachment;
use std::sync::Arc;

/// A backup job's part in the graph.
#[derive(Debug)]
pub(super) struct BackedUp {
    filter: String,
    body: Arc<CopyBeforeWrite>,
    bitmap: Option<(Frozen, BitmapMode)>,
    attachment: Option<Attachment>,
}

impl BackedUp {
    pub(super) fn new(
        filter: String,
        body: Arc<CopyBeforeWrite>,
        bitmap: Option<(Frozen, BitmapMode)>,
    ) -> BackedUp {
        BackedUp {
            filter,
            body,
            bitmap,
            attachment: None,
        }
    }

    /// Uses the filter, or nobody might.
    pub(super) fn hold(&mut self, attachment: Attachment) {
        self.attachment = Some(attachment);
    }

    /// It never was.
    pub(super) fn undo(&mut self, daemon: &mut Daemon) {
        self.take_filter_out(daemon).unwrap_or_else(|error| {
            tracing::error!("cannot take out the filter of a job: {error}");
        });
        if let Some((frozen, _)) = self.bitmap.take() {
            frozen.take_back();
        }
    }

    fn take_filter_out(&mut self, daemon: &mut Daemon) -> Result<(), String> {
        self.attachment = None;
        daemon.remove_filter(&self.filter)
    }

    /// What was not copied is to be copied the next time.
    fn mark_left(&self, frozen: &Frozen) {
        let mut rest = Span {
            at: 0,
            len: i64::MAX as u64,
        };
        while let Some(left) = self.body.next_left(rest) {
            frozen.mark(left);
            rest = rest.after(left.end() - rest.at);
        }
    }
}

impl Finish for BackedUp {
    fn prepare(&mut self, daemon: &mut Daemon) -> Result<(), String> {
        self.take_filter_out(daemon)
    }

    fn commit(&mut self, _: &mut Daemon) {
        match self.bitmap.take() {
            Some((frozen, BitmapMode::Never)) => frozen.take_back(),
            Some((frozen, BitmapMode::OnSuccess | BitmapMode::Always)) => frozen.keep_new(),
            None => {}
        }
    }

    fn abort(&mut self, daemon: &mut Daemon) {
        if let Some((frozen, BitmapMode::Always)) =
            self.bitmap.take_if(|(_, mode)| *mode == BitmapMode::Always)
        {
            self.mark_left(&frozen);
            frozen.keep_new();
        }
        self.undo(daemon);
    }
}
