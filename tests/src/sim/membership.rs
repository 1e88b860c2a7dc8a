//! Joins machines to a simulated cluster and removes them over NodeCa, as `flotad` does.

use futures::future::BoxFuture;
use tonic::Status;
use tonic::transport::Channel;

use flota_api::id::NodeId;
use flota_api::model::Role;
use flota_api::proto::ca::node_ca_client::NodeCaClient;
use flota_api::proto::ca::{IssueCertificateRequest, JoinRaftRequest, LeaveRaftRequest};
use flota_identity::{JoinToken, Peer};

use super::host::{Host, USER};
use super::process::peer;
use super::script::Script;

/// What an Ed25519 key in PKCS#8 begins with (RFC 8410 §7); its 32 bytes follow.
const ED25519: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// Returns a request for the certificate of a new machine, which answers the id of its node. Each use of it asks for the
/// same one. The id is derived from the signing request, so this depends on the secret key `seed` alone: an Ed25519
/// signature, unlike one of ECDSA, has no random part.
pub(super) fn issue_certificate(
    host: Host,
    token: String,
    seed: [u8; 32],
) -> impl Fn(Channel) -> BoxFuture<'static, Result<NodeId, Status>> {
    let key = rcgen::KeyPair::try_from([&ED25519[..], &seed].concat()).expect("every seed is a key");
    let signing_request = rcgen::CertificateParams::default().serialize_request(&key).expect("a request can be made");
    let request = IssueCertificateRequest {
        token,
        csr_der: signing_request.der().to_vec().into(),
        hostname: host.to_string(),
        address: host.address(),
    };
    move |channel| {
        let request = request.clone();
        Box::pin(async move {
            let issued = NodeCaClient::new(channel).issue_certificate(request).await?;
            Ok(issued.into_inner().node_id.as_str().into())
        })
    }
}

/// Asks for a new Raft id of a manager's node.
pub(super) async fn join_raft(channel: Channel, host: Host, node_id: NodeId) -> Result<u64, Status> {
    let request = JoinRaftRequest { node_id: node_id.to_string(), address: host.address() };
    Ok(NodeCaClient::new(channel).join_raft(request).await?.into_inner().raft_id)
}

/// Asks that a manager's node leaves the cluster, and waits until it votes no more.
pub(super) async fn leave_raft(channel: Channel, node_id: NodeId) -> Result<(), Status> {
    let request = LeaveRaftRequest { node_id: node_id.to_string(), force: true };
    NodeCaClient::new(channel).leave_raft(request).await.map(drop)
}

impl Script {
    /// Joins a new machine with the cluster's token for `role`. Returns its number among the managers or workers. The
    /// process of a manager is not started yet.
    ///
    /// # Errors
    /// The error that the leader answers.
    ///
    /// # Panics
    /// No manager leads.
    pub fn join(&mut self, role: Role) -> Result<usize, Status> {
        let token = self.join_token(role);
        self.join_with(role, &token)
    }

    /// The cluster's join token for `role`.
    ///
    /// # Panics
    /// No manager leads.
    pub fn join_token(&mut self, role: Role) -> String {
        let view = self.cluster().view().expect("a manager leads");
        JoinToken::of(view.cluster().expect("the cluster has begun"), role).to_string()
    }

    /// Joins a new machine with this token. Returns its number among the managers or workers.
    ///
    /// # Errors
    /// The error that the leader answers.
    ///
    /// # Panics
    /// No manager leads.
    pub fn join_with(&mut self, role: Role, token: &str) -> Result<usize, Status> {
        let cluster = self.cluster();
        let (manager, worker) = (cluster.managers.len(), cluster.workers.len());
        let host = match role {
            Role::Manager => cluster.manager_host(manager),
            Role::Worker => cluster.worker_host(worker),
        };
        let anonymous = Peer::Anonymous { address: USER.address().parse().expect("it is an address") };
        let request = issue_certificate(host, token.to_owned(), cluster.draw_key());
        let node_id = self.request_as(anonymous, self.leader(), request)?;
        if role == Role::Worker {
            self.cluster().add_worker(node_id);
            self.cluster().start_worker(worker);
            return Ok(worker);
        }
        let (peer, node) = (peer(host, &node_id, role), node_id.clone());
        let raft_id = self.request_as(peer, self.leader(), move |channel| join_raft(channel, host, node))?;
        self.cluster().seat_manager(manager, node_id, raft_id);
        Ok(manager)
    }

    /// Asks the leader to remove this manager from the cluster, as the manager itself does when it leaves.
    ///
    /// # Errors
    /// The error that the leader answers.
    ///
    /// # Panics
    /// No manager leads.
    pub fn leave(&mut self, manager: usize) -> Result<(), Status> {
        let it = &self.cluster().managers[manager];
        let (node_id, peer) = (it.node_id.clone(), peer(it.host, &it.node_id, Role::Manager));
        self.request_as(peer, self.leader(), |channel| leave_raft(channel, node_id))
    }
}
