//! How far the wall clock of another machine is off. Nothing is decided by it: it is shown to people, because a wrong
//! clock explains certificates that are not valid and logs that do not match.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::defaults::CLOCK_OFFSET_SHOWN;
use crate::version::Timestamp;

/// The difference of another machine's clock to one's own in whole seconds, positive if the other one is ahead. Zero
/// also stands for a difference below [`CLOCK_OFFSET_SHOWN`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockOffset(pub i64);

impl ClockOffset {
    /// Returns the difference after the other machine has sent its time. It stays as it is unless it has changed
    /// noticeably, because the measured difference includes the time that the message was under way.
    #[must_use]
    pub fn observe(self, own: Timestamp, other: Timestamp) -> Self {
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let offset = seconds(own.until(other)) - seconds(other.until(own));
        let noticeable = |offset: i64| offset.unsigned_abs() >= CLOCK_OFFSET_SHOWN.as_secs();
        match offset {
            _ if !noticeable(offset.saturating_sub(self.0)) => self,
            _ if !noticeable(offset) => Self(0),
            _ => Self(offset),
        }
    }

    /// Returns whether the clocks show about the same time.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for ClockOffset {
    /// Writes it as in "50m behind".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = humantime::format_duration(Duration::from_secs(self.0.unsigned_abs()));
        write!(f, "{time} {}", if self.0 < 0 { "behind" } else { "ahead" })
    }
}

impl Serialize for ClockOffset {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_shown_when_it_is_noticeable_and_does_not_flicker() {
        let own = Timestamp(10_000_000_000);
        let at = |seconds: i64| Timestamp(own.0.saturating_add_signed(seconds * 1_000));
        let mut offset = ClockOffset::default();
        let steps =
            [(4, 0), (5, 5), (4, 5), (2, 5), (0, 0), (-3_000, -3_000), (-3_004, -3_000), (-2_990, -2_990), (-4, 0)];
        for (seconds, shown) in steps {
            offset = offset.observe(own, at(seconds));
            assert_eq!(offset.0, shown, "{seconds} s");
        }
        assert_eq!(ClockOffset(-3_000).to_string(), "50m behind");
        assert_eq!(ClockOffset(7_205).to_string(), "2h 5s ahead");
        assert_eq!(offset.observe(Timestamp(u64::MAX), Timestamp(0)).0, -i64::try_from(u64::MAX / 1_000).unwrap());
    }
}
