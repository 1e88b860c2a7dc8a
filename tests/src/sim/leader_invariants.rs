//! What holds at every moment of leaders: one manager leads in a term, and its control loops run once, there alone, and end
//! with its leadership. Each transition of an object then has one writer at a time.

use std::collections::BTreeMap;

use super::cluster::{ManagerHost, SimCluster};
use super::host::Host;
use super::violation::{Kind, Violation};

/// How long the control loops may still run on a manager that knows that it leads no more, in milliseconds of its time.
const ENDS_WITHIN: u64 = 100;

/// State from earlier checks, for comparison with later ones.
#[derive(Default)]
pub(super) struct LeaderInvariants {
    /// The Raft id of the leader of each term.
    leaders: BTreeMap<u64, u64>,
    /// Since when control loops run on a manager that does not lead. Its process is named, too.
    lingering: BTreeMap<(Host, u64), u64>,
}

impl LeaderInvariants {
    /// Checks a manager that runs.
    pub(super) fn check(&mut self, cluster: &SimCluster, it: &ManagerHost) -> Result<(), Violation> {
        let Some(manager) = it.manager() else { return Ok(()) };
        let (leadership, id, now) = (manager.leadership(), manager.raft().id(), cluster.world.now());
        if leadership.is_self {
            let first = *self.leaders.entry(leadership.term).or_insert(id);
            if first != id {
                let text = format!("term {} has two leaders: {first} and {id}", leadership.term);
                return Err(Kind::TwoLeaders.because(text));
            }
        }
        let loops = manager.running_loops();
        if loops > 1 {
            return Err(Kind::LoopsRunOn.because(format!("the control loops run {loops} times on {}", it.host)));
        }
        let process = (it.host, cluster.world.network.incarnation(it.host));
        if loops == 0 || leadership.is_self || cluster.world.is_paused(it.host) {
            self.lingering.remove(&process);
        } else if now - *self.lingering.entry(process).or_insert(now) > ENDS_WITHIN {
            return Err(Kind::LoopsRunOn.because(format!("the control loops run on {}, which does not lead", it.host)));
        }
        Ok(())
    }
}
