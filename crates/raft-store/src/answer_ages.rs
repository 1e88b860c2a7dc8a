//! Finds the answers to users' requests that are old enough to be forgotten, by the leader's monotonic clock.
//!
//! The leader regularly records its last applied version. An answer at or before a recorded version is at least as old
//! as the record. A new leader starts without records, so a change of leaders only keeps answers longer, and no wall
//! clocks are compared. The Raft node uses this module and puts the result into each entry.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use flota_api::version::Version;

/// Minimum time for which an answer is kept. A retry within this time is not carried out again.
pub const ANSWERS_KEPT_FOR: Duration = Duration::from_secs(15 * 60);
/// Interval between records. An answer may be kept this much longer than needed.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// Number of entries whose answers one entry forgets, beyond the oldest. Each minute as many become old enough as were made in
/// a minute.
const FORGOTTEN_AT_ONCE: Version = 15;

/// The records of one term, oldest first; about one for each minute of [`ANSWERS_KEPT_FOR`].
#[derive(Clone, Debug, Default)]
pub struct AnswerAges(VecDeque<(Instant, Version)>);

impl AnswerAges {
    /// Records that `applied` is the last applied version at `now`. It is cheap and may be called with every proposal:
    /// it keeps one record a minute.
    pub fn observe(&mut self, now: Instant, applied: Version) {
        if self.0.back().is_some_and(|(at, _)| now.duration_since(*at) < NOTE_EVERY) {
            return;
        }
        self.0.push_back((now, applied));
        // The last record that is old enough makes the earlier ones redundant.
        while self.0.get(1).is_some_and(|(at, _)| is_old(*at, now)) {
            self.0.pop_front();
        }
    }

    /// Returns the version up to which all answers are at least [`ANSWERS_KEPT_FOR`] old; `None` if none is known to be.
    fn expired(&self, now: Instant) -> Option<Version> {
        self.0.iter().rev().find(|(at, _)| is_old(*at, now)).map(|(_, version)| *version)
    }

    /// As [`AnswerAges::expired`], for the next entry, which forgets the answers of few entries, because readers wait for
    /// it. `oldest` is the version of the oldest answer that is kept.
    pub fn expired_next(&self, now: Instant, oldest: Option<Version>) -> Option<Version> {
        let (expired, oldest) = (self.expired(now)?, oldest?);
        (oldest <= expired).then(|| expired.min(oldest + FORGOTTEN_AT_ONCE))
    }
}

fn is_old(at: Instant, now: Instant) -> bool {
    now.duration_since(at) >= ANSWERS_KEPT_FOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_kept_for_its_time_and_a_minute_longer_at_most() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let mut ages = AnswerAges::default();
        // Simulate one version a second for an hour.
        for version in 0..3_600 {
            let now = begin + second * version;
            ages.observe(now, u64::from(version));
            let age = u64::from(version) - ages.expired(now).unwrap_or_default();
            if version >= 16 * 60 {
                assert!((900..960).contains(&age), "after {version} s answers that are {age} s old are forgotten");
            }
            assert!(ages.0.len() <= 17, "the notes are bounded");
        }
    }

    #[test]
    fn an_entry_forgets_the_answers_of_few_entries() {
        let begin = Instant::now();
        let mut ages = AnswerAges::default();
        ages.observe(begin, 1_000);
        let now = begin + ANSWERS_KEPT_FOR;
        let forgotten = |oldest| ages.expired_next(now, oldest);
        assert_eq!(forgotten(Some(400)), Some(415));
        assert_eq!(forgotten(Some(995)), Some(1_000));
        assert_eq!((forgotten(Some(1_001)), forgotten(None)), (None, None), "there is none");
        assert_eq!(ages.expired_next(begin, Some(1)), None, "it is not old enough");
    }

    #[test]
    fn nothing_is_forgotten_before_a_leader_has_led_for_long_enough() {
        let begin = Instant::now();
        let mut ages = AnswerAges::default();
        assert_eq!(ages.expired(begin), None);
        ages.observe(begin, 7);
        assert_eq!(ages.expired(begin + ANSWERS_KEPT_FOR - Duration::from_millis(1)), None);
        assert_eq!(ages.expired(begin + ANSWERS_KEPT_FOR), Some(7));
    }

    #[test]
    fn a_pause_without_any_note_forgets_nothing_that_came_after_the_last_one() {
        let begin = Instant::now();
        let mut ages = AnswerAges::default();
        ages.observe(begin, 7);
        let later = begin + ANSWERS_KEPT_FOR * 4;
        ages.observe(later, 90);
        assert_eq!(ages.expired(later), Some(7));
    }
}
