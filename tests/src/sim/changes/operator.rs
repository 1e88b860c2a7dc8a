//! Who changes the set of managers and the CA: a process that sends each request to one manager after the other until one has
//! granted it.

use std::time::Duration;

use tonic::Status;
use tonic::transport::Channel;

use flota_api::id::NodeId;
use flota_api::model::Role;
use flota_api::proto::ca::ConfirmTrustRequest;
use flota_api::proto::ca::node_ca_client::NodeCaClient;
use flota_api::proto::control::control_client::ControlClient;
use flota_api::proto::control::{CaInfo, ChangeRoleRequest, ClusterInfo, Empty, RotateCaRequest};
use flota_api::proto::types;
use flota_identity::{Dialer, Peer, trust_digest};

use crate::sim::cluster::SimCluster;
use crate::sim::host::{Host, OPERATOR};
use crate::sim::network::Network;
use crate::sim::node_ca::{issue_certificate, join_raft, leave_raft};
use crate::sim::process::peer;

/// Time limit of one request to one manager: longer than a manager waits for the departure of another.
const TRY: Duration = Duration::from_secs(5);
/// Pause of the operator before the next manager.
const PAUSE: Duration = Duration::from_millis(100);
/// Time until a node has renewed its certificate and says so, beside the requests.
const RENEWAL: Duration = Duration::from_millis(300);

/// Who changes the set of managers.
pub(super) struct Operator {
    network: Network,
    managers: Vec<String>,
}

impl Operator {
    /// Returns an operator who knows all managers.
    pub(super) fn new(cluster: &SimCluster) -> Self {
        Self { network: cluster.world.network.clone(), managers: cluster.addresses() }
    }

    /// Sends a request to one manager after the other until one grants it.
    async fn insist<T, F>(&self, peer: Peer, call: impl Fn(Channel) -> F) -> T
    where
        F: Future<Output = Result<T, Status>>,
    {
        loop {
            if let Some(granted) = self.ask_all(peer.clone(), &call).await {
                return granted;
            }
        }
    }

    /// Sends a request to one manager after the other until one grants it or all have refused.
    async fn ask_all<T, F>(&self, peer: Peer, call: impl Fn(Channel) -> F) -> Option<T>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let dialer = Dialer::through(self.network.connector(OPERATOR, peer));
        for manager in &self.managers {
            match tokio::time::timeout(TRY, call(dialer.manager(manager))).await {
                Ok(Ok(granted)) => return Some(granted),
                Ok(Err(status)) => tracing::info!(manager, message = status.message(), "the operator tries again"),
                Err(_) => tracing::info!(manager, "the operator got no answer"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        None
    }

    /// Joins a machine with this secret key.
    pub(super) async fn certificate(&self, host: Host, key: [u8; 32]) -> NodeId {
        loop {
            // A manager that has lost its leadership may know only a token that was rotated, so it is asked for each time.
            let cluster: ClusterInfo = self
                .insist(Peer::Local, |channel| async move {
                    ControlClient::new(channel).get_cluster(Empty {}).await.map(tonic::Response::into_inner)
                })
                .await;
            let anonymous = Peer::Anonymous { address: host.address().parse().expect("it is an address") };
            let request = issue_certificate(host, cluster.manager_token, key);
            if let Some(node_id) = self.ask_all(anonymous, request).await {
                return node_id;
            }
        }
    }

    /// Gets a Raft id for a manager's node.
    pub(super) async fn raft_id(&self, host: Host, node_id: NodeId) -> u64 {
        let peer = peer(host, &node_id, Role::Manager);
        self.insist(peer, |channel| join_raft(channel, host, node_id.clone())).await
    }

    /// Lets a manager leave.
    pub(super) async fn leave(&self, host: Host, node_id: NodeId) {
        let peer = peer(host, &node_id, Role::Manager);
        self.insist(peer, |channel| leave_raft(channel, node_id.clone())).await;
    }

    /// Gives a node this role.
    pub(super) async fn change_role(&self, node: &NodeId, role: Role) {
        // Without an id of the request, so that a refusal is not remembered: it may be granted later.
        let role = types::Role::from(role).into();
        let request = ChangeRoleRequest { node: node.to_string(), role, ..ChangeRoleRequest::default() };
        self.insist(Peer::Local, |channel| {
            let request = request.clone();
            async move { ControlClient::new(channel).change_role(request).await.map(drop) }
        })
        .await;
    }

    /// Replaces the CA, and confirms it for each node until the former one counts for nothing. With `twice`, another new CA
    /// takes the place of the first in the midst of that.
    pub(super) async fn rotate_ca(&self, twice: bool) {
        self.begin_rotation().await;
        if twice {
            self.confirm(2).await;
            self.begin_rotation().await;
        }
        while self.confirm(usize::MAX).await {
            tokio::time::sleep(RENEWAL).await;
        }
    }

    async fn begin_rotation(&self) {
        self.insist(Peer::Local, |channel| async move {
            ControlClient::new(channel).rotate_ca(RotateCaRequest::default()).await.map(drop)
        })
        .await;
    }

    /// Confirms what nodes are to trust for so many of those that have not. Returns whether a rotation is under way.
    async fn confirm(&self, most: usize) -> bool {
        let info: CaInfo = self
            .insist(Peer::Local, |channel| async move {
                ControlClient::new(channel).get_ca(Empty {}).await.map(tonic::Response::into_inner)
            })
            .await;
        let trusted: Vec<Vec<u8>> = info.trusted_der.iter().map(|der| der.to_vec()).collect();
        let Some(progress) = info.rotation else { return false };
        for node in progress.waiting.into_iter().take(most) {
            tokio::time::sleep(RENEWAL).await;
            let peer = peer(OPERATOR, &node.id.as_str().into(), Role::Worker);
            let request = ConfirmTrustRequest { node_id: node.id, trusts: trust_digest(&trusted) };
            self.insist(peer, |channel| {
                let request = request.clone();
                async move { NodeCaClient::new(channel).confirm_trust(request).await.map(drop) }
            })
            .await;
        }
        true
    }
}
