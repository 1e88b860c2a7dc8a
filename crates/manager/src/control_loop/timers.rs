//! When work is to be planned again although nothing has changed. Each piece of work has one timer at most: the newest plan
//! knows best, and work that events keep busy must not collect timers.

use std::collections::{BTreeMap, BTreeSet};

use flota_api::version::Timestamp;

use super::pass::Work;

/// The timers of a driver.
#[derive(Debug, Default)]
pub(super) struct Timers {
    by_time: BTreeSet<(Timestamp, Work)>,
    of_work: BTreeMap<Work, Timestamp>,
}

impl Timers {
    /// Sets the timer of a piece of work, in place of the one that it has.
    pub(super) fn set(&mut self, at: Timestamp, work: Work) {
        if let Some(before) = self.of_work.insert(work, at) {
            self.by_time.remove(&(before, work));
        }
        self.by_time.insert((at, work));
    }

    /// Returns when the next one is due.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes one that is due, and returns its work.
    pub(super) fn take_due(&mut self, now: Timestamp) -> Option<Work> {
        self.next().filter(|at| *at <= now)?;
        let (_, work) = self.by_time.pop_first()?;
        self.of_work.remove(&work);
        Some(work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_loop::Key;

    #[test]
    fn the_newest_timer_of_a_piece_of_work_takes_the_place_of_the_one_before() {
        let (a, b) = ((0, Key::of("a")), (1, Key::of("a")));
        let mut timers = Timers::default();
        for at in [30, 10, 20] {
            timers.set(Timestamp(at), a);
        }
        timers.set(Timestamp(15), b);
        assert_eq!((timers.next(), timers.take_due(Timestamp(14))), (Some(Timestamp(15)), None));
        let due: Vec<Work> = std::iter::from_fn(|| timers.take_due(Timestamp(40))).collect();
        assert_eq!((due, timers.next()), (vec![b, a], None));
    }
}
