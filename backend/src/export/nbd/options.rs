//! The options with a payload worth reading: INFO and GO, LIST_META_CONTEXT and SET_META_CONTEXT.
//!
//! The rule: a payload is read piece by piece, each only if the option still has as many bytes; every way out reads the
//! rest first, so that the next option begins where it should.

use super::exports::{Context, Export};
use super::handshake::{Handshake, option_name};
use super::line::{Gone, Line};
use blockgraph::driver::nbd::wire::{
    BlockSizes, CONTEXT_BITMAP, Form, Info, InfoKind, MetaReply, OptionHead, OptionKind,
    OptionReplyKind, STRING_BYTES_MAX,
};
use std::sync::Arc;

/// No request may carry or ask for more data; QEMU's limit too.
pub(super) const TRANSFER_BYTES_MAX: u32 = 32 << 20;
/// What suits everybody.
const PREFERRED_BYTES: u32 = 4096;

/// What is left of an option's payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payload {
    pub(super) option: OptionKind,
    pub(super) left_bytes: u32,
}

/// What is wrong with a payload.
enum Wrong {
    /// The connection.
    Gone(Gone),
    /// Something to be told, as NBD_REP_ERR_INVALID.
    Invalid(String),
}

impl From<Gone> for Wrong {
    fn from(gone: Gone) -> Wrong {
        Wrong::Gone(gone)
    }
}

impl Payload {
    fn take(&mut self, line: &mut Line, to: &mut [u8]) -> Result<(), Wrong> {
        let len = u32::try_from(to.len()).unwrap_or(u32::MAX);
        let Some(left_bytes) = self.left_bytes.checked_sub(len) else {
            return Err(self.inconsistent());
        };
        self.left_bytes = left_bytes;
        Ok(line.read(to)?)
    }

    fn skip(&mut self, line: &mut Line, len_bytes: u32) -> Result<(), Wrong> {
        let Some(left_bytes) = self.left_bytes.checked_sub(len_bytes) else {
            return Err(self.inconsistent());
        };
        self.left_bytes = left_bytes;
        Ok(line.skip(u64::from(len_bytes))?)
    }

    fn u16(&mut self, line: &mut Line) -> Result<u16, Wrong> {
        let mut bytes = [0; 2];
        self.take(line, &mut bytes)?;
        Ok(u16::from_be_bytes(bytes))
    }

    fn u32(&mut self, line: &mut Line) -> Result<u32, Wrong> {
        let mut bytes = [0; 4];
        self.take(line, &mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    /// An export's name.
    fn name(&mut self, line: &mut Line) -> Result<Vec<u8>, Wrong> {
        let len = self.u32(line)?;
        if len as usize > STRING_BYTES_MAX {
            return Err(Wrong::Invalid(format!("Invalid name length: {len}")));
        }
        if len > self.left_bytes {
            return Err(self.inconsistent());
        }
        let mut name = vec![0; len as usize];
        self.take(line, &mut name)?;
        if name.contains(&0) {
            let option = option_name(self.option);
            let text = format!("Unexpected embedded NUL in option {option}");
            return Err(Wrong::Invalid(text));
        }
        Ok(name)
    }

    fn end(&self) -> Result<(), Wrong> {
        match self.left_bytes {
            0 => Ok(()),
            _ => {
                let option = option_name(self.option);
                let text = format!("option '{option}' has unexpected length");
                Err(Wrong::Invalid(text))
            }
        }
    }

    fn inconsistent(&self) -> Wrong {
        let option = option_name(self.option);
        Wrong::Invalid(format!("Inconsistent lengths in option {option}"))
    }
}

/// Payload of INFO and GO.
struct Wanted {
    name: Vec<u8>,
    kinds: Kinds,
}

/// What a client asks about an export.
#[derive(Clone, Copy, Debug, Default)]
struct Kinds {
    name: bool,
    block_sizes: bool,
}

/// Payload of LIST_META_CONTEXT and SET_META_CONTEXT, its queries still unread.
struct Queries {
    name: Vec<u8>,
    count: u32,
}

impl Handshake<'_> {
    fn payload(head: OptionHead) -> Payload {
        Payload {
            option: head.kind,
            left_bytes: head.len_bytes,
        }
    }

    /// Answers with what is wrong.
    fn refuse(&mut self, payload: Payload, wrong: Wrong) -> Result<(), Gone> {
        match wrong {
            Wrong::Gone(gone) => Err(gone),
            Wrong::Invalid(text) => self.answer(payload, OptionReplyKind::Invalid, text.as_bytes()),
        }
    }

    /// NBD_OPT_INFO and NBD_OPT_GO; the export, if there is one of that name.
    pub(super) fn choose(&mut self, head: OptionHead) -> Result<Option<Arc<Export>>, Gone> {
        let mut payload = Self::payload(head);
        let wanted = match read_wanted(&mut payload, &mut self.line) {
            Ok(wanted) => wanted,
            Err(wrong) => return self.refuse(payload, wrong).map(|()| None),
        };
        let Some(export) = self.terms.exports.find(&wanted.name) else {
            self.unknown_export(payload, &wanted.name)?;
            return Ok(None);
        };
        self.tell(head.kind, &export, wanted.kinds)?;
        Ok(Some(export))
    }

    /// The name is told to who asks; the rest to everybody, as QEMU does.
    fn tell(&mut self, option: OptionKind, export: &Arc<Export>, asked: Kinds) -> Result<(), Gone> {
        let options = &export.options;
        // QEMU tells who only asks what would be possible.
        let contexts = match option {
            OptionKind::Info => export.contexts().len(),
            _ => self.contexts_of(export).len(),
        };
        let aligned = options.block_bytes > 1;
        let sizes = BlockSizes {
            // "a client that did not ask" may not care either: it is served anyhow, if more slowly.
            minimum_bytes: match asked.block_sizes || option == OptionKind::Info {
                true => options.block_bytes,
                false => 1,
            },
            preferred_bytes: PREFERRED_BYTES.max(options.block_bytes),
            maximum_bytes: TRANSFER_BYTES_MAX,
        };
        let infos = [
            asked.name.then_some(Info::Name(&options.name)),
            options.description.as_deref().map(Info::Description),
            Some(Info::BlockSize(sizes)),
            Some(Info::Export(export.head(self.form, contexts))),
        ];
        for info in infos.into_iter().flatten() {
            let mut bytes = Vec::new();
            info.encode(&mut bytes);
            self.reply(option, OptionReplyKind::Info, &bytes)?;
        }
        if option == OptionKind::Info && aligned && !asked.block_sizes {
            let text = b"request NBD_INFO_BLOCK_SIZE to use this export";
            return self.reply(option, OptionReplyKind::BlockSizeRequired, text);
        }
        self.reply(option, OptionReplyKind::Ack, &[])
    }

    /// NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
    pub(super) fn meta(&mut self, head: OptionHead) -> Result<(), Gone> {
        let mut payload = Self::payload(head);
        let sets = head.kind == OptionKind::SetMetaContext;
        if sets {
            self.chosen = None;
            if self.form == Form::Simple {
                let option = option_name(head.kind);
                let text =
                    format!("request option '{option}' when structured reply is not negotiated");
                return self.answer(payload, OptionReplyKind::Invalid, text.as_bytes());
            }
        }
        let queries = match read_queries(&mut payload, &mut self.line) {
            Ok(queries) => queries,
            Err(wrong) => return self.refuse(payload, wrong),
        };
        let Some(export) = self.terms.exports.find(&queries.name) else {
            return self.unknown_export(payload, &queries.name);
        };
        let found = match self.find_contexts(&mut payload, &export, queries.count) {
            Ok(found) => found,
            Err(wrong) => return self.refuse(payload, wrong),
        };
        for context in &found {
            let mut bytes = Vec::new();
            let id = if sets { context.id() } else { 0 };
            let name = export.name_of(*context);
            MetaReply { id, name: &name }.encode(&mut bytes);
            self.reply(head.kind, OptionReplyKind::MetaContext, &bytes)?;
        }
        if sets {
            self.chosen = Some((export, found));
        }
        self.reply(head.kind, OptionReplyKind::Ack, &[])
    }

    /// The export's contexts that any of the queries names, each once and in the export's order.
    fn find_contexts(
        &mut self,
        payload: &mut Payload,
        export: &Export,
        count: u32,
    ) -> Result<Vec<Context>, Wrong> {
        let lists = payload.option == OptionKind::ListMetaContext;
        let all = export.contexts();
        if lists && count == 0 {
            payload.end()?;
            return Ok(all);
        }
        let names: Vec<String> = all.iter().map(|context| export.name_of(*context)).collect();
        let mut found = vec![false; all.len()];
        for _ in 0..count {
            let Some(query) = read_query(payload, &mut self.line)? else {
                continue;
            };
            // The first of that name; a listing may also ask by how names begin.
            if let Some(first) = names.iter().position(|name| name.as_bytes() == query) {
                found[first] = true;
            }
            for (found, context) in found.iter_mut().zip(&all) {
                let begins = |wildcard: &&str| wildcard.as_bytes() == query;
                *found |= lists && context.wildcards().iter().any(begins);
            }
        }
        payload.end()?;
        let named = all.into_iter().zip(found).filter(|(_, found)| *found);
        Ok(named.map(|(context, _)| context).collect())
    }
}

fn read_wanted(payload: &mut Payload, line: &mut Line) -> Result<Wanted, Wrong> {
    let name = payload.name(line)?;
    let count = payload.u16(line)?;
    let mut kinds = Kinds::default();
    for _ in 0..count {
        let kind = InfoKind::from_number(payload.u16(line)?);
        kinds.name |= kind == InfoKind::Name;
        kinds.block_sizes |= kind == InfoKind::BlockSize;
    }
    payload.end()?;
    Ok(Wanted { name, kinds })
}

fn read_queries(payload: &mut Payload, line: &mut Line) -> Result<Queries, Wrong> {
    let name = payload.name(line)?;
    let count = payload.u32(line)?;
    Ok(Queries { name, count })
}

/// One query; `None` if it is longer than any context's name.
fn read_query(payload: &mut Payload, line: &mut Line) -> Result<Option<Vec<u8>>, Wrong> {
    // The longest is that of a bitmap, whose own name has at most 1023.
    const NAME_BYTES_MAX: u32 = CONTEXT_BITMAP.len() as u32 + 1023;
    let len = payload.u32(line)?;
    if len > NAME_BYTES_MAX {
        payload.skip(line, len)?;
        return Ok(None);
    }
    let mut query = vec![0; len as usize];
    payload.take(line, &mut query)?;
    Ok(Some(query))
}
