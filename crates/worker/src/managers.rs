//! The managers that this node knows, and the search for the one that leads. The list is kept on disk, so that a
//! worker finds its cluster again after a boot.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::worker_state::{MANAGERS, WorkerState};

/// Pause of the first round of a search.
const LEAST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause of a round.
const MOST_PAUSE: Duration = Duration::from_secs(2);

/// The list of known managers. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct KnownManagers {
    state: Arc<dyn WorkerState>,
    list: Arc<Mutex<Vec<String>>>,
}

impl KnownManagers {
    /// Loads the stored managers, or `first` if none are stored.
    pub(crate) fn load(state: Arc<dyn WorkerState>, first: Vec<String>) -> Self {
        let text = state.read(MANAGERS).unwrap_or_default();
        let read: Vec<String> = text.lines().map(str::to_owned).collect();
        let is_new = read.is_empty();
        let known = Self { state, list: Arc::new(Mutex::new(if is_new { first } else { read })) };
        if is_new {
            known.save(&known.get());
        }
        known
    }

    /// Replaces the list by the one that the cluster sent; the leader comes first. An empty list changes nothing.
    pub(crate) fn set(&self, managers: Vec<String>, leader: &str) {
        let mut managers = managers;
        managers.sort_by_key(|manager| (manager != leader, manager.clone()));
        let mut list = self.list.lock().expect("no holder panics");
        if managers.is_empty() || *list == managers {
            return;
        }
        self.save(&managers);
        *list = managers;
    }

    /// Puts managers before those that are known.
    pub(crate) fn add(&self, managers: &[String]) {
        let mut list = self.list.lock().expect("no holder panics");
        let known = list.iter().filter(|it| !managers.contains(it)).cloned().collect();
        *list = [managers.to_vec(), known].concat();
        self.save(&list);
    }

    /// Returns all known managers.
    pub(crate) fn get(&self) -> Vec<String> {
        self.list.lock().expect("no holder panics").clone()
    }

    /// Returns the addresses of those that are known by one, and not by a name.
    pub(crate) fn addresses(&self) -> BTreeSet<IpAddr> {
        let list = self.list.lock().expect("no holder panics");
        list.iter().filter_map(|manager| Some(manager.parse::<SocketAddr>().ok()?.ip())).collect()
    }

    fn save(&self, managers: &[String]) {
        self.state.write(MANAGERS, managers.join("\n"));
    }
}

/// A search for the leader: decides which manager is tried next and after which pause. Pure.
///
/// The managers are tried in a circle, starting with the last leader. The pause of a round is divided among its tries,
/// so that a round takes no longer with more managers; it doubles from round to round. A leader that a manager names
/// is tried at once without a pause, unless the redirects form a circle.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Search {
    /// Number of tries since the last session that held.
    failures: u32,
    /// Number of redirects since the last pause.
    redirects: usize,
}

impl Search {
    /// Returns the manager to try next if none was named as leader.
    pub(crate) fn manager(self, managers: &[String]) -> Option<&String> {
        managers.get(usize::try_from(self.failures).unwrap_or(0) % managers.len().max(1))
    }

    /// Resets the search after a session that held.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Returns whether to follow a redirect at once.
    pub(crate) fn follows_redirect(&mut self, managers: usize) -> bool {
        self.redirects += 1;
        self.redirects <= managers.max(1)
    }

    /// Whether to log that this try failed: those of the first round are logged, and then fewer and fewer, because a node may
    /// be cut off for days.
    pub(crate) fn is_told(self, managers: usize) -> bool {
        let tries = self.failures.saturating_add(1);
        usize::try_from(tries).is_ok_and(|tries| tries <= managers) || tries.is_power_of_two()
    }

    /// Records a failed try. Returns the longest pause before the next one.
    pub(crate) fn failed(&mut self, managers: usize) -> Duration {
        let managers = u32::try_from(managers.max(1)).unwrap_or(u32::MAX);
        let round = self.failures / managers;
        self.failures = self.failures.saturating_add(1);
        self.redirects = 0;
        (LEAST_PAUSE * 2u32.pow(round.min(5))).min(MOST_PAUSE) / managers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("m{number}")).collect()
    }

    #[test]
    fn the_managers_are_tried_in_turn_and_a_round_takes_as_long_with_many_as_with_one() {
        for count in [1, 3, 7] {
            let (managers, mut search) = (names(count), Search::default());
            for millis in [100, 200, 400, 800, 1_600, 2_000, 2_000] {
                let mut round = Duration::ZERO;
                for manager in &managers {
                    assert_eq!(search.manager(&managers), Some(manager));
                    round += search.failed(count);
                }
                let lacks = Duration::from_millis(millis) - round;
                assert!(lacks < Duration::from_micros(1), "{count} managers: {lacks:?}");
            }
        }
    }

    #[test]
    fn a_node_that_is_cut_off_for_a_day_logs_little() {
        let (mut search, mut told) = (Search::default(), Vec::new());
        for tries in 1..=130_000 {
            told.extend(search.is_told(3).then_some(tries));
            search.failed(3);
        }
        assert_eq!((&told[..6], told.len()), (&[1, 2, 3, 4, 8, 16][..], 18));
        search.succeeded();
        assert!(search.is_told(3));
    }

    #[test]
    fn a_session_that_held_begins_the_search_anew_but_not_with_the_manager_that_has_just_gone() {
        let (managers, mut search) = (names(3), Search::default());
        for _ in 0..100 {
            search.failed(3);
        }
        search.succeeded();
        assert_eq!(search.failed(3), LEAST_PAUSE / 3);
        assert_eq!(search.manager(&managers), Some(&managers[1]));
    }

    #[test]
    fn redirects_are_followed_at_once_until_they_can_only_be_circles() {
        let mut search = Search::default();
        let followed = |search: &mut Search| (0..10).filter(|_| search.follows_redirect(3)).count();
        assert_eq!(followed(&mut search), 3);
        search.failed(3);
        assert_eq!(followed(&mut search), 3, "after a pause the managers may know better");
    }

    #[test]
    fn without_managers_there_is_no_attempt() {
        let mut search = Search::default();
        assert_eq!(search.manager(&[]), None);
        assert_eq!(search.failed(0), LEAST_PAUSE);
    }
}
