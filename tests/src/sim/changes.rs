//! Changes of the set of managers while other things go wrong: a machine joins as a manager, a manager leaves, the disk
//! of one is erased and it comes back under a new Raft id, a worker is promoted, or a manager is demoted. The CA is replaced,
//! too. There is one change at a time. The [`Operator`] who makes it tries one manager after the other until it is done.

use std::sync::{Arc, Mutex};

use flota_api::id::NodeId;
use flota_api::model::Role;

use super::cluster::SimCluster;
use super::host::{MOST_MANAGERS, OPERATOR};
use operator::Operator;

mod operator;

/// A change of the set of managers; the number is that of the manager.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// A machine joins, in the place of one that has left or in a new one.
    Join,
    /// A manager leaves.
    Leave(usize),
    /// The disk of a manager is erased, and it joins again.
    Replace(usize),
    /// The node of a worker becomes a manager, too. Its manager has a machine of its own here.
    Promote(usize),
    /// A manager becomes a worker. Its machine is switched off, unless it is the node of a worker.
    Demote(usize),
    /// The CA is replaced by another one, sometimes by two in a row. Nodes confirm that one after the other.
    RotateCa { twice: bool },
}

/// What the cluster has granted to the operator.
enum Granted {
    /// A machine may start as a manager.
    Joined { number: usize, node_id: NodeId, raft_id: u64 },
    /// The node of a worker may start a manager.
    Promoted { worker: usize, number: usize, raft_id: u64 },
    /// A manager has left.
    Left { number: usize },
    /// A manager is a worker now, and votes until Raft's membership follows.
    Demoted { number: usize },
    /// The former CA counts for nothing any more.
    Rotated,
}

/// The part of a change that is under way.
enum Step {
    /// The operator asks; the answer will be here.
    Asked(Arc<Mutex<Option<Granted>>>),
    /// A manager has started under a new Raft id, and does not vote yet.
    Started { number: usize },
    /// A manager was demoted, and may still vote.
    Demoted { number: usize },
}

/// The change that is under way, if there is one.
pub(super) struct Changes {
    step: Option<Step>,
    /// Fewest managers that stay when one goes.
    fewest: usize,
}

impl Changes {
    /// Begins with no change. So many managers stay at least.
    pub(super) fn new(fewest: usize) -> Self {
        Self { step: None, fewest }
    }

    /// Whether a change is under way.
    pub(super) fn is_open(&self) -> bool {
        self.step.is_some()
    }

    /// Begins a change. Does nothing while another one is under way, or if too few or too many managers would be left.
    pub(super) fn begin(&mut self, cluster: &mut SimCluster, change: Change) {
        let count = cluster.members().count();
        let fits = match change {
            Change::Join => count < MOST_MANAGERS,
            // The node of a worker that has left could not come back.
            Change::Leave(number) => {
                count > self.fewest && cluster.managers[number].is_member && cluster.worker_of(number).is_none()
            }
            Change::Demote(number) => count > self.fewest && cluster.managers[number].is_member,
            Change::Replace(number) => cluster.managers[number].is_member,
            Change::Promote(worker) => count < MOST_MANAGERS && cluster.manager_of(worker).is_none(),
            Change::RotateCa { .. } => true,
        };
        if self.is_open() || !fits || all_vote(cluster).is_err() {
            return;
        }
        let operator = Operator::new(cluster);
        let answer = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&answer);
        let act = async move |granted| *slot.lock().expect("no holder panics") = Some(granted);
        cluster.world.log.add(format_args!("the set of managers changes: {change:?}"));
        match change {
            Change::Join => {
                let number = cluster.free_place();
                let (host, key) = (cluster.manager_host(number), cluster.draw_key());
                cluster.world.start(OPERATOR, async move {
                    let node_id = operator.certificate(host, key).await;
                    let raft_id = operator.raft_id(host, node_id.clone()).await;
                    act(Granted::Joined { number, node_id, raft_id }).await;
                });
            }
            Change::Leave(number) => {
                let (host, node_id) = (cluster.managers[number].host, cluster.managers[number].node_id.clone());
                cluster.world.start(OPERATOR, async move {
                    operator.leave(host, node_id).await;
                    act(Granted::Left { number }).await;
                });
            }
            Change::Promote(worker) => {
                let number = cluster.free_place();
                let (host, node_id) = (cluster.manager_host(number), cluster.workers[worker].node_id.clone());
                cluster.world.start(OPERATOR, async move {
                    operator.change_role(&node_id, Role::Manager).await;
                    let raft_id = operator.raft_id(host, node_id).await;
                    act(Granted::Promoted { worker, number, raft_id }).await;
                });
            }
            Change::Demote(number) => {
                let node_id = cluster.managers[number].node_id.clone();
                cluster.world.start(OPERATOR, async move {
                    operator.change_role(&node_id, Role::Worker).await;
                    act(Granted::Demoted { number }).await;
                });
            }
            Change::RotateCa { twice } => {
                cluster.world.start(OPERATOR, async move {
                    operator.rotate_ca(twice).await;
                    act(Granted::Rotated).await;
                });
            }
            Change::Replace(number) => {
                cluster.remove_manager(number);
                let (host, node_id) = (cluster.managers[number].host, cluster.managers[number].node_id.clone());
                cluster.world.start(OPERATOR, async move {
                    let raft_id = operator.raft_id(host, node_id.clone()).await;
                    act(Granted::Joined { number, node_id, raft_id }).await;
                });
            }
        }
        self.step = Some(Step::Asked(answer));
    }

    /// Takes the next step of the change, if its time has come.
    pub(super) fn advance(&mut self, cluster: &mut SimCluster) {
        match &self.step {
            Some(Step::Asked(answer)) => {
                let Some(granted) = answer.lock().expect("no holder panics").take() else { return };
                cluster.world.crash(OPERATOR, false);
                self.step = match granted {
                    Granted::Joined { number, node_id, raft_id } => {
                        cluster.seat_manager(number, node_id, raft_id);
                        cluster.start_manager(number);
                        Some(Step::Started { number })
                    }
                    Granted::Promoted { worker, number, raft_id } => {
                        let node_id = cluster.workers[worker].node_id.clone();
                        cluster.seat_manager(number, node_id, raft_id);
                        cluster.start_manager(number);
                        cluster.move_worker(worker, cluster.manager_host(number));
                        Some(Step::Started { number })
                    }
                    Granted::Left { number } => {
                        cluster.remove_manager(number);
                        None
                    }
                    Granted::Demoted { number } => Some(Step::Demoted { number }),
                    Granted::Rotated => None,
                };
            }
            Some(Step::Started { number }) if all_vote(cluster).is_ok() => {
                cluster.managers[*number].was_here = true;
                cluster.world.log.add(format_args!("the set of managers is complete"));
                self.step = None;
            }
            Some(Step::Demoted { number }) if !is_member(cluster, cluster.managers[*number].raft_id) => {
                let (number, worker) = (*number, cluster.worker_of(*number));
                cluster.remove_manager(number);
                if let Some(worker) = worker {
                    cluster.move_worker(worker, cluster.workers[worker].host);
                }
                cluster.world.log.add(format_args!("the demoted manager votes no more"));
                self.step = None;
            }
            Some(Step::Started { .. } | Step::Demoted { .. }) | None => {}
        }
    }
}

/// Whether Raft's membership has this manager, or is not known.
fn is_member(cluster: &SimCluster, raft_id: u64) -> bool {
    let leader = cluster.leader().and_then(|number| cluster.managers[number].manager());
    leader.is_none_or(|it| it.raft().is_changing() || it.raft().members().iter().any(|it| it.id == raft_id))
}

/// Whether Raft's voters are the managers of the cluster, and no change of them is incomplete.
///
/// # Errors
/// The voters, or why they are not known.
pub(super) fn all_vote(cluster: &SimCluster) -> Result<(), String> {
    let leader = cluster.leader().and_then(|number| cluster.managers[number].manager());
    // While the set changes, entries also need a majority of the old set, so one more failed manager may stop the
    // cluster.
    let leader = leader.filter(|it| !it.raft().is_changing()).ok_or("no manager leads a complete set of managers")?;
    let mut voters: Vec<u64> = leader.raft().members().iter().filter(|it| it.votes).map(|it| it.id).collect();
    let mut members: Vec<u64> = cluster.members().map(|it| it.raft_id).collect();
    voters.sort_unstable();
    members.sort_unstable();
    if voters == members { Ok(()) } else { Err(format!("{voters:?} vote, and {members:?} are the managers")) }
}
