//! Identifiers: 25 random characters of base 36 (129 bits), one Rust type for each kind of object.
//!
//! An id is drawn once, by the leader or by the CA, from the random source that is passed in; it is never derived from
//! a name or an address. Clones share their characters, because a table's persistent maps clone whole nodes of keys.

use std::fmt;
use std::sync::Arc;

use rand::Rng;
use serde::{Deserialize, Serialize};

/// Length of every identifier.
pub const ID_LENGTH: usize = 25;

const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Draws the characters of a new identifier.
pub fn random(rng: &mut impl Rng) -> String {
    (0..ID_LENGTH).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

/// Returns whether `text` has the form of an identifier.
pub fn is_id(text: &str) -> bool {
    text.len() == ID_LENGTH && text.bytes().all(|byte| ALPHABET.contains(&byte))
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => { $(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Draws a new identifier.
            pub fn random(rng: &mut impl Rng) -> Self { Self(random(rng).into()) }
            /// Returns the identifier that belongs to a digest (at least 64 hexadecimal characters) of a random value.
            pub fn derived(digest: &str) -> Self {
                let pairs = digest.as_bytes().chunks_exact(2).take(ID_LENGTH);
                let pair = |pair: &[u8]| pair.iter().fold(0usize, |sum, byte| sum * 31 + usize::from(*byte));
                Self(pairs.map(|it| char::from(ALPHABET[pair(it) % ALPHABET.len()])).collect::<String>().into())
            }
            /// Returns the characters.
            pub fn as_str(&self) -> &str { &self.0 }
            /// Returns whether the identifier is empty, which on the wire means that there is none.
            pub fn is_empty(&self) -> bool { self.0.is_empty() }
        }
        impl From<String> for $name { fn from(text: String) -> Self { Self(text.into()) } }
        impl From<&str> for $name { fn from(text: &str) -> Self { Self(text.into()) } }
        impl From<Arc<str>> for $name { fn from(text: Arc<str>) -> Self { Self(text) } }
        impl From<&$name> for Arc<str> { fn from(id: &$name) -> Self { Arc::clone(&id.0) } }
        impl From<$name> for String { fn from(id: $name) -> Self { id.as_str().to_owned() } }
        impl fmt::Display for $name { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(&self.0) } }
        impl fmt::Debug for $name { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) } }
    )* };
}

ids! {
    /// Identifies the cluster; the organisation in every certificate.
    ClusterId
    /// Identifies a machine that runs `flotad`; the common name of its certificate.
    NodeId
    /// Identifies a service.
    ServiceId
    /// Identifies a task.
    TaskId
    /// Identifies an image object.
    ImageId
    /// Identifies a stack.
    StackId
    /// Identifies a registry's credentials.
    RegistryId
    /// Identifies a network.
    NetworkId
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn ids_are_well_formed_and_come_from_the_source_that_is_passed() {
        let draw = |seed| NodeId::random(&mut rand::rngs::StdRng::seed_from_u64(seed));
        assert!(is_id(draw(1).as_str()));
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(!is_id("ABC") && !is_id(""));
        let digest = "0123456789abcdef".repeat(4);
        assert!(is_id(NodeId::derived(&digest).as_str()));
        assert_ne!(NodeId::derived(&digest), NodeId::derived(&digest.replace('f', "e")));
    }
}
