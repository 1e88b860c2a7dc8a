//! Deadlines of a poll loop: the earliest one determines the loop's timeout. They need neither threads nor signals.

use std::time::{Duration, Instant};

use nix::poll::PollTimeout;

/// Pending timers with their due times. There are few at once, so a list suffices.
pub(super) struct Timers<T> {
    pending: Vec<(Instant, T)>,
}

impl<T: PartialEq> Timers<T> {
    pub(super) fn new() -> Self {
        Self { pending: Vec::new() }
    }

    /// Makes `timer` due at this time. A timer is pending only once: a new time replaces the old one.
    pub(super) fn set(&mut self, timer: T, due: Instant) {
        self.cancel(&timer);
        self.pending.push((due, timer));
    }

    /// Makes `timer` due at this time, unless it is pending.
    pub(super) fn set_unless_pending(&mut self, timer: T, due: Instant) {
        if self.pending.iter().all(|(_, it)| *it != timer) {
            self.pending.push((due, timer));
        }
    }

    /// Cancels a timer, if it is pending.
    pub(super) fn cancel(&mut self, timer: &T) {
        self.pending.retain(|(_, it)| it != timer);
    }

    /// Returns how long poll(2) may wait.
    pub(super) fn timeout(&self, now: Instant) -> PollTimeout {
        let Some(next) = self.pending.iter().map(|(due, _)| *due).min() else { return PollTimeout::NONE };
        // Milliseconds are rounded up, because a loop that wakes too early would spin until the timer is due.
        let left = next.saturating_duration_since(now) + Duration::from_nanos(999_999);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    /// Removes and returns a timer that is due, the earliest first.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<T> {
        let due = self.pending.iter().enumerate().filter(|(_, (due, _))| *due <= now);
        let (index, _) = due.min_by_key(|(_, (due, _))| *due)?;
        Some(self.pending.remove(index).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earliest_timer_is_the_timeout_and_comes_first() {
        let now = Instant::now();
        let at = |ms: u64| now + Duration::from_millis(ms);
        let mut timers = Timers::new();
        assert_eq!((timers.timeout(now), timers.pop_due(now)), (PollTimeout::NONE, None));
        timers.set("late", at(30));
        timers.set("early", at(20));
        assert_eq!(timers.timeout(now), PollTimeout::from(20_u8));
        assert_eq!(timers.pop_due(at(19)), None);
        assert_eq!(timers.timeout(at(25)), PollTimeout::ZERO);
        assert_eq!(
            [timers.pop_due(at(30)), timers.pop_due(at(30)), timers.pop_due(at(30))],
            [Some("early"), Some("late"), None]
        );
    }

    #[test]
    fn timeout_is_never_shorter_than_the_time_left() {
        let now = Instant::now();
        let mut timers = Timers::new();
        timers.set((), now + Duration::from_micros(1));
        assert_eq!(timers.timeout(now), PollTimeout::from(1_u8));
    }

    #[test]
    fn timer_that_is_set_again_or_cancelled_is_not_due_at_its_old_time() {
        let now = Instant::now();
        let mut timers = Timers::new();
        timers.set("moved", now);
        timers.set("moved", now + Duration::from_secs(1));
        timers.set("cancelled", now);
        timers.cancel(&"cancelled");
        assert_eq!(timers.pop_due(now), None);
        assert_eq!(timers.timeout(now), PollTimeout::from(1000_u16));
    }
}
