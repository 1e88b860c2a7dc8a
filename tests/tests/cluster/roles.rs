//! Nodes that are promoted and demoted, and managers that are replaced because they are dead.

use std::time::Duration;

use flota_api::model::{Role, RoleChange};
use flota_api::proto::control::{GetRequest, UpdateClusterRequest};
use flota_api::proto::dispatcher::manager_message::Message as FromManager;
use flota_api::proto::specs::NodeSpec;
use flota_api::proto::types;
use flota_api::reason::Reason;
use flota_identity::Peer;
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::manual::no_streams;
use flota_tests::sim::script::{Script, script, script_with, spec};

use super::{Seen, another_leads, containers, manual, members, seen, voters};

const CONTROL: &str = "/flota.control.Control/ListNodes";

/// The role in which each manager that runs lets a node call, which shows a manager's certificate; `None` if not at all.
fn rights(cluster: &SimCluster, node: &str) -> Vec<Option<Role>> {
    let peer =
        Peer::Node { id: node.into(), role: Role::Manager, address: ([127, 0, 0, 1], 1).into(), key: String::new() };
    let role = |peer: Peer| match peer {
        Peer::Node { role, .. } => Some(role),
        _ => None,
    };
    let managers = cluster.managers.iter().filter_map(|it| it.manager());
    managers.map(|it| it.rightful(&peer, CONTROL).and_then(role)).collect()
}

fn role_change(it: &mut Script, node: &str) -> Option<RoleChange> {
    let request = GetRequest { name: node.into() };
    let row = it.request(it.leader(), |mut client| async move { client.get_node(request).await });
    row.expect("it is there").into_inner().role_change().into()
}

/// Promotes the node of a worker, and starts its manager.
fn promote(it: &mut Script, worker: usize) -> usize {
    it.change_role(&format!("w{}", worker + 1), Role::Manager).unwrap();
    let manager = it.seat_promoted(worker).unwrap();
    it.cluster().start_manager(manager);
    manager
}

#[test]
fn promoted_worker_votes_once_it_has_caught_up_and_its_tasks_run_on() {
    script(1, |it| {
        it.create(it.leader(), spec("web", 2)).unwrap();
        it.converge();
        let before = it.cluster().workers[0].machine.running();
        it.change_role("w1", Role::Manager).unwrap();
        assert_eq!(role_change(it, "w1"), Some(RoleChange::Promoting));
        // Its manager can't be reached, so it does not count.
        let new = it.seat_promoted(0).unwrap();
        it.pass(3_000);
        assert_eq!(members(it.cluster()).unwrap().0, [1, 2, 3]);
        assert_eq!(role_change(it, "w1"), Some(RoleChange::Promoting));
        it.cluster().start_manager(new);
        it.wait("it votes", 10_000, voters(&[1, 2, 3, 4]));
        assert_eq!(role_change(it, "w1"), None);
        let view = it.cluster().managers[new].manager().unwrap().store().view();
        assert_eq!(view.services().count(), 1, "it has every entry");
        assert_eq!(it.cluster().workers[0].machine.running(), before);
    });
}

#[test]
fn node_hears_of_its_role_in_its_session() {
    script(1, |it| {
        let node = manual(it, 0, no_streams);
        let told = |role: types::Role| {
            node.was_sent(|message| matches!(message, FromManager::Managers(it) if it.role == Some(role.into())))
        };
        it.wait("it is a worker", 1_000, |_| told(types::Role::Worker));
        it.change_role("w1", Role::Manager).unwrap();
        it.wait("it is to be a manager", 1_000, |_| told(types::Role::Manager));
    });
}

#[test]
fn demoted_manager_votes_no_more_and_has_no_more_rights_within_a_second() {
    script(1, |it| {
        let demoted = (it.leader() + 1) % 3;
        let node = it.cluster().managers[demoted].node_id.to_string();
        assert_eq!(rights(it.cluster(), &node), [Some(Role::Manager); 3]);
        it.change_role(&format!("m{}", demoted + 1), Role::Worker).unwrap();
        let others = move |cluster: &SimCluster| -> Seen {
            let leader = cluster.leader().ok_or("no manager leads")?;
            let third = 3 - leader - demoted;
            let peer_rights = rights(cluster, &node);
            seen([leader, third].iter().all(|it| peer_rights[*it] == Some(Role::Worker)), peer_rights)
        };
        it.wait("no other manager takes it for one", 1_000, others);
        let expected: &'static [u64] = [&[2, 3][..], &[1, 3], &[1, 2]][demoted];
        it.wait("two vote", 1_000, voters(expected));
        it.cluster().crash_manager(demoted, true);
        it.create(it.leader(), spec("web", 1)).unwrap();
        it.wait("its task runs", 5_000, containers(0, 1));
    });
}

#[test]
fn leader_that_is_demoted_hands_over_first() {
    script(1, |it| {
        let old = it.leader();
        let name = format!("m{}", old + 1);
        let asked_again = it.change_role(&name, Role::Worker).unwrap_err();
        assert_eq!(Reason::of(&asked_again), Some(Reason::LeadershipMoved), "{asked_again}");
        let took = it.wait("another manager leads", 2_000, another_leads(old));
        assert!(took <= 200, "no election is waited for: it took {took} ms");
        it.change_role(&name, Role::Worker).unwrap();
        let expected: &'static [u64] = [&[2, 3][..], &[1, 3], &[1, 2]][old];
        it.wait("two vote", 5_000, voters(expected));
        it.create(it.leader(), spec("web", 0)).unwrap();
    });
}

#[test]
fn manager_whose_demotion_would_leave_no_majority_stays_one() {
    script(0, |it| {
        let leader = it.leader();
        let (dead, healthy) = ((leader + 1) % 3, (leader + 2) % 3);
        it.cluster().crash_manager(dead, true);
        for manager in [healthy, leader] {
            let refused = it.change_role(&format!("m{}", manager + 1), Role::Worker).unwrap_err();
            assert_eq!(Reason::of(&refused), Some(Reason::MajorityNeeded), "{refused}");
        }
        assert_eq!(it.leader(), leader, "it hands nothing over");
        let view = it.cluster().view().unwrap();
        assert!(view.managers().count() == 3 && view.cluster().unwrap().retired.is_empty(), "nothing was written");
        assert_eq!(members(it.cluster()).unwrap().0, [1, 2, 3]);
        it.change_role(&format!("m{}", dead + 1), Role::Worker).unwrap();
        it.wait("two vote", 5_000, move |cluster| {
            let members = members(cluster)?;
            seen(members.0.len() == 2, members)
        });
    });
}

#[test]
fn of_two_managers_one_is_demoted_and_the_last_is_not() {
    script_with(2, 0, |it| {
        let stays = it.leader();
        it.change_role(&format!("m{}", 2 - stays), Role::Worker).unwrap();
        it.wait("one votes", 5_000, move |cluster| {
            let members = members(cluster)?;
            seen(members.0.len() == 1, members)
        });
        let last = it.change_role(&format!("m{}", stays + 1), Role::Worker).unwrap_err();
        assert_eq!(Reason::of(&last), Some(Reason::MajorityNeeded), "{last}");
    });
}

#[test]
fn several_promotions_and_demotions_at_once_are_carried_out_one_after_the_other() {
    script(2, |it| {
        let new = [promote(it, 0), promote(it, 1)];
        let demoted = (it.leader() + 1) % 3;
        it.change_role(&format!("m{}", demoted + 1), Role::Worker).unwrap();
        it.wait("four vote", 20_000, |cluster| {
            let members = members(cluster)?;
            seen(members.0.len() == 4 && members.1.is_empty(), members)
        });
        let expected: &'static [u64] = [&[2, 3, 4, 5][..], &[1, 3, 4, 5], &[1, 2, 4, 5]][demoted];
        it.wait("the right four", 1_000, voters(expected));
        it.create(it.leader(), spec("web", 0)).unwrap();
        it.wait("the new ones have it", 5_000, move |cluster| {
            let has = |number: &usize| {
                let manager = cluster.managers[*number].manager();
                manager.is_some_and(|it| it.store().view().services().count() == 1)
            };
            seen(new.iter().all(has), "not yet")
        });
    });
}

/// Lets a node take the place of a manager that is dead for this long.
fn replace_dead_after(it: &mut Script, node: &str, after: Duration) {
    it.update_node(node, NodeSpec { manager_candidate: true, ..NodeSpec::default() });
    let request = UpdateClusterRequest {
        request_id: "replace".into(),
        dead_manager_after_ms: Some(u64::try_from(after.as_millis()).unwrap()),
        ..UpdateClusterRequest::default()
    };
    it.request(it.leader(), |mut client| async move { client.update_cluster(request).await.map(drop) }).unwrap();
}

/// The names of the managers, as the leader's store has them.
fn managers(cluster: &SimCluster) -> Result<Vec<String>, String> {
    let view = cluster.view().ok_or("no manager leads")?;
    let mut names: Vec<_> = view.managers().map(|node| node.description.hostname.clone()).collect();
    names.sort();
    Ok(names)
}

#[test]
fn dead_manager_is_replaced_by_a_node_that_may_be_one() {
    script(2, |it| {
        replace_dead_after(it, "w2", Duration::from_secs(20));
        it.pass(40_000);
        assert_eq!(managers(it.cluster()).unwrap(), ["m1", "m2", "m3"], "those that answer are not replaced");
        let dead = (it.leader() + 1) % 3;
        it.cluster().crash_manager(dead, true);
        let gone = format!("m{}", dead + 1);
        it.wait("w2 takes its place", 60_000, move |cluster| {
            let managers = managers(cluster)?;
            seen(!managers.contains(&gone) && managers.contains(&"w2".to_owned()), managers)
        });
        let new = it.seat_promoted(1).unwrap();
        it.cluster().start_manager(new);
        let expected: &'static [u64] = [&[2, 3, 4][..], &[1, 3, 4], &[1, 2, 4]][dead];
        it.wait("three vote", 20_000, voters(expected));
    });
}

#[test]
fn dead_manager_stays_one_while_no_node_may_replace_it_or_the_others_would_lose_their_majority() {
    script_with(5, 2, |it| {
        let leader = it.leader();
        let dead: Vec<usize> = (0..5).filter(|number| *number != leader).take(2).collect();
        replace_dead_after(it, "w2", Duration::from_secs(10));
        // Nobody may replace it.
        it.update_node("w2", NodeSpec::default());
        it.cluster().crash_manager(dead[0], true);
        it.pass(30_000);
        assert_eq!(managers(it.cluster()).unwrap().len(), 5);
        assert!(!managers(it.cluster()).unwrap().contains(&"w2".to_owned()));
        it.cluster().crash_manager(dead[1], true);
        // Of the four that are left, three answer: that is a majority.
        it.update_node("w2", NodeSpec { manager_candidate: true, ..NodeSpec::default() });
        it.wait("w2 takes a place", 30_000, |cluster| {
            let managers = managers(cluster)?;
            seen(managers.contains(&"w2".to_owned()), managers)
        });
        // It does not start, so the second one stays.
        it.update_node("w1", NodeSpec { manager_candidate: true, ..NodeSpec::default() });
        it.pass(30_000);
        assert!(!managers(it.cluster()).unwrap().contains(&"w1".to_owned()), "one replacement is under way at a time");
    });
}
