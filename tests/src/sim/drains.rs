//! Workers that are drained for a while, one at a time, and a rebalance after each, so that tasks move between nodes while
//! other things go wrong.

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

/// Time limit of one request to one manager.
const TRY: Duration = Duration::from_secs(5);
/// Pause before the next manager.
const PAUSE: Duration = Duration::from_millis(100);

/// The drain that is under way, if there is one.
#[derive(Default)]
pub(super) struct Drains {
    /// Set when the node is active again.
    open: Option<Arc<AtomicBool>>,
    /// Number of drains so far.
    count: u64,
}

impl Drains {
    /// Whether a node is drained, or about to be active again.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Drains a worker, and makes it active again after this time. Does nothing while another one is drained.
    pub(super) fn begin(&mut self, cluster: &mut SimCluster, worker: usize, time: u64) {
        if self.is_open() {
            return;
        }
        self.count += 1;
        let (network, managers) = (cluster.world.network.clone(), cluster.addresses());
        let (node, name) = (cluster.workers[worker].node_id.to_string(), format!("drain {}", self.count));
        let done = Arc::new(AtomicBool::new(false));
        self.open = Some(Arc::clone(&done));
        cluster.world.start(DRAINER, async move {
            let set = |name: &str, availability: Availability| {
                let spec = Some(NodeSpec { availability: availability.into(), ..NodeSpec::default() });
                Wish::Set(UpdateNodeRequest { request_id: name.to_owned(), node: node.clone(), version: 0, spec })
            };
            insist(&network, &managers, set(&name, Availability::Drain)).await;
            tokio::time::sleep(Duration::from_millis(time)).await;
            insist(&network, &managers, set(&format!("end of {name}"), Availability::Active)).await;
            let rebalance = RebalanceRequest { request_id: format!("rebalance after {name}") };
            insist(&network, &managers, Wish::Rebalance(rebalance)).await;
            done.store(true, Ordering::Relaxed);
        });
    }

    /// Notes the end of the drain, if it has come.
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
    /// Set the availability of a node.
    Set(UpdateNodeRequest),
    /// Move tasks to nodes with few.
    Rebalance(RebalanceRequest),
}

/// Asks one manager after the other until one has done it.
async fn insist(network: &Network, managers: &[String], wish: Wish) {
    let dialer = Dialer::through(network.connector(DRAINER, Peer::Local));
    for manager in managers.iter().cycle() {
        let (mut client, wish) = (ControlClient::new(dialer.manager(manager)), wish.clone());
        let answer = async move {
            match wish {
                Wish::Set(request) => client.update_node(request).await.map(drop),
                Wish::Rebalance(request) => client.rebalance(request).await.map(drop),
            }
        };
        match tokio::time::timeout(TRY, answer).await {
            Ok(Ok(())) => return,
            Ok(Err(status)) => tracing::info!(manager, message = status.message(), "the drain is tried again"),
            Err(_) => tracing::info!(manager, "the drain got no answer"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
