//! Encryption at rest: AES-256-GCM with a data key of the node. The kind of a record (and its index) is authenticated
//! with it, so that a record can't be moved. The tag also serves as the record's checksum.

use std::fmt;
use std::sync::Arc;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

/// Number of bytes by which a sealed record is longer than a plain one: nonce and tag.
pub const OVERHEAD: usize = NONCE_LEN + 16;

/// A record can't be authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the checksum is wrong")]
pub struct SealError;

/// Seals and opens records.
#[derive(Clone)]
pub struct Sealer {
    key: Arc<LessSafeKey>,
    random: SystemRandom,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer([redacted])")
    }
}

impl Sealer {
    /// Returns a sealer with this key.
    pub fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("the key has the algorithm's length");
        Self { key: Arc::new(LessSafeKey::new(key)), random: SystemRandom::new() }
    }

    /// Returns nonce, ciphertext and tag of `plain`. The same `what` must be passed to open it.
    pub fn seal(&self, what: &[u8], plain: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).expect("the kernel has random bytes once it has booted");
        let mut out = Vec::with_capacity(NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plain);
        let tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(what), &mut out[NONCE_LEN..])
            .expect("a record is far shorter than the algorithm's bound");
        out.extend_from_slice(tag.as_ref());
        out
    }

    /// Returns the plain bytes of a sealed record.
    ///
    /// # Errors
    /// The record was changed, moved, or sealed with another key.
    pub fn open(&self, what: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(SealError)?;
        let mut plain = rest.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.key.open_in_place(nonce, Aad::from(what), &mut plain).map_err(|_| SealError)?.len();
        plain.truncate(length);
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_opens_only_unchanged_in_its_place_and_with_its_key() {
        let sealer = Sealer::new(&[1; 32]);
        let sealed = sealer.seal(b"log 5", b"hello");
        assert_eq!(sealer.open(b"log 5", &sealed).as_deref(), Ok(b"hello".as_slice()));
        assert_eq!(sealer.open(b"log 6", &sealed), Err(SealError));
        assert_eq!(Sealer::new(&[2; 32]).open(b"log 5", &sealed), Err(SealError));
        for position in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[position] ^= 1;
            assert_eq!(sealer.open(b"log 5", &bad), Err(SealError));
            assert_eq!(sealer.open(b"log 5", &sealed[..position]), Err(SealError));
        }
    }
}
