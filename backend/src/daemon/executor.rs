//! Executes commands one by one, in the order given, each wholly or not at all.

use super::edits::Edits;
use super::engines::{Teams, check_engines};
use super::exports::{Export, ExportKey};
use super::jobs::Jobs;
use super::monitors::Monitors;
use super::nbd::Nbd;
use super::removal::Leaving;
use crate::cli::{BlockdevOptions, ChildRef, Command, DriverOptions, NbdServerAt};
use crate::open;
use crate::process::connected_stream;
use crate::vhost::DoorEvent;
use blockgraph::graph::{Control, FdSets};
use blockgraph::{Current, NodeId};
use ring::inherited::Inherited;
use ring::{Bell, Choice};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What doors have to say, for the control thread.
#[derive(Debug)]
pub(super) struct News {
    events: Mutex<VecDeque<(ExportKey, DoorEvent)>>,
    notes: Mutex<VecDeque<Note>>,
    pub(super) bell: Bell,
}

/// What a thread has seen.
#[derive(Debug)]
pub(super) enum Note {
    /// A write went beyond a node's threshold.
    Threshold {
        /// Its name.
        node: String,
        /// Where the threshold was.
        at_bytes: u64,
        /// How far beyond it.
        exceeded_bytes: u64,
    },
}

impl News {
    pub(super) fn push(&self, export: ExportKey, event: DoorEvent) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push_back((export, event));
        drop(events);
        self.bell.ring();
    }

    pub(super) fn note(&self, note: Note) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.push_back(note);
        drop(notes);
        self.bell.ring();
    }

    pub(super) fn next_note(&self) -> Option<Note> {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.pop_front()
    }

    pub(super) fn pop(&self) -> Option<(ExportKey, DoorEvent)> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.pop_front()
    }
}

/// Everything the control thread owns.
#[derive(Debug)]
pub struct Daemon {
    pub(super) current: Arc<Current>,
    pub(super) teams: Teams,
    pub(super) control: Control,
    /// In the order in which they were made.
    pub(super) exports: Vec<Export>,
    /// What is on its way out.
    pub(super) leaving: Vec<Leaving>,
    pub(super) news: Arc<News>,
    pub(super) nbd: Nbd,
    pub(super) inherited: Inherited,
    pub(super) jobs: Jobs,
    /// Rings when a node has something to say.
    pub(super) noticed: Bell,
    pub(super) monitors: Monitors,
    pub(super) edits: Edits,
    /// Somebody said `quit`.
    pub(super) quitting: bool,
    /// When bitmap journals are to be looked after.
    pub(super) journals_due: Option<Instant>,
}

impl Daemon {
    /// A daemon that serves nothing yet. Errors: out of descriptors.
    pub fn new(inherited: Inherited) -> std::io::Result<Daemon> {
        let current = Arc::<Current>::default();
        let noticed = Bell::new()?;
        current.get().notices().listen(noticed.clone());
        let teams = Teams::new(current.clone());
        // Threads, not io_uring: opening and closing nodes is no reason to set up a ring, and they are never refused.
        let control = Control::new(current.clone(), teams.epochs().clone(), Choice::Threads)?;
        Ok(Daemon {
            teams,
            control,
            current,
            exports: Vec::new(),
            leaving: Vec::new(),
            news: Arc::new(News {
                events: Mutex::default(),
                notes: Mutex::default(),
                bell: Bell::new()?,
            }),
            nbd: Nbd::default(),
            inherited,
            jobs: Jobs::new()?,
            noticed,
            monitors: Monitors::default(),
            edits: Edits::default(),
            quitting: false,
            journals_due: None,
        })
    }

    /// Executes one command. Errors: in QSD's words; nothing has changed then.
    pub fn execute(&mut self, command: Command) -> Result<(), String> {
        match command {
            Command::Object(options) => self.add_object(options),
            Command::Blockdev(options) => self.add_node(options),
            Command::Export(options) => self.add_export(options),
            Command::NbdServer(options) => self.start_nbd_server(options),
            Command::Chardev(options) => self.add_chardev(options),
            Command::Monitor(options) => self.add_monitor(options),
            // Printing is the caller's; nothing here has a terminal.
            Command::ShowHelp(_) => Ok(()),
        }
    }

    /// Descriptors that clients passed.
    pub(crate) fn fdsets(&mut self) -> &mut FdSets {
        &mut self.control.resources.fd_sets
    }

    fn add_node(&mut self, options: BlockdevOptions) -> Result<(), String> {
        self.open_node(options).map(drop)
    }

    /// Opens a node; its id and its name, which is a generated one if none was asked for.
    pub(super) fn open_node(
        &mut self,
        options: BlockdevOptions,
    ) -> Result<(NodeId, String), String> {
        check_engines(&options)?;
        self.offer_sockets(&options)?;
        let given = options.clone();
        let opened = blockgraph::graph::open::open(
            &self.current,
            open::node_spec(options).map_err(|e| e.to_string())?,
            &mut self.control,
        );
        let (id, graph) = opened.map_err(|e| open::open_refusal(&e).to_string())?;
        let name = graph.node(id).map(|node| node.name().to_owned());
        self.remember(id, given);
        Ok((id, name.unwrap_or_default()))
    }

    /// Inherited sockets that nodes ask for by number. Errors: in QSD's words.
    pub(super) fn offer_sockets(&mut self, options: &BlockdevOptions) -> Result<(), String> {
        if let DriverOptions::Nbd(nbd) = &options.driver
            && let NbdServerAt::ConnectedFd(fd) = nbd.server
        {
            let socket = connected_stream(&mut self.inherited, fd).map_err(|e| e.to_string())?;
            self.control.resources.put_socket(fd, socket);
        }
        for child in options.driver.children() {
            if let ChildRef::Inline(child) = child {
                self.offer_sockets(child)?;
            }
        }
        Ok(())
    }
}
