//! Versions and times of objects.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

/// The Raft index of an object's last change.
pub type Version = u64;

/// A point in time, in milliseconds since 1970 (UTC). Displayed as RFC 3339. Zero means "never".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Converts a time of the system clock.
    pub fn from_system(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Returns the time as a system time.
    pub fn to_system(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0)
    }

    /// Returns the time from this to `later`; zero if `later` is earlier.
    pub fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // RFC 3339 can't express years after 9999.
        let millis = self.0.min(253_402_300_799_999);
        write!(f, "{}", humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(millis)))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// When an object was created and last changed: as times by the leader's clock, for display, and as Raft indices, by
/// which objects are ordered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    /// Time of creation.
    pub created_at: Timestamp,
    /// Time of the last change.
    pub updated_at: Timestamp,
    /// The Raft index of its creation; zero in an object of a version that did not record it.
    pub created: Version,
    /// The Raft index of its last change, which an optimistic update must name.
    pub version: Version,
}

impl Meta {
    /// Returns the key that sorts objects by age, oldest first. The times only decide among objects without a creation
    /// index, which are older than all others.
    pub fn order(&self) -> (Version, Timestamp) {
        (self.created, if self.created == 0 { self.created_at } else { Timestamp::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_ordered_by_index_and_by_time_only_where_they_have_none() {
        let meta = |created, created_at| Meta { created, created_at: Timestamp(created_at), ..Meta::default() };
        let oldest_first = [meta(0, 7), meta(0, 9), meta(1, 5_000), meta(2, 3)];
        assert!(oldest_first.windows(2).all(|pair| pair[0].order() < pair[1].order()));
        assert_eq!(meta(3, 1).order(), meta(3, 2).order());
    }
}
