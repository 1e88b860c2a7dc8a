//! Nodes that renew their certificates: by which keys, and for how long after they have expired.

use std::net::SocketAddr;

use flota_api::model::{NodeCertificate, Role};
use flota_api::proto::ca::node_ca_client::NodeCaClient;
use flota_api::proto::ca::{IssueCertificateRequest, RenewCertificateRequest};
use flota_api::proto::control::{RemoveRequest, UpdateClusterRequest};
use flota_api::reason::Reason;
use flota_identity::{Identity, KeyPair, Peer, renewal_request};
use flota_tests::sim::script::{Script, script};
use prost::bytes::Bytes;
use tonic::Status;

/// A caller without a certificate.
fn stranger() -> Peer {
    Peer::Anonymous { address: SocketAddr::from(([198, 18, 0, 99], 1)) }
}

/// Joins a machine as a worker, and does not start it.
pub(super) fn join(it: &mut Script) -> Identity {
    let (key, token) = (KeyPair::generate().unwrap(), it.join_token(Role::Worker));
    let request = IssueCertificateRequest {
        token,
        csr_der: key.signing_request().unwrap().into(),
        hostname: "new".into(),
        address: "198.18.0.99:2377".into(),
        ..IssueCertificateRequest::default()
    };
    let leader = it.leader();
    let issued =
        it.request_as(stranger(), leader, |channel| async move {
            NodeCaClient::new(channel).issue_certificate(request).await
        })
        .unwrap()
        .into_inner();
    made(issued.certificate_der, &key, issued.ca_der, issued.chain_der)
}

fn made(certificate: Bytes, key: &KeyPair, trusted: Vec<Bytes>, chain: Vec<Bytes>) -> Identity {
    let [trusted, chain] = [trusted, chain].map(|it| it.into_iter().map(Into::into).collect());
    Identity::new(certificate.into(), key.to_der(), trusted).unwrap().with_intermediates(chain)
}

/// Asks a manager for the next certificate.
pub(super) fn renew(it: &mut Script, manager: usize, identity: &Identity) -> Result<Identity, Status> {
    let key = KeyPair::generate().unwrap();
    let request = renewal_request(identity, &key).unwrap();
    let renewed = send(it, manager, request)?;
    Ok(made(renewed.certificate_der, &key, renewed.ca_der, renewed.chain_der))
}

fn send(
    it: &mut Script,
    manager: usize,
    request: RenewCertificateRequest,
) -> Result<flota_api::proto::ca::RenewCertificateResponse, Status> {
    let answer = it.request_as(stranger(), manager, |channel| async move {
        NodeCaClient::new(channel).renew_certificate(request).await
    });
    answer.map(tonic::Response::into_inner)
}

/// The certificates by which the store knows the node.
fn known(it: &mut Script, identity: &Identity) -> Vec<NodeCertificate> {
    it.cluster().view().unwrap().node(&identity.node_id).unwrap().certificates.clone()
}

fn certificates<const COUNT: usize>(identities: [&Identity; COUNT]) -> [NodeCertificate; COUNT] {
    identities.map(|it| it.known_certificate().unwrap())
}

#[test]
fn an_answer_that_is_lost_costs_nothing_and_an_old_copy_of_a_node_renews_nothing() {
    script(0, |it| {
        let (leader, first) = (it.leader(), join(it));
        assert_eq!(known(it, &first), certificates([&first]));
        let follower = (leader + 1) % 3;
        let lost = renew(it, follower, &first).unwrap();
        assert_eq!((&lost.node_id, lost.role), (&first.node_id, Role::Worker));
        assert_eq!(known(it, &first), certificates([&first, &lost]));
        // The node still has its first key, and so has the copy that somebody has made of its disk.
        let second = renew(it, leader, &first).unwrap();
        assert_eq!(known(it, &first), certificates([&first, &second]));
        let third = renew(it, follower, &second).unwrap();
        assert_eq!(known(it, &first), certificates([&second, &third]));
        let refused = renew(it, leader, &first).unwrap_err();
        assert_eq!(Reason::of(&refused), Some(Reason::Denied), "{refused}");
        assert!(refused.message().contains("another copy of its data folder"), "{refused}");
        // An answer that comes twice is the same as one.
        let request = renewal_request(&third, &KeyPair::generate().unwrap()).unwrap();
        send(it, leader, request.clone()).unwrap();
        let once = known(it, &first);
        send(it, follower, request).unwrap();
        let keys = |known: &[NodeCertificate]| known.iter().map(|it| it.key.clone()).collect::<Vec<_>>();
        assert_eq!(keys(&known(it, &first)), keys(&once));
    });
}

#[test]
fn a_node_renews_after_its_certificate_has_expired_unless_it_was_removed() {
    script(0, |it| {
        let leader = it.leader();
        let request = UpdateClusterRequest { certificate_life_ms: Some(10_000), ..Default::default() };
        it.request(leader, |mut control| async move { control.update_cluster(request).await }).unwrap();
        let first = join(it);
        assert_eq!(first.validity.life().as_secs(), 10);
        it.pass(60_000);
        let leader = it.leader();
        let second = renew(it, leader, &first).unwrap();
        assert!(second.validity.issued_at > first.validity.expires_at);
        let request = RemoveRequest { name: second.node_id.to_string(), force: true, ..Default::default() };
        it.request(leader, |mut control| async move { control.remove_node(request).await }).unwrap();
        let refused = renew(it, leader, &second).unwrap_err();
        assert_eq!(Reason::of(&refused), Some(Reason::Denied), "{refused}");
        assert!(refused.message().contains("is not in the cluster any more"), "{refused}");
    });
}
