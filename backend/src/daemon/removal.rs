//! Taking exports, the NBD server and nodes away while the rest goes on.
//!
//! The rule: what is taken away is out of reach at once, and gone, with its event, when its last request has ended. The control
//! thread waits for that for a moment only; a disk that is stuck is left to [`Daemon::reap`].

use super::executor::Daemon;
use super::exports::{Export, Served, WhenInUse};
use super::nbd::Running;
use crate::export::nbd::Removed;
use crate::qmp::events::BLOCK_EXPORT_DELETED;
use blockgraph::graph::edit::{Edit, EditError};
use serde_json::json;
use std::time::{Duration, Instant};

/// How long a command waits for requests to end: nearly always long enough, and short enough to keep others waiting.
const MOMENT: Duration = Duration::from_millis(500);

/// How an export is to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Only if nobody uses it.
    Safe,
    /// Whoever uses it is disconnected.
    Hard,
}

/// What is on its way out.
#[derive(Debug)]
pub(super) enum Leaving {
    /// An export whose front end, if there is one, has requests in flight.
    Export(Export),
    /// The same of NBD clients.
    Nbd(Export, Removed),
    /// A server whose last connections have not ended.
    NbdServer(Running),
}

impl Leaving {
    pub(super) fn export(&self) -> Option<&Export> {
        match self {
            Leaving::Export(export) | Leaving::Nbd(export, _) => Some(export),
            Leaving::NbdServer(_) => None,
        }
    }

    /// A server that is over, to be waited for.
    pub(super) fn server(&mut self) -> Option<&mut Running> {
        match self {
            Leaving::NbdServer(running) => Some(running),
            Leaving::Export(_) | Leaving::Nbd(..) => None,
        }
    }

    /// Have its requests ended? Waits for them for `patience` at most.
    fn is_gone(&mut self, patience: Duration) -> bool {
        match self {
            Leaving::Export(export) => export.door().is_none_or(|door| door.stop(patience).is_ok()),
            Leaving::Nbd(_, removed) => removed.is_gone(),
            Leaving::NbdServer(running) => running.server.stop(Instant::now() + patience).is_ok(),
        }
    }
}

impl Daemon {
    /// Ends an export. Errors: there is none; it is in use and that matters. In QSD's words.
    pub(crate) fn remove_export(&mut self, id: &str, removal: Removal) -> Result<(), String> {
        let Some(at) = self.exports.iter().position(|export| export.id == id) else {
            let leaves = self.leaving_exports().any(|export| export.id == id);
            return Err(match leaves {
                true => format!("Export '{id}' is already shutting down"),
                false => format!("Export '{id}' is not found"),
            });
        };
        if removal == Removal::Safe && self.is_in_use(&self.exports[at]) {
            return Err(format!(
                "export '{id}' still in use\nUse mode='hard' to force client disconnect"
            ));
        }
        let export = self.exports.remove(at);
        self.end_export(export);
        Ok(())
    }

    /// Does somebody use it who is not to be disconnected by a safe removal?
    fn is_in_use(&self, export: &Export) -> bool {
        match &export.served {
            Served::VhostUserBlk {
                blk,
                when_in_use: WhenInUse::Refuse,
                ..
            } => blk.door().is_busy(),
            Served::VhostUserBlk { .. } => false,
            Served::Nbd { name, .. } => {
                let server = self.nbd.running().map(|running| &running.server);
                server.is_some_and(|server| server.clients_of(name) > 0)
            }
        }
    }

    /// An export is out of reach, and gone once its requests have ended: for a front end's that is waited for a moment, so
    /// that nearly always it is gone when this returns; NBD clients are told and end on their own.
    fn end_export(&mut self, mut export: Export) {
        export.remove_path();
        let server = self.nbd.running().map(|running| &running.server);
        let removed = match export.nbd_name() {
            Some(name) => server.and_then(|server| server.take_away(name)),
            None => None,
        };
        let leaving = match removed {
            Some(removed) => Leaving::Nbd(export, removed),
            None => Leaving::Export(export),
        };
        self.see_off(leaving, MOMENT);
    }

    /// Stops the NBD server and ends its exports. Errors: there is none.
    pub(crate) fn stop_nbd_server(&mut self) -> Result<(), String> {
        let mut running = self.nbd.take().ok_or("NBD server not running")?;
        running.path = None;
        let is_its = |export: &mut Export| export.nbd_name().is_some();
        let exports: Vec<Export> = self.exports.extract_if(.., is_its).collect();
        // The newest first, as QEMU does it.
        let exports = exports.into_iter().rev().map(|export| {
            let name = export.nbd_name();
            match name.and_then(|name| running.server.take_away(name)) {
                Some(removed) => Leaving::Nbd(export, removed),
                None => Leaving::Export(export),
            }
        });
        let exports: Vec<Leaving> = exports.collect();
        // Before its exports, so that they are found to be gone after it.
        self.see_off(Leaving::NbdServer(running), MOMENT);
        for export in exports {
            self.see_off(export, Duration::ZERO);
        }
        Ok(())
    }

    /// Looks whether something that was on its way out is gone. Returns at once.
    pub(super) fn reap(&mut self) {
        for leaving in std::mem::take(&mut self.leaving) {
            self.see_off(leaving, Duration::ZERO);
        }
    }

    /// Says so if something is gone after `patience`, and looks again later if it is not.
    fn see_off(&mut self, mut leaving: Leaving, patience: Duration) {
        if !leaving.is_gone(patience) {
            return self.leaving.push(leaving);
        }
        match leaving {
            Leaving::Export(export) | Leaving::Nbd(export, _) => self.say_deleted(export),
            Leaving::NbdServer(_) => {}
        }
    }

    /// An export is gone.
    pub(super) fn say_deleted(&mut self, export: Export) {
        let id = export.id.clone();
        // Whoever hears of it finds its node free.
        drop(export);
        self.drop_unused();
        self.event(&BLOCK_EXPORT_DELETED, json!({ "id": id }));
    }

    /// Removes a node. Errors: there is none, or somebody uses it.
    pub(crate) fn remove_node(&mut self, name: &str) -> Result<(), String> {
        self.retry_leaving();
        let mut edit = Edit::begin(&self.current);
        if let Some(node) = edit.graph().find(name) {
            if edit.graph().is_disk(node) {
                return Err(EditError::Attached(name.to_owned()).to_string());
            }
            self.check_free(name)?;
        }
        edit.remove(name).map_err(|e| e.to_string())?;
        let (_, leaving) = edit.commit().map_err(|e| e.to_string())?;
        self.edited(leaving);
        Ok(())
    }
}
