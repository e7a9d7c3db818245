//! The files of tls-creds-x509: which there are, how large they may be, and what is said when one is wrong.
//!
//! The rule: every refusal names the file it is about.

use super::{Endpoint, TlsError};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::{CertificateError, RootCertStore};
use std::io;
use std::path::Path;

/// No file of credentials is larger.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 20;

/// Our certificate with those that lead to the CA, and its key.
pub(super) struct Own {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for Own {
    /// Keys are not for logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Own({} certificates)", self.chain.len())
    }
}

/// The directory, and the names of the files in it.
pub(super) struct Dir<'a>(pub(super) &'a Path);

impl Dir<'_> {
    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, TlsError> {
        let path = self.path(name);
        let access = |cause| TlsError::Access {
            path: path.clone(),
            cause,
        };
        let file = std::fs::File::open(&path).map_err(access)?;
        let mut bytes = Vec::new();
        let mut limited = io::Read::take(file, FILE_BYTES_MAX + 1);
        io::Read::read_to_end(&mut limited, &mut bytes).map_err(access)?;
        match bytes.len() as u64 > FILE_BYTES_MAX {
            true => Err(TlsError::TooLarge(path)),
            false => Ok(bytes),
        }
    }

    /// `None` where there is no such file.
    fn read_if_there(&self, name: &str) -> Result<Option<Vec<u8>>, TlsError> {
        match self.read(name) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(TlsError::Access { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn roots(&self) -> Result<RootCertStore, TlsError> {
        let name = "ca-cert.pem";
        let bytes = self.read(name)?;
        let refusal = || TlsError::Ca(self.path(name));
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(&bytes) {
            let cert = cert.map_err(|_| refusal())?;
            roots.add(cert).map_err(|_| refusal())?;
        }
        match roots.is_empty() {
            true => Err(refusal()),
            false => Ok(roots),
        }
    }

    pub(super) fn crls(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
        let name = "ca-crl.pem";
        let Some(bytes) = self.read_if_there(name)? else {
            return Ok(Vec::new());
        };
        let refusal = |why: String| TlsError::Crl {
            path: self.path(name),
            why,
        };
        let lists: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
        match lists {
            Ok(lists) if lists.is_empty() => Err(refusal("no list in it".to_owned())),
            Ok(lists) => Ok(lists),
            Err(error) => Err(refusal(error.to_string())),
        }
    }

    /// A client may go without, as with QEMU; a server may not.
    pub(super) fn own(&self, endpoint: Endpoint) -> Result<Option<Own>, TlsError> {
        let (cert, key) = match endpoint {
            Endpoint::Server => (self.read("server-cert.pem")?, self.read("server-key.pem")?),
            Endpoint::Client => {
                let cert = self.read_if_there("client-cert.pem")?;
                match (cert, self.read_if_there("client-key.pem")?) {
                    (Some(cert), Some(key)) => (cert, key),
                    _ => return Ok(None),
                }
            }
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&cert).collect();
        let chain = chain.map_err(|e| self.pair(endpoint, e.to_string()))?;
        if chain.is_empty() {
            return Err(self.pair(endpoint, "no certificate in it".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_slice(&key);
        let key = key.map_err(|e| self.pair(endpoint, e.to_string()))?;
        Ok(Some(Own { chain, key }))
    }

    pub(super) fn pair(&self, endpoint: Endpoint, why: String) -> TlsError {
        TlsError::Pair {
            cert: self.path(&format!("{}-cert.pem", word(endpoint))),
            key: self.path(&format!("{}-key.pem", word(endpoint))),
            why,
        }
    }

    pub(super) fn own_error(&self, endpoint: Endpoint, error: rustls::Error) -> TlsError {
        use CertificateError::{
            BadSignature, Expired, ExpiredContext, NotValidYet, NotValidYetContext, UnknownIssuer,
        };
        let cert = self.path(&format!("{}-cert.pem", word(endpoint)));
        match error {
            rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => {
                TlsError::Expired(word(endpoint), cert)
            }
            rustls::Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
                TlsError::NotYetActive(word(endpoint), cert)
            }
            // A bad signature is that of another authority of the same name.
            rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature) => {
                TlsError::OwnCertificate {
                    cert,
                    ca: self.path("ca-cert.pem"),
                    why: "The certificate hasn't got a known issuer".to_owned(),
                }
            }
            error => TlsError::OwnCertificate {
                cert,
                ca: self.path("ca-cert.pem"),
                why: error.to_string(),
            },
        }
    }
}

fn word(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Client => "client",
        Endpoint::Server => "server",
    }
}
