//! What nodes are opened with besides their options: things the process has by name.
//!
//! The rule: whoever owns the control thread puts them here before a node that names them is opened; a node that was
//! opened keeps what it took.

use super::fdsets::FdSets;
use crate::tls::{TlsClient, TlsCreds, TlsError};
use ring::File;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// Named things.
#[derive(Debug, Default)]
pub struct Resources {
    creds: BTreeMap<String, Arc<TlsCreds>>,
    sockets: BTreeMap<i32, OwnedFd>,
    journals: BTreeMap<PathBuf, Arc<File>>,
    /// Descriptors passed by clients, opened by name.
    pub fd_sets: FdSets,
}

/// Why there is no TLS by that name; the texts are QEMU's.
#[derive(Debug, Error)]
pub enum TlsUnavailable {
    /// Nothing has it.
    #[error("No TLS credentials with id '{0}'")]
    Unknown(String),
    /// They are of no use for this.
    #[error(transparent)]
    Unusable(#[from] TlsError),
}

impl Resources {
    /// Credentials to be found by that name; those of before, if any, are replaced.
    pub fn put_creds(&mut self, name: &str, creds: Arc<TlsCreds>) {
        self.creds.insert(name.to_owned(), creds);
    }

    /// No credentials by that name any more; nodes that are open keep theirs.
    pub fn remove_creds(&mut self, name: &str) {
        self.creds.remove(name);
    }

    /// A connected socket to be taken by that number, once.
    pub fn put_socket(&mut self, number: i32, socket: OwnedFd) {
        self.sockets.insert(number, socket);
    }

    /// The socket of that number, if nobody took it yet.
    pub fn take_socket(&mut self, number: i32) -> Option<OwnedFd> {
        self.sockets.remove(&number)
    }

    /// A file to be taken for the bitmap journal of that path, whatever is there.
    pub fn put_journal(&mut self, path: &Path, file: Arc<File>) {
        self.journals.insert(path.to_owned(), file);
    }

    /// That file, if there is one.
    pub(super) fn journal(&self, path: &Path) -> Option<Arc<File>> {
        self.journals.get(path).cloned()
    }

    /// A client's end of TLS to a server of that name. Errors: no such credentials, or of no use.
    pub fn tls_client(
        &self,
        creds: &str,
        hostname: Option<&str>,
    ) -> Result<TlsClient, TlsUnavailable> {
        let found = self.creds.get(creds);
        let found = found.ok_or_else(|| TlsUnavailable::Unknown(creds.to_owned()))?;
        Ok(found.client_config(hostname)?)
    }
}
