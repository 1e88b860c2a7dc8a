//! Whether a write succeeds within a bound while a majority of the managers can work: each of them runs, its disk is
//! sound, and it reaches the others and the users. What happens to the other managers must not matter.

use std::collections::BTreeMap;

use super::cluster::SimCluster;
use super::host::{Host, USER};
use super::violation::{Kind, Violation};

/// Longest time without a write while a majority can work, in milliseconds. A leader outside of the majority, whose messages
/// arrive but not the answers to it, gives up after 2.6 s; then another is elected, and users find it.
const WRITES_WITHIN: u64 = 6_000;

/// Since when each majority of the managers can work.
#[derive(Default)]
pub(super) struct Availability(BTreeMap<Vec<Host>, u64>);

impl Availability {
    /// Forgets everything, because nothing is promised at the moment.
    pub(super) fn reset(&mut self) {
        self.0.clear();
    }

    /// Checks that users could write. `written`: when the last write of a user succeeded that tries all the time. `sound`:
    /// whether the disk of the manager with this number is sound.
    ///
    /// # Errors
    /// Nobody could write for too long.
    pub(super) fn check(
        &mut self,
        cluster: &SimCluster,
        written: u64,
        sound: impl Fn(usize) -> bool,
    ) -> Result<(), Violation> {
        let now = cluster.world.now();
        let all: Vec<usize> =
            (0..cluster.managers.len()).filter(|number| cluster.managers[*number].is_member).collect();
        let able = all.iter().copied().filter(|number| sound(*number)).map(|number| cluster.managers[number].host);
        let able: Vec<Host> = able.filter(|host| cluster.is_connected(USER, *host)).collect();
        let before = std::mem::take(&mut self.0);
        for majority in subsets(&able, all.len() / 2 + 1) {
            let pairs = || majority.iter().flat_map(|one| majority.iter().map(move |other| (*one, *other)));
            if pairs().all(|(one, other)| cluster.is_connected(one, other)) {
                let since = before.get(&majority).copied().unwrap_or(now);
                self.0.insert(majority, since);
            }
        }
        for (majority, since) in &self.0 {
            if now - written.max(*since) > WRITES_WITHIN {
                let text = format!("{majority:?} can work since {since}, and no write has succeeded since {written}");
                return Err(Kind::NoWrites.because(text));
            }
        }
        Ok(())
    }
}

/// Returns every set of `size` of these hosts.
pub fn subsets(hosts: &[Host], size: usize) -> Vec<Vec<Host>> {
    let Some((first, rest)) = hosts.split_first().filter(|_| size > 0) else {
        return if size == 0 { vec![Vec::new()] } else { Vec::new() };
    };
    let with_first = subsets(rest, size - 1).into_iter().map(|rest| [vec![*first], rest].concat());
    with_first.chain(subsets(rest, size)).collect()
}
