//! TLS credentials: a directory of PEM files, named as QEMU's tls-creds-x509 names them, for either end of a connection.
//!
//! The rule: everything is read and checked when the credentials are made, so that a wrong file is a message at start and
//! never a handshake that fails at night. Files are read on the control thread only.

mod files;

use files::{Dir, FILE_BYTES_MAX, Own};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;

/// Which end of a connection credentials are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The end that connects.
    Client,
    /// The end that listens.
    Server,
}

/// Whether the peer has to prove who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyPeer {
    /// Its certificate must come from our CA (a client must have one).
    Yes,
    /// Anybody may be there.
    No,
}

/// Whether our own certificate is held against our CA and the clock when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SanityCheck {
    /// It is.
    Yes,
    /// It is used as it is.
    No,
}

/// What to load and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    /// Where `ca-cert.pem` and the others are.
    pub dir: PathBuf,
    /// For which end.
    pub endpoint: Endpoint,
    /// Whom to talk to.
    pub verify_peer: VerifyPeer,
    /// Whether to look at our own certificate first.
    pub sanity_check: SanityCheck,
}

/// Why credentials cannot be used; the texts are QEMU's where it has one, each names its file.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file that must be there is not, or cannot be read.
    #[error(
        "Unable to access credentials {path}: {}",
        crate::graph::errno_text(cause)
    )]
    Access {
        /// Which.
        path: String,
        /// Why.
        cause: io::Error,
    },
    /// Far too large for what it should be.
    #[error("Unable to access credentials {0}: larger than {FILE_BYTES_MAX} bytes")]
    TooLarge(String),
    /// No certificate in it.
    #[error("Unable to import CA certificate list {0}")]
    Ca(String),
    /// No revocation list in it.
    #[error("Cannot load CRL '{path}': {why}")]
    Crl {
        /// Which.
        path: String,
        /// Why.
        why: String,
    },
    /// Not a certificate, not its key, or not a pair.
    #[error("Cannot load certificate '{cert}' & key '{key}': {why}")]
    Pair {
        /// The certificate's file.
        cert: String,
        /// The key's file.
        key: String,
        /// Why.
        why: String,
    },
    /// Our own certificate is too old.
    #[error("The {0} certificate {1} has expired")]
    Expired(&'static str, String),
    /// Our own certificate is too new.
    #[error("The {0} certificate {1} is not yet active")]
    NotYetActive(&'static str, String),
    /// Our own certificate would be refused by anybody who trusts our CA.
    #[error("Our own certificate {cert} failed validation against {ca}: {why}")]
    OwnCertificate {
        /// The certificate's file.
        cert: String,
        /// The CA's.
        ca: String,
        /// Why.
        why: String,
    },
    /// A client's credentials where a server's are needed.
    #[error("Expected TLS credentials for a server endpoint")]
    NotServer,
    /// A server's credentials where a client's are needed.
    #[error("Expected TLS credentials for a client endpoint")]
    NotClient,
    /// Not a DNS name and not an address.
    #[error("'{0}' is not a host name to verify a certificate against")]
    BadHostname(String),
    /// Nothing to hold the server's certificate against.
    #[error("No hostname for certificate validation")]
    NoHostname,
    /// The TLS library's own opinion of all this.
    #[error("Unable to set up TLS: {0}")]
    Setup(String),
}

/// Credentials, loaded and checked.
#[derive(Debug)]
pub struct TlsCreds {
    endpoint: Endpoint,
    verify_peer: VerifyPeer,
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    crls: Vec<CertificateRevocationListDer<'static>>,
    own: Option<Own>,
}

impl TlsCreds {
    /// Loads the files of `options.dir`. Errors: see [`TlsError`]; each names the file.
    pub fn load(options: &TlsOptions) -> Result<TlsCreds, TlsError> {
        let dir = Dir(&options.dir);
        let creds = TlsCreds {
            endpoint: options.endpoint,
            verify_peer: options.verify_peer,
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            roots: Arc::new(dir.roots()?),
            crls: dir.crls()?,
            own: dir.own(options.endpoint)?,
        };
        creds.check_pair(&dir)?;
        if options.sanity_check == SanityCheck::Yes {
            creds.check_own(&dir)?;
        }
        Ok(creds)
    }

    /// Which end they are for.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// For the end that listens. Errors: they are a client's.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let (Endpoint::Server, Some(own)) = (self.endpoint, &self.own) else {
            return Err(TlsError::NotServer);
        };
        let builder = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(setup)?;
        let builder = match self.verify_peer {
            VerifyPeer::Yes => builder.with_client_cert_verifier(self.client_verifier()?),
            VerifyPeer::No => builder.with_no_client_auth(),
        };
        let config = builder.with_single_cert(own.chain.clone(), own.key.clone_key());
        Ok(Arc::new(config.map_err(setup)?))
    }

    /// For the end that connects to a server whose certificate must be for `hostname`, which may be missing only where the
    /// peer need not prove who it is. Errors: they are a server's; no host name, or none that is one.
    pub fn client_config(&self, hostname: Option<&str>) -> Result<TlsClient, TlsError> {
        if self.endpoint != Endpoint::Client {
            return Err(TlsError::NotClient);
        }
        let name = match (hostname, self.verify_peer) {
            (Some(name), _) => ServerName::try_from(name.to_owned())
                .map_err(|_| TlsError::BadHostname(name.to_owned()))?,
            (None, VerifyPeer::Yes) => return Err(TlsError::NoHostname),
            // An address is never sent as a name (RFC 6066, 3), and nobody verifies it.
            (None, VerifyPeer::No) => ServerName::from(std::net::Ipv4Addr::UNSPECIFIED),
        };
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(setup)?
            .dangerous()
            .with_custom_certificate_verifier(self.server_verifier()?);
        let config = match &self.own {
            None => builder.with_no_client_auth(),
            Some(own) => builder
                .with_client_auth_cert(own.chain.clone(), own.key.clone_key())
                .map_err(setup)?,
        };
        let config = Arc::new(config);
        Ok(TlsClient { config, name })
    }

    fn client_verifier(
        &self,
    ) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
        WebPkiClientVerifier::builder_with_provider(self.roots.clone(), self.provider.clone())
            .with_crls(self.crls.clone())
            .allow_unknown_revocation_status()
            .build()
            .map_err(setup)
    }

    fn server_verifier(&self) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
        match self.verify_peer {
            VerifyPeer::Yes => {
                let (roots, provider) = (self.roots.clone(), self.provider.clone());
                let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider)
                    .with_crls(self.crls.clone())
                    .allow_unknown_revocation_status()
                    .build();
                Ok(verifier.map_err(setup)?)
            }
            VerifyPeer::No => Ok(Arc::new(Anybody(self.provider.clone()))),
        }
    }

    /// A certificate and its key must belong together, whatever they are worth.
    fn check_pair(&self, dir: &Dir<'_>) -> Result<(), TlsError> {
        let Some(own) = &self.own else { return Ok(()) };
        let pair = rustls::sign::CertifiedKey::from_der(
            own.chain.clone(),
            own.key.clone_key(),
            &self.provider,
        );
        let unknown = rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown);
        match pair {
            Ok(_) => Ok(()),
            Err(error) if error == unknown => Ok(()),
            Err(rustls::Error::InconsistentKeys(_)) => Err(dir.pair(
                self.endpoint,
                "The certificate and the given key do not match.".to_owned(),
            )),
            Err(error) => Err(dir.pair(self.endpoint, error.to_string())),
        }
    }

    /// What a peer that trusts our CA would say of our certificate.
    fn check_own(&self, dir: &Dir<'_>) -> Result<(), TlsError> {
        let Some((first, rest)) = self.own.as_ref().and_then(|own| own.chain.split_first()) else {
            return Ok(());
        };
        let now = UnixTime::now();
        let verdict = match self.endpoint {
            Endpoint::Client => self
                .client_verifier()?
                .verify_client_cert(first, rest, now)
                .map(|_| ()),
            Endpoint::Server => chain_verdict(first, rest, &self.roots, now, &self.provider),
        };
        verdict.map_err(|error| dir.own_error(self.endpoint, error))
    }
}

/// What a connection to a server starts TLS with.
#[derive(Clone, Debug)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// The same only if made by the same call.
impl PartialEq for TlsClient {
    fn eq(&self, other: &TlsClient) -> bool {
        Arc::ptr_eq(&self.config, &other.config) && self.name == other.name
    }
}

impl Eq for TlsClient {}

impl TlsClient {
    /// Whom the server's certificate has to name.
    pub fn hostname(&self) -> String {
        self.name.to_str().into_owned()
    }

    /// A session that has not begun its handshake. Errors: the library's.
    pub fn session(&self) -> Result<rustls::ClientConnection, rustls::Error> {
        rustls::ClientConnection::new(self.config.clone(), self.name.clone())
    }
}

fn setup(error: impl std::fmt::Display) -> TlsError {
    TlsError::Setup(error.to_string())
}

fn chain_verdict(
    first: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
    provider: &CryptoProvider,
) -> Result<(), rustls::Error> {
    let algorithms = provider.signature_verification_algorithms.all;
    let cert = ParsedCertificate::try_from(first)?;
    verify_server_cert_signed_by_trust_anchor(&cert, roots, rest, now, algorithms)
}

/// Takes any server (`verify-peer=off`); what is said is encrypted, to whomever.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _first: &CertificateDer<'_>,
        _rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.0.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
