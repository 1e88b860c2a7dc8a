//! What a simulation is about. Most are about everything. One that looks for an injected fault leaves out what does not help
//! to find it, so that it takes a fraction of the time.

use rand::Rng;
use rand::rngs::StdRng;

use super::user::{CRON, SCALED, Wishes};

/// What goes wrong in a simulation, and what users ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Focus {
    /// Everything.
    #[default]
    Everything,
    /// Users change services and networks, and all nodes begin new sessions at first. Nothing goes wrong afterwards.
    Sessions,
    /// Leaders with slow disks lose power, and start again before another one is elected.
    Restarts,
    /// Leaders are cut off from all other nodes, and users still reach them.
    Splits,
    /// A schedule and a user begin runs while nothing goes wrong.
    Runs,
    /// Jobs run while leaders change and programs die.
    Jobs,
    /// Services are updated and rolled back while nodes are drained and leaders change.
    Rollouts,
    /// The number of tasks follows their load while workers are cut off.
    Scaling,
    /// Nodes are promoted and demoted and the CA is replaced, while managers are down for longer than they take for that.
    Roles,
    /// The same stack is deployed again while labels of nodes change.
    Labels,
    /// Volumes are removed while workers are cut off and leaders change.
    Volumes,
}

impl Focus {
    const ALL: [Self; 11] = [
        Self::Everything,
        Self::Sessions,
        Self::Restarts,
        Self::Splits,
        Self::Runs,
        Self::Jobs,
        Self::Rollouts,
        Self::Scaling,
        Self::Roles,
        Self::Labels,
        Self::Volumes,
    ];

    /// Returns the one with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|focus| format!("{focus:?}") == name)
    }

    /// Returns how many clients change services, and what users ask for.
    pub(super) fn users(self, rng: &mut StdRng) -> (u64, Wishes) {
        let [_, (right, _), _] = SCALED;
        let scaled = SCALED[rng.random_range(0..SCALED.len())].0;
        let none = Wishes { image: "app", replicas: 4, ..Wishes::default() };
        match self {
            Self::Everything => {
                // A part of the users is there in some simulations only: each of them takes its time.
                let turn = rng.random_range(0..5);
                let wishes = Wishes {
                    devices: true,
                    networks: true,
                    volumes: true,
                    chain: true,
                    probes: true,
                    rollouts: turn == 0,
                    jobs: turn == 1,
                    scaled: (turn == 2).then_some(scaled),
                    vault: turn == 3,
                    yard: turn == 3,
                    runs: turn == 4,
                    ..none
                };
                (3, wishes)
            }
            Self::Sessions => (3, Wishes { networks: true, ..none }),
            Self::Roles => (1, Wishes { replicas: 2, probes: true, ..none }),
            Self::Restarts | Self::Splits => (3, Wishes { replicas: 1, probes: true, ..none }),
            Self::Runs => (1, Wishes { only: Some(CRON), runs: true, ..none }),
            Self::Jobs => (0, Wishes { jobs: true, ..none }),
            Self::Rollouts => (0, Wishes { rollouts: true, ..none }),
            Self::Labels => (0, Wishes { yard: true, ..none }),
            Self::Volumes => (0, Wishes { vault: true, ..none }),
            // The load is on target from the start, so any decision to scale is wrong.
            Self::Scaling => (0, Wishes { scaled: Some(right), ..none }),
        }
    }
}
