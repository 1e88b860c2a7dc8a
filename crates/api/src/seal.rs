//! Encryption at rest: AES-256-GCM with a data key of the node. The kind of a record (and its index) is authenticated
//! with it, so that a record can't be moved. The tag also serves as the record's checksum.
//!
//! A data key can be replaced while it is in use. What was sealed with an earlier one can still be opened.
//!
//! No two records of a key may have the same nonce. A nonce is 64 random bits of its sealer and a count of 32 bits; a
//! sealer draws new bits when the count is used up. After a million starts with one key, two of them have the same bits
//! with a probability of one in 36 million. Nonces that are all random may number 2^32 with one key (NIST SP 800-38D,
//! 8.3), which a busy leader writes in ten days.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

/// Number of bytes by which a sealed record is longer than a plain one: nonce and tag.
pub const OVERHEAD: usize = NONCE_LEN + 16;

/// A record can't be authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the checksum is wrong")]
pub struct SealError;

/// Seals and opens records. Clones share the keys.
#[derive(Clone)]
pub struct Sealer(Arc<Mutex<State>>);

struct State {
    /// The key that seals, and then the earlier ones, which open what they have sealed.
    keys: Arc<[LessSafeKey]>,
    nonces: Nonces,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer([redacted])")
    }
}

/// The nonces of one sealer, each of which it uses once.
struct Nonces {
    prefix: [u8; 8],
    /// The next count; `None` when all are used.
    next: Option<u32>,
}

impl Nonces {
    fn new() -> Self {
        let mut prefix = [0; 8];
        SystemRandom::new().fill(&mut prefix).expect("the kernel has random bytes once it has booted");
        Self { prefix, next: Some(0) }
    }

    fn draw(&mut self) -> [u8; NONCE_LEN] {
        let Some(count) = self.next else {
            *self = Self::new();
            return self.draw();
        };
        self.next = count.checked_add(1);
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&self.prefix);
        nonce[8..].copy_from_slice(&count.to_be_bytes());
        nonce
    }
}

fn aes(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("the key has the algorithm's length"))
}

impl Sealer {
    /// Returns a sealer with this key.
    pub fn new(key: &[u8; 32]) -> Self {
        Self::with_earlier(&[*key])
    }

    /// Returns a sealer with the first of these keys, which also opens what the others have sealed.
    ///
    /// # Panics
    /// There is no key.
    pub fn with_earlier(keys: &[[u8; 32]]) -> Self {
        assert!(!keys.is_empty(), "a sealer has a key");
        Self(Arc::new(Mutex::new(State { keys: keys.iter().map(aes).collect(), nonces: Nonces::new() })))
    }

    /// Seals with `key` from now on, also in clones.
    pub fn rotate(&self, key: &[u8; 32]) {
        let mut state = self.state();
        state.keys = [aes(key)].into_iter().chain(state.keys.iter().cloned()).collect();
        state.nonces = Nonces::new();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder panics")
    }

    /// Returns nonce, ciphertext and tag of `plain`. The same `what` must be passed to open it.
    pub fn seal(&self, what: &[u8], plain: &[u8]) -> Vec<u8> {
        let (keys, nonce) = {
            let mut state = self.state();
            (Arc::clone(&state.keys), state.nonces.draw())
        };
        let mut out = Vec::with_capacity(NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plain);
        let tag = keys[0]
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
        let keys = Arc::clone(&self.state().keys);
        keys.iter().find_map(|key| open_with(key, *nonce, what, rest)).ok_or(SealError)
    }
}

fn open_with(key: &LessSafeKey, nonce: [u8; NONCE_LEN], what: &[u8], rest: &[u8]) -> Option<Vec<u8>> {
    let mut plain = rest.to_vec();
    let nonce = Nonce::assume_unique_for_key(nonce);
    let length = key.open_in_place(nonce, Aad::from(what), &mut plain).ok()?.len();
    plain.truncate(length);
    Some(plain)
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

    #[test]
    fn no_nonce_is_used_twice_by_clones_or_when_the_count_is_used_up() {
        let sealer = Sealer::new(&[1; 32]);
        let nonce = |sealer: &Sealer| sealer.seal(b"log", b"x")[..NONCE_LEN].to_vec();
        let first = nonce(&sealer);
        assert_eq!(first[..8], nonce(&sealer.clone())[..8], "clones share the bits");
        sealer.state().nonces.next = Some(u32::MAX);
        let last = nonce(&sealer);
        let after = nonce(&sealer);
        assert_eq!((&last[..8], &last[8..]), (&first[..8], &[0xff; 4][..]));
        assert_ne!(after[..8], first[..8], "new bits are drawn");
        assert_ne!(nonce(&Sealer::new(&[1; 32]))[..8], first[..8], "a restart has other bits");
        let all: std::collections::BTreeSet<_> = (0..1_000).map(|_| nonce(&sealer)).collect();
        assert_eq!(all.len(), 1_000);
    }

    #[test]
    fn a_new_key_seals_at_once_in_all_clones_and_earlier_ones_still_open() {
        let [first, second] = [[1; 32], [2; 32]];
        let sealer = Sealer::new(&first);
        let clone = sealer.clone();
        let before = sealer.seal(b"log 5", b"hello");
        clone.rotate(&second);
        let after = sealer.seal(b"log 6", b"hello");
        assert_eq!(Sealer::new(&first).open(b"log 6", &after), Err(SealError), "the first key is no longer used");
        for it in [&sealer, &clone, &Sealer::with_earlier(&[second, first])] {
            assert_eq!(it.open(b"log 5", &before).as_deref(), Ok(b"hello".as_slice()));
            assert_eq!(it.open(b"log 6", &after).as_deref(), Ok(b"hello".as_slice()));
        }
        assert_eq!(Sealer::new(&second).open(b"log 5", &before), Err(SealError));
    }
}
