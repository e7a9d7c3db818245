//! Images and snapshots opened in this very process, and what is done with them a part at a time.
//!
//! The rule: what to copy is found out as it goes, in batches of a fixed size, so that the size of a disk costs no memory,
//! and whoever waits for the end (a signal, a progress bar) has a word between two batches.

use super::error::BackupError;
use super::plan::{Parts, Source};
use crate::cli;
use crate::open;
use blockgraph::driver::qcow2::create::{Options, create};
use blockgraph::graph::Control;
use blockgraph::graph::edit::Edit;
use blockgraph::{Current, Io, Kind, NodeId, Request, Span, Unmap};
use ring::{Choice, Durability, Errno, Mem};
use serde_json::{Value, json};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Parts of a batch. They are copied side by side.
const BATCH_PARTS: usize = 16;
/// The longest part, in bytes.
pub(super) const PART_BYTES_MAX: u64 = 1 << 20;
/// How long requests on a closing node may take.
const CLOSING: Duration = Duration::from_secs(60);

/// Disks of this process.
#[derive(Debug)]
pub(super) struct Disks {
    current: Arc<Current>,
    control: Control,
}

/// What is done with a part that may have data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// It is written to the other disk.
    Copy,
    /// It is compared with the other disk.
    Compare,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// All of it is as it should be.
    Fine,
    /// The disks differ from there on.
    Differs(u64),
}

impl Disks {
    pub(super) fn new() -> Result<Disks, BackupError> {
        let current = Arc::<Current>::default();
        let control = Control::new(current.clone(), Arc::default(), Choice::Best);
        let control = control.map_err(|e| BackupError::Image(format!("no ring: {e}")))?;
        Ok(Disks { current, control })
    }

    /// Opens a node, as `blockdev-add` would. Errors: in its words.
    pub(super) fn open(&mut self, options: Value) -> Result<NodeId, BackupError> {
        let members = options.as_object().cloned().unwrap_or_default();
        let refused = |error: cli::Refusal| BackupError::Image(error.to_string());
        let table = &crate::qapi::tables::nodes::BLOCKDEV_OPTIONS;
        let object = cli::Object::checked(members, table, cli::Spelling::Json).map_err(refused)?;
        let spec = open::node_spec(cli::blockdev(object).map_err(refused)?).map_err(refused)?;
        let opened = blockgraph::graph::open::open(&self.current, spec, &mut self.control);
        let (id, _) = opened.map_err(|error| refused(open::open_refusal(&error)))?;
        Ok(id)
    }

    /// Closes a node, and with it what was opened for it. Errors: it cannot write what it has to at its end.
    pub(super) fn close(&mut self, name: &str) -> Result<(), BackupError> {
        let mut edit = Edit::begin(&self.current);
        let image = |error: &dyn std::fmt::Display| BackupError::Image(error.to_string());
        edit.remove(name).map_err(|e| image(&e))?;
        let (_, leaving) = edit.commit().map_err(|e| image(&e))?;
        let finished = leaving.finish(&mut self.control, Instant::now() + CLOSING);
        finished.map_err(|(error, _)| image(&error))
    }

    /// A new image in the file `path`, on top of `backing` in the same directory.
    pub(super) fn create(
        &mut self,
        path: &Path,
        size_bytes: u64,
        backing: Option<&str>,
    ) -> Result<(), BackupError> {
        File::create_new(path).map_err(BackupError::file(path, "cannot be made"))?;
        let file = self.open(json!({"driver": "file", "node-name": "new", "filename": path}))?;
        let options = Options {
            backing_file: backing.map(str::to_owned),
            backing_format: backing.map(|_| "qcow2".to_owned()),
            ..Options::new(size_bytes)
        };
        let work = |io: Io| async move { create(&io, file, &options).await };
        let made = self.control.run(&self.current.get(), file, work);
        let made = made.map_err(|e| BackupError::Image(e.to_string()))?;
        made.map_err(|e| BackupError::Image(format!("{}: {e}", path.display())))?;
        self.close("new")
    }

    /// How many bytes of `source` are to be copied.
    pub(super) fn count(
        &mut self,
        source: Source,
        go_on: &mut dyn FnMut(u64) -> Result<(), BackupError>,
    ) -> Result<u64, BackupError> {
        let mut bytes = 0;
        let mut parts = Parts::of(source);
        loop {
            let batch;
            (parts, batch) = self.next_batch(parts)?;
            if batch.is_empty() {
                return Ok(bytes);
            }
            bytes += batch.iter().map(|part| part.len).sum::<u64>();
            go_on(0)?;
        }
    }

    /// Does `task` with every part of `source` that is to be copied and the same part of `to`. Tells `go_on` of each batch
    /// how many bytes it was. Errors: the first of any request; what `go_on` says.
    pub(super) fn each_part(
        &mut self,
        task: Task,
        source: Source,
        to: NodeId,
        go_on: &mut dyn FnMut(u64) -> Result<(), BackupError>,
    ) -> Result<(), BackupError> {
        let mut parts = Parts::of(source);
        loop {
            let batch;
            (parts, batch) = self.next_batch(parts)?;
            if batch.is_empty() {
                return Ok(());
            }
            let bytes = batch.iter().map(|part| part.len).sum();
            let from = source.data;
            match self.run(from, |io| run_batch(io, task, from, to, batch))? {
                Done::Fine => go_on(bytes)?,
                Done::Differs(at) => return Err(BackupError::Differs(at)),
            }
        }
    }

    fn next_batch(&mut self, parts: Parts) -> Result<(Parts, Vec<Span>), BackupError> {
        let node = parts.source.what;
        self.run(node, |io| async move {
            let mut parts = parts;
            let batch = parts.next(&io, BATCH_PARTS).await?;
            Ok((parts, batch))
        })
    }

    /// Makes all that was written durable.
    pub(super) fn flush(&mut self, node: NodeId) -> Result<(), BackupError> {
        let none = Span { at: 0, len: 0 };
        self.run(node, |io| async move {
            io.request(node, Request::plain(Kind::Flush, none)).await
        })
    }

    fn run<T: 'static, F: Future<Output = Result<T, Errno>> + 'static>(
        &mut self,
        node: NodeId,
        work: impl FnOnce(Io) -> F,
    ) -> Result<T, BackupError> {
        let graph = self.current.get();
        let name = graph.node(node).map_or("", |node| node.name()).to_owned();
        let ended = self.control.run(&graph, node, work);
        let ended = ended.map_err(|e| BackupError::Image(format!("{name}: {e}")))?;
        ended.map_err(|errno| BackupError::Image(format!("{name}: {errno}")))
    }
}

/// All parts at once; the first error, or the first difference.
async fn run_batch(
    io: Io,
    task: Task,
    from: NodeId,
    to: NodeId,
    batch: Vec<Span>,
) -> Result<Done, Errno> {
    let works = batch.into_iter().map(|part| {
        let io = io.clone();
        Box::pin(async move {
            match task {
                Task::Copy => copy(&io, from, to, part).await,
                Task::Compare => compare(&io, from, to, part).await,
            }
        })
    });
    let ended = all(works.collect()).await;
    let mut first = Done::Fine;
    for done in ended {
        match (done?, first) {
            (Done::Differs(at), Done::Differs(before)) => first = Done::Differs(at.min(before)),
            (differs @ Done::Differs(_), Done::Fine) => first = differs,
            (Done::Fine, _) => {}
        }
    }
    Ok(first)
}

/// Waits for all of them; what each came to, in their order.
async fn all<T, F: Future<Output = T> + Unpin>(works: Vec<F>) -> Vec<T> {
    let mut slots: Vec<(Option<F>, Option<T>)> =
        works.into_iter().map(|work| (Some(work), None)).collect();
    std::future::poll_fn(move |cx| {
        for (work, result) in &mut slots {
            if let Some(running) = work
                && let std::task::Poll::Ready(value) = std::pin::Pin::new(running).poll(cx)
            {
                (*work, *result) = (None, Some(value));
            }
        }
        match slots.iter().all(|(_, result)| result.is_some()) {
            true => std::task::Poll::Ready(slots.iter_mut().filter_map(|s| s.1.take()).collect()),
            false => std::task::Poll::Pending,
        }
    })
    .await
}

async fn copy(io: &Io, from: NodeId, to: NodeId, part: Span) -> Result<Done, Errno> {
    let mem = read(io, from, part).await?;
    if mem.is_zero() {
        let kind = Kind::WriteZeroes(Unmap::Allow, Durability::Cached);
        io.request(to, Request::plain(kind, part)).await?;
    } else {
        io.write(to, part.at, &mem).await?;
    }
    Ok(Done::Fine)
}

async fn compare(io: &Io, from: NodeId, to: NodeId, part: Span) -> Result<Done, Errno> {
    let ours = read(io, from, part).await?;
    let theirs = read(io, to, part).await?;
    let (mut a, mut b) = ([0; 4096], [0; 4096]);
    for at in (0..ours.len()).step_by(4096) {
        let (len, _) = (ours.load(at, &mut a), theirs.load(at, &mut b));
        if let Some(other) = (0..len).find(|i| a[*i] != b[*i]) {
            return Ok(Done::Differs(part.at + (at + other) as u64));
        }
    }
    Ok(Done::Fine)
}

async fn read(io: &Io, node: NodeId, part: Span) -> Result<Mem, Errno> {
    let mem = Mem::zeroed(part.len as usize).ok_or(Errno(libc::ENOMEM))?;
    io.read(node, part.at, &mem).await?;
    Ok(mem)
}
