//! From a fresh connection to an export: greeting, TLS, options, in the order QEMU's client has them.
//!
//! The rule: the newest form both ends speak is used, down to servers that know no options at all. What a server may say
//! is bounded in length, in number and in time.

use super::error::ClientError;
use super::export::Export;
use super::patient::Patient;
use super::session::Session;
use crate::driver::nbd::wire::{
    CONTEXT_ALLOCATION, Choose, EXPORT_NAME_ZEROES_BYTES, ExportHead, Form, HandshakeFlags,
    INIT_MAGIC, Info, InfoKind, MetaQuery, MetaReply, OLDSTYLE_MAGIC, OPTION_MAGIC,
    OPTION_REPLY_HEAD_BYTES, OptionHead, OptionKind, OptionReplyHead, OptionReplyKind, Server,
    client_flags,
};
use crate::tls::TlsClient;

/// The longest payload of a reply to an option; names and texts are at most 4096 bytes each.
const PAYLOAD_BYTES_MAX: u32 = 64 << 10;
/// More replies to one option no server has reason to send (a listing has one for each export).
const REPLIES_MAX: usize = 10_000;

/// What to ask a server for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) export: String,
    pub(super) tls: Option<TlsClient>,
    /// Another context than `base:allocation`, which then must be there.
    pub(super) context: Option<String>,
}

/// A reply to an option.
struct Reply {
    kind: OptionReplyKind,
    payload: Vec<u8>,
}

/// Does the whole handshake. Errors: lost, refused, malformed.
pub(super) fn shake(mut patient: Patient, wish: &Wish) -> Result<Session, ClientError> {
    let magic = read_u64(&mut patient, "read initial magic")?;
    if magic != INIT_MAGIC {
        return Err(malformed(format!("Bad initial magic received: {magic:#x}")));
    }
    let magic = read_u64(&mut patient, "read server magic")?;
    match magic {
        OPTION_MAGIC => newstyle(patient, wish),
        OLDSTYLE_MAGIC => oldstyle(patient, wish),
        other => Err(malformed(format!("Bad server magic received: {other:#x}"))),
    }
}

fn malformed(text: impl Into<String>) -> ClientError {
    ClientError::Malformed(text.into())
}

fn read_u64(patient: &mut Patient, doing: &'static str) -> Result<u64, ClientError> {
    patient.read_array(doing).map(u64::from_be_bytes)
}

/// The protocol of before 2011: a size, flags in 32 bits, zeroes; no names, no TLS.
fn oldstyle(mut patient: Patient, wish: &Wish) -> Result<Session, ClientError> {
    if wish.tls.is_some() {
        return Err(malformed("Server does not support STARTTLS"));
    }
    if !wish.export.is_empty() {
        return Err(malformed("Server does not support non-empty export names"));
    }
    let size_bytes = read_u64(&mut patient, "read export length")?;
    let flags = u32::from_be_bytes(patient.read_array("read export flags")?);
    let Ok(flags) = u16::try_from(flags) else {
        return Err(malformed(format!("Unexpected export flags {flags:#x}")));
    };
    patient.read_array::<EXPORT_NAME_ZEROES_BYTES>("read reserved block")?;
    let head = ExportHead { size_bytes, flags };
    finish(patient, wish, Export::new(head, None, Form::Simple)?, None)
}

fn newstyle(mut patient: Patient, wish: &Wish) -> Result<Session, ClientError> {
    let flags = patient.read_array("read server flags")?;
    let server = HandshakeFlags(u16::from_be_bytes(flags));
    let fixed = server.has(HandshakeFlags::FIXED_NEWSTYLE);
    let mut flags = 0;
    if fixed {
        flags |= client_flags::FIXED_NEWSTYLE;
    }
    if server.has(HandshakeFlags::NO_ZEROES) {
        flags |= client_flags::NO_ZEROES;
    }
    patient.write(&flags.to_be_bytes(), "send clientflags")?;
    if let Some(tls) = &wish.tls {
        if !fixed {
            return Err(malformed("Server does not support STARTTLS"));
        }
        start_tls(&mut patient, tls)?;
    }
    if fixed {
        return haggle(patient, wish, server);
    }
    let head = by_name(&mut patient, wish, server)?;
    finish(patient, wish, Export::new(head, None, Form::Simple)?, None)
}

/// Options, each with its reply, up to the choice of an export.
fn haggle(
    mut patient: Patient,
    wish: &Wish,
    server: HandshakeFlags,
) -> Result<Session, ClientError> {
    let mut choose = || {
        let form = choose_form(&mut patient)?;
        let context = choose_context(&mut patient, wish, form)?;
        let export = go(&mut patient, wish, form)?;
        if export.is_none() {
            check_listed(&mut patient, wish)?;
        }
        Ok((form, context, export))
    };
    let (form, context, export) = match choose() {
        Ok(chosen) => chosen,
        Err(error) => {
            if let ClientError::Refused { .. } | ClientError::Malformed(_) = error {
                // Only to be polite: "the client MAY ... abort".
                let _ = send_option(&mut patient, OptionKind::Abort, &[]);
            }
            return Err(error);
        }
    };
    let export = match export {
        Some(export) => export,
        None => Export::new(by_name(&mut patient, wish, server)?, None, form)?,
    };
    finish(patient, wish, export, context)
}

fn finish(
    patient: Patient,
    wish: &Wish,
    export: Export,
    context: Option<u32>,
) -> Result<Session, ClientError> {
    if let (Some(name), None) = (&wish.context, context) {
        let text = format!("requested x-dirty-bitmap {name} not found");
        return Err(ClientError::Unusable(text));
    }
    Ok(Session::new(patient.transport, export, context))
}

fn start_tls(patient: &mut Patient, tls: &TlsClient) -> Result<(), ClientError> {
    send_option(patient, OptionKind::StartTls, &[])?;
    let reply = read_reply(patient, OptionKind::StartTls)?;
    match reply.kind {
        OptionReplyKind::Ack if reply.payload.is_empty() => patient.start_tls(tls),
        OptionReplyKind::Ack => Err(malformed("Start TLS response payload is too long")),
        kind if kind.is_error() => Err(refused(OptionKind::StartTls, &reply, "")),
        kind => Err(malformed(format!(
            "Server answered STARTTLS request with {:#x}",
            kind.number()
        ))),
    }
}

fn choose_form(patient: &mut Patient) -> Result<Form, ClientError> {
    for (option, form) in [
        (OptionKind::ExtendedHeaders, Form::Extended),
        (OptionKind::StructuredReply, Form::Structured),
    ] {
        send_option(patient, option, &[])?;
        let reply = read_reply(patient, option)?;
        match reply.kind {
            OptionReplyKind::Ack if reply.payload.is_empty() => return Ok(form),
            // Whatever a server has against a form, there is an older one to try.
            kind if kind.is_error() && kind != OptionReplyKind::TlsRequired => {}
            kind if kind.is_error() => return Err(refused(option, &reply, "")),
            kind => return Err(unexpected(option, kind)),
        }
    }
    Ok(Form::Simple)
}

/// The id of the context that says what is allocated, if the server has it.
fn choose_context(
    patient: &mut Patient,
    wish: &Wish,
    form: Form,
) -> Result<Option<u32>, ClientError> {
    if form == Form::Simple {
        return Ok(None);
    }
    let wanted = wish.context.as_deref().unwrap_or(CONTEXT_ALLOCATION);
    let option = OptionKind::SetMetaContext;
    let mut payload = Vec::new();
    MetaQuery::encode(&wish.export, &[wanted], &mut payload);
    send_option(patient, option, &payload)?;
    let mut found = None;
    for _ in 0..REPLIES_MAX {
        let reply = read_reply(patient, option)?;
        match reply.kind {
            OptionReplyKind::Ack if reply.payload.is_empty() => return Ok(found),
            OptionReplyKind::MetaContext => {
                let context = MetaReply::decode(&reply.payload)
                    .map_err(|e| malformed(format!("Bad meta context: {e}")))?;
                if context.name != wanted || found.is_some() {
                    return Err(malformed(format!(
                        "Failed to negotiate query '{wanted}', server answered with different context '{}'",
                        context.name
                    )));
                }
                found = Some(context.id);
            }
            // Without contexts everything counts as data; an export that is not there is found out below.
            kind if kind.is_error() => return Ok(None),
            kind => return Err(unexpected(option, kind)),
        }
    }
    Err(malformed("too many replies to one option"))
}

/// NBD_OPT_GO; `None` where the server does not know it.
fn go(patient: &mut Patient, wish: &Wish, form: Form) -> Result<Option<Export>, ClientError> {
    let option = OptionKind::Go;
    let mut payload = Vec::new();
    let choose = Choose {
        name: &wish.export,
        wanted: vec![InfoKind::BlockSize],
    };
    choose.encode(&mut payload);
    send_option(patient, option, &payload)?;
    let (mut head, mut sizes) = (None, None);
    for _ in 0..REPLIES_MAX {
        let reply = read_reply(patient, option)?;
        match reply.kind {
            OptionReplyKind::Ack => {
                let Some(head) = head else {
                    return Err(malformed("broken server omitted NBD_INFO_EXPORT"));
                };
                return Export::new(head, sizes, form).map(Some);
            }
            OptionReplyKind::Info => match Info::decode(&reply.payload) {
                Ok(Info::Export(found)) => head = Some(found),
                Ok(Info::BlockSize(found)) => sizes = Some(found),
                Ok(Info::Name(_) | Info::Description(_) | Info::Other(_)) => {}
                Err(error) => return Err(malformed(format!("Bad info of the export: {error}"))),
            },
            OptionReplyKind::Unsupported => return Ok(None),
            kind if kind.is_error() => return Err(refused(option, &reply, &wish.export)),
            kind => return Err(unexpected(option, kind)),
        }
    }
    Err(malformed("too many replies to one option"))
}

/// NBD_OPT_EXPORT_NAME can only be refused by hanging up, so the name is looked for first.
fn check_listed(patient: &mut Patient, wish: &Wish) -> Result<(), ClientError> {
    send_option(patient, OptionKind::List, &[])?;
    let mut listed = false;
    for _ in 0..REPLIES_MAX {
        let reply = read_reply(patient, OptionKind::List)?;
        match reply.kind {
            OptionReplyKind::Ack if listed => return Ok(()),
            OptionReplyKind::Ack => {
                let name = &wish.export;
                return Err(malformed(format!("No export with name '{name}' available")));
            }
            OptionReplyKind::Server => {
                let found = Server::decode(&reply.payload)
                    .map_err(|e| malformed(format!("Bad export in a listing: {e}")))?;
                listed |= found.name == wish.export;
            }
            // A server need not list what it has.
            OptionReplyKind::Unsupported | OptionReplyKind::Policy => return Ok(()),
            kind if kind.is_error() => return Err(refused(OptionKind::List, &reply, "")),
            kind => return Err(unexpected(OptionKind::List, kind)),
        }
    }
    Err(malformed("too many replies to one option"))
}

fn by_name(
    patient: &mut Patient,
    wish: &Wish,
    server: HandshakeFlags,
) -> Result<ExportHead, ClientError> {
    send_option(patient, OptionKind::ExportName, wish.export.as_bytes())?;
    let head: [u8; ExportHead::BYTES] = patient.read_array("read export length")?;
    if !server.has(HandshakeFlags::NO_ZEROES) {
        patient.read_array::<EXPORT_NAME_ZEROES_BYTES>("read reserved block")?;
    }
    Ok(ExportHead::decode(&head))
}

fn send_option(patient: &mut Patient, kind: OptionKind, payload: &[u8]) -> Result<(), ClientError> {
    // Names and contexts were checked to be short when the node was asked for.
    let len_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = OptionHead { kind, len_bytes }.encode().to_vec();
    bytes.extend(payload);
    patient.write(&bytes, "send option request")
}

fn read_reply(patient: &mut Patient, option: OptionKind) -> Result<Reply, ClientError> {
    let head: [u8; OPTION_REPLY_HEAD_BYTES] = patient.read_array("read option reply")?;
    let head = OptionReplyHead::decode(&head)
        .map_err(|e| malformed(format!("Unexpected option reply: {e}")))?;
    if head.option != option {
        return Err(malformed(format!(
            "Unexpected option type {} expected {}",
            head.option.number(),
            option.number()
        )));
    }
    if head.len_bytes > PAYLOAD_BYTES_MAX {
        return Err(malformed("option reply payload too long"));
    }
    let mut payload = vec![0; head.len_bytes as usize];
    patient.read(&mut payload, "read option reply")?;
    let kind = head.kind;
    Ok(Reply { kind, payload })
}

fn refused(option: OptionKind, reply: &Reply, export: &str) -> ClientError {
    let said = reply.payload.get(..4096).unwrap_or(&reply.payload);
    ClientError::refused(option, reply.kind, said, export)
}

fn unexpected(option: OptionKind, kind: OptionReplyKind) -> ClientError {
    malformed(format!(
        "Unexpected reply type {:#x} to option {}",
        kind.number(),
        option.number()
    ))
}
