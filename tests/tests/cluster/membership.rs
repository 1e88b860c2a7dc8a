//! Machines that join a cluster and leave it, and what becomes of Raft's voters.

use flota_api::FEATURE_LEVEL;
use flota_api::model::Role;
use flota_api::proto::ca::node_ca_client::NodeCaClient;
use flota_api::proto::ca::{IssueCertificateRequest, JoinRaftRequest};
use flota_api::proto::control::RemoveRequest;
use flota_api::reason::Reason;
use flota_identity::{KeyPair, Peer};
use flota_tests::sim::script::{Script, script, script_with, spec};

use super::{another_leads, containers, members, seen, voters};

#[test]
fn machine_that_joins_as_a_worker_gets_tasks() {
    script(1, |it| {
        it.create(it.leader(), spec("web", 2)).unwrap();
        it.converge();
        let new = it.join(Role::Worker).unwrap();
        it.converge();
        it.update(it.leader(), "more", spec("web", 4)).unwrap();
        it.converge();
        assert_eq!(it.cluster().workers[new].machine.running().len(), 2);
    });
}

#[test]
fn machine_with_a_wrong_token_stays_outside() {
    script(0, |it| {
        let token = it.join_token(Role::Worker);
        let refused = it.join_with(Role::Worker, &format!("{token}x")).unwrap_err();
        assert_eq!(Reason::of(&refused), Some(Reason::BadToken), "{refused}");
        let view = it.cluster().view().unwrap();
        assert_eq!(view.nodes().count(), 3, "a refused machine adds no node");
    });
}

#[test]
fn build_that_is_older_than_what_the_cluster_uses_becomes_no_manager() {
    script(0, |it| {
        let leader = it.leader();
        for (role, feature_level, refused) in [
            (Role::Manager, FEATURE_LEVEL - 1, true),
            (Role::Manager, 0, true),
            (Role::Manager, FEATURE_LEVEL, false),
            (Role::Worker, FEATURE_LEVEL - 1, false),
        ] {
            let (key, token) = (KeyPair::generate().unwrap(), it.join_token(role));
            let request = IssueCertificateRequest {
                token,
                csr_der: key.signing_request().unwrap().into(),
                hostname: format!("new-{feature_level}-{}", role.as_str()),
                address: "198.18.0.99:2377".into(),
                feature_level,
            };
            let nodes = it.cluster().view().unwrap().nodes().count();
            let stranger = Peer::Anonymous { address: ([198, 18, 0, 99], 1).into() };
            let answer = it.request_as(stranger, leader, |channel| async move {
                NodeCaClient::new(channel).issue_certificate(request).await.map(drop)
            });
            assert_eq!(answer.is_err(), refused, "{role:?} of level {feature_level}: {answer:?}");
            let added = it.cluster().view().unwrap().nodes().count() - nodes;
            assert_eq!(added, usize::from(!refused), "a refused machine adds no node");
            if let Err(status) = answer {
                assert_eq!(Reason::of(&status), Some(Reason::WrongState));
                assert!(status.message().contains("install a newer one there"), "{status}");
            }
        }
    });
}

#[test]
fn node_asks_for_itself_alone() {
    script(1, |it| {
        let worker = &it.cluster().workers[0];
        let (id, address) = (worker.node_id.clone(), worker.host.address());
        let peer =
            Peer::Node { id: id.clone(), role: Role::Worker, address: address.parse().unwrap(), key: String::new() };
        let other = it.cluster().managers[0].node_id.to_string();
        for node_id in [other, id.to_string()] {
            let request = JoinRaftRequest { node_id, address: address.clone(), feature_level: FEATURE_LEVEL };
            let refused = it.request_as(peer.clone(), it.leader(), |channel| async move {
                NodeCaClient::new(channel).join_raft(request).await.map(drop)
            });
            assert_eq!(Reason::of(&refused.unwrap_err()), Some(Reason::Denied), "a worker has no part in Raft");
        }
    });
}

#[test]
fn new_manager_learns_before_it_votes() {
    script(1, |it| {
        for number in 0..20 {
            it.create(it.leader(), spec(&format!("s{number}"), 0)).unwrap();
        }
        let new = it.join(Role::Manager).unwrap();
        // It can't be reached, so it does not count.
        it.pass(3_000);
        assert_eq!(members(it.cluster()).unwrap().0, [1, 2, 3]);
        it.create(it.leader(), spec("meanwhile", 0)).unwrap();
        it.cluster().start_manager(new);
        it.wait("it is a learner", 10_000, |cluster| {
            let members = members(cluster)?;
            seen(members == (vec![1, 2, 3], vec![4]), members)
        });
        it.wait("it votes", 10_000, voters(&[1, 2, 3, 4]));
        let leader = it.leader();
        it.converge();
        let view = it.cluster().managers[new].manager().unwrap().store().view();
        assert_eq!(view.services().count(), 21, "it has every entry");
        assert_ne!(leader, new);
    });
}

#[test]
fn cluster_goes_on_with_the_manager_that_joined_when_another_one_dies() {
    script(0, |it| {
        let new = it.join(Role::Manager).unwrap();
        it.cluster().start_manager(new);
        it.wait("it votes", 15_000, voters(&[1, 2, 3, 4]));
        let leader = it.leader();
        it.cluster().crash_manager(leader, true);
        it.wait("another manager leads", 5_000, another_leads(leader));
        it.create(it.leader(), spec("web", 0)).unwrap();
    });
}

#[test]
fn manager_that_leaves_votes_no_more_and_the_others_go_on() {
    script(1, |it| {
        let leaves = (it.leader() + 1) % 3;
        it.leave(leaves).unwrap();
        let expected: &'static [u64] = [&[2, 3][..], &[1, 3], &[1, 2]][leaves];
        it.wait("two vote", 5_000, voters(expected));
        it.cluster().crash_manager(leaves, true);
        it.create(it.leader(), spec("web", 1)).unwrap();
        it.wait("its task runs", 5_000, containers(0, 1));
        let node = it.cluster().managers[leaves].node_id.clone();
        let view = it.cluster().view().unwrap();
        assert_eq!(view.node(&node).unwrap().role, Role::Worker, "it may be removed as any node");
    });
}

#[test]
fn leader_that_leaves_hands_over_first() {
    script(1, |it| {
        let old = it.leader();
        let asked_again = it.leave(old).unwrap_err();
        assert_eq!(Reason::of(&asked_again), Some(Reason::LeadershipMoved), "{asked_again}");
        let took = it.wait("another manager leads", 2_000, another_leads(old));
        assert!(took <= 500, "no election is waited for: it took {took} ms");
        it.leave(old).unwrap();
        let expected: &'static [u64] = [&[2, 3][..], &[1, 3], &[1, 2]][old];
        it.wait("two vote", 5_000, voters(expected));
        it.create(it.leader(), spec("web", 0)).unwrap();
    });
}

#[test]
fn of_two_managers_one_leaves_and_the_other_goes_on_alone() {
    script_with(2, 0, |it| {
        let stays = it.leader();
        let leaves = 1 - stays;
        it.leave(leaves).unwrap();
        it.cluster().crash_manager(leaves, true);
        it.create(stays, spec("web", 0)).unwrap();
        let last = it.leave(stays).unwrap_err();
        assert_eq!(Reason::of(&last), Some(Reason::MajorityNeeded), "{last}");
    });
}

#[test]
fn dead_manager_is_removed_by_force_and_its_vote_goes_with_it() {
    script(0, |it| {
        let dead = (it.leader() + 1) % 3;
        it.cluster().crash_manager(dead, true);
        let name = format!("m{}", dead + 1);
        let remove = |force| RemoveRequest { request_id: format!("remove {force}"), name: name.clone(), force };
        let (gently, forced) = (remove(false), remove(true));
        let refused = it.request(it.leader(), |mut client| async move { client.remove_node(gently).await });
        assert_eq!(Reason::of(&refused.unwrap_err()), Some(Reason::NodeIsManager));
        it.request(it.leader(), |mut client| async move { client.remove_node(forced).await }).unwrap();
        let expected: &'static [u64] = [&[2, 3][..], &[1, 3], &[1, 2]][dead];
        it.wait("two vote", 5_000, voters(expected));
    });
}

#[test]
fn manager_whose_departure_would_leave_no_majority_stays_until_the_dead_one_is_gone() {
    script(0, |it| {
        let leader = it.leader();
        let (dead, healthy) = ((leader + 1) % 3, (leader + 2) % 3);
        it.cluster().crash_manager(dead, true);
        let remove = |it: &mut Script, number: usize, id: &str| {
            let name = format!("m{}", number + 1);
            let request = RemoveRequest { request_id: id.into(), name, force: true };
            it.request(it.leader(), |mut client| async move { client.remove_node(request).await.map(drop) })
        };
        for refused in [it.leave(healthy).unwrap_err(), remove(it, healthy, "too early").unwrap_err()] {
            assert_eq!(Reason::of(&refused), Some(Reason::MajorityNeeded), "{refused}");
            let names_it = format!("m{}", dead + 1);
            assert!(
                refused.message().contains(&names_it) && refused.message().contains("ctl node rm --force"),
                "{refused}"
            );
        }
        // A leader would leave the same two behind.
        assert_eq!(Reason::of(&it.leave(leader).unwrap_err()), Some(Reason::MajorityNeeded));
        assert_eq!(it.leader(), leader, "it hands nothing over");
        let view = it.cluster().view().unwrap();
        assert_eq!(view.nodes().filter(|node| node.role == Role::Manager).count(), 3);
        assert!(!view.nodes().any(|node| node.has_left()) && view.cluster().unwrap().revoked.is_empty());
        assert_eq!(members(it.cluster()).unwrap().0, [1, 2, 3]);
        remove(it, dead, "dead").unwrap();
        it.leave(healthy).unwrap();
        it.cluster().crash_manager(healthy, true);
        it.create(it.leader(), spec("web", 0)).expect("one manager works alone");
    });
}

#[test]
fn manager_that_left_is_revoked() {
    script(0, |it| {
        let leaves = (it.leader() + 1) % 3;
        it.leave(leaves).unwrap();
        let node = it.cluster().managers[leaves].node_id.clone();
        for number in (0..3).filter(|number| *number != leaves) {
            let other = it.cluster().managers[number].manager().unwrap();
            assert!(other.bars(&node).is_some(), "manager {number} still believes its certificate");
        }
        it.leave(leaves).expect("a node that missed the answer asks again");
    });
}

#[test]
fn leader_that_leaves_hands_over_to_one_that_answers() {
    script_with(5, 0, |it| {
        let leader = it.leader();
        // The first others, one of which was chosen whatever its state.
        let dead: Vec<usize> = (0..5).filter(|number| *number != leader).take(2).collect();
        dead.iter().for_each(|number| it.cluster().crash_manager(*number, true));
        let remove = |it: &mut Script, number: usize| {
            let request =
                RemoveRequest { request_id: format!("rm {number}"), name: format!("m{}", number + 1), force: true };
            it.request(it.leader(), |mut client| async move { client.remove_node(request).await.map(drop) })
        };
        remove(it, dead[0]).unwrap();
        let asked_again = it.leave(leader).unwrap_err();
        assert_eq!(Reason::of(&asked_again), Some(Reason::LeadershipMoved), "{asked_again}");
        let took = it.wait("another manager leads", 2_000, another_leads(leader));
        assert!(took <= 500, "no election is waited for: it took {took} ms");
    });
}
