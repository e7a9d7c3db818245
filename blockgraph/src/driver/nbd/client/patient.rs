//! A transport during the handshake: calls that wait, but never past the deadline nor once somebody says stop.

use super::error::ClientError;
use super::transport::{Transport, Woken};
use crate::tls::TlsClient;
use ring::Bell;
use std::io::{self, ErrorKind, IoSlice};
use std::time::Instant;

/// How long a handshake may take, and who may end it early.
#[derive(Clone, Debug)]
pub(super) struct Patience {
    pub(super) stop: Bell,
    pub(super) deadline: Instant,
}

/// A transport that waits.
pub(super) struct Patient {
    pub(super) transport: Transport,
    pub(super) patience: Patience,
}

impl Patient {
    /// Fills `to`. Errors: the connection is lost, too late, stopped; `doing` says at what.
    pub(super) fn read(&mut self, to: &mut [u8], doing: &'static str) -> Result<(), ClientError> {
        let mut done = 0;
        while done < to.len() {
            match self.transport.recv(&mut to[done..]) {
                Ok(Some(len)) => done += len,
                Ok(None) => self.wait(false, doing)?,
                Err(cause) => return Err(lost(cause, doing)),
            }
        }
        Ok(())
    }

    pub(super) fn read_array<const N: usize>(
        &mut self,
        doing: &'static str,
    ) -> Result<[u8; N], ClientError> {
        let mut bytes = [0; N];
        self.read(&mut bytes, doing)?;
        Ok(bytes)
    }

    /// Sends all of `from`. Errors: as [`Patient::read`].
    pub(super) fn write(&mut self, from: &[u8], doing: &'static str) -> Result<(), ClientError> {
        let mut rest = from;
        while !rest.is_empty() {
            match self.transport.send(&[IoSlice::new(rest)]) {
                Ok(0) => self.wait(true, doing)?,
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(cause) => return Err(lost(cause, doing)),
            }
        }
        Ok(())
    }

    /// From here on everything is encrypted. Errors: the server is not who it should be, and as [`Patient::read`].
    pub(super) fn start_tls(&mut self, tls: &TlsClient) -> Result<(), ClientError> {
        let doing = "do the TLS handshake";
        let refusal = |error: rustls::Error| ClientError::Tls(error.to_string());
        self.transport.start_tls(tls).map_err(refusal)?;
        while self.transport.is_shaking() {
            if let Err(cause) = self.transport.shake() {
                return Err(tls_refusal(cause, tls));
            }
            if self.transport.is_shaking() {
                self.wait(false, doing)?;
            }
        }
        Ok(())
    }

    fn wait(&self, more: bool, doing: &'static str) -> Result<(), ClientError> {
        let Patience { stop, deadline } = &self.patience;
        let woken = self.transport.wait(more, stop, Some(*deadline));
        match woken.map_err(|cause| lost(cause, doing))? {
            Woken::Late => Err(lost(io::Error::from_raw_os_error(libc::ETIMEDOUT), doing)),
            Woken::Maybe if self.is_stopped() => Err(ClientError::Stopped),
            Woken::Maybe => Ok(()),
        }
    }

    fn is_stopped(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.patience.stop, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

fn lost(cause: io::Error, doing: &'static str) -> ClientError {
    if cause.kind() == ErrorKind::UnexpectedEof {
        let cause = io::Error::other("Unexpected end-of-file before all data were read");
        return ClientError::Lost { doing, cause };
    }
    ClientError::Lost { doing, cause }
}

/// QEMU's words for the two usual ones.
fn tls_refusal(cause: io::Error, tls: &TlsClient) -> ClientError {
    use rustls::CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidForName, NotValidForNameContext,
        UnknownIssuer,
    };
    let inner = cause.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(rustls::Error::InvalidCertificate(
            NotValidForName | NotValidForNameContext { .. },
        )) => {
            let name = tls.hostname();
            ClientError::Tls(format!("Certificate does not match the hostname {name}"))
        }
        Some(rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature)) => {
            ClientError::Tls("The certificate hasn't got a known issuer".to_owned())
        }
        Some(rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. })) => {
            ClientError::Tls("The certificate has expired".to_owned())
        }
        Some(error) => ClientError::Tls(format!("TLS handshake failed: {error}")),
        None => lost(cause, "do the TLS handshake"),
    }
}
