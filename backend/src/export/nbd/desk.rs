//! What a connection's loop and its tasks share: the outbox, memory, and how replies are put in bytes.

use super::budget::Permit;
use super::exports::{Context, Export};
use super::outbox::Outbox;
use super::pool::{Lease, Pool};
use crate::stats::{Counted, Ended, Tally};
use blockgraph::driver::nbd::wire::{
    Chunk, ChunkHead, ChunkKind, Command, ErrorChunk, ExtentForm, Form, Hole, NbdError,
    RequestHead, SimpleReply, StatusChunk,
};
use blockgraph::{Span, clock};
use ring::{Errno, Mem};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One connection's, once it carries requests.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) export: Arc<Export>,
    pub(super) form: Form,
    pub(super) contexts: Vec<Context>,
    /// Never borrowed across an await.
    pub(super) outbox: RefCell<Outbox>,
    /// Never borrowed across an await either.
    tally: RefCell<Tally>,
    pool: RefCell<Pool>,
    /// Where data, and no hole, was seen last. That stays true in the only way that counts: what has become zeroes since
    /// may still be sent as data.
    known_data: Cell<Span>,
    /// Is the connection to end? What may take long looks here.
    closing: AtomicBool,
    /// Tasks that have not ended.
    in_flight: Cell<usize>,
}

/// A task of the connection, until this is dropped.
#[derive(Debug)]
pub(super) struct UnderWay(Rc<Desk>);

impl UnderWay {
    pub(super) fn begin(desk: &Rc<Desk>) -> UnderWay {
        desk.in_flight.set(desk.in_flight.get() + 1);
        UnderWay(desk.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
    }
}

impl Desk {
    pub(super) fn new(
        export: Arc<Export>,
        form: Form,
        contexts: Vec<Context>,
        outbox: Outbox,
    ) -> Desk {
        let tally = RefCell::new(export.options.stats.tally());
        Desk {
            export,
            tally,
            form,
            contexts,
            outbox: RefCell::new(outbox),
            pool: RefCell::default(),
            known_data: Cell::new(Span { at: 0, len: 0 }),
            closing: AtomicBool::new(false),
            in_flight: Cell::new(0),
        }
    }

    /// Tasks that have not ended.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Memory for data. Errors: ENOMEM.
    pub(super) fn memory(&self, len: u64) -> Result<Lease, Errno> {
        let len = usize::try_from(len).map_err(|_| Errno::NOMEM)?;
        self.pool.borrow_mut().take(len).ok_or(Errno::NOMEM)
    }

    /// Takes memory back that nobody uses any more.
    pub(super) fn recycle(&self, lease: Lease) {
        drop(lease.mem);
        self.recycle_memory(lease.memory);
    }

    /// The same, of what was seen through a window that is gone.
    pub(super) fn recycle_memory(&self, memory: Mem) {
        self.pool.borrow_mut().put(memory);
    }

    /// Requests are taken, and ends are counted, at another moment than before.
    pub(super) fn begin_batch(&self) {
        self.tally.borrow_mut().begin_batch();
    }

    /// Shows what was counted.
    pub(super) fn publish(&self) {
        let mut tally = self.tally.borrow_mut();
        tally.publish(self.in_flight() as u64, clock::now_ns());
    }

    /// The disk is asked for something.
    pub(super) fn begin(&self, head: &RequestHead, permit: &Permit) {
        permit.begin(clock::now_ns());
        if counted_as(head.command) == Some(Counted::Write) {
            let end = head.at.saturating_add(head.len);
            self.tally.borrow_mut().wrote_to(end);
        }
    }

    /// Its answer is known.
    pub(super) fn ended(&self, head: &RequestHead, permit: &Permit, how: Ended) {
        if let Some(op) = counted_as(head.command) {
            let time_ns = clock::now_ns().saturating_sub(permit.began_ns());
            let mut tally = self.tally.borrow_mut();
            let bytes = if op == Counted::Flush { 0 } else { head.len };
            tally.ended(op, how, bytes, time_ns);
        }
    }

    /// It was not asked: the request makes no sense.
    pub(super) fn refused(&self, head: &RequestHead) {
        if let Some(op) = counted_as(head.command) {
            self.tally.borrow_mut().refused(op);
        }
    }

    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// May a read be answered in chunks?
    pub(super) fn has_chunks(&self) -> bool {
        self.form >= Form::Structured
    }

    pub(super) fn is_known_data(&self, span: Span) -> bool {
        let known = self.known_data.get();
        known.at <= span.at && span.end() <= known.end()
    }

    pub(super) fn know_data(&self, span: Span) {
        self.known_data.set(span);
    }

    /// A reply that says that all went well and nothing else.
    pub(super) fn done(&self, head: &RequestHead, permit: &Rc<Permit>) {
        let empty_read = head.command == Command::Read;
        let bytes = match self.form {
            Form::Simple => simple(head, None),
            // QEMU's choice: a structured reply only where one is required.
            Form::Structured if !empty_read => simple(head, None),
            Form::Structured | Form::Extended => {
                self.chunk(head, Chunk::Last, ChunkKind::None, 0, 0)
            }
        };
        self.outbox.borrow_mut().push(bytes, permit);
    }

    /// A reply that says what went wrong.
    pub(super) fn failed(
        &self,
        head: &RequestHead,
        error: NbdError,
        text: &str,
        permit: &Rc<Permit>,
    ) {
        let bytes = match self.form {
            Form::Simple => simple(head, Some(error)),
            Form::Structured | Form::Extended => {
                let mut payload = Vec::new();
                let at = None;
                ErrorChunk { error, text, at }.encode(&mut payload);
                let len = payload.len();
                let mut bytes = self.chunk(head, Chunk::Last, ChunkKind::Error, len, len);
                bytes.extend(payload);
                bytes
            }
        };
        self.outbox.borrow_mut().push(bytes, permit);
    }

    /// Data read at `at`.
    pub(super) fn data(
        &self,
        head: &RequestHead,
        at: u64,
        data: Lease,
        last: bool,
        permit: &Rc<Permit>,
    ) {
        let bytes = match self.form {
            Form::Simple => simple(head, None),
            Form::Structured | Form::Extended => {
                let chunk = if last { Chunk::Last } else { Chunk::More };
                let len = data.mem.len() + 8;
                let mut bytes = self.chunk(head, chunk, ChunkKind::Data, len, 8);
                bytes.extend(at.to_be_bytes());
                bytes
            }
        };
        self.outbox.borrow_mut().push_data(bytes, data, permit);
    }

    /// Zeroes.
    pub(super) fn hole(&self, head: &RequestHead, span: Span, last: bool, permit: &Rc<Permit>) {
        let chunk = if last { Chunk::Last } else { Chunk::More };
        let hole = Hole {
            at: span.at,
            // No read is longer than 32 bits.
            len: u32::try_from(span.len).unwrap_or(u32::MAX),
        };
        let mut bytes = self.chunk(head, chunk, ChunkKind::Hole, Hole::BYTES, Hole::BYTES);
        bytes.extend(hole.encode());
        self.outbox.borrow_mut().push(bytes, permit);
    }

    /// What one context says.
    pub(super) fn extents(
        &self,
        head: &RequestHead,
        extents: &StatusChunk,
        last: bool,
        permit: &Rc<Permit>,
    ) {
        let chunk = if last { Chunk::Last } else { Chunk::More };
        let (form, kind) = match self.form {
            Form::Extended => (ExtentForm::Wide, ChunkKind::StatusExtended),
            Form::Simple | Form::Structured => (ExtentForm::Narrow, ChunkKind::Status),
        };
        let len = StatusChunk::bytes(form, extents.extents.len());
        let mut bytes = self.chunk(head, chunk, kind, len, len);
        extents.encode(form, &mut bytes);
        permit.grow(bytes.len());
        self.outbox.borrow_mut().push(bytes, permit);
    }

    /// A chunk's head, with room for `room` bytes more.
    fn chunk(
        &self,
        head: &RequestHead,
        chunk: Chunk,
        kind: ChunkKind,
        len: usize,
        room: usize,
    ) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ChunkHead::bytes(self.form) + room);
        let chunk = ChunkHead {
            chunk,
            kind,
            cookie: head.cookie,
            at: head.at,
            len: len as u64,
        };
        chunk.encode(self.form, &mut bytes);
        bytes
    }
}

/// What moves no data to or from the client is not counted.
fn counted_as(command: Command) -> Option<Counted> {
    match command {
        Command::Read => Some(Counted::Read),
        Command::Write | Command::WriteZeroes => Some(Counted::Write),
        Command::Flush => Some(Counted::Flush),
        Command::Trim => Some(Counted::Unmap),
        Command::Cache | Command::BlockStatus | Command::Disconnect | Command::Other(_) => None,
    }
}

fn simple(head: &RequestHead, error: Option<NbdError>) -> Vec<u8> {
    let cookie = head.cookie;
    SimpleReply { error, cookie }.encode().to_vec()
}
