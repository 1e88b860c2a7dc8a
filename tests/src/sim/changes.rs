//! Changes of the set of managers while other things go wrong: a machine joins as a manager, a manager leaves, or the
//! disk of one is erased and it comes back under a new Raft id. There is one change at a time. The operator who makes it
//! tries one manager after the other until it is done.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tonic::Status;
use tonic::transport::Channel;

use flota_api::id::NodeId;
use flota_api::model::Role;
use flota_identity::{Dialer, JoinToken, Peer};

use super::cluster::SimCluster;
use super::host::{Host, MOST_MANAGERS, OPERATOR};
use super::network::Network;
use super::node_ca::{issue_certificate, join_raft, leave_raft};
use super::process::peer;

/// Fewest managers that stay when one leaves.
const FEWEST: usize = 3;
/// Time limit of one request to one manager: longer than a manager waits for the departure of another.
const TRY: Duration = Duration::from_secs(5);
/// Pause of the operator before the next manager.
const PAUSE: Duration = Duration::from_millis(100);

/// A change of the set of managers; the number is that of the manager.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// A machine joins, in the place of one that has left or in a new one.
    Join,
    /// A manager leaves.
    Leave(usize),
    /// The disk of a manager is erased, and it joins again.
    Replace(usize),
}

/// What the cluster has granted to the operator.
enum Granted {
    /// A machine may start as a manager.
    Joined { number: usize, node_id: NodeId, raft_id: u64 },
    /// A manager has left.
    Left { number: usize },
}

/// The part of a change that is under way.
enum Step {
    /// The operator asks; the answer will be here.
    Asked(Arc<Mutex<Option<Granted>>>),
    /// A manager has started under a new Raft id, and does not vote yet.
    Started { number: usize },
}

/// The change that is under way, if there is one.
#[derive(Default)]
pub(super) struct Changes(Option<Step>);

impl Changes {
    /// Whether a change is under way.
    pub(super) fn is_open(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a change. Does nothing while another one is under way, or if too few or too many managers would be left.
    pub(super) fn begin(&mut self, cluster: &mut SimCluster, change: Change) {
        let count = cluster.members().count();
        let fits = match change {
            Change::Join => count < MOST_MANAGERS,
            Change::Leave(number) => count > FEWEST && cluster.managers[number].is_member,
            Change::Replace(number) => cluster.managers[number].is_member,
        };
        if self.is_open() || !fits || all_vote(cluster).is_err() {
            return;
        }
        let view = cluster.view().expect("a manager leads, because all vote");
        let token = JoinToken::of(view.cluster().expect("the cluster has begun"), Role::Manager).to_string();
        let operator = Operator { network: cluster.world.network.clone(), managers: cluster.addresses() };
        let answer = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&answer);
        let act = async move |granted| *slot.lock().expect("no holder panics") = Some(granted);
        cluster.world.log.add(format_args!("the set of managers changes: {change:?}"));
        match change {
            Change::Join => {
                let number = cluster.free_place();
                let (host, key) = (cluster.manager_host(number), cluster.draw_key());
                cluster.world.start(OPERATOR, async move {
                    let node_id = operator.certificate(host, token, key).await;
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
            Change::Replace(number) => {
                cluster.remove_manager(number);
                let (host, node_id) = (cluster.managers[number].host, cluster.managers[number].node_id.clone());
                cluster.world.start(OPERATOR, async move {
                    let raft_id = operator.raft_id(host, node_id.clone()).await;
                    act(Granted::Joined { number, node_id, raft_id }).await;
                });
            }
        }
        self.0 = Some(Step::Asked(answer));
    }

    /// Takes the next step of the change, if its time has come.
    pub(super) fn advance(&mut self, cluster: &mut SimCluster) {
        match &self.0 {
            Some(Step::Asked(answer)) => {
                let Some(granted) = answer.lock().expect("no holder panics").take() else { return };
                cluster.world.crash(OPERATOR, false);
                self.0 = match granted {
                    Granted::Joined { number, node_id, raft_id } => {
                        cluster.seat_manager(number, node_id, raft_id);
                        cluster.start_manager(number);
                        Some(Step::Started { number })
                    }
                    Granted::Left { number } => {
                        cluster.remove_manager(number);
                        None
                    }
                };
            }
            Some(Step::Started { number }) if all_vote(cluster).is_ok() => {
                cluster.managers[*number].was_here = true;
                cluster.world.log.add(format_args!("the set of managers is complete"));
                self.0 = None;
            }
            Some(Step::Started { .. }) | None => {}
        }
    }
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

/// Who changes the set of managers.
struct Operator {
    network: Network,
    managers: Vec<String>,
}

impl Operator {
    /// Sends a request to one manager after the other until one grants it.
    async fn insist<T, F>(&self, peer: Peer, call: impl Fn(Channel) -> F) -> T
    where
        F: Future<Output = Result<T, Status>>,
    {
        let dialer = Dialer::through(self.network.connector(OPERATOR, peer));
        for manager in self.managers.iter().cycle() {
            match tokio::time::timeout(TRY, call(dialer.manager(manager))).await {
                Ok(Ok(granted)) => return granted,
                Ok(Err(status)) => tracing::info!(manager, message = status.message(), "the operator tries again"),
                Err(_) => tracing::info!(manager, "the operator got no answer"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        unreachable!("there are managers")
    }

    async fn certificate(&self, host: Host, token: String, key: [u8; 32]) -> NodeId {
        let anonymous = Peer::Anonymous { address: host.address().parse().expect("it is an address") };
        let request = issue_certificate(host, token, key);
        self.insist(anonymous, request).await
    }

    async fn raft_id(&self, host: Host, node_id: NodeId) -> u64 {
        let peer = peer(host, &node_id, Role::Manager);
        self.insist(peer, |channel| join_raft(channel, host, node_id.clone())).await
    }

    async fn leave(&self, host: Host, node_id: NodeId) {
        let peer = peer(host, &node_id, Role::Manager);
        self.insist(peer, |channel| leave_raft(channel, node_id.clone())).await;
    }
}
