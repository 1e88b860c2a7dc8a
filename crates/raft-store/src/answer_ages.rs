//! Which answers to users' requests are old enough to be forgotten, by the leader's monotonic clock.
//!
//! The leader notes from time to time how far it has applied; an answer at or before such a version is at least as old
//! as the note. A new leader starts from nothing, so a change of leaders only ever keeps an answer longer. No wall
//! clock is compared with another. Used by the Raft node, which puts the result into each entry.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use flota_api::version::Version;

/// How long an answer is kept at least, so that a retry within this time is not done again.
pub const ANSWERS_KEPT_FOR: Duration = Duration::from_secs(15 * 60);
/// Between two notes: how much longer than needed an answer may be kept.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// The notes of one term of leadership, oldest first; about one for each minute of [`ANSWERS_KEPT_FOR`].
#[derive(Clone, Debug, Default)]
pub struct AnswerAges(VecDeque<(Instant, Version)>);

impl AnswerAges {
    /// Notes that `applied` is the last applied version at `now`. Cheap, and may be called with every proposal: it
    /// keeps one note a minute.
    pub fn observe(&mut self, now: Instant, applied: Version) {
        if self.0.back().is_some_and(|(at, _)| now.duration_since(*at) < NOTE_EVERY) {
            return;
        }
        self.0.push_back((now, applied));
        // Of the notes that are old enough the last one says all that the others do.
        while self.0.get(1).is_some_and(|(at, _)| is_old(*at, now)) {
            self.0.pop_front();
        }
    }

    /// The answers at or before this version are at least [`ANSWERS_KEPT_FOR`] old; zero: none is known to be.
    pub fn expired(&self, now: Instant) -> Version {
        self.0.iter().rev().find(|(at, _)| is_old(*at, now)).map_or(0, |(_, version)| *version)
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
        // One version a second for an hour.
        for version in 0..3_600 {
            let now = begin + second * version;
            ages.observe(now, u64::from(version));
            let age = u64::from(version) - ages.expired(now);
            if version >= 16 * 60 {
                assert!((900..960).contains(&age), "after {version} s answers that are {age} s old are forgotten");
            }
            assert!(ages.0.len() <= 17, "the notes are bounded");
        }
    }

    #[test]
    fn nothing_is_forgotten_before_a_leader_has_led_for_long_enough() {
        let begin = Instant::now();
        let mut ages = AnswerAges::default();
        assert_eq!(ages.expired(begin), 0);
        ages.observe(begin, 7);
        assert_eq!(ages.expired(begin + ANSWERS_KEPT_FOR - Duration::from_millis(1)), 0);
        assert_eq!(ages.expired(begin + ANSWERS_KEPT_FOR), 7);
    }

    #[test]
    fn a_pause_without_any_note_forgets_nothing_that_came_after_the_last_one() {
        let begin = Instant::now();
        let mut ages = AnswerAges::default();
        ages.observe(begin, 7);
        let later = begin + ANSWERS_KEPT_FOR * 4;
        ages.observe(later, 90);
        assert_eq!(ages.expired(later), 7);
    }
}
