//! Why an NBD server cannot be a disk, in QEMU's words where it has any.

use crate::driver::nbd::wire::{OptionKind, OptionReplyKind};
use crate::graph::errno_text;
use std::io;
use thiserror::Error;

/// Why connecting failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody there.
    #[error("Failed to connect to '{to}': {}", errno_text(cause))]
    Connect {
        /// Where.
        to: String,
        /// Why.
        cause: io::Error,
    },
    /// No such host or port.
    #[error("address resolution failed for {to}: {why}")]
    Resolve {
        /// Which.
        to: String,
        /// Why.
        why: String,
    },
    /// The connection broke, or nothing came for too long.
    #[error("Failed to {doing}: {}", errno_text(cause))]
    Lost {
        /// What was being done.
        doing: &'static str,
        /// Why.
        cause: io::Error,
    },
    /// The server says no.
    #[error("{text}")]
    Refused {
        /// To what.
        text: String,
        /// What QEMU prints below.
        hint: Option<String>,
    },
    /// The server sent what no server may.
    #[error("{0}")]
    Malformed(String),
    /// The certificate, or TLS itself.
    #[error("{0}")]
    Tls(String),
    /// The export cannot be used as asked.
    #[error("{0}")]
    Unusable(String),
    /// Somebody closes the node meanwhile.
    #[error("Failed to connect: closed meanwhile")]
    Stopped,
    /// No thread, no descriptor.
    #[error("Could not start an NBD connection: {}", errno_text(.0))]
    System(io::Error),
}

impl ClientError {
    /// What QEMU prints on lines of their own below the message, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            ClientError::Refused { hint, .. } => hint.clone(),
            _ => None,
        }
    }

    /// What a server's refusal of an option is called; `said` is its own text.
    pub(super) fn refused(
        option: OptionKind,
        reply: OptionReplyKind,
        said: &[u8],
        export: &str,
    ) -> ClientError {
        let to = format!("option {} ({})", option.number(), option_name(option));
        let text = match reply {
            OptionReplyKind::Unsupported => format!("Unsupported {to}"),
            OptionReplyKind::Policy => format!("Denied by server for {to}"),
            OptionReplyKind::Invalid => format!("Invalid parameters for {to}"),
            OptionReplyKind::Platform => format!("Server lacks support for {to}"),
            OptionReplyKind::TlsRequired => format!("TLS negotiation required before {to}"),
            OptionReplyKind::Unknown => "Requested export not available".to_owned(),
            OptionReplyKind::Shutdown => format!("Server shutting down before {to}"),
            OptionReplyKind::BlockSizeRequired => {
                format!("Server requires INFO_BLOCK_SIZE for {to}")
            }
            OptionReplyKind::TooBig => format!("Server finds {to} too big"),
            OptionReplyKind::ExtendedHeadersRequired => {
                format!("Server requires extended headers for {to}")
            }
            other => format!(
                "Unknown error code {:#x} when asking for {to}",
                other.number()
            ),
        };
        let mut hints = Vec::new();
        if reply == OptionReplyKind::TlsRequired {
            hints.push("Did you forget a valid tls-creds?".to_owned());
        }
        match said.is_empty() {
            false => hints.push(format!(
                "server reported: {}",
                String::from_utf8_lossy(said)
            )),
            true if reply == OptionReplyKind::Unknown => {
                hints.push(format!("server reported: export '{export}' not present"));
            }
            true => {}
        }
        let hint = (!hints.is_empty()).then(|| hints.join("\n"));
        ClientError::Refused { text, hint }
    }
}

fn option_name(option: OptionKind) -> &'static str {
    match option {
        OptionKind::ExportName => "export name",
        OptionKind::Abort => "abort",
        OptionKind::List => "list",
        OptionKind::StartTls => "starttls",
        OptionKind::Info => "info",
        OptionKind::Go => "go",
        OptionKind::StructuredReply => "structured reply",
        OptionKind::ListMetaContext => "list meta context",
        OptionKind::SetMetaContext => "set meta context",
        OptionKind::ExtendedHeaders => "extended headers",
        OptionKind::Other(_) => "unknown",
    }
}
