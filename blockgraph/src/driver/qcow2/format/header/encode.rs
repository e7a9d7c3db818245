//! The header's bytes: fields, extensions, the backing file's name.
//!
//! The rule: all of it fits in one cluster, or is not written.

use super::{
    BACKING_NAME_BYTES_MAX, Bitmaps, Compression, Header, HeaderError, MAGIC, V2_BYTES, V3_BYTES,
    Version,
};
use crate::driver::qcow2::format::extensions::{self, Extensions};
use crate::driver::qcow2::format::features;

/// Disks write this much or nothing.
const SECTOR_BYTES: usize = 512;

impl Header {
    /// The first cluster as it shall stand in the file: `cluster_bytes` long. Error: `DoesNotFit`.
    pub fn encode(&self) -> Result<Vec<u8>, HeaderError> {
        let cluster_bytes = self.cluster_bytes() as usize;
        let names = features::name_table();
        let v3 = self.version == Version::V3;
        let out = match self.encode_with(if v3 { &names } else { &[] }) {
            // The names are a courtesy: left out where the cluster is too small for them.
            Ok(out) if out.len() > cluster_bytes => self.encode_with(&[])?,
            other => other?,
        };
        if out.len() > cluster_bytes {
            return Err(HeaderError::DoesNotFit);
        }
        let mut out = out;
        out.resize(cluster_bytes, 0);
        Ok(out)
    }

    /// The header in one sector, which a power cut does not tear: without the names of features, which are a courtesy. What
    /// follows in the cluster means nothing then. `None` where that is too little.
    pub fn encode_in_sector(&self) -> Option<Vec<u8>> {
        let out = self.encode_with(&[]).ok()?;
        (out.len() <= SECTOR_BYTES).then_some(out)
    }

    fn encode_with(&self, feature_names: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let extensions = Extensions {
            backing_format: self.backing.as_ref().and_then(|b| b.format.clone()),
            data_file: self.data_file.clone(),
            unknown: self.unknown.clone(),
            ..Extensions::default()
        };
        let bitmaps = match self.bitmaps {
            Bitmaps::Valid(at) => Some(at),
            Bitmaps::None | Bitmaps::Stale => None,
        };
        let extensions = extensions::encode(&extensions, bitmaps, feature_names);
        let name = self.backing.as_ref().map_or("", |b| b.name.as_str());
        if name.len() > BACKING_NAME_BYTES_MAX {
            return Err(HeaderError::BackingTooLong);
        }
        let fields_bytes = match self.version {
            Version::V2 => V2_BYTES,
            Version::V3 => V3_BYTES + self.tail.len(),
        };
        let name_at = match name {
            "" => 0,
            _ => fields_bytes + extensions.len(),
        };
        let mut out = self.encode_fields(name_at as u64, name.len() as u32);
        out.extend_from_slice(&extensions);
        out.extend_from_slice(name.as_bytes());
        Ok(out)
    }

    fn encode_fields(&self, name_at: u64, name_bytes: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(V3_BYTES);
        let mut word = |bytes: &[u8]| out.extend_from_slice(bytes);
        word(&MAGIC.to_be_bytes());
        word(&if self.version == Version::V2 { 2u32 } else { 3 }.to_be_bytes());
        word(&name_at.to_be_bytes());
        word(&name_bytes.to_be_bytes());
        word(&self.cluster_bits.to_be_bytes());
        word(&self.size_bytes.to_be_bytes());
        word(&0u32.to_be_bytes());
        word(&self.l1.count.to_be_bytes());
        word(&self.l1.at.to_be_bytes());
        word(&self.refcount_table.at.to_be_bytes());
        word(&self.refcount_table.count.to_be_bytes());
        word(&self.snapshots.count.to_be_bytes());
        word(&self.snapshots.at.to_be_bytes());
        if self.version == Version::V3 {
            word(&self.incompatible.bits().to_be_bytes());
            word(&self.compatible.bits().to_be_bytes());
            word(&self.autoclear.bits().to_be_bytes());
            word(&self.refcount_order.to_be_bytes());
            word(&((V3_BYTES + self.tail.len()) as u32).to_be_bytes());
            let compression = match self.compression {
                Compression::Zlib => 0u8,
                Compression::Zstd => 1,
            };
            word(&[compression, 0, 0, 0, 0, 0, 0, 0]);
            word(&self.tail);
        }
        out
    }
}
