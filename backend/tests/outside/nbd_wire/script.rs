//! What a client sends, as bytes.

use blockgraph::driver::nbd::wire::{
    Choose, Command, CommandFlags, InfoKind, MetaQuery, OptionHead, OptionKind, REQUEST_MAGIC,
    RequestHead,
};

/// Client flags: fixed newstyle, no zeroes.
pub(crate) const FLAGS: u32 = 3;

/// An option with that payload.
pub(crate) fn option(kind: OptionKind, payload: &[u8]) -> Vec<u8> {
    sized_option(kind, payload.len() as u32, payload)
}

/// An option that claims another length than its payload has.
pub(crate) fn sized_option(kind: OptionKind, len_bytes: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = OptionHead { kind, len_bytes }.encode().to_vec();
    bytes.extend(payload);
    bytes
}

/// Payload of INFO and GO.
pub(crate) fn choose(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let wanted = wanted.iter().map(|n| InfoKind::from_number(*n)).collect();
    Choose { name, wanted }.encode(&mut bytes);
    bytes
}

/// The same with a name that may be no UTF-8.
pub(crate) fn choose_raw(name: &[u8]) -> Vec<u8> {
    let mut bytes = (name.len() as u32).to_be_bytes().to_vec();
    bytes.extend(name);
    bytes.extend([0, 0]);
    bytes
}

pub(crate) fn go(name: &str) -> Vec<u8> {
    option(OptionKind::Go, &choose(name, &[]))
}

pub(crate) fn abort() -> Vec<u8> {
    option(OptionKind::Abort, &[])
}

pub(crate) fn structured() -> Vec<u8> {
    option(OptionKind::StructuredReply, &[])
}

pub(crate) fn extended() -> Vec<u8> {
    option(OptionKind::ExtendedHeaders, &[])
}

/// Payload of the options about contexts.
pub(crate) fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    MetaQuery::encode(name, queries, &mut bytes);
    bytes
}

pub(crate) fn set_contexts(name: &str, names: &[&str]) -> Vec<u8> {
    option(OptionKind::SetMetaContext, &queries(name, names))
}

pub(crate) fn list_contexts(name: &str, names: &[&str]) -> Vec<u8> {
    option(OptionKind::ListMetaContext, &queries(name, names))
}

/// One option after the other.
pub(crate) fn all(options: &[Vec<u8>]) -> Vec<u8> {
    options.concat()
}

/// The head of a request in the middle of every script.
pub(crate) fn head(command: u16, flags: u16, at: u64, len: u64) -> RequestHead {
    RequestHead {
        flags: CommandFlags(flags),
        command: Command::from_number(command),
        cookie: super::peer::COOKIE,
        at,
        len,
    }
}

/// A compact request with another magic number.
pub(crate) fn wrong_magic() -> Vec<u8> {
    let head = head(0, 0, 0, 512);
    let mut bytes = head.encode_compact().expect("short").to_vec();
    bytes[..4].copy_from_slice(&(!REQUEST_MAGIC).to_be_bytes());
    bytes
}

/// How much data the reply to a compact request that is a read has.
pub(crate) fn read_len(request: &[u8], form: blockgraph::driver::nbd::wire::Form) -> usize {
    use blockgraph::driver::nbd::wire::Form;
    let head = match form {
        Form::Extended => return 0,
        _ => request.first_chunk().map(RequestHead::decode_compact),
    };
    match head {
        Some(Ok(head)) if head.command == Command::Read => head.len as usize,
        _ => 0,
    }
}
