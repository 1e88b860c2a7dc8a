//! Joins machines to a simulated cluster and removes them over NodeCa, as `flotad` does.

use tonic::Status;

use flota_api::model::Role;
use flota_api::proto::control::ChangeRoleRequest;
use flota_identity::{JoinToken, Peer};

use super::host::USER;
use super::node_ca::{issue_certificate, join_raft, leave_raft};
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

    /// Asks the leader to give a node this role, by the node's name.
    ///
    /// # Errors
    /// The error that the leader answers.
    ///
    /// # Panics
    /// No manager leads.
    pub fn change_role(&mut self, node: &str, role: Role) -> Result<(), Status> {
        let request_id = format!("{node} becomes a {role} at {}", self.cluster().world.now());
        let role = flota_api::proto::types::Role::from(role).into();
        let request = ChangeRoleRequest { request_id, node: node.into(), role };
        self.request(self.leader(), |mut client| async move { client.change_role(request).await.map(drop) })
    }

    /// Asks the leader for a Raft id for the node of a worker that was promoted, as the node itself does once it has its new
    /// certificate. Returns the number of the manager, whose process is not started yet. Its machine stands beside that of
    /// the worker.
    ///
    /// # Errors
    /// The error that the leader answers.
    ///
    /// # Panics
    /// No manager leads.
    pub fn seat_promoted(&mut self, worker: usize) -> Result<usize, Status> {
        let cluster = self.cluster();
        let manager = cluster.managers.len();
        let (host, node_id) = (cluster.manager_host(manager), cluster.workers[worker].node_id.clone());
        let (peer, node) = (peer(host, &node_id, Role::Manager), node_id.clone());
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
