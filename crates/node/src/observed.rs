//! What can be seen of this node at a moment, for its metrics and for whether it is ready.

use std::collections::BTreeMap;
use std::time::Duration;

use flota_api::object::Kind;
use flota_api::version::Timestamp;
use flota_manager::{LoopStatistics, Manager};
use flota_raft_store::raft::LogStatistics;
use flota_worker::{StartStatistics, Worker};

/// How old a manager's copy of the store may be for it to be ready. An election takes less.
const READY_AGE: Duration = Duration::from_secs(5);

/// A node at a moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observed {
    /// Empty if it belongs to no cluster.
    pub(crate) node_id: String,
    /// Empty if it belongs to no cluster.
    pub(crate) cluster_id: String,
    pub(crate) hostname: String,
    /// Empty if it belongs to no cluster.
    pub(crate) role: String,
    pub(crate) manager: Option<ObservedManager>,
    pub(crate) worker: Option<ObservedWorker>,
    /// Whether it is a manager that waits for the unlock key.
    pub(crate) is_locked: bool,
}

/// A manager at a moment.
#[derive(Clone, Debug)]
pub(crate) struct ObservedManager {
    pub(crate) is_leader: bool,
    pub(crate) has_leader: bool,
    pub(crate) term: u64,
    pub(crate) applied_index: u64,
    /// Digest of the tables at `applied_index`; empty if it is not kept any more.
    pub(crate) digest: String,
    /// Time since it last knew that it had every committed entry; `None` if it has not known so since it started.
    pub(crate) age: Option<Duration>,
    pub(crate) voters: usize,
    pub(crate) learners: usize,
    pub(crate) log: LogStatistics,
    /// Number of objects of each kind.
    pub(crate) objects: BTreeMap<&'static str, usize>,
    /// Number of tasks in each state.
    pub(crate) tasks: BTreeMap<&'static str, usize>,
    /// Number of nodes in each state.
    pub(crate) nodes: BTreeMap<&'static str, usize>,
    pub(crate) sessions: usize,
    /// Number of tasks that were told to stop although nodes had not confirmed that they send them no more connections.
    pub(crate) unconfirmed_stops: u64,
    pub(crate) loops: LoopStatistics,
    /// When its newest backup was written, as the time since 1970; `None` if its settings have no schedule.
    pub(crate) newest_backup: Option<Timestamp>,
}

/// A worker at a moment.
#[derive(Clone, Debug)]
pub(crate) struct ObservedWorker {
    /// Time since it had a session with the leader; `None` if it has one.
    pub(crate) lost: Option<Duration>,
    /// Number of tasks that have not ended.
    pub(crate) tasks: usize,
    /// Number of images.
    pub(crate) images: usize,
    pub(crate) starts: StartStatistics,
    /// When the certificate of the node expires.
    pub(crate) certificate_expires_at: Timestamp,
}

impl ObservedManager {
    pub(crate) async fn of(manager: &Manager, newest_backup: Option<Timestamp>) -> Self {
        let raft = manager.raft();
        let leadership = manager.leadership();
        // A follower knows how old its copy is once it has asked the leader.
        raft.freshen().await;
        let (applied_index, digest) = raft.applied();
        let members = raft.members();
        let voters = members.iter().filter(|member| member.votes).count();
        let view = manager.store().view();
        let (mut tasks, mut nodes) = (BTreeMap::new(), BTreeMap::new());
        view.tasks().for_each(|task| *tasks.entry(task.status.state.as_str()).or_default() += 1);
        view.nodes().for_each(|node| *nodes.entry(node.state.as_str()).or_default() += 1);
        Self {
            is_leader: manager.leads(),
            has_leader: leadership.leader.is_some(),
            term: leadership.term,
            applied_index,
            digest: digest.map(|digest| digest.to_string()).unwrap_or_default(),
            age: raft.age(),
            voters,
            learners: members.len() - voters,
            log: raft.statistics(),
            objects: Kind::ALL.map(|kind| (kind.as_str(), view.count(kind))).into(),
            tasks,
            nodes,
            sessions: manager.sessions(),
            unconfirmed_stops: manager.unconfirmed_stops(),
            loops: manager.loop_statistics(),
            newest_backup,
        }
    }

    /// Whether it serves users and workers.
    ///
    /// # Errors
    /// The text says why it does not.
    pub(crate) fn readiness(&self) -> Result<(), String> {
        match self.age {
            _ if !self.has_leader => Err("this manager knows no leader".into()),
            None => Err("this manager has not caught up since it started".into()),
            Some(age) if age > READY_AGE => Err(format!("what this manager knows is {:.1} s old", age.as_secs_f64())),
            Some(_) => Ok(()),
        }
    }
}

impl ObservedWorker {
    pub(crate) async fn of(worker: &Worker, certificate_expires_at: Timestamp) -> Self {
        let images = worker.count_images().await;
        let starts = worker.start_statistics();
        Self { lost: worker.lost(), tasks: worker.live_tasks(), images, starts, certificate_expires_at }
    }

    /// Whether it gets tasks and reports on them.
    ///
    /// # Errors
    /// The text says why it does not.
    pub(crate) fn readiness(&self) -> Result<(), String> {
        match self.lost {
            None => Ok(()),
            Some(lost) => Err(format!("this node has had no session with the leader for {:.1} s", lost.as_secs_f64())),
        }
    }
}

impl Observed {
    /// Whether the node serves: its manager, if it runs one, serves users and workers, and its worker gets tasks.
    ///
    /// # Errors
    /// The text says why it does not.
    pub(crate) fn readiness(&self) -> Result<(), String> {
        self.manager.as_ref().map_or(Ok(()), ObservedManager::readiness)?;
        if self.is_locked {
            return Err("this manager is locked".into());
        }
        let worker = self.worker.as_ref().ok_or("this node belongs to no cluster")?;
        worker.readiness()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(has_leader: bool, age: Option<u64>) -> ObservedManager {
        ObservedManager {
            is_leader: false,
            has_leader,
            term: 1,
            applied_index: 1,
            digest: String::new(),
            age: age.map(Duration::from_secs),
            voters: 1,
            learners: 0,
            log: LogStatistics::default(),
            objects: BTreeMap::new(),
            tasks: BTreeMap::new(),
            nodes: BTreeMap::new(),
            sessions: 0,
            unconfirmed_stops: 0,
            loops: LoopStatistics::default(),
            newest_backup: None,
        }
    }

    #[test]
    fn a_node_is_ready_when_each_of_its_parts_is() {
        let worker = |lost: Option<u64>| {
            let (lost, certificate_expires_at) = (lost.map(Duration::from_secs), Timestamp::default());
            let starts = StartStatistics::default();
            ObservedWorker { lost, tasks: 0, images: 0, starts, certificate_expires_at }
        };
        for (manager, worker, expected) in [
            (Some(manager(true, Some(0))), Some(worker(None)), None),
            (None, Some(worker(None)), None),
            (None, None, Some("this node belongs to no cluster")),
            (Some(manager(false, Some(0))), Some(worker(None)), Some("this manager knows no leader")),
            (Some(manager(true, None)), Some(worker(None)), Some("this manager has not caught up since it started")),
            (Some(manager(true, Some(6))), Some(worker(None)), Some("what this manager knows is 6.0 s old")),
            (None, Some(worker(Some(2))), Some("this node has had no session with the leader for 2.0 s")),
        ] {
            let observed = Observed { manager, worker, ..Observed::default() };
            assert_eq!(observed.readiness().err().as_deref(), expected);
        }
    }
}
