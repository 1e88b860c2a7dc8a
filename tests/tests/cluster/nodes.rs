//! Nodes that are lost, cut off, drained and removed, and what becomes of their tasks.

use flota_api::model::{NodeState, Task};
use flota_api::proto::control::{RemoveRequest, UpdateClusterRequest};
use flota_api::proto::specs::{NodeSpec, OnPartition, ServiceSpec};
use flota_api::proto::types::{Availability, TaskState};
use flota_tests::sim::script::{Script, script, script_with, spec};

use super::{containers, node_is, seen, tasks_of};

/// Blocks every link between a worker and the managers, in both directions.
pub(super) fn cut_off(it: &mut Script, worker: usize) {
    let worker = it.cluster().workers[worker].host;
    let managers: Vec<_> = it.cluster().managers.iter().map(|manager| manager.host).collect();
    for manager in managers {
        it.cluster().world.network.block(worker, manager);
        it.cluster().world.network.block(manager, worker);
    }
}

/// How long a manager waits for an answer on a connection before it gives it up, in milliseconds: a ping, and its answer.
const ANSWERS_WITHIN: u64 = 4_000;

fn availability(availability: Availability) -> NodeSpec {
    NodeSpec { availability: availability.into(), ..NodeSpec::default() }
}

#[test]
fn tasks_of_a_lost_machine_start_elsewhere_and_are_listed_with_a_doubt() {
    script(2, |it| {
        it.create(it.leader(), spec("web", 2)).unwrap();
        it.converge();
        it.cluster().crash_worker(0, true);
        it.wait("the node is down", 6_000, node_is(0, NodeState::Down));
        it.wait("both tasks run on the other", 10_000, containers(1, 2));
        let rows = it.tasks(it.leader());
        let lost: Vec<_> = rows.iter().filter(|row| row.node_name == "w1").collect();
        assert_eq!(lost.len(), 1, "{rows:?}");
        assert!(lost[0].error.starts_with("its node w1 is down since"), "{lost:?}");
        assert!(rows.iter().filter(|row| row.node_name == "w2").all(|row| row.error.is_empty()), "{rows:?}");
        it.cluster().start_worker(0);
        it.converge();
        assert!(it.cluster().workers[0].machine.running().is_empty(), "what was replaced is not started again");
    });
}

#[test]
fn tasks_that_are_to_stay_wait_for_their_lost_node_until_it_is_back_or_a_person_decides() {
    script(2, |it| {
        let keeps = ServiceSpec { keep_on_node_loss: true, ..spec("db", 2) };
        it.create(it.leader(), keeps).unwrap();
        it.converge();
        it.cluster().crash_worker(0, true);
        it.wait("the node is down", 6_000, node_is(0, NodeState::Down));
        it.pass(60_000);
        assert_eq!(it.cluster().workers[1].machine.running().len(), 1, "its task runs nowhere else");
        let before = tasks_of(it.cluster(), "db").unwrap();
        it.cluster().start_worker(0);
        it.converge();
        let ids = |tasks: &[Task]| tasks.iter().map(|task| task.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&tasks_of(it.cluster(), "db").unwrap()), ids(&before), "the same tasks run again");
        assert_eq!(it.cluster().workers[0].machine.running().len(), 1);
        it.cluster().crash_worker(0, true);
        it.wait("the node is down", 6_000, node_is(0, NodeState::Down));
        it.pass(10_000);
        it.update_node("w1", availability(Availability::Drain));
        it.wait("a person has decided: both run on the other", 10_000, containers(1, 2));
    });
}

#[test]
fn a_node_that_was_lost_again_and_again_gets_tasks_last() {
    script(2, |it| {
        for _ in 0..2 {
            it.cluster().crash_worker(0, true);
            it.wait("the node is down", 6_000, node_is(0, NodeState::Down));
            it.cluster().start_worker(0);
            it.wait("the node is back", 10_000, node_is(0, NodeState::Ready));
        }
        it.create(it.leader(), spec("web", 4)).unwrap();
        it.converge();
        assert!(it.cluster().workers[0].machine.running().is_empty(), "it comes and goes");
    });
}

#[test]
fn lost_node_is_down_after_as_many_heartbeats_as_the_cluster_is_set_to() {
    for (period, missed) in [(500, 2), (1_000, 3), (1_000, 6), (3_000, 3)] {
        script(1, move |it| {
            let request = UpdateClusterRequest {
                heartbeat_ms: Some(period),
                heartbeats_missed: Some(missed),
                ..UpdateClusterRequest::default()
            };
            it.request(it.leader(), |mut control| async move { control.update_cluster(request).await }).unwrap();
            // Nodes follow with their next session.
            it.cluster().crash_worker(0, false);
            it.cluster().start_worker(0);
            it.wait("it is back", 10_000, node_is(0, NodeState::Ready));
            it.pass(2 * period);
            // It does not say that it is gone, and its connection stays.
            let host = it.cluster().workers[0].host;
            it.cluster().world.pause(host, true);
            let took = it.wait("the node is down", 60_000, node_is(0, NodeState::Down));
            // The last heartbeat was heard up to a period before, and half a period more is no miss. The leader looks at
            // its nodes in a part of a period, and writes what it sees. If that takes longer than to find that nobody
            // answers on the connection, the time counts from there.
            let silence = if period * missed < ANSWERS_WITHIN { 0 } else { ANSWERS_WITHIN };
            let (least, most) = (period * (missed - 1) + period / 2, silence + period * missed + period + 100);
            assert!((least..=most).contains(&took), "{took} ms with {missed} heartbeats of {period} ms");
        });
    }
}

#[test]
fn manager_that_stood_still_takes_no_node_for_lost() {
    script_with(1, 3, |it| {
        it.create(it.leader(), spec("web", 3)).unwrap();
        it.converge();
        let before = it.picture();
        let host = it.cluster().managers[0].host;
        it.cluster().world.pause(host, true);
        it.pass(10_000);
        it.cluster().world.pause(host, false);
        it.converge();
        assert_eq!(it.picture(), before, "the same tasks run on");
    });
}

#[test]
fn partitioned_worker_stops_what_was_replaced_when_it_is_back() {
    script(2, |it| {
        it.create(it.leader(), spec("web", 2)).unwrap();
        it.converge();
        cut_off(it, 0);
        it.wait("its task runs on the other worker, too", 15_000, |cluster| {
            let running = cluster.workers.iter().map(|it| it.machine.running().len()).sum::<usize>();
            seen(running == 3, running)
        });
        it.cluster().world.network.heal_all();
        it.converge();
    });
}

#[test]
fn worker_that_is_cut_off_keeps_its_tasks_or_stops_them_as_asked() {
    script(1, |it| {
        it.create(it.leader(), spec("keeps", 1)).unwrap();
        let on_partition = OnPartition::Stop.into();
        let stops = ServiceSpec { on_partition, on_partition_after_ms: 2_000, ..spec("stops", 1) };
        it.create(it.leader(), stops).unwrap();
        it.converge();
        cut_off(it, 0);
        let took = it.wait("one task stops", 8_000, containers(0, 1));
        assert!(took >= 2_000, "it stopped after {took} ms");
        assert_eq!(it.cluster().workers[0].machine.running()[0].service, "keeps");
        it.wait("the node is down", 8_000, node_is(0, NodeState::Down));
        it.pass(5_000);
        assert_eq!(it.cluster().workers[0].machine.running()[0].service, "keeps");
        it.cluster().world.network.heal_all();
        it.converge();
    });
}

#[test]
fn drained_node_loses_its_tasks_to_others_and_gets_none_until_it_is_active() {
    script(2, |it| {
        it.create(it.leader(), spec("web", 2)).unwrap();
        it.converge();
        assert_eq!(it.cluster().workers[0].machine.running().len(), 1);
        it.update_node("w1", availability(Availability::Drain));
        it.wait("nothing runs on the drained node", 20_000, containers(0, 0));
        it.converge();
        it.update(it.leader(), "more", spec("web", 4)).unwrap();
        it.converge();
        assert!(it.cluster().workers[0].machine.running().is_empty());
        it.update_node("w1", availability(Availability::Active));
        it.update(it.leader(), "even more", spec("web", 6)).unwrap();
        it.converge();
        assert_eq!(it.cluster().workers[0].machine.running().len(), 2);
    });
}

#[test]
fn all_tasks_of_a_service_leave_a_drained_node_and_all_but_one_serve_all_the_time() {
    script(2, |it| {
        it.update_node("w2", availability(Availability::Pause));
        it.create(it.leader(), spec("web", 4)).unwrap();
        it.converge();
        assert_eq!(it.cluster().workers[0].machine.running().len(), 4);
        it.update_node("w2", availability(Availability::Active));
        it.update_node("w1", availability(Availability::Drain));
        let least = std::cell::Cell::new(usize::MAX);
        it.wait("all have moved", 60_000, |cluster| {
            let tasks = tasks_of(cluster, "web")?;
            let serving = tasks.iter().filter(|task| task.is_serving()).count();
            least.set(least.get().min(serving));
            let running = |number: usize| cluster.workers[number].machine.running().len();
            seen((serving, running(0), running(1)) == (4, 0, 4), (serving, running(0), running(1)))
        });
        assert_eq!(least.get(), 3);
    });
}

#[test]
fn tasks_for_which_there_is_no_room_elsewhere_stay_on_a_drained_node_until_there_is() {
    script(2, |it| {
        it.update_node("w2", availability(Availability::Pause));
        it.create(it.leader(), spec("web", 2)).unwrap();
        it.converge();
        it.update_node("w1", availability(Availability::Drain));
        it.pass(20_000);
        assert_eq!(it.cluster().workers[0].machine.running().len(), 2);
        it.update_node("w2", availability(Availability::Active));
        it.wait("they move when there is room", 20_000, containers(0, 0));
        it.converge();
        assert_eq!(it.cluster().workers[1].machine.running().len(), 2);
    });
}

#[test]
fn paused_node_keeps_its_tasks_and_gets_no_new_ones() {
    script(2, |it| {
        it.create(it.leader(), spec("web", 2)).unwrap();
        it.converge();
        it.update_node("w1", availability(Availability::Pause));
        it.update(it.leader(), "more", spec("web", 6)).unwrap();
        it.converge();
        assert_eq!(it.cluster().workers[0].machine.running().len(), 1);
    });
}

fn remove(it: &mut Script, node: &str, force: bool) -> Result<(), tonic::Status> {
    let request_id = format!("remove at {}", it.cluster().world.now());
    let request = RemoveRequest { request_id, name: node.into(), force };
    it.request(it.leader(), |mut client| async move { client.remove_node(request).await.map(drop) })
}

#[test]
fn node_that_is_ready_is_removed_only_by_force_and_its_daemon_is_told() {
    script(2, |it| {
        it.create(it.leader(), spec("web", 2)).unwrap();
        it.converge();
        let refused = remove(it, "w1", false).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
        remove(it, "w1", true).unwrap();
        it.wait("both tasks run on the other node", 10_000, containers(1, 2));
        it.wait("the daemon is told", 5_000, |cluster| {
            seen(cluster.world.log.find("the cluster has removed this node").is_some(), "it is not")
        });
    });
}

#[test]
fn removed_node_takes_its_tasks_out_of_every_list() {
    script(2, |it| {
        it.create(it.leader(), spec("web", 4)).unwrap();
        it.converge();
        it.cluster().crash_worker(0, true);
        it.wait("the node is down", 6_000, node_is(0, NodeState::Down));
        remove(it, "w1", false).unwrap();
        it.wait("all tasks run on the other node", 10_000, containers(1, 4));
        let gone = it.cluster().workers[0].node_id.clone();
        it.wait("no task names the node", 5_000, move |cluster| {
            let view = cluster.view().ok_or("no manager leads")?;
            let left: Vec<_> = view.tasks().filter(|task| task.is_on(&gone)).map(|task| task.id.clone()).collect();
            seen(left.is_empty(), left)
        });
        let rows = it.tasks(it.leader());
        assert_eq!(rows.len(), 4, "{rows:?}");
        let running = |row: &flota_api::proto::control::TaskRow| {
            row.task.as_ref().and_then(|task| task.status.as_ref()).map(|status| status.state())
        };
        assert!(rows.iter().all(|row| row.node_name == "w2" && running(row) == Some(TaskState::Running)), "{rows:?}");
    });
}
