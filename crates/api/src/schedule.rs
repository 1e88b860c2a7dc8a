//! Schedules: the times at which a service of the mode cron runs, as in crontab(5), in a time zone of the IANA database.
//!
//! The database is part of the program. Daylight saving is treated as by Vixie's cron. A job at fixed times, such as
//! `30 2 * * *`, runs once each day: a time that the clock leaves out is made up for just after the gap, and one that the
//! clock shows twice counts the first time. One at an interval, with `*` or `*/N` as its minute or hour, runs in every hour
//! that there is: not in one that is left out, and in both of one that comes twice.

use std::fmt;
use std::str::FromStr;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Zoned;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::version::Timestamp;

/// Longest text of a schedule in bytes.
const LENGTH_BOUND: usize = 256;
/// Most times that were missed that are counted at once: of a schedule with a time each minute, those of a week.
const COUNT_BOUND: u64 = 10_080;
/// The time zone of a schedule without one.
pub const UTC: &str = "UTC";

/// Why a schedule is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// It is not a pattern of five fields.
    #[error("`{text}` is not a schedule: {why}; it has the fields minute, hour, day, month and day of the week")]
    Pattern {
        /// The text.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// No time fits it.
    #[error("`{0}` never comes")]
    Impossible(String),
    /// There is no such time zone.
    #[error("`{0}` is no time zone of the IANA database, such as Europe/Zurich")]
    TimeZone(String),
}

/// The times at which something is to run.
#[derive(Clone)]
pub struct Schedule {
    text: String,
    cron: Cron,
    time_zone: TimeZone,
}

/// A time of a schedule that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The newest time that has come.
    pub at: Timestamp,
    /// How many have come before it that nobody has looked at; after an outage of more than a week, at least so many.
    pub missed: u64,
}

impl Schedule {
    /// Parses a schedule such as `*/5 * * * *` or `@daily`, in a time zone such as `Europe/Zurich`.
    ///
    /// # Errors
    /// The text is not a schedule, no time fits it, or there is no such time zone.
    pub fn parse(text: &str, time_zone: &str) -> Result<Self, ScheduleError> {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let pattern = |why: String| ScheduleError::Pattern { text: text.chars().take(LENGTH_BOUND).collect(), why };
        if text.len() > LENGTH_BOUND {
            return Err(pattern(format!("it has more than {LENGTH_BOUND} characters")));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(&text).map_err(|error| pattern(error.to_string()))?;
        let time_zone =
            TimeZoneDatabase::bundled().get(time_zone).map_err(|_| ScheduleError::TimeZone(time_zone.to_owned()))?;
        let schedule = Self { text, cron, time_zone };
        // Without a year among its fields, a time that ever comes also comes after this one.
        match schedule.next_after(Timestamp::default()) {
            Some(_) => Ok(schedule),
            None => Err(ScheduleError::Impossible(schedule.text)),
        }
    }

    /// Returns the fields of the schedule, with one space between two.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the name of the time zone.
    pub fn time_zone(&self) -> &str {
        self.time_zone.iana_name().unwrap_or(UTC)
    }

    /// Returns the first time after this one; `None` only at the end of the calendar.
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        let next = self.cron.find_next_occurrence(&self.zoned(time)?, false).ok()?;
        u64::try_from(next.timestamp().as_millisecond()).ok().map(Timestamp)
    }

    /// Returns the newest time after `after` that has come by `now`.
    pub fn due(&self, after: Timestamp, now: Timestamp) -> Option<Due> {
        let first = self.next_after(after).filter(|it| *it <= now)?;
        let (mut at, mut missed) = (first, 0);
        while let Some(next) = self.next_after(at).filter(|it| *it <= now) {
            if missed == COUNT_BOUND {
                return Some(Due { at: self.last_until(now).unwrap_or(at).max(at), missed });
            }
            (at, missed) = (next, missed + 1);
        }
        Some(Due { at, missed })
    }

    /// Returns the newest time that is not after this one.
    fn last_until(&self, time: Timestamp) -> Option<Timestamp> {
        let last = self.cron.find_previous_occurrence(&self.zoned(time)?, true).ok()?;
        u64::try_from(last.timestamp().as_millisecond()).ok().map(Timestamp)
    }

    /// Returns the time as the clocks of the time zone show it, in whole seconds.
    fn zoned(&self, time: Timestamp) -> Option<Zoned> {
        let seconds = i64::try_from(time.0 / 1_000).ok()?;
        Some(jiff::Timestamp::from_second(seconds).ok()?.to_zoned(self.time_zone.clone()))
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        (&self.text, self.time_zone()) == (&other.text, other.time_zone())
    }
}

impl Eq for Schedule {}

impl FromStr for Schedule {
    type Err = ScheduleError;

    /// Parses a schedule in UTC.
    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        Self::parse(text, UTC)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.text, self.time_zone())
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Schedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Schedule", 2)?;
        fields.serialize_field("schedule", &self.text)?;
        fields.serialize_field("timeZone", self.time_zone())?;
        fields.end()
    }
}

#[cfg(test)]
mod tests;
