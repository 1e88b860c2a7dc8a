//! Services whose tasks go to the nodes of which the least is in use.

use flota_api::model::NodeUsage;
use flota_api::proto::specs::{PlacementStrategy, ServiceSpec};
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::script::{script, spec};

use super::{seen, tasks_of};

/// The number of tasks of the service on each of three workers; an error unless all have a node.
fn on_workers(cluster: &SimCluster, service: &str) -> Result<[usize; 3], String> {
    let (view, tasks) = (cluster.view().ok_or("no manager leads")?, tasks_of(cluster, service)?);
    let host = |task: &_| Some(view.node_of(task)?.description.hostname.clone());
    let hosts: Vec<String> =
        tasks.iter().map(|task| host(task).ok_or("a task has no node")).collect::<Result<_, _>>()?;
    Ok(["w1", "w2", "w3"].map(|name| hosts.iter().filter(|host| *host == name).count()))
}

#[test]
fn tasks_avoid_a_node_that_is_busy_with_something_else_also_after_a_leader_change() {
    script(3, |it| {
        let by_usage = |name: &str| ServiceSpec { strategy: PlacementStrategy::LeastUsed.into(), ..spec(name, 4) };
        it.cluster().workers[0].machine.set_usage(NodeUsage { cpu: 100, memory: 600 });
        it.cluster().workers[1].machine.set_usage(NodeUsage { cpu: 500, memory: 100 });
        // Each node has measured itself for a minute.
        it.pass(60_000);
        it.create(it.leader(), by_usage("first")).unwrap();
        let avoided = |cluster: &SimCluster, service: &str| {
            let counts = on_workers(cluster, service)?;
            seen(counts == [0, 0, 4], counts)
        };
        it.wait("all are on the node of which the least is in use", 10_000, |cluster| avoided(cluster, "first"));
        let leader = it.leader();
        it.cluster().crash_manager(leader, false);
        it.wait("another manager leads", 20_000, |cluster| seen(cluster.leader().is_some(), ()));
        // The nodes have sessions with it, and tell it what they told the one before.
        it.pass(10_000);
        it.create(it.leader(), by_usage("second")).unwrap();
        it.wait("so are those of another service", 10_000, |cluster| avoided(cluster, "second"));
        it.cluster().start_manager(leader);
        it.converge();
    });
}
