//! Requests to NodeCa with which machines join a cluster and leave it, as `flotad` sends them.

use futures::future::BoxFuture;
use tonic::Status;
use tonic::transport::Channel;

use flota_api::FEATURE_LEVEL;
use flota_api::id::NodeId;
use flota_api::proto::ca::node_ca_client::NodeCaClient;
use flota_api::proto::ca::{IssueCertificateRequest, JoinRaftRequest, LeaveRaftRequest};

use super::host::Host;

/// What an Ed25519 key in PKCS#8 begins with (RFC 8410 §7); its 32 bytes follow.
const ED25519: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// Returns the key pair with this secret key. Its signatures are the same for each run: unlike those of ECDSA, they have no
/// random part.
pub(super) fn key_pair(seed: [u8; 32]) -> rcgen::KeyPair {
    rcgen::KeyPair::try_from([&ED25519[..], &seed].concat()).expect("every seed is a key")
}

/// Returns a request for the certificate of a new machine, which answers the id of its node. Each use of it asks for the
/// same one. The id is derived from the signing request, so it depends on the secret key `seed` alone.
pub(super) fn issue_certificate(
    host: Host,
    token: String,
    seed: [u8; 32],
) -> impl Fn(Channel) -> BoxFuture<'static, Result<NodeId, Status>> {
    let key = key_pair(seed);
    let signing_request = rcgen::CertificateParams::default().serialize_request(&key).expect("a request can be made");
    let request = IssueCertificateRequest {
        token,
        csr_der: signing_request.der().to_vec().into(),
        hostname: host.to_string(),
        address: host.address(),
        feature_level: FEATURE_LEVEL,
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
    let request =
        JoinRaftRequest { node_id: node_id.to_string(), address: host.address(), feature_level: FEATURE_LEVEL };
    Ok(NodeCaClient::new(channel).join_raft(request).await?.into_inner().raft_id)
}

/// Asks that a manager's node leaves the cluster, and waits until it votes no more.
pub(super) async fn leave_raft(channel: Channel, node_id: NodeId) -> Result<(), Status> {
    let request = LeaveRaftRequest { node_id: node_id.to_string(), force: true };
    NodeCaClient::new(channel).leave_raft(request).await.map(drop)
}
