//! Runs control loops of a leader by themselves, for benchmarks.

use std::collections::BTreeSet;

use rand::SeedableRng;
use rand::rngs::StdRng;

use flota_api::version::Timestamp;
use flota_raft_store::{Event, Tables, Transaction};

use crate::control_loop::{self, ControlLoop, Key};
use crate::leader;
use crate::plan::PlanContext;
use crate::scheduler::Scheduler;
use crate::usage::Usage;

/// Control loops without a cluster.
pub struct Loops {
    loops: Vec<Box<dyn ControlLoop>>,
    dirty: Vec<BTreeSet<Key>>,
    /// Most changes in a pass, as for each loop of a leader.
    share: usize,
}

impl Loops {
    /// The scheduler alone. It begins with every service of these tables that has waiting tasks.
    pub fn scheduler(tables: &Tables) -> Self {
        Self::of(vec![Box::new(Scheduler)], tables)
    }

    /// All loops of a leader, as it begins: they look at everything in these tables.
    pub fn all(tables: &Tables) -> Self {
        Self::of(leader::pipeline(), tables)
    }

    fn of(loops: Vec<Box<dyn ControlLoop>>, tables: &Tables) -> Self {
        let dirty = loops.iter().map(|it| it.all(tables).into_iter().collect()).collect();
        Self { loops, dirty, share: control_loop::largest_share(&leader::pipeline()) }
    }

    /// Lets the loops look at what an event concerns. The tables have it already.
    pub fn notice(&mut self, event: &Event, tables: &Tables) {
        for (each, dirty) in self.loops.iter().zip(&mut self.dirty) {
            dirty.extend(each.dirtied_by(event, tables));
        }
    }

    /// Returns the transactions of the next pass; none if there is nothing left to plan. They must be applied to the
    /// tables, and their events noticed, before the next call.
    pub fn pass(&mut self, tables: &Tables, now: Timestamp) -> Vec<Transaction> {
        let led_since = Timestamp(1);
        let (rng, usage) = (StdRng::seed_from_u64(1), Usage::default());
        let mut cx = PlanContext { now, wall: now, led_since, rng, usage, room: self.share };
        let planned = control_loop::run(&mut self.loops, &mut self.dirty, tables, &mut cx);
        planned.groups.into_iter().map(|(transaction, _)| transaction).collect()
    }
}
