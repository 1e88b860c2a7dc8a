//! Versions and times of objects.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

/// The Raft index of an object's last change.
pub type Version = u64;

/// A point in time, in milliseconds since 1970 (UTC). Shown as RFC 3339. Zero stands for "never".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The time that a system clock shows.
    pub fn from_system(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The same time as a system clock shows it.
    pub fn to_system(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0)
    }

    /// How long before `later` this was; zero where it was not.
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
        // Year 9999 is the last that RFC 3339 can write.
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

/// When an object was made and last changed: by the clock of the leader, to be shown, and as Raft indices, which are
/// what orders objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// The Raft index at which it was made; zero in an object from before this was kept.
    pub created: Version,
    /// What an optimistic update must name: the Raft index of its last change.
    pub version: Version,
}

impl Meta {
    /// What orders objects by their age, oldest first. The times decide among objects without a creation index alone,
    /// which are older than all others.
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
