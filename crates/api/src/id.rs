//! Identifiers: 25 random characters of base 36 (129 bits), one Rust type for each kind of object.
//!
//! An id is drawn once, by the leader or by the CA, from the random source that is passed in; it is never derived from
//! a name or an address. Its characters are kept in place, because most of what a store holds and compares is ids.

use std::cmp::Ordering;
use std::fmt;
use std::num::NonZeroU8;

use rand::Rng;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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

/// The identifier of an object of any kind. Ids are ordered as their texts.
///
/// Any text can be made an id, because those of other machines and of users may be anything. One of more than
/// [`ID_LENGTH`] bytes is cut, and differs from every id that was drawn.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id {
    bytes: [u8; ID_LENGTH],
    /// One more than the number of bytes, and more by [`CUT`] if the text was longer.
    length: NonZeroU8,
}

const CUT: u8 = 64;

impl Id {
    /// Returns the characters.
    pub fn as_str(&self) -> &str {
        let length = usize::from((self.length.get() - 1) % CUT);
        std::str::from_utf8(&self.bytes[..length]).expect("no character was cut in two")
    }

    /// Returns numbers that are ordered as the bytes. They are compared much faster.
    #[inline]
    fn rank(&self) -> (u128, u64, u8, NonZeroU8) {
        let (head, rest) = self.bytes.split_first_chunk().expect("it has 25 bytes");
        let (middle, last) = rest.split_first_chunk().expect("it has 9 bytes");
        (u128::from_be_bytes(*head), u64::from_be_bytes(*middle), last[0], self.length)
    }
}

impl Ord for Id {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for Id {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Default for Id {
    fn default() -> Self {
        Self { bytes: [0; ID_LENGTH], length: NonZeroU8::MIN }
    }
}

impl From<&str> for Id {
    fn from(text: &str) -> Self {
        let kept = &text[..text.floor_char_boundary(ID_LENGTH)];
        let mut bytes = [0; ID_LENGTH];
        bytes[..kept.len()].copy_from_slice(kept.as_bytes());
        let length = u8::try_from(kept.len()).expect("it is at most that of an id");
        let cut = if kept.len() < text.len() { CUT } else { 0 };
        Self { bytes, length: NonZeroU8::MIN.saturating_add(length + cut) }
    }
}

impl From<String> for Id {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<&String> for Id {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

impl From<&Self> for Id {
    fn from(id: &Self) -> Self {
        *id
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => { $(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Id);

        impl $name {
            /// Draws a new identifier.
            pub fn random(rng: &mut impl Rng) -> Self { random(rng).into() }
            /// Returns the identifier that belongs to a digest (at least 64 hexadecimal characters) of a random value.
            pub fn derived(digest: &str) -> Self {
                let pairs = digest.as_bytes().chunks_exact(2).take(ID_LENGTH);
                let pair = |pair: &[u8]| pair.iter().fold(0usize, |sum, byte| sum * 31 + usize::from(*byte));
                pairs.map(|it| char::from(ALPHABET[pair(it) % ALPHABET.len()])).collect::<String>().into()
            }
            /// Returns the characters.
            pub fn as_str(&self) -> &str { self.0.as_str() }
            /// Returns whether the identifier is empty, which on the wire means that there is none.
            pub fn is_empty(&self) -> bool { self.as_str().is_empty() }
        }
        impl From<String> for $name { fn from(text: String) -> Self { Self(text.into()) } }
        impl From<&str> for $name { fn from(text: &str) -> Self { Self(text.into()) } }
        impl From<Id> for $name { fn from(id: Id) -> Self { Self(id) } }
        impl From<&$name> for Id { fn from(id: &$name) -> Self { id.0 } }
        impl From<$name> for String { fn from(id: $name) -> Self { id.as_str().to_owned() } }
        impl fmt::Display for $name { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) } }
        impl fmt::Debug for $name { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Debug::fmt(&self.0, f) } }
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
    /// Identifies a volume.
    VolumeId
    /// Identifies a secret or config.
    ValueId
    /// Identifies the bytes of one version of a secret or config.
    ValueDataId
    /// Identifies a user.
    UserId
    /// Identifies the record of a change.
    AuditId
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

    #[test]
    fn ids_are_ordered_as_their_texts_and_one_that_was_cut_is_none_that_was_drawn() {
        let drawn = "k".repeat(ID_LENGTH);
        let texts =
            ["", "\0", "a", "a\0", "a\0b", "ab", "abcdefgh", "abcdefgh1", "abcdefgi", &drawn, &format!("{drawn}k")];
        let ids = texts.map(Id::from);
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "{ids:?}");
        assert_eq!(ids[..10].iter().map(Id::as_str).collect::<Vec<_>>(), texts[..10]);
        assert_eq!(ids[10].as_str(), drawn);
        assert_eq!(Id::from("\u{e4}".repeat(20)).as_str(), "\u{e4}".repeat(12), "a character is whole or absent");
        assert_eq!((size_of::<TaskId>(), size_of::<Option<TaskId>>()), (26, 26));
    }
}
