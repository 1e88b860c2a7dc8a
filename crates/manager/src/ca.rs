//! Serves NodeCa on the leader (a follower forwards): machines become nodes and managers through it, renew their
//! certificates, and leave.

mod renewal;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Request, Response, Status};

use flota_api::LEVEL_OF_KEYS;
use flota_api::defaults::NODE_CA_BOUND;
use flota_api::id::NodeId;
use flota_api::model::{Cluster, Node, NodeDescription, NodeState, NodeStateReason, Role};
use flota_api::naming;
use flota_api::proto::ca::node_ca_server::{NodeCa, NodeCaServer};
use flota_api::proto::ca::{
    ConfirmTrustRequest, ConfirmTrustResponse, IssueCertificateRequest, IssueCertificateResponse, JoinRaftRequest,
    JoinRaftResponse, LeaveRaftRequest, LeaveRaftResponse, RenewCertificateRequest, RenewCertificateResponse,
};
use flota_api::reason::Reason;
use flota_api::version::Timestamp;
use flota_identity::{
    CertificateError, JoinToken, JoinTokenError, Peer, Renewal, RenewalError, RootCa, check_renewal, known_certificate,
};
use flota_raft_store::{ProposeError, Tables, WriteTx};

use crate::caller;
use crate::control::ControlError;
use crate::departure::{self, Quorum};
use crate::dispatcher::Sessions;
use crate::forward::{ForwardedFor, forwarded_for};
use crate::promotion::Outdated;
use crate::replica::Replica;
use crate::trust;
use renewal::{RenewalRefusal, WITHOUT_LEADER, judge, known_after};

/// Serves NodeCa.
#[derive(Clone, Debug)]
pub struct CaService {
    replica: Replica,
    sessions: Sessions,
}

impl CaService {
    /// Creates the service. The session of a node that leaves is ended in `sessions`.
    pub(crate) fn server(replica: Replica, sessions: Sessions) -> NodeCaServer<Self> {
        NodeCaServer::new(Self { replica, sessions }).max_decoding_message_size(NODE_CA_BOUND)
    }

    /// Returns the node that calls, or that another manager forwards the call for.
    fn caller(request: &Request<impl Sized>, claimed: &str) -> Result<NodeId, CaError> {
        match request.extensions().get::<Peer>() {
            Some(Peer::Node { id, .. }) if id.as_str() == claimed => Ok(id.clone()),
            Some(Peer::Node { role: Role::Manager, .. }) => match forwarded_for(request.metadata().as_ref()) {
                Some(ForwardedFor::Node(node)) if node == claimed => Ok(claimed.into()),
                _ => Err(CaError::OtherNode),
            },
            _ => Err(CaError::OtherNode),
        }
    }

    /// Signs a request for a node, by the wall clock.
    fn sign(
        &self,
        cluster: &Cluster,
        request: &[u8],
        (node, role): (&NodeId, Role),
        life: Duration,
    ) -> Result<Vec<u8>, CaError> {
        let ca = RootCa::from_der(cluster.ca_certificate.clone(), cluster.ca_key.0.clone());
        let now = self.replica.clock.wall().now().to_system();
        let signed = ca.sign(request, node, role, &cluster.id, now, life);
        Ok(signed.map_err(|error| ControlError::invalid("csr_der", error))?)
    }

    /// Signs this manager's own request with what its copy of the store knows, and writes nothing. This lets managers that
    /// were all off for longer than their certificates lived elect a leader, however long that was. The key must be the one that
    /// the store knows.
    ///
    /// # Errors
    /// The copy knows no cluster yet, or refuses the request as the leader would.
    pub(crate) fn renew_without_leader(
        replica: Replica,
        sessions: Sessions,
        request: &RenewCertificateRequest,
    ) -> Result<RenewCertificateResponse, Status> {
        let service = Self { replica, sessions };
        let view = service.replica.store.view();
        let cluster = view.cluster().ok_or(ControlError::NoClusterYet).map_err(CaError::from)?;
        let (node, _) = renewing(&view, cluster, request, service.replica.clock.wall().now())?;
        let life = cluster.certificate_life().min(WITHOUT_LEADER);
        let certificate = service.sign(cluster, &request.csr_der, (&node.id, node.role), life)?;
        Ok(renewed(cluster, certificate))
    }
}

/// The answer to a node with another certificate.
fn renewed(cluster: &Cluster, certificate: Vec<u8>) -> RenewCertificateResponse {
    RenewCertificateResponse {
        certificate_der: certificate.into(),
        ca_der: trust::trusted(cluster).into_iter().map(Into::into).collect(),
        chain_der: trust::intermediates(cluster).into_iter().map(Into::into).collect(),
        // An older build could not read a file with two keys, and may be installed again as long as the level is older.
        replace_data_keys: cluster.ca_rotation.is_some() && cluster.feature_level >= LEVEL_OF_KEYS,
    }
}

/// Returns the node that asks for another certificate, and what it has shown.
fn renewing(
    view: &Tables,
    cluster: &Cluster,
    request: &RenewCertificateRequest,
    now: Timestamp,
) -> Result<(Arc<Node>, Renewal), CaError> {
    let renewal = check_renewal(request, &trust::trusted(cluster), &cluster.id, now)?;
    Ok((judge(view, &renewal, now)?, renewal))
}

#[tonic::async_trait]
impl NodeCa for CaService {
    async fn issue_certificate(
        &self,
        request: Request<IssueCertificateRequest>,
    ) -> Result<Response<IssueCertificateResponse>, Status> {
        let request = request.into_inner();
        let token: JoinToken = request.token.parse().map_err(CaError::Token)?;
        naming::check(&request.hostname).map_err(|error| ControlError::invalid("hostname", error))?;
        if request.address.parse::<std::net::SocketAddr>().is_err() {
            let why = format!("`{}` is not IP:PORT", request.address);
            return Err(ControlError::invalid("address", why).into());
        }
        // The id is derived from the signing request, whose key is random, so a retry after a lost response yields the
        // same node.
        let node_id = NodeId::derived(&flota_identity::sha256_hex(&request.csr_der));
        let response = self.replica.write::<_, CaError>(|view| {
            let cluster = view.cluster().ok_or(ControlError::NoClusterYet)?.clone();
            token.check(&cluster, self.replica.clock.wall().now())?;
            if token.role == Role::Manager {
                Outdated::check(&view, request.feature_level)?;
            }
            let life = cluster.certificate_life();
            let certificate = self.sign(&cluster, &request.csr_der, (&node_id, token.role), life)?;
            let known = known_certificate(&certificate)?;
            let managers = view.nodes().filter(|node| node.role == Role::Manager).map(|node| node.address.clone());
            let response = IssueCertificateResponse {
                node_id: node_id.to_string(),
                certificate_der: certificate.into(),
                ca_der: trust::trusted(&cluster).into_iter().map(Into::into).collect(),
                chain_der: trust::intermediates(&cluster).into_iter().map(Into::into).collect(),
                role: flota_api::proto::types::Role::from(token.role).into(),
                cluster_id: cluster.id.to_string(),
                managers: managers.collect(),
                address: request.address.clone(),
            };
            let mut tx = WriteTx::new(view.clone(), None);
            if view.node(&node_id).is_some() {
                return Ok((tx.finish(), response));
            }
            tx.create(Node {
                id: node_id.clone(),
                role: token.role,
                address: request.address.clone(),
                description: NodeDescription { hostname: request.hostname.clone(), ..NodeDescription::default() },
                state: NodeState::Unknown,
                state_reason: Some(NodeStateReason::Joining),
                state_since: self.replica.clock.now(),
                certificates: vec![known],
                // It has no earlier certificate, and no identity if it does not get this answer.
                trusts: Some(trust::wanted(&cluster)),
                ..Node::default()
            });
            let actor = format!("node {node_id}");
            Ok((caller::signed(&view, tx.finish(), actor, "IssueCertificate"), response))
        });
        Ok(Response::new(response.await?))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let request = request.into_inner();
        let now = self.replica.clock.wall().now();
        let response = self.replica.write::<_, CaError>(|view| {
            let cluster = view.cluster().ok_or(ControlError::NoClusterYet)?.clone();
            let (node, renewal) = renewing(&view, &cluster, &request, now)?;
            let life = cluster.certificate_life();
            let certificate = self.sign(&cluster, &request.csr_der, (&node.id, node.role), life)?;
            let certificates = known_after(renewal.certificate, known_certificate(&certificate)?);
            let mut tx = WriteTx::new(view, None);
            tx.update(Node { certificates, ..node.as_ref().clone() });
            Ok((tx.finish(), renewed(&cluster, certificate)))
        });
        Ok(Response::new(response.await?))
    }

    async fn confirm_trust(
        &self,
        request: Request<ConfirmTrustRequest>,
    ) -> Result<Response<ConfirmTrustResponse>, Status> {
        let node_id = Self::caller(&request, &request.get_ref().node_id)?;
        let trusts = &request.get_ref().trusts;
        let confirmed = self.replica.write::<_, CaError>(|view| {
            let cluster = view.cluster().ok_or(ControlError::NoClusterYet)?;
            // A confirmation of what was asked before counts for nothing: the node is told what is asked now.
            let counts = *trusts == trust::wanted(cluster);
            let node = view.node(&node_id).filter(|node| counts && node.trusts.as_ref() != Some(trusts)).cloned();
            let mut tx = WriteTx::new(view, None);
            if let Some(node) = node {
                tx.update(Node { trusts: Some(trusts.clone()), ..node.as_ref().clone() });
            }
            Ok((tx.finish(), ()))
        });
        confirmed.await?;
        Ok(Response::new(ConfirmTrustResponse {}))
    }

    async fn join_raft(&self, request: Request<JoinRaftRequest>) -> Result<Response<JoinRaftResponse>, Status> {
        let node_id = Self::caller(&request, &request.get_ref().node_id)?;
        let request = request.into_inner();
        let raft_id = self.replica.write::<_, CaError>(|view| {
            let node = view.node(&node_id).filter(|node| node.role == Role::Manager).ok_or(CaError::NoManager)?;
            // Builds of before this field say their level in their sessions alone.
            let said = Some(request.feature_level).filter(|level| *level > 0);
            Outdated::check(&view, said.unwrap_or(node.description.feature_level))?;
            let mut node = node.as_ref().clone();
            let mut cluster = view.cluster().ok_or(ControlError::NoClusterYet)?.as_ref().clone();
            let mut tx = WriteTx::new(view, None);
            // Never the one that it had: a manager asks because it does not know its id, or has lost its log.
            let raft_id = cluster.next_raft_id;
            cluster.next_raft_id += 1;
            tx.update(cluster);
            node.raft_id = Some(raft_id);
            node.address.clone_from(&request.address);
            tx.update(node);
            Ok((tx.finish(), raft_id))
        });
        Ok(Response::new(JoinRaftResponse { raft_id: raft_id.await? }))
    }

    async fn leave_raft(&self, request: Request<LeaveRaftRequest>) -> Result<Response<LeaveRaftResponse>, Status> {
        let node_id = Self::caller(&request, &request.get_ref().node_id)?;
        let Replica { raft, clock, .. } = &self.replica;
        let quorum = Quorum::of(raft).await;
        let departed = self.replica.write::<_, CaError>(|view| {
            let mut tx = WriteTx::new(view.clone(), None);
            let Some(node) = view.node(&node_id) else { return Ok((tx.finish(), Departure::Done)) };
            let votes = node.raft_id.map_or(Departure::Done, Departure::Votes);
            if node.has_left() {
                return Ok((tx.finish(), votes));
            }
            let name = node.description.hostname.clone();
            let refused = |error| ControlError::Departure { node: name, error };
            let stay = departure::check(&view, &quorum, node).map_err(refused)?;
            if node.raft_id == Some(raft.id()) {
                return Ok((tx.finish(), Departure::Leads(stay)));
            }
            departure::depart(&mut tx, &view, node, clock.wall().now(), clock.now());
            Ok((caller::signed(&view, tx.finish(), format!("node {node_id}"), "LeaveRaft"), votes))
        });
        match departed.await? {
            Departure::Done => {}
            // The change of the set goes on, and a retry waits for it again.
            Departure::Votes(raft_id) => raft.gone(raft_id).await.map_err(|_| CaError::from(ProposeError::Unknown))?,
            Departure::Leads(stay) => {
                // Another leader must remove this manager from the set.
                let next = raft.hand_over(|id| stay.contains(&id)).await;
                return Err(if next.is_some() { CaError::HandedOver } else { CaError::NoSuccessor }.into());
            }
        }
        self.sessions.end(&node_id);
        Ok(Response::new(LeaveRaftResponse {}))
    }
}

/// What is left to do for a node that leaves.
enum Departure {
    /// Nothing.
    Done,
    /// Raft's membership still has this Raft id.
    Votes(u64),
    /// The node leads, and one of these is to lead instead.
    Leads(BTreeSet<u64>),
}

/// Why a request of a machine fails.
#[derive(Debug, thiserror::Error)]
enum CaError {
    #[error("the certificate is not that of the node in the request")]
    OtherNode,
    #[error("this node is not a manager of the cluster")]
    NoManager,
    #[error("this node can't be a manager: {0}")]
    Outdated(#[from] Outdated),
    #[error(transparent)]
    Token(#[from] JoinTokenError),
    #[error("failed to renew the certificate: {0}")]
    Renewal(#[from] RenewalError),
    #[error("failed to renew the certificate: {0}")]
    NotRenewed(#[from] RenewalRefusal),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("this manager leads, and has handed over: ask again")]
    HandedOver,
    #[error("this manager leads, and finds no manager to hand over to: ask again")]
    NoSuccessor,
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl From<ProposeError> for CaError {
    fn from(error: ProposeError) -> Self {
        Self::Control(error.into())
    }
}

impl From<CaError> for Status {
    fn from(error: CaError) -> Self {
        let (code, reason) = match error {
            CaError::OtherNode | CaError::NoManager | CaError::Renewal(_) | CaError::NotRenewed(_) => {
                (Code::PermissionDenied, Reason::Denied)
            }
            CaError::Certificate(_) => (Code::InvalidArgument, Reason::Invalid),
            CaError::Outdated(_) => (Code::FailedPrecondition, Reason::WrongState),
            CaError::Token(_) => (Code::Unauthenticated, Reason::BadToken),
            CaError::HandedOver => (Code::Unavailable, Reason::LeadershipMoved),
            CaError::NoSuccessor => (Code::Unavailable, Reason::NoLeader),
            CaError::Control(error) => return error.into(),
        };
        reason.attach(Self::new(code, error.to_string()))
    }
}
