//! The header's fields as they stand in the file.
//!
//! The rule: what is read here alone may contradict itself; `Header::parse` puts it together.

use super::{
    BACKING_NAME_BYTES_MAX, Backing, CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, Compression, HeaderError,
    MAGIC, REFCOUNT_ORDER_MAX, TableAt, V2_BYTES, V3_BYTES, V3_BYTES_MIN, Version,
};
use crate::driver::qcow2::format::bytes::{slice_at, u8_at, u32_at, u64_at};
use crate::driver::qcow2::format::extensions::{self, Extensions};
use crate::driver::qcow2::format::features::{self, Autoclear, Compatible, Incompatible};

pub(super) fn version(bytes: &[u8]) -> Result<Version, HeaderError> {
    if u32_at(bytes, 0) != Some(MAGIC) {
        return Err(HeaderError::Magic);
    }
    match u32_at(bytes, 4).ok_or(HeaderError::TooShort)? {
        2 => Ok(Version::V2),
        3 => Ok(Version::V3),
        other => Err(HeaderError::Version(other)),
    }
}

pub(super) fn cluster_bits(bytes: &[u8]) -> Result<u32, HeaderError> {
    let bits = u32_at(bytes, 20).ok_or(HeaderError::TooShort)?;
    match bits {
        CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX => Ok(bits),
        _ => Err(HeaderError::ClusterBits(bits)),
    }
}

/// The fields both versions have.
pub(super) struct Fields {
    pub(super) backing_at: u64,
    pub(super) backing_bytes: u32,
    pub(super) size_bytes: u64,
    pub(super) encryption: u32,
    pub(super) l1: TableAt,
    pub(super) refcount_table: TableAt,
    pub(super) snapshots: TableAt,
    pub(super) header_bytes: u32,
}

impl Fields {
    pub(super) fn read(bytes: &[u8]) -> Option<Fields> {
        Some(Fields {
            backing_at: u64_at(bytes, 8)?,
            backing_bytes: u32_at(bytes, 16)?,
            size_bytes: u64_at(bytes, 24)?,
            encryption: u32_at(bytes, 32)?,
            l1: TableAt {
                count: u32_at(bytes, 36)?,
                at: u64_at(bytes, 40)?,
            },
            refcount_table: TableAt {
                at: u64_at(bytes, 48)?,
                count: u32_at(bytes, 56)?,
            },
            snapshots: TableAt {
                count: u32_at(bytes, 60)?,
                at: u64_at(bytes, 64)?,
            },
            header_bytes: u32_at(bytes, 100)?,
        })
    }

    /// Where the fields end and extensions begin.
    pub(super) fn header_bytes(
        &self,
        version: Version,
        cluster_bytes: u64,
    ) -> Result<usize, HeaderError> {
        let bytes = match version {
            Version::V2 => return Ok(V2_BYTES),
            Version::V3 => self.header_bytes as usize,
        };
        if bytes < V3_BYTES_MIN {
            return Err(HeaderError::TooShort);
        }
        if bytes as u64 > cluster_bytes {
            return Err(HeaderError::TooLong);
        }
        Ok(bytes)
    }

    pub(super) fn check_encryption(&self, extensions: &Extensions) -> Result<(), HeaderError> {
        match self.encryption {
            0 if extensions.encryption.is_some() => Err(HeaderError::StrayEncryption),
            0 => Ok(()),
            1 | 2 => Err(HeaderError::Encrypted(self.encryption)),
            other => Err(HeaderError::EncryptionMethod(other)),
        }
    }

    pub(super) fn backing(
        &self,
        cluster: &[u8],
        cluster_bytes: u64,
        format: Option<String>,
    ) -> Result<Option<Backing>, HeaderError> {
        let len = self.backing_bytes as usize;
        if self.backing_at == 0 {
            return Ok(None);
        }
        if len > BACKING_NAME_BYTES_MAX || len as u64 > cluster_bytes - self.backing_at {
            return Err(HeaderError::BackingTooLong);
        }
        let name = slice_at(cluster, self.backing_at as usize, len);
        let name = extensions::text(name.ok_or(HeaderError::TooShort)?, "backing file name")?;
        Ok((!name.is_empty()).then_some(Backing { name, format }))
    }
}

/// The fields of version 3, with what version 2 means by not having them.
pub(super) struct V3Fields {
    pub(super) incompatible: Incompatible,
    pub(super) compatible: Compatible,
    pub(super) autoclear: Autoclear,
    pub(super) refcount_order: u32,
    pub(super) compression: Compression,
    pub(super) tail: Vec<u8>,
}

impl V3Fields {
    pub(super) fn read(
        bytes: &[u8],
        version: Version,
        end: usize,
        feature_names: &[u8],
    ) -> Result<V3Fields, HeaderError> {
        if version == Version::V2 {
            return Ok(V3Fields {
                incompatible: Incompatible::default(),
                compatible: Compatible::default(),
                autoclear: Autoclear::default(),
                refcount_order: 4,
                compression: Compression::Zlib,
                tail: Vec::new(),
            });
        }
        let word = |at| u64_at(bytes, at).ok_or(HeaderError::TooShort);
        let (incompatible, unknown) = Incompatible::parse(word(72)?);
        if unknown != 0 {
            let text = features::describe_incompatible(unknown, feature_names);
            return Err(HeaderError::Features(text));
        }
        let refcount_order = u32_at(bytes, 96).ok_or(HeaderError::TooShort)?;
        if refcount_order > REFCOUNT_ORDER_MAX {
            return Err(HeaderError::RefcountOrder);
        }
        // qcow2.txt: byte 104, "Not present if header_length < 105".
        let stored = if end > V3_BYTES_MIN {
            u8_at(bytes, 104)
        } else {
            None
        };
        Ok(V3Fields {
            incompatible,
            compatible: Compatible::parse(word(80)?),
            autoclear: Autoclear::parse(word(88)?),
            refcount_order,
            compression: compression(stored.unwrap_or(0), incompatible)?,
            tail: bytes.get(V3_BYTES..end).unwrap_or_default().to_vec(),
        })
    }
}

fn compression(stored: u8, incompatible: Incompatible) -> Result<Compression, HeaderError> {
    match (stored, incompatible.compression) {
        (0, false) => Ok(Compression::Zlib),
        (0, true) => Err(HeaderError::CompressionBitStray),
        (1, true) => Ok(Compression::Zstd),
        (1, false) => Err(HeaderError::CompressionBitMissing),
        (other, _) => Err(HeaderError::Compression(other)),
    }
}
