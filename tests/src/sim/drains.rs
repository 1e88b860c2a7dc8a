//! Workers that are drained for a while, with a rebalance after each drain, or that get other labels, one at a time, so that
//! tasks move between nodes while other things go wrong.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flota_api::proto::control::control_client::ControlClient;
use flota_api::proto::control::{RebalanceRequest, UpdateNodeRequest};
use flota_api::proto::specs::NodeSpec;
use flota_api::proto::types::Availability;
use flota_identity::{Dialer, Peer};

use super::cluster::SimCluster;
use super::host::DRAINER;
use super::network::Network;
use super::user::yard::{AWAY, LABELS};

/// Time limit of one request to one manager.
const TRY: Duration = Duration::from_secs(5);
/// Pause before the next manager.
const PAUSE: Duration = Duration::from_millis(100);

/// The change of a worker's node that is under way, if there is one.
#[derive(Default)]
pub(super) struct Drains {
    /// Set when the node is active again, and has its labels.
    open: Option<Arc<AtomicBool>>,
    /// Number of changes so far.
    count: u64,
    /// The labels that workers have.
    labels: BTreeMap<usize, BTreeMap<String, String>>,
}

impl Drains {
    /// Whether a change is under way.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Drains a worker, and makes it active again after this time. Does nothing while a change is under way.
    pub(super) fn drain(&mut self, cluster: &mut SimCluster, worker: usize, time: u64) {
        let Some(NodeWishes { drainer, set, name, done }) = self.begin(cluster, worker) else { return };
        cluster.world.start(DRAINER, async move {
            drainer.insist(set(&name, Availability::Drain)).await;
            tokio::time::sleep(Duration::from_millis(time)).await;
            drainer.insist(set(&format!("end of {name}"), Availability::Active)).await;
            let rebalance = RebalanceRequest { request_id: format!("rebalance after {name}") };
            drainer.insist(Wish::Rebalance(rebalance)).await;
            done.store(true, Ordering::Relaxed);
        });
    }

    /// Gives a worker a label, or takes it away. Does nothing while a change is under way. The first worker never gets the
    /// label that keeps tasks away, so that there is a node for all.
    pub(super) fn label(&mut self, cluster: &mut SimCluster, worker: usize, label: &str, is_set: bool) {
        if self.is_open() || worker == 0 && label == LABELS[0] {
            return;
        }
        let labels = self.labels.entry(worker).or_default();
        if is_set {
            labels.insert(label.to_owned(), AWAY.to_owned());
        } else {
            labels.remove(label);
        }
        let Some(NodeWishes { drainer, set, name, done }) = self.begin(cluster, worker) else { return };
        cluster.world.start(DRAINER, async move {
            drainer.insist(set(&name, Availability::Active)).await;
            done.store(true, Ordering::Relaxed);
        });
    }

    /// Begins a change, unless one is under way.
    fn begin(
        &mut self,
        cluster: &SimCluster,
        worker: usize,
    ) -> Option<NodeWishes<impl Fn(&str, Availability) -> Wish + Send + 'static>> {
        if self.is_open() {
            return None;
        }
        self.count += 1;
        let drainer = Drainer { network: cluster.world.network.clone(), managers: cluster.addresses() };
        let (node, name) = (cluster.workers[worker].node_id.to_string(), format!("change {} of a node", self.count));
        let labels = self.labels.get(&worker).cloned().unwrap_or_default();
        let set = move |name: &str, availability: Availability| {
            let labels = labels.clone().into_iter().collect();
            let spec = Some(NodeSpec { availability: availability.into(), labels, ..NodeSpec::default() });
            Wish::Set(UpdateNodeRequest { request_id: name.to_owned(), node: node.clone(), version: 0, spec })
        };
        let done = Arc::new(AtomicBool::new(false));
        self.open = Some(Arc::clone(&done));
        Some(NodeWishes { drainer, set, name, done })
    }

    /// Notes the end of the change, if it has come.
    pub(super) fn advance(&mut self, cluster: &mut SimCluster) {
        if self.open.as_ref().is_some_and(|done| done.load(Ordering::Relaxed)) {
            cluster.world.crash(DRAINER, false);
            self.open = None;
        }
    }
}

/// A request that is repeated until a manager has done it.
#[derive(Clone)]
enum Wish {
    /// Set the availability and the labels of a node.
    Set(UpdateNodeRequest),
    /// Move tasks to nodes with few.
    Rebalance(RebalanceRequest),
}

/// What is to be asked for a worker's node.
struct NodeWishes<F> {
    drainer: Drainer,
    /// Makes the wish for an availability, beside the labels that the node is to have.
    set: F,
    name: String,
    done: Arc<AtomicBool>,
}

/// Who changes workers' nodes.
struct Drainer {
    network: Network,
    managers: Vec<String>,
}

impl Drainer {
    /// Asks one manager after the other until one has done it.
    async fn insist(&self, wish: Wish) {
        let dialer = Dialer::through(self.network.connector(DRAINER, Peer::Local));
        for manager in self.managers.iter().cycle() {
            let (mut client, wish) = (ControlClient::new(dialer.manager(manager)), wish.clone());
            let answer = async move {
                match wish {
                    Wish::Set(request) => client.update_node(request).await.map(drop),
                    Wish::Rebalance(request) => client.rebalance(request).await.map(drop),
                }
            };
            match tokio::time::timeout(TRY, answer).await {
                Ok(Ok(())) => return,
                Ok(Err(status)) => tracing::info!(manager, message = status.message(), "the change is tried again"),
                Err(_) => tracing::info!(manager, "the change got no answer"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
