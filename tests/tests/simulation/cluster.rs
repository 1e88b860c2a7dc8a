//! What a cluster does when one thing goes wrong: leadership, failover, sessions, drains.

use flota_api::model::NodeState;
use flota_api::proto::control::{ListRequest, UpdateNodeRequest, UpdateServiceRequest};
use flota_api::proto::specs::NodeSpec;
use flota_api::proto::types::Availability;
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::script::{script, spec};

/// Whether another manager than this one leads.
fn another_leads(not: usize) -> impl Fn(&SimCluster) -> Result<(), String> {
    move |cluster| match cluster.leader() {
        Some(leader) if leader != not => Ok(()),
        leader => Err(format!("{leader:?} leads")),
    }
}

#[test]
fn killed_leader_is_replaced_and_tasks_keep_running() {
    script(3, |it| {
        let leader = it.leader();
        it.create(leader, spec("web", 3)).unwrap();
        it.converge();
        let before = it.picture();
        it.cluster().crash_manager(leader, true);
        let took = it.wait("another manager leads", 5_000, another_leads(leader));
        assert!(took <= 1_500, "it took {took} ms");
        let next = it.leader();
        it.create(next, spec("db", 1)).unwrap();
        it.cluster().start_manager(leader);
        it.converge();
        let after = it.picture();
        assert!(after.contains(&before) || before.split(", ").all(|task| after.contains(task)), "{before}; {after}");
    });
}

#[test]
fn leader_that_is_back_within_a_millisecond_loses_nothing() {
    script(1, |it| {
        for round in 0..10 {
            let leader = it.leader();
            it.create(leader, spec(&format!("s{round}"), 1)).unwrap();
            it.cluster().crash_manager(leader, round % 2 == 0);
            it.cluster().start_manager(leader);
            it.wait("somebody leads", 5_000, |cluster| cluster.leader().map(|_| ()).ok_or("nobody".into()));
        }
        it.converge();
        let view = it.cluster().view().unwrap();
        assert_eq!(view.services().count(), 10);
    });
}

#[test]
fn drained_node_loses_its_tasks_to_others() {
    script(3, |it| {
        let leader = it.leader();
        it.create(leader, spec("web", 3)).unwrap();
        it.converge();
        let worker = (0..3).find(|number| !it.cluster().workers[*number].machine.running().is_empty()).unwrap();
        let node = it.cluster().workers[worker].node_id.to_string();
        let drain = NodeSpec { availability: Availability::Drain.into(), ..NodeSpec::default() };
        let request = UpdateNodeRequest { request_id: "drain".into(), node, version: 0, spec: Some(drain) };
        it.ask(leader, |mut client| async move { client.update_node(request).await.map(drop) }).unwrap();
        it.wait("nothing runs on the drained node", 20_000, move |cluster| {
            match cluster.workers[worker].machine.running().len() {
                0 => Ok(()),
                count => Err(format!("{count} containers run")),
            }
        });
        it.converge();
    });
}

#[test]
fn killed_daemon_of_a_worker_finds_its_tasks_again() {
    script(1, |it| {
        let leader = it.leader();
        it.create(leader, spec("web", 3)).unwrap();
        it.converge();
        let before = it.picture();
        it.cluster().crash_worker(0, false);
        it.pass(500);
        assert_eq!(it.picture(), before, "containers run on without the daemon");
        it.cluster().start_worker(0);
        it.pass(5_000);
        it.converge();
        assert_eq!(it.picture(), before);
    });
}

#[test]
fn tasks_of_a_lost_machine_start_elsewhere() {
    script(2, |it| {
        let leader = it.leader();
        it.create(leader, spec("web", 2)).unwrap();
        it.converge();
        it.cluster().crash_worker(0, true);
        let lost = it.cluster().workers[0].node_id.clone();
        it.wait("the node is down", 6_000, move |cluster| {
            let view = cluster.view().ok_or("nobody leads")?;
            let state = view.node(lost.as_str()).map(|node| node.state);
            if state == Some(NodeState::Down) { Ok(()) } else { Err(format!("{state:?}")) }
        });
        it.wait("both tasks run on the other", 10_000, |cluster| match cluster.workers[1].machine.running().len() {
            2 => Ok(()),
            count => Err(format!("{count} run")),
        });
        it.cluster().start_worker(0);
        it.converge();
    });
}

#[test]
fn partitioned_worker_stops_what_was_replaced_when_it_is_back() {
    script(2, |it| {
        let leader = it.leader();
        it.create(leader, spec("web", 2)).unwrap();
        it.converge();
        let worker = it.cluster().workers[0].host;
        let managers: Vec<_> = it.cluster().managers.iter().map(|manager| manager.host).collect();
        for manager in &managers {
            it.cluster().world.network.block(worker, *manager);
            it.cluster().world.network.block(*manager, worker);
        }
        it.wait("its task runs on the other worker, too", 15_000, |cluster| {
            let running = cluster.workers.iter().map(|it| it.machine.running().len()).sum::<usize>();
            if running == 3 { Ok(()) } else { Err(format!("{running} containers")) }
        });
        it.cluster().world.network.heal_all();
        it.converge();
    });
}

#[test]
fn paused_leader_refuses_nothing_from_its_old_view() {
    script(1, |it| {
        let old = it.leader();
        it.create(old, spec("known", 1)).unwrap();
        let host = it.cluster().managers[old].host;
        it.cluster().world.pause(host, true);
        it.wait("another manager leads", 5_000, another_leads(old));
        let new = it.leader();
        it.create(new, spec("unknown", 1)).unwrap();
        it.update(new, "the update", spec("known", 2)).unwrap();
        it.cluster().world.pause(host, false);
        // At once: it may still think that it leads.
        let answers = [
            it.update(old, "another update", spec("unknown", 2)),
            it.update(old, "the update", spec("known", 2)),
            it.create(old, spec("unknown", 1)),
        ];
        for answer in answers {
            let code = answer.as_ref().err().map(tonic::Status::code);
            assert!(matches!(code, None | Some(tonic::Code::Unavailable)), "{answer:?}");
        }
        it.converge();
    });
}

/// Why the manager with this number has ended by itself, if it has.
fn ended(number: usize, because: &'static str) -> impl Fn(&SimCluster) -> Result<(), String> {
    move |cluster| {
        let ended = cluster.ended_managers();
        match ended.iter().find(|(ended, _)| *ended == number) {
            Some((_, why)) if why.contains(because) => Ok(()),
            _ => Err(format!("{ended:?}")),
        }
    }
}

#[test]
fn manager_whose_tables_differ_stops_and_its_folder_is_refused() {
    script(1, |it| {
        let leader = it.leader();
        it.create(leader, spec("web", 1)).unwrap();
        it.converge();
        let wrong = (leader + 1) % 3;
        it.spoil_tables(wrong);
        it.create(leader, spec("other", 1)).unwrap();
        it.pass(500);
        // The next leader compares, whoever it is.
        it.cluster().crash_manager(leader, false);
        it.cluster().start_manager(leader);
        it.wait("the manager with the wrong tables stops", 30_000, ended(wrong, "has stopped"));
        it.cluster().crash_manager(wrong, false);
        it.cluster().start_manager(wrong);
        it.wait("it does not come back as it was", 5_000, ended(wrong, "differed from those of the other managers"));
        it.wait("somebody leads", 5_000, |cluster| cluster.leader().map(drop).ok_or("nobody".into()));
        let leader = it.leader();
        it.create(leader, spec("db", 1)).unwrap();
        assert!(it.cluster().view().unwrap().stack("spoiled").is_none());
    });
}

/// Answers that followers gave before they chose another leader are held back on their way. When they arrive, the old
/// leader sends an AppendEntries without entries behind those that they answer, and must not take them for its answers.
#[test]
fn cut_off_leader_takes_no_old_answer_for_a_proof_that_it_leads() {
    script(1, |it| {
        let old = it.leader();
        it.create(old, spec("web", 1)).unwrap();
        it.converge();
        let old_host = it.cluster().managers[old].host;
        let others: Vec<_> =
            (0..3).filter(|number| *number != old).map(|number| it.cluster().managers[number].host).collect();
        for other in &others {
            it.cluster().world.network.block(*other, old_host);
        }
        // Reaches the others, and its answers do not come back.
        let update = it.begin(old, |mut client| async move {
            let request = UpdateServiceRequest {
                request_id: "held".into(),
                service: "web".into(),
                version: 0,
                spec: Some(spec("web", 2)),
            };
            client.update_service(request).await.map(drop)
        });
        it.pass(30);
        it.end(update);
        for other in &others {
            it.cluster().world.network.block(old_host, *other);
        }
        it.wait("another manager leads", 2_000, another_leads(old));
        let new = it.leader();
        it.update(new, "newer", spec("web", 3)).unwrap();
        let read = it.begin(old, |mut client| async move {
            let request = ListRequest::default();
            let mut pages = client.list_services(request).await?.into_inner();
            let page = pages.message().await?.unwrap_or_default();
            Ok(page.services.first().map_or(0, |row| row.desired))
        });
        it.pass(20);
        it.cluster().world.network.heal_all();
        it.pass(6_000);
        let seen = it.end(read);
        assert!(!matches!(seen, Some(Ok(replicas)) if replicas != 3), "a read after the update saw {seen:?}");
        it.converge();
    });
}
