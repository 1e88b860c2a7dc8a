//! Joins machines to a simulated cluster and removes them over NodeCa, as `flotad` does.

use tonic::Status;

use flota_api::model::Role;
use flota_api::proto::ca::node_ca_client::NodeCaClient;
use flota_api::proto::ca::{IssueCertificateRequest, JoinRaftRequest, LeaveRaftRequest};
use flota_identity::{JoinToken, KeyPair, Peer};

use super::host::USER;
use super::process::peer;
use super::script::Script;

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
        let host = self.cluster().next_host(role);
        let key = KeyPair::generate().expect("a key can be made");
        let request = IssueCertificateRequest {
            token: token.to_owned(),
            csr_der: key.signing_request().expect("a request can be made").into(),
            hostname: host.to_string(),
            address: host.address(),
        };
        let anonymous = Peer::Anonymous { address: USER.address().parse().expect("it is an address") };
        let issued = self.request_as(anonymous, self.leader(), |channel| async move {
            NodeCaClient::new(channel).issue_certificate(request).await
        });
        let node_id = issued?.into_inner().node_id.as_str().into();
        if role == Role::Worker {
            let number = self.cluster().add_worker(host, node_id);
            self.cluster().start_worker(number);
            return Ok(number);
        }
        let request = JoinRaftRequest { node_id: node_id.to_string(), address: host.address() };
        let raft_id = self.request_as(peer(host, &node_id, role), self.leader(), |channel| async move {
            NodeCaClient::new(channel).join_raft(request).await
        });
        let raft_id = raft_id?.into_inner().raft_id;
        Ok(self.cluster().add_manager(host, node_id, raft_id))
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
        let (node_id, peer) = (it.node_id.to_string(), peer(it.host, &it.node_id, Role::Manager));
        self.request_as(peer, self.leader(), |channel| async move {
            NodeCaClient::new(channel).leave_raft(LeaveRaftRequest { node_id, force: true }).await.map(drop)
        })
    }
}
