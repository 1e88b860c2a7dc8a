//! Runs parts of the manager by themselves, for benchmarks.

use std::collections::BTreeSet;

use rand::SeedableRng;
use rand::rngs::StdRng;

use flota_api::version::Timestamp;
use flota_raft_store::{Tables, Transaction};

use crate::control_loop::{self, ControlLoop, Key};
use crate::leader;
use crate::plan::PlanContext;
use crate::scheduler::Scheduler;

/// The scheduler of a leader, without the other loops and without a cluster.
pub struct Schedule {
    loops: [Box<dyn ControlLoop>; 1],
    dirty: [BTreeSet<Key>; 1],
    /// Most changes in a pass, as for each loop of a leader.
    share: usize,
}

impl Schedule {
    /// Begins with every service of these tables that has waiting tasks.
    pub fn new(tables: &Tables) -> Self {
        let loops: [Box<dyn ControlLoop>; 1] = [Box::new(Scheduler)];
        let dirty = [loops[0].all(tables).into_iter().collect()];
        Self { loops, dirty, share: control_loop::largest_share(&leader::pipeline()) }
    }

    /// Returns the transactions of the next pass; none if there is nothing left to plan. They must be applied to the
    /// tables before the next call.
    pub fn pass(&mut self, tables: &Tables) -> Vec<Transaction> {
        let now = Timestamp(1);
        let mut cx = PlanContext { now, wall: now, led_since: now, rng: StdRng::seed_from_u64(1), room: self.share };
        let planned = control_loop::run(&mut self.loops, &mut self.dirty, tables, &mut cx);
        planned.groups.into_iter().map(|(transaction, _)| transaction).collect()
    }
}
