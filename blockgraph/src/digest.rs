//! SHA-256, as the TLS library brings it: a cipher suite has its hash.

use rustls::SupportedCipherSuite;
use rustls::crypto::hash::Context;
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use std::fmt;

/// A digest in the making.
pub struct Sha256(Box<dyn Context>);

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sha256")
    }
}

impl Sha256 {
    /// Of nothing yet; `None` if the library had another kind of suite there.
    pub fn new() -> Option<Sha256> {
        match TLS13_AES_128_GCM_SHA256 {
            SupportedCipherSuite::Tls13(suite) => Some(Sha256(suite.common.hash_provider.start())),
            _ => None,
        }
    }

    /// Goes on with these bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest, in hexadecimal.
    pub fn finish(self) -> String {
        let digest = self.0.finish();
        let digits = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
        digits.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_the_known_one() {
        let mut digest = Sha256::new().unwrap();
        digest.update(b"a");
        digest.update(b"bc");
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.finish(), known);
    }
}
