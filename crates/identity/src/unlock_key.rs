//! Unlock keys: `FLOTA-UNLOCK-<generation>-<secret>`. In a cluster with autolock, a manager that has started needs it before
//! it can read its own keys. Each rotation raises the generation, so that an old key can be told from a wrong one.

use std::fmt;
use std::str::FromStr;

use flota_api::seal::Sealer;

use crate::join_token::generation;

const PREFIX: &str = "FLOTA-UNLOCK-";
/// Longest text that may be a key.
const LONGEST: usize = 100;

/// The text is not an unlock key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not an unlock key: a key has the form {PREFIX}<number>-<secret>")]
pub struct MalformedUnlockKey;

/// The key that opens the keys of a locked manager.
#[derive(Clone, PartialEq, Eq)]
pub struct UnlockKey {
    secret: String,
}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UnlockKey({}, [redacted])", self.generation())
    }
}

impl UnlockKey {
    /// Returns the key with a secret that [`crate::new_secret`] has made.
    pub fn new(secret: &str) -> Self {
        Self { secret: secret.to_owned() }
    }

    /// Returns how many keys the cluster had up to this one.
    pub fn generation(&self) -> u64 {
        generation(&self.secret)
    }

    /// Returns a sealer with this key. The secret has 129 random bits, so its hash is a key as good as a random one.
    pub(crate) fn sealer(&self) -> Sealer {
        use sha2::Digest;
        Sealer::new(&sha2::Sha256::digest(self.to_string()).into())
    }
}

impl fmt::Display for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.secret)
    }
}

impl FromStr for UnlockKey {
    type Err = MalformedUnlockKey;

    fn from_str(text: &str) -> Result<Self, MalformedUnlockKey> {
        let text = text.trim();
        let secret = text.strip_prefix(PREFIX).filter(|_| text.len() <= LONGEST).ok_or(MalformedUnlockKey)?;
        let (number, rest) = secret.split_once('-').ok_or(MalformedUnlockKey)?;
        let is_whole = number.parse::<u64>().is_ok() && !rest.is_empty();
        if is_whole { Ok(Self::new(secret)) } else { Err(MalformedUnlockKey) }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::new_secret;

    #[test]
    fn a_key_is_read_as_it_is_printed_and_says_how_many_there_were() {
        let mut rng = StdRng::seed_from_u64(1);
        let first = new_secret("", &mut rng);
        let second = UnlockKey::new(&new_secret(&first, &mut rng));
        let text = second.to_string();
        assert!(text.starts_with("FLOTA-UNLOCK-2-"), "{text}");
        assert_eq!(format!(" {text}\n").parse(), Ok(second.clone()));
        assert_eq!((UnlockKey::new(&first).generation(), second.generation()), (1, 2));
        assert!(!format!("{second:?}").contains(&text[15..]), "it is not printed by accident");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let long = format!("FLOTA-UNLOCK-1-{}", "a".repeat(LONGEST));
        for text in ["", "FLOTA-UNLOCK-", "FLOTA-UNLOCK-1", "FLOTA-UNLOCK-1-", "FLOTA-UNLOCK-x-y", "FLOTA-w-1-2", &long]
        {
            assert_eq!(text.parse::<UnlockKey>(), Err(MalformedUnlockKey), "{text}");
        }
    }
}
