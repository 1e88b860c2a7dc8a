//! Leaders that die, pause or are cut off, and what users are answered meanwhile.

use flota_api::proto::control::{CreateServiceRequest, ListRequest, UpdateServiceRequest};
use flota_manager::forward::STALE;
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::script::{Script, script, spec};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use super::{another_leads, seen, somebody_leads};

#[test]
fn killed_leader_is_replaced_and_tasks_keep_running() {
    script(3, |it| {
        let leader = it.leader();
        it.create(leader, spec("web", 3)).unwrap();
        it.converge();
        let before = it.picture();
        it.create(leader, spec("before", 0)).unwrap();
        it.cluster().crash_manager(leader, true);
        let took = it.wait("another manager leads", 5_000, another_leads(leader));
        assert!(took <= 1_500, "it took {took} ms");
        let next = it.leader();
        it.create(next, spec("db", 1)).unwrap();
        let acknowledged = it.cluster().view().unwrap().service_by_name("before").is_some();
        assert!(acknowledged, "what was acknowledged is there");
        it.cluster().start_manager(leader);
        it.converge();
        let after = it.picture();
        assert!(after.contains(&before) || before.split(", ").all(|task| after.contains(task)), "{before}; {after}");
    });
}

#[test]
fn on_a_slow_network_no_write_is_refused_and_the_leader_stays() {
    script(3, |it| {
        let leader = it.leader();
        // A round trip takes most of the lease of 330 ms, which counts from when a heartbeat is sent.
        it.cluster().world.network.set_delay(95..=100);
        it.pass(2_000);
        for number in 0..20 {
            it.create(leader, spec(&format!("s{number}"), 0)).unwrap();
            it.pass(70);
        }
        assert_eq!(it.leader(), leader);
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
            it.wait("a manager leads", 5_000, somebody_leads);
        }
        it.converge();
        let view = it.cluster().view().unwrap();
        assert_eq!(view.services().count(), 10);
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
        // The next leader compares, whichever manager it is.
        it.cluster().crash_manager(leader, false);
        it.cluster().start_manager(leader);
        it.wait("the manager with the wrong tables stops", 30_000, ended(wrong, "has stopped"));
        it.cluster().crash_manager(wrong, false);
        it.cluster().start_manager(wrong);
        it.wait("it does not come back as it was", 5_000, ended(wrong, "differed from those of the other managers"));
        it.wait("a manager leads", 5_000, somebody_leads);
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
                spec: Some(spec("web", 2)),
                ..UpdateServiceRequest::default()
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

/// Names of the services that a manager lists; with `stale` from its own tables, with their age in milliseconds.
fn list(it: &mut Script, manager: usize, stale: bool) -> Result<(Option<u64>, Vec<String>), Status> {
    it.request(manager, move |mut client| async move {
        let mut request = Request::new(ListRequest { stale, ..ListRequest::default() });
        if stale {
            request.metadata_mut().insert(STALE, MetadataValue::from_static("1"));
        }
        let mut pages = client.list_services(request).await?.into_inner();
        let page = pages.message().await?.unwrap_or_default();
        let specs = page.services.into_iter().filter_map(|row| row.service?.spec);
        Ok((page.header.and_then(|header| header.age_ms), specs.map(|spec| spec.name).collect()))
    })
}

#[test]
fn each_manager_knows_how_old_its_tables_are_and_one_that_is_cut_off_sees_them_age() {
    script(1, |it| {
        let (leader, other) = (it.leader(), (it.leader() + 1) % 3);
        it.create(leader, spec("web", 1)).unwrap();
        for manager in 0..3 {
            let (age, names) = list(it, manager, true).unwrap();
            assert!(age.is_some_and(|age| age < 1_000), "{age:?}");
            assert_eq!(names, ["web"]);
        }
        let hosts: Vec<_> = it.cluster().managers.iter().map(|manager| manager.host).collect();
        let others = hosts.iter().filter(|host| **host != hosts[other]);
        others.for_each(|host| it.cluster().world.network.block(*host, hosts[other]));
        it.pass(10_000);
        let (age, _) = list(it, other, true).unwrap();
        assert!(age.is_some_and(|age| age >= 10_000), "{age:?}");
        it.cluster().world.network.heal_all();
        it.converge();
    });
}

#[test]
fn without_a_quorum_nothing_is_answered_but_stale_lists_and_tasks_run_on() {
    script(2, |it| {
        it.create(it.leader(), spec("web", 2)).unwrap();
        it.converge();
        let (before, left) = (it.picture(), it.leader());
        let others = [(left + 1) % 3, (left + 2) % 3];
        others.iter().for_each(|other| it.cluster().crash_manager(*other, true));
        let begun = it.cluster().world.now();
        let refused = it.create(left, spec("late", 0)).unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        let refused = list(it, left, false).unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        let waited = it.cluster().world.now() - begun;
        assert!(waited <= 21_000, "a change waits for 15 s and a read for 5 s: {waited} ms");
        let (age, names) = list(it, left, true).unwrap();
        assert_eq!(names, ["web"]);
        assert!(age.is_some_and(|age| age >= waited), "{waited} ms after the others died it may be {age:?} ms old");
        assert_eq!(it.picture(), before, "containers run on");
        it.cluster().start_manager(others[0]);
        it.wait("a manager leads", 5_000, somebody_leads);
        // A request that timed out may have been carried out or not; when it is sent again, it is carried out once.
        it.create(it.leader(), spec("late", 0)).unwrap();
        it.create(it.leader(), spec("web", 2)).expect("a request that was done before is answered");
        it.cluster().start_manager(others[1]);
        it.converge();
        assert_eq!(it.cluster().view().unwrap().services().count(), 2);
        assert_eq!(it.picture(), before);
    });
}

#[test]
fn leader_that_is_cut_off_accepts_nothing_and_follows_when_it_is_back() {
    script(1, |it| {
        let old = it.leader();
        let hosts: Vec<_> = it.cluster().managers.iter().map(|manager| manager.host).collect();
        for other in hosts.iter().filter(|host| **host != hosts[old]) {
            it.cluster().world.network.block(hosts[old], *other);
            it.cluster().world.network.block(*other, hosts[old]);
        }
        let refused = it.create(old, spec("lost", 0)).unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        it.wait("another manager leads", 5_000, another_leads(old));
        it.create(it.leader(), spec("kept", 0)).unwrap();
        it.cluster().world.network.heal_all();
        it.converge();
        assert_eq!(list(it, old, false).unwrap().1, ["kept"]);
    });
}

#[test]
fn cluster_whose_machines_all_lost_power_comes_back_with_every_service() {
    script(2, |it| {
        it.create(it.leader(), spec("web", 4)).unwrap();
        it.converge();
        (0..3).for_each(|number| it.cluster().crash_manager(number, true));
        (0..2).for_each(|number| it.cluster().crash_worker(number, true));
        it.pass(10_000);
        (0..3).for_each(|number| it.cluster().start_manager(number));
        (0..2).for_each(|number| it.cluster().start_worker(number));
        it.converge();
        let running: usize = it.cluster().workers.iter().map(|worker| worker.machine.running().len()).sum();
        assert_eq!(running, 4);
    });
}

#[test]
fn request_that_is_sent_twice_is_done_once_also_by_the_next_leader() {
    script(1, |it| {
        let leader = it.leader();
        it.create(leader, spec("web", 1)).unwrap();
        it.converge();
        let service = it.cluster().view().unwrap().service_by_name("web").unwrap().as_ref().clone();
        let send = |it: &mut Script, manager: usize, request_id: &str| {
            let request = UpdateServiceRequest {
                request_id: request_id.into(),
                service: service.id.to_string(),
                version: service.meta.version,
                spec: Some(spec("web", 2)),
                ..UpdateServiceRequest::default()
            };
            it.request(manager, |mut client| async move { client.update_service(request).await.map(drop) })
        };
        send(it, leader, "once").unwrap();
        let other = (leader + 1) % 3;
        send(it, other, "once").unwrap();
        it.cluster().crash_manager(leader, true);
        it.wait("another manager leads", 5_000, another_leads(leader));
        send(it, other, "once").unwrap();
        let another = send(it, other, "another").unwrap_err();
        assert_eq!(another.code(), Code::Aborted, "another request is judged again: {another}");
    });
}

#[test]
fn create_that_is_under_way_when_the_leader_dies_is_done_once() {
    script(1, |it| {
        for round in 0..6 {
            let leader = it.leader();
            let request = CreateServiceRequest {
                request_id: format!("create {round}"),
                spec: Some(spec(&format!("s{round}"), 0)),
                ..CreateServiceRequest::default()
            };
            let first = request.clone();
            let asked = it.begin(leader, |mut client| async move { client.create_service(first).await.map(drop) });
            // Before it arrives, while it is written, or when it is done and not answered.
            it.pass([4, 8, 12, 16, 20, 24][round]);
            it.cluster().crash_manager(leader, true);
            drop(it.end(asked));
            it.wait("another manager leads", 5_000, another_leads(leader));
            it.request(it.leader(), |mut client| async move { client.create_service(request).await }).unwrap();
            it.cluster().start_manager(leader);
            it.wait("all managers are here", 10_000, |cluster| {
                let here = cluster.managers.iter().filter(|manager| manager.manager().is_some()).count();
                seen(here == 3, here)
            });
        }
        it.converge();
        assert_eq!(it.cluster().view().unwrap().services().count(), 6);
    });
}

#[test]
fn follower_keeps_its_connection_to_the_leader() {
    script(0, |it| {
        let follower = (it.leader() + 1) % 3;
        let host = it.cluster().managers[follower].host;
        list(it, follower, false).unwrap();
        let before = it.cluster().world.network.connects(host);
        for _ in 0..5 {
            list(it, follower, false).unwrap();
        }
        assert_eq!(it.cluster().world.network.connects(host), before);
    });
}
