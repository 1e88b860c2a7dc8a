//! The replacement of the CA: which nodes it waits for, what a change of leaders and a second rotation do to it, and what
//! becomes of certificates and join tokens of the former CA.
//!
//! The nodes of a simulation have no certificates, so the test confirms for them.

use std::net::SocketAddr;

use flota_api::id::NodeId;
use flota_api::model::Role;
use flota_api::proto::ca::ConfirmTrustRequest;
use flota_api::proto::ca::node_ca_client::NodeCaClient;
use flota_api::proto::control::{CaInfo, Empty, RemoveRequest, RotateCaRequest};
use flota_api::reason::Reason;
use flota_identity::{Identity, Peer, trust_digest};
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::script::{Script, script};
use tonic::Status;

use super::another_leads;
use super::certificates::{join, renew};

fn rotate(it: &mut Script) -> Result<CaInfo, Status> {
    let leader = it.leader();
    let answer = it.request(leader, |mut control| async move { control.rotate_ca(RotateCaRequest::default()).await });
    answer.map(tonic::Response::into_inner)
}

fn ca(it: &mut Script) -> CaInfo {
    let leader = it.leader();
    it.request(leader, |mut control| async move { control.get_ca(Empty {}).await }).unwrap().into_inner()
}

fn digest(info: &CaInfo) -> String {
    trust_digest(&info.trusted_der.iter().map(|der| der.to_vec()).collect::<Vec<_>>())
}

/// Confirms for a node, at this manager.
fn confirm(it: &mut Script, manager: usize, node: &NodeId, trusts: &str) {
    let address = SocketAddr::from(([198, 18, 0, 99], 1));
    let peer = Peer::Node { id: node.clone(), role: Role::Worker, address, key: String::new() };
    let request = ConfirmTrustRequest { node_id: node.to_string(), trusts: trusts.into() };
    it.request_as(peer, manager, |channel| async move { NodeCaClient::new(channel).confirm_trust(request).await })
        .unwrap();
}

/// Confirms for all nodes but this one.
fn confirm_others(it: &mut Script, but: &NodeId, trusts: &str) {
    let nodes: Vec<_> = it.cluster().view().unwrap().nodes().map(|node| node.id.clone()).collect();
    let leader = it.leader();
    for node in nodes.iter().filter(|node| *node != but) {
        confirm(it, leader, node, trusts);
    }
}

fn is_over(cluster: &SimCluster) -> Result<(), String> {
    let view = cluster.view().ok_or("no manager leads")?;
    match &view.cluster().unwrap().ca_rotation {
        Some(_) => Err("the rotation goes on".into()),
        None => Ok(()),
    }
}

fn is_refused(renewed: Result<Identity, Status>) {
    let refused = renewed.unwrap_err();
    assert_eq!(Reason::of(&refused), Some(Reason::Denied), "{refused}");
    assert!(refused.message().contains("was not signed by this cluster's CA"), "{refused}");
}

#[test]
fn a_rotation_goes_on_after_a_change_of_leaders_and_then_the_former_ca_counts_for_nothing() {
    script(1, |it| {
        let first = join(it);
        let token = it.join_token(Role::Worker);
        let before = ca(it);
        assert_eq!((before.trusted_der.len(), first.trusts()), (1, digest(&before)));
        let begun = rotate(it).unwrap();
        let progress = begun.rotation.clone().unwrap();
        assert_eq!((begun.trusted_der.len(), progress.nodes, progress.renewed), (2, 5, 0));
        assert_eq!(begun.trusted_der[1], before.trusted_der[0]);
        assert_eq!(it.join_token(Role::Worker), token, "the token is valid until the end");
        // A node that joins meanwhile has the new CA at once.
        let joined = join(it);
        assert_eq!(joined.trusts(), digest(&begun));
        confirm_others(it, &first.node_id, &digest(&begun));
        let leader = it.leader();
        it.cluster().crash_manager(leader, true);
        it.wait("another manager leads", 5_000, another_leads(leader));
        it.cluster().start_manager(leader);
        let progress = ca(it).rotation.unwrap();
        assert_eq!((progress.nodes, progress.renewed), (6, 5), "it is all in the store");
        assert_eq!(progress.waiting.iter().map(|it| it.id.clone()).collect::<Vec<_>>(), [first.node_id.to_string()]);
        let next = it.leader();
        let second = renew(it, next, &first).unwrap();
        assert_eq!(second.trusts(), digest(&begun));
        it.pass(5_000);
        assert!(ca(it).rotation.is_some(), "the answer might have been lost: only a confirmation counts");
        confirm(it, (next + 1) % 3, &first.node_id, &second.trusts());
        it.wait("the rotation ends", 5_000, is_over);
        assert_eq!(ca(it).trusted_der, begun.trusted_der[..1]);
        assert_ne!(it.join_token(Role::Worker), token);
        let leader = it.leader();
        is_refused(renew(it, leader, &first));
        let third = renew(it, leader, &second).unwrap();
        assert_eq!(third.trusts(), digest(&ca(it)));
    });
}

#[test]
fn a_second_rotation_wins_over_the_first_and_no_node_is_lost() {
    script(0, |it| {
        let old = join(it);
        let slow = join(it);
        let one = rotate(it).unwrap();
        let leader = it.leader();
        let middle = renew(it, leader, &old).unwrap();
        confirm(it, leader, &old.node_id, &middle.trusts());
        let two = rotate(it).unwrap();
        assert_ne!(one.trusted_der[0], two.trusted_der[0]);
        assert_eq!(one.trusted_der[1], two.trusted_der[1], "the former CA is the same");
        assert_eq!(two.rotation.clone().unwrap().renewed, 0, "all have to renew again");
        // A confirmation of the first rotation comes late.
        confirm_others(it, &middle.node_id, &digest(&one));
        assert_eq!(ca(it).rotation.unwrap().renewed, 0);
        // One node has a certificate of the CA that was to be, the other one of the former CA.
        let [middle, slow] = [&middle, &slow].map(|node| renew(it, leader, node).unwrap());
        assert_eq!([middle.trusts(), slow.trusts()], [digest(&two), digest(&two)]);
        confirm_others(it, &slow.node_id, &digest(&two));
        assert_eq!(ca(it).rotation.unwrap().renewed, 4);
        confirm(it, leader, &slow.node_id, &digest(&two));
        it.wait("the rotation ends", 5_000, is_over);
        assert_eq!(ca(it).trusted_der, two.trusted_der[..1]);
        is_refused(renew(it, leader, &old));
    });
}

#[test]
fn a_node_that_is_away_holds_the_former_ca_until_it_is_removed() {
    script(0, |it| {
        let away = join(it);
        let begun = rotate(it).unwrap();
        confirm_others(it, &away.node_id, &digest(&begun));
        it.pass(60_000);
        assert_eq!(ca(it).rotation.unwrap().waiting[0].id, away.node_id.to_string());
        let request = RemoveRequest { name: away.node_id.to_string(), force: true, ..Default::default() };
        let leader = it.leader();
        it.request(leader, |mut control| async move { control.remove_node(request).await }).unwrap();
        it.wait("the rotation ends", 5_000, is_over);
    });
}

#[test]
fn a_node_confirms_only_for_itself() {
    script(0, |it| {
        let node = join(it);
        let begun = rotate(it).unwrap();
        let address = SocketAddr::from(([198, 18, 0, 99], 1));
        let peer = Peer::Node { id: "other".into(), role: Role::Worker, address, key: String::new() };
        let request = ConfirmTrustRequest { node_id: node.node_id.to_string(), trusts: digest(&begun) };
        let leader = it.leader();
        let refused = it
            .request_as(peer, leader, |channel| async move { NodeCaClient::new(channel).confirm_trust(request).await });
        assert_eq!(Reason::of(&refused.unwrap_err()), Some(Reason::Denied));
        assert_eq!(ca(it).rotation.unwrap().renewed, 0);
    });
}
