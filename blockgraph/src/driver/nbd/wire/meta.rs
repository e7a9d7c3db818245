//! Meta contexts: what block status can tell, chosen by name before the transmission begins.

use super::{Malformed, Reader, put_string, text};

/// Holes and zeroes.
pub const CONTEXT_ALLOCATION: &str = "base:allocation";
/// QEMU's: how deep in its chain of backing files a range lives.
pub const CONTEXT_DEPTH: &str = "qemu:allocation-depth";
/// QEMU's: what was written, as the dirty bitmap of the name that follows notes it.
pub const CONTEXT_BITMAP: &str = "qemu:dirty-bitmap:";

/// Payload of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT, still as bytes: a client may send more queries
/// than anybody wants to keep.
#[derive(Clone, Copy, Debug)]
pub struct MetaQuery<'a> {
    /// Which export.
    pub name: &'a str,
    /// How many queries there are said to be.
    pub count: u32,
    rest: Reader<'a>,
}

impl<'a> MetaQuery<'a> {
    /// Appends one with those queries.
    pub fn encode(name: &str, queries: &[&str], out: &mut Vec<u8>) {
        put_string(out, name);
        out.extend((queries.len() as u32).to_be_bytes());
        for query in queries {
            put_string(out, query);
        }
    }

    /// Errors: a length that does not fit, a name that is too long or no UTF-8.
    pub fn decode(bytes: &'a [u8]) -> Result<MetaQuery<'a>, Malformed> {
        let mut rest = Reader(bytes);
        Ok(MetaQuery {
            name: rest.string()?,
            count: rest.u32()?,
            rest,
        })
    }

    /// The next query, as bytes of at most the payload's length. Errors: a length that does not fit.
    pub fn next_query(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        if self.count == 0 {
            return self.rest.end().map(|()| None);
        }
        self.count -= 1;
        let len = self.rest.u32()? as usize;
        self.rest.bytes(len).map(Some)
    }
}

/// Payload of NBD_REP_META_CONTEXT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetaReply<'a> {
    /// What block status will call it; 0 in a listing.
    pub id: u32,
    /// The context's name.
    pub name: &'a str,
}

impl<'a> MetaReply<'a> {
    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.id.to_be_bytes());
        out.extend(self.name.as_bytes());
    }

    /// Errors: too short, or a name that is too long or no UTF-8.
    pub fn decode(bytes: &'a [u8]) -> Result<MetaReply<'a>, Malformed> {
        let mut r = Reader(bytes);
        Ok(MetaReply {
            id: r.u32()?,
            name: text(r.0)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_come_out_one_by_one_and_every_cut_is_refused() {
        let mut bytes = Vec::new();
        MetaQuery::encode("disk", &[CONTEXT_ALLOCATION, "qemu:"], &mut bytes);
        let all = |bytes: &[u8]| -> Result<Vec<Vec<u8>>, Malformed> {
            let mut query = MetaQuery::decode(bytes)?;
            let mut found = Vec::new();
            while let Some(query) = query.next_query()? {
                found.push(query.to_vec());
            }
            Ok(found)
        };
        let expected = vec![CONTEXT_ALLOCATION.into(), b"qemu:".to_vec()];
        assert_eq!(all(&bytes), Ok(expected));
        for cut in 0..bytes.len() {
            assert!(all(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        bytes.push(0);
        assert!(all(&bytes).is_err(), "one byte more");
    }

    #[test]
    fn a_context_survives_its_bytes() {
        let reply = MetaReply {
            id: 7,
            name: CONTEXT_DEPTH,
        };
        let mut bytes = Vec::new();
        reply.encode(&mut bytes);
        assert_eq!(MetaReply::decode(&bytes), Ok(reply));
    }
}
