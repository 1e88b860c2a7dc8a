//! A node for tests of runners and pool: a machine in memory, its disk, and daemons on it, one after the other. The
//! time is tokio's, which tests pause.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use flota_api::clock::Clock;
use flota_api::id::TaskId;
use flota_api::model::{Assignment, RestartPolicy, ServiceSpec, TaskStatus};
use flota_api::state::{DesiredState, TaskState};
use flota_api::version::Timestamp;

use crate::contact::Contact;
use crate::executor::{FakeExecutor, FakeMachine, FakeProgram, WhatHappened};
use crate::health::HealthBoard;
use crate::messages::AssignmentSet;
use crate::records::MemoryRecords;
use crate::reporter::Reporter;
use crate::spawned::Spawned;
use crate::starts::StartCounters;
use crate::task_pool::TaskPool;
use crate::task_runner::Shared;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Returns a task of the service `web` with the desired state `running`.
pub(crate) fn task(id: &str) -> Assignment {
    Assignment { task_id: id.into(), service_name: "web".into(), ..Assignment::default() }
}

/// Returns a full set of assignments with these tasks.
pub(crate) fn full_set(tasks: Vec<Assignment>) -> AssignmentSet {
    AssignmentSet { is_full: true, tasks, ..AssignmentSet::default() }
}

/// The parts of a node that outlive a daemon, and a wall clock that the test sets.
pub(crate) struct Node {
    pub(crate) machine: FakeMachine,
    pub(crate) records: MemoryRecords,
    /// The wall clock's time when the node was created, plus every step since.
    wall: Arc<AtomicU64>,
    made: Instant,
}

/// A daemon on a node, reduced to the running of tasks.
pub(crate) struct Daemon {
    pub(crate) pool: TaskPool,
    pub(crate) reporter: Reporter,
    pub(crate) health: HealthBoard,
    spawned: Spawned,
    latest: BTreeMap<TaskId, TaskStatus>,
    /// Whether the node is in contact with a manager.
    pub(crate) contact: watch::Sender<Contact>,
}

impl Node {
    pub(crate) fn new() -> Self {
        let wall = Arc::new(AtomicU64::new(1_700_000_000_000));
        Self { machine: FakeMachine::new("m"), records: MemoryRecords::default(), wall, made: Instant::now() }
    }

    /// Creates a node with a program for every container.
    pub(crate) fn with(program: FakeProgram) -> Self {
        let node = Self::new();
        node.machine.set_default_program(program);
        node
    }

    pub(crate) fn clock(&self) -> Clock {
        let (wall, made) = (Arc::clone(&self.wall), self.made);
        Clock::new(move || Timestamp(wall.load(Ordering::SeqCst)) + made.elapsed())
    }

    /// Steps the wall clock.
    pub(crate) fn step_wall(&self, millis: i64) {
        self.wall.fetch_add(millis.cast_unsigned(), Ordering::SeqCst);
    }

    /// Starts a daemon.
    pub(crate) fn daemon(&self) -> Daemon {
        let (contact, contact_receiver) = watch::channel(Contact::default());
        let (reporter, spawned, clock) = (Reporter::default(), Spawned::new(), self.clock());
        let health = HealthBoard::default();
        let pool = TaskPool::start(Shared {
            executor: Arc::new(FakeExecutor::new(self.machine.clone(), clock.clone())),
            health: health.clone(),
            records: Arc::new(self.records.clone()),
            reporter: reporter.clone(),
            clock,
            boot_id: self.machine.boot_id().into(),
            spawned: spawned.clone(),
            contact: contact_receiver,
            live: Arc::default(),
            ended: Arc::default(),
            starts: StartCounters::default(),
        });
        Daemon { pool, reporter, health, spawned, latest: BTreeMap::new(), contact }
    }

    /// Returns the milliseconds from `begin` to each start or end, in order.
    pub(crate) fn times(&self, begin: Instant, what: fn(WhatHappened) -> bool) -> Vec<u128> {
        let events = self.machine.take_events();
        events.iter().filter(|it| what(it.what)).map(|it| (it.at - begin).as_millis()).collect()
    }
}

impl Daemon {
    /// Assigns the task `t` alone.
    pub(crate) fn assign(&self, policy: &RestartPolicy, desired: DesiredState) {
        let spec = ServiceSpec { restart: policy.clone(), ..ServiceSpec::default() };
        self.assign_spec(&spec, desired, None);
    }

    pub(crate) fn assign_spec(&self, spec: &ServiceSpec, desired: DesiredState, not_before: Option<Timestamp>) {
        self.assign_task(Assignment { spec: Arc::new(spec.clone()), desired_state: desired, not_before, ..task("t") });
    }

    /// Assigns this task alone.
    pub(crate) fn assign_task(&self, task: Assignment) {
        self.pool.assign(full_set(vec![task]), Duration::ZERO);
    }

    /// Waits for a report of the task `t` that satisfies a condition.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&TaskStatus) -> bool) -> TaskStatus {
        let found = async {
            loop {
                let batch = self.reporter.next().await;
                self.reporter.acknowledged(batch.sequence);
                for report in batch.reports {
                    self.latest.insert(report.task, report.status);
                }
                if let Some(status) = self.latest.get(&"t".into()).filter(|it| wanted(it)) {
                    return status.clone();
                }
            }
        };
        tokio::time::timeout(24 * HOUR, found).await.expect("a day is enough")
    }

    /// Waits until the task `t` is reported in this state.
    pub(crate) async fn is(&mut self, state: TaskState) -> TaskStatus {
        self.until(|status| status.state == state).await
    }

    /// Ends the daemon as SIGKILL does.
    pub(crate) fn crash(self) {
        self.spawned.kill();
    }
}
