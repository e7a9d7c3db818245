//! SHA-256 of what a bitmap says, for comparisons with QEMU.

use super::dirty::DirtyBitmap;
use crate::digest::Sha256;

impl DirtyBitmap {
    /// SHA-256 of its words in little endian, in hexadecimal: what QEMU's `x-debug-block-dirty-bitmap-sha256` answers.
    pub fn sha256(&self) -> String {
        let Some(mut digest) = Sha256::new() else {
            return String::new();
        };
        for word in self.words() {
            digest.update(&word.to_le_bytes());
        }
        digest.finish()
    }
}
