//! Sectors that say who wrote them.

/// In bytes.
pub const SECTOR: usize = 512;

/// What a sector may read as: 0 is zeroes, any other number what that write left there.
pub type Version = u64;

/// A sector as a write left it: its own place and the write's number, over and over.
pub fn stamp(sector: usize, version: Version) -> Vec<u8> {
    if version == 0 {
        return vec![0; SECTOR];
    }
    let mut word = (sector as u64).to_le_bytes().to_vec();
    word.extend_from_slice(&version.to_le_bytes());
    word.repeat(SECTOR / 16)
}

/// Which write left the sector so; `None` if none did.
pub fn version(sector: usize, bytes: &[u8]) -> Option<Version> {
    let version = u64::from_le_bytes(bytes[8..16].try_into().expect("eight"));
    (bytes == stamp(sector, version)).then_some(version)
}

/// The versions of sectors from `first` on. Panics where nothing of that sector's own is.
pub fn versions(first: usize, bytes: &[u8], what: &str) -> Vec<Version> {
    let sectors = bytes.chunks(SECTOR).enumerate();
    let versions = sectors.map(|(n, bytes)| {
        let found = version(first + n, bytes);
        found.unwrap_or_else(|| panic!("{what}: sector {} is {:?}", first + n, &bytes[..16]))
    });
    versions.collect()
}
