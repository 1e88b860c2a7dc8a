//! Tasks that move although nothing is wrong with them: drains of services that start first, and rebalances.

use std::cell::Cell;

use flota_api::proto::control::{RebalanceRequest, UpdateClusterRequest};
use flota_api::proto::specs::{NodeSpec, ServiceSpec, UpdateOrder, UpdatePolicy};
use flota_api::proto::types::Availability;
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::script::{Script, script, spec};

use super::{Seen, containers, seen, tasks_of};

/// The service whose updates start the new task first: the simulation's checks know it by this name.
const STARTED_FIRST: &str = "the-queue";

fn set(it: &mut Script, node: &str, availability: Availability) {
    it.update_node(node, NodeSpec { availability: availability.into(), ..NodeSpec::default() });
}

/// A service whose tasks are all placed on the first of two nodes; the other one is active afterwards.
fn crowd(it: &mut Script, spec: ServiceSpec) {
    set(it, "w2", Availability::Pause);
    it.create(it.leader(), spec).unwrap();
    it.converge();
    set(it, "w2", Availability::Active);
}

fn rebalance(it: &mut Script) -> u64 {
    let request = RebalanceRequest { request_id: format!("rebalance at {}", it.cluster().world.now()) };
    let asked = it.request(it.leader(), |mut client| async move { client.rebalance(request).await }).unwrap();
    asked.into_inner().rebalance.expect("the answer has it").begun_at
}

/// The rebalance has ended after so many moves.
fn has_ended(moved: u64) -> impl Fn(&SimCluster) -> Seen {
    move |cluster| {
        let view = cluster.view().ok_or("no manager leads")?;
        let rebalance = view.cluster().and_then(|it| it.rebalance).ok_or("there was none")?;
        seen(rebalance.ended_at.is_some() && rebalance.moved == moved, rebalance)
    }
}

#[test]
fn a_drain_of_a_service_that_starts_first_leaves_it_no_task_short() {
    script(2, |it| {
        let order = UpdateOrder::StartFirst.into();
        let update = Some(UpdatePolicy { parallelism: 2, order, monitor_ms: 5_000, ..UpdatePolicy::default() });
        crowd(it, ServiceSpec { update, ..spec(STARTED_FIRST, 4) });
        set(it, "w1", Availability::Drain);
        let (least, most) = (Cell::new(usize::MAX), Cell::new(0));
        it.wait("all have moved", 60_000, |cluster| {
            let tasks = tasks_of(cluster, STARTED_FIRST)?;
            least.set(least.get().min(tasks.iter().filter(|task| task.is_serving()).count()));
            most.set(most.get().max(tasks.iter().filter(|task| task.is_live()).count()));
            containers(0, 0)(cluster)
        });
        it.converge();
        assert_eq!((least.get(), most.get()), (4, 6), "as many more as the policy allows, and never one less");
    });
}

#[test]
fn a_drain_that_is_taken_back_stops_what_it_has_begun() {
    script(2, |it| {
        let update = Some(UpdatePolicy { order: UpdateOrder::StartFirst.into(), ..UpdatePolicy::default() });
        set(it, "w2", Availability::Pause);
        it.create(it.leader(), ServiceSpec { update, ..spec(STARTED_FIRST, 2) }).unwrap();
        it.converge();
        let before = it.picture();
        set(it, "w1", Availability::Drain);
        it.wait("a task waits for a node", 20_000, |cluster| {
            let tasks = tasks_of(cluster, STARTED_FIRST)?;
            seen(tasks.iter().any(|task| task.is_waiting()), tasks.len())
        });
        set(it, "w1", Availability::Active);
        it.converge();
        assert_eq!(it.picture(), before, "the same tasks run on");
    });
}

#[test]
fn a_rebalance_brings_tasks_to_a_node_that_has_come_back_and_ends() {
    script(2, |it| {
        crowd(it, spec("web", 6));
        it.pass(5_000);
        assert_eq!(it.cluster().workers[0].machine.running().len(), 6, "nothing moves without being asked");
        rebalance(it);
        let least = Cell::new(usize::MAX);
        it.wait("each has three", 60_000, |cluster| {
            let tasks = tasks_of(cluster, "web")?;
            least.set(least.get().min(tasks.iter().filter(|task| task.is_serving()).count()));
            has_ended(3)(cluster)
        });
        it.converge();
        let running = |it: &mut Script| [0, 1].map(|worker| it.cluster().workers[worker].machine.running().len());
        assert_eq!((running(it), least.get()), ([3, 3], 5), "one at a time");
        let before = it.picture();
        rebalance(it);
        it.wait("nothing is left to do", 10_000, has_ended(0));
        it.converge();
        assert_eq!(it.picture(), before);
    });
}

#[test]
fn a_rebalance_goes_on_after_the_leader_was_replaced() {
    script(2, |it| {
        crowd(it, spec("web", 6));
        let begun = rebalance(it);
        it.wait("a task has moved", 30_000, containers(1, 1));
        let leader = it.leader();
        it.cluster().crash_manager(leader, false);
        it.wait("each has three", 60_000, has_ended(3));
        it.cluster().start_manager(leader);
        it.converge();
        let view = it.cluster().view().expect("a manager leads");
        assert_eq!(
            view.cluster().and_then(|it| it.rebalance).map(|it| it.begun_at.0),
            Some(begun),
            "it is the same one"
        );
    });
}

#[test]
fn a_cluster_that_rebalances_by_itself_does_so_a_minute_after_a_node_has_come_back() {
    script(2, |it| {
        let request_id = "rebalance by itself".to_owned();
        let request =
            UpdateClusterRequest { request_id, auto_rebalance: Some(true), ..UpdateClusterRequest::default() };
        it.request(it.leader(), |mut client| async move { client.update_cluster(request).await.map(drop) }).unwrap();
        it.create(it.leader(), spec("web", 4)).unwrap();
        it.converge();
        it.cluster().crash_worker(1, true);
        it.wait("all run on the other", 30_000, containers(0, 4));
        it.cluster().start_worker(1);
        it.pass(30_000);
        assert_eq!(it.cluster().workers[0].machine.running().len(), 4, "it might go again");
        it.wait("each has two", 240_000, containers(0, 2));
        it.converge();
    });
}
