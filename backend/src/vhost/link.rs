//! What other threads may do to a running session: end it, or tell its front end that the configuration changed.
//!
//! The rule: nothing here waits. Ending a session is closing its socket; the session's own thread sees that and drains.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::channel::Channel;
use super::wire::ReceiveError;

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// The front end closed its socket.
    #[error("the front end disconnected")]
    Disconnected,
    /// [`super::Door::stop`] was called.
    #[error("the export is stopping")]
    Stopped,
    /// A queue thread, or whoever holds a [`Link`], gave it up.
    #[error("{0}")]
    Failed(String),
    /// The front end sent something that must not be served.
    #[error("refused: {0}")]
    Refused(String),
}

impl From<ReceiveError> for End {
    fn from(error: ReceiveError) -> End {
        match error {
            ReceiveError::HungUp => End::Disconnected,
            other => End::Refused(describe(&other)),
        }
    }
}

/// An error and its sources in one line.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A handle to a running session. Once the session is over, it does nothing.
#[derive(Debug, Clone)]
pub struct Link {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    /// `None` once the session is over: whoever keeps a link must not keep the front end's socket open.
    socket: Option<UnixStream>,
    channel: Option<Channel>,
    end: Option<End>,
}

impl Link {
    /// The link of a session on that socket.
    ///
    /// # Errors
    /// If the process is out of descriptors.
    pub fn new(socket: &UnixStream) -> std::io::Result<Link> {
        let inner = Inner {
            socket: Some(socket.try_clone()?),
            channel: None,
            end: None,
        };
        Ok(Link {
            inner: Arc::new(Mutex::new(inner)),
        })
    }

    /// Gives the session up: its socket is closed at once, its rings are drained by its own thread. The first reason
    /// counts. Returns without waiting.
    pub fn fail(&self, reason: impl Into<String>) {
        self.close(End::Failed(reason.into()));
    }

    pub(super) fn close(&self, end: End) {
        let mut inner = self.lock();
        inner.end.get_or_insert(end);
        inner.shut();
    }

    /// The session is over, for `end` unless it was closed from our side before. Lets the front end see it, and forgets
    /// the front end's descriptors.
    pub(super) fn finish(&self, end: End) -> End {
        let mut inner = self.lock();
        inner.shut();
        inner.socket = None;
        inner.channel = None;
        inner.end.get_or_insert(end).clone()
    }

    pub(super) fn set_channel(&self, channel: Channel) {
        self.lock().channel = Some(channel);
    }

    pub(super) fn config_changed(&self) {
        let mut inner = self.lock();
        let told = inner.channel.as_mut().map(Channel::config_changed);
        if let Some(Err(error)) = told {
            tracing::warn!("cannot tell the front end of a changed configuration: {error}");
            inner.channel = None;
        }
    }

    /// Guards three plain fields; never held across a call that may block.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn shut(&self) {
        if let Some(socket) = &self.socket {
            // An error means that the peer has closed it already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}
