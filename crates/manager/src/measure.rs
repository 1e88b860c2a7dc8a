//! Runs parts of the manager by themselves, for benchmarks.

use std::collections::BTreeSet;

use rand::SeedableRng;
use rand::rngs::StdRng;

use flota_api::version::Timestamp;
use flota_raft_store::{Tables, Transaction};

use crate::control_loop::{self, ControlLoop, Key};
use crate::plan::PlanContext;
use crate::scheduler::Scheduler;

/// Most changes of one loop in a pass of a leader, which runs five.
const SHARE: usize = flota_raft_store::ACTIONS_BOUND / 5;

/// The scheduler of a leader, without the other loops and without a cluster.
pub struct Schedule {
    loops: [Box<dyn ControlLoop>; 1],
    dirty: [BTreeSet<Key>; 1],
}

impl Schedule {
    /// Begins with every service of these tables that has waiting tasks.
    pub fn new(tables: &Tables) -> Self {
        let loops: [Box<dyn ControlLoop>; 1] = [Box::new(Scheduler)];
        let dirty = [loops[0].all(tables).into_iter().collect()];
        Self { loops, dirty }
    }

    /// Returns the transactions of the next pass; none if there is nothing left to plan. They must be applied to the
    /// tables before the next call.
    pub fn pass(&mut self, tables: &Tables) -> Vec<Transaction> {
        let mut cx = PlanContext { now: Timestamp(1), rng: StdRng::seed_from_u64(1), room: SHARE };
        let planned = control_loop::run(&mut self.loops, &mut self.dirty, tables, &mut cx);
        planned.groups.into_iter().map(|(transaction, _)| transaction).collect()
    }
}
