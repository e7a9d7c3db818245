//! The handshake: a greeting, options one by one, an export agreed on (NBD proto.md, "Fixed newstyle negotiation").
//!
//! The rule: an option is read as it comes and never kept whole; what is wrong with it is answered in QEMU's words, and
//! only what cannot be answered ends the connection.

use super::exports::{Context, Export, Exports};
use super::line::{Gone, Line};
use super::options::Payload;
use blockgraph::driver::nbd::wire::{
    EXPORT_NAME_ZEROES_BYTES, Form, Greeting, HandshakeFlags, OPTION_HEAD_BYTES, OptionHead,
    OptionKind, OptionReplyHead, OptionReplyKind, STRING_BYTES_MAX, Server, client_flags,
};
use rustls::ServerConfig;
use std::sync::Arc;

/// No option is longer; QEMU's limit too.
const OPTION_BYTES_MAX: u32 = 32 << 20;
/// An export's name in an error is cut here.
const SHOWN_NAME_BYTES: usize = 80;

/// What both ends agreed on.
#[derive(Debug)]
pub(super) struct Agreed {
    /// The connection, which carries requests from here on.
    pub(super) line: Line,
    /// Which export.
    pub(super) export: Arc<Export>,
    /// How requests and replies look.
    pub(super) form: Form,
    /// What block status tells.
    pub(super) contexts: Vec<Context>,
}

/// What a server offers everybody.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms<'a> {
    /// What is on offer.
    pub(super) exports: &'a Exports,
    /// What to encrypt with, and that nothing is to be had without.
    pub(super) tls: Option<&'a Arc<ServerConfig>>,
}

/// One client's handshake.
#[derive(Debug)]
pub(super) struct Handshake<'a> {
    pub(super) line: Line,
    pub(super) terms: Terms<'a>,
    pub(super) form: Form,
    /// What the last SET_META_CONTEXT chose, and for which export.
    pub(super) chosen: Option<(Arc<Export>, Vec<Context>)>,
    flags: u32,
}

/// Where an option leads.
enum Next {
    /// To the next option.
    Option,
    /// To requests.
    Transmission(Arc<Export>),
    /// To encryption.
    Tls(Arc<ServerConfig>),
}

/// Agrees with the client at the other end of `line`. Errors: why not.
pub(super) fn shake_hands(line: Line, terms: Terms<'_>) -> Result<Agreed, Gone> {
    let mut handshake = Handshake {
        line,
        terms,
        form: Form::Simple,
        chosen: None,
        flags: 0,
    };
    handshake.greet()?;
    loop {
        match handshake.option()? {
            Next::Option => {}
            Next::Tls(config) => handshake.line = handshake.line.start_tls(config)?,
            Next::Transmission(export) => {
                let contexts = handshake.contexts_of(&export);
                return Ok(Agreed {
                    line: handshake.line,
                    export,
                    form: handshake.form,
                    contexts,
                });
            }
        }
    }
}

impl Handshake<'_> {
    fn greet(&mut self) -> Result<(), Gone> {
        let flags = HandshakeFlags(HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES);
        self.line.write(&Greeting { flags }.encode())?;
        let mut bytes = [0; 4];
        self.line.read(&mut bytes)?;
        self.flags = u32::from_be_bytes(bytes);
        match self.flags & !client_flags::KNOWN {
            0 => Ok(()),
            unknown => Err(Gone::Protocol(format!(
                "unknown client flags {unknown:#x} received"
            ))),
        }
    }

    fn option(&mut self) -> Result<Next, Gone> {
        let mut head = [0; OPTION_HEAD_BYTES];
        self.line.read(&mut head)?;
        let head =
            OptionHead::decode(&head).map_err(|e| Gone::Protocol(format!("an option: {e}")))?;
        if head.len_bytes > OPTION_BYTES_MAX {
            return Err(Gone::Protocol(format!(
                "an option of {} bytes, at most {OPTION_BYTES_MAX} are taken",
                head.len_bytes
            )));
        }
        let fixed = self.flags & client_flags::FIXED_NEWSTYLE != 0;
        match self.terms.tls {
            Some(tls) if !self.line.is_encrypted() => {
                let tls = tls.clone();
                self.option_before_tls(head, fixed, tls)
            }
            _ if fixed => self.fixed_option(head),
            // "a client which does not set fixed newstyle" can be told of nothing but by closing.
            _ => match head.kind {
                OptionKind::ExportName => self.export_name(head),
                _ => Err(unsupported_unfixed(head.kind)),
            },
        }
    }

    /// "FORCEDTLS mode": nothing but STARTTLS and ABORT until the connection is encrypted.
    fn option_before_tls(
        &mut self,
        head: OptionHead,
        fixed: bool,
        tls: Arc<ServerConfig>,
    ) -> Result<Next, Gone> {
        if !fixed {
            return Err(unsupported_unfixed(head.kind));
        }
        match head.kind {
            OptionKind::StartTls if head.len_bytes > 0 => self.refuse_length(head),
            OptionKind::StartTls => {
                self.reply(head.kind, OptionReplyKind::Ack, &[])?;
                Ok(Next::Tls(tls))
            }
            OptionKind::ExportName => Err(Gone::Protocol("an export name before TLS".to_owned())),
            kind => {
                self.line.skip(u64::from(head.len_bytes))?;
                let text = format!("Option {:#x} not permitted before TLS", kind.number());
                self.reply(kind, OptionReplyKind::TlsRequired, text.as_bytes())?;
                match kind {
                    OptionKind::Abort => Err(Gone::Aborted),
                    _ => Ok(Next::Option),
                }
            }
        }
    }

    fn fixed_option(&mut self, head: OptionHead) -> Result<Next, Gone> {
        use OptionReplyKind as Reply;
        let kind = head.kind;
        let takes_none = matches!(
            kind,
            OptionKind::List
                | OptionKind::StartTls
                | OptionKind::StructuredReply
                | OptionKind::ExtendedHeaders
        );
        if takes_none && head.len_bytes > 0 {
            return self.refuse_length(head);
        }
        match kind {
            OptionKind::ExportName => return self.export_name(head),
            OptionKind::Abort => {
                self.reply(kind, Reply::Ack, &[])?;
                return Err(Gone::Aborted);
            }
            OptionKind::List => self.list()?,
            OptionKind::StartTls if self.line.is_encrypted() => {
                self.reply(kind, Reply::Invalid, b"TLS already enabled")?;
            }
            OptionKind::StartTls => self.reply(kind, Reply::Policy, b"TLS not configured")?,
            OptionKind::Info => drop(self.choose(head)?),
            OptionKind::Go => {
                if let Some(export) = self.choose(head)? {
                    return Ok(Next::Transmission(export));
                }
            }
            OptionKind::StructuredReply => match self.form {
                Form::Simple => {
                    self.form = Form::Structured;
                    self.reply(kind, Reply::Ack, &[])?;
                }
                Form::Structured => {
                    self.reply(kind, Reply::Invalid, b"structured reply already negotiated")?;
                }
                Form::Extended => {
                    let text = b"extended headers already negotiated";
                    self.reply(kind, Reply::ExtendedHeadersRequired, text)?;
                }
            },
            OptionKind::ExtendedHeaders if self.form == Form::Extended => {
                self.reply(kind, Reply::Invalid, b"extended headers already negotiated")?;
            }
            OptionKind::ExtendedHeaders => {
                self.form = Form::Extended;
                self.reply(kind, Reply::Ack, &[])?;
            }
            OptionKind::ListMetaContext | OptionKind::SetMetaContext => self.meta(head)?,
            OptionKind::Other(number) => {
                self.line.skip(u64::from(head.len_bytes))?;
                let text = format!("Unsupported option {number} (<unknown>)");
                self.reply(kind, Reply::Unsupported, text.as_bytes())?;
            }
        }
        Ok(Next::Option)
    }

    /// NBD_OPT_EXPORT_NAME: "the only way to refuse is to close".
    fn export_name(&mut self, head: OptionHead) -> Result<Next, Gone> {
        let len = head.len_bytes as usize;
        if len > STRING_BYTES_MAX {
            return Err(Gone::Protocol("an export name that is too long".to_owned()));
        }
        let mut name = vec![0; len];
        self.line.read(&mut name)?;
        let export = self.terms.exports.find(&name);
        let export = export.ok_or_else(|| Gone::Protocol("export not found".to_owned()))?;
        let contexts = self.contexts_of(&export).len();
        let mut answer = export.head(self.form, contexts).encode().to_vec();
        if self.flags & client_flags::NO_ZEROES == 0 {
            answer.resize(answer.len() + EXPORT_NAME_ZEROES_BYTES, 0);
        }
        self.line.write(&answer)?;
        Ok(Next::Transmission(export))
    }

    fn list(&mut self) -> Result<(), Gone> {
        for export in self.terms.exports.all() {
            let mut bytes = Vec::new();
            let server = Server {
                name: &export.options.name,
                details: export.options.description.as_deref().unwrap_or(""),
            };
            server.encode(&mut bytes);
            self.reply(OptionKind::List, OptionReplyKind::Server, &bytes)?;
        }
        self.reply(OptionKind::List, OptionReplyKind::Ack, &[])
    }

    fn refuse_length(&mut self, head: OptionHead) -> Result<Next, Gone> {
        self.line.skip(u64::from(head.len_bytes))?;
        let text = format!("option '{}' has unexpected length", option_name(head.kind));
        self.reply(head.kind, OptionReplyKind::Invalid, text.as_bytes())?;
        Ok(Next::Option)
    }

    /// The contexts that were chosen, if they were chosen for this export.
    pub(super) fn contexts_of(&self, export: &Arc<Export>) -> Vec<Context> {
        match &self.chosen {
            Some((chosen, contexts)) if Arc::ptr_eq(chosen, export) => contexts.clone(),
            _ => Vec::new(),
        }
    }

    /// Reads what is left of the option and answers it.
    pub(super) fn answer(
        &mut self,
        payload: Payload,
        kind: OptionReplyKind,
        bytes: &[u8],
    ) -> Result<(), Gone> {
        self.line.skip(u64::from(payload.left_bytes))?;
        self.reply(payload.option, kind, bytes)
    }

    /// Says that there is no such export.
    pub(super) fn unknown_export(&mut self, payload: Payload, name: &[u8]) -> Result<(), Gone> {
        let mut text = b"export '".to_vec();
        text.extend(&name[..name.len().min(SHOWN_NAME_BYTES)]);
        if name.len() >= SHOWN_NAME_BYTES {
            text.extend(b"...");
        }
        text.extend(b"' not present");
        self.answer(payload, OptionReplyKind::Unknown, &text)
    }

    pub(super) fn reply(
        &mut self,
        option: OptionKind,
        kind: OptionReplyKind,
        payload: &[u8],
    ) -> Result<(), Gone> {
        let head = OptionReplyHead {
            option,
            kind,
            len_bytes: payload.len() as u32,
        };
        let mut bytes = head.encode().to_vec();
        bytes.extend(payload);
        self.line.write(&bytes)
    }
}

fn unsupported_unfixed(kind: OptionKind) -> Gone {
    Gone::Protocol(format!(
        "option {} of a client that cannot be answered",
        kind.number()
    ))
}

/// An option's name in messages.
pub(super) fn option_name(kind: OptionKind) -> &'static str {
    match kind {
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
        OptionKind::Other(_) => "<unknown>",
    }
}
