//! Global services: a task on each node, as nodes come, go and change.

use std::collections::BTreeSet;

use flota_api::model::NodeState;
use flota_api::proto::specs::{NodeSpec, ServiceMode, ServiceSpec};
use flota_api::proto::types::Availability;
use flota_api::reason::Reason;
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::script::{script, spec};

use super::nodes::cut_off;
use super::{Seen, node_is, seen};

fn global(env: &str) -> ServiceSpec {
    ServiceSpec { mode: ServiceMode::Global.into(), env: vec![env.into()], ..spec("agent", 0) }
}

/// The containers of the service run on these workers, one on each.
fn runs_on(workers: &'static [usize]) -> impl Fn(&SimCluster) -> Seen {
    move |cluster| {
        let counts: Vec<usize> = cluster.workers.iter().map(|it| it.machine.running().len()).collect();
        let expected = (0..counts.len()).map(|worker| usize::from(workers.contains(&worker)));
        seen(expected.eq(counts.iter().copied()), counts)
    }
}

#[test]
fn a_global_service_has_a_task_on_each_node_and_follows_what_becomes_of_nodes() {
    script(3, |it| {
        it.create(it.leader(), global("A=1")).unwrap();
        it.wait("it runs everywhere", 5_000, runs_on(&[0, 1, 2]));
        it.converge();
        let before = it.picture();
        it.update_node("w2", NodeSpec { availability: Availability::Drain.into(), ..NodeSpec::default() });
        it.wait("the drained node has none", 5_000, runs_on(&[0, 2]));
        it.update_node("w2", NodeSpec { availability: Availability::Pause.into(), ..NodeSpec::default() });
        it.pass(3_000);
        runs_on(&[0, 2])(it.cluster()).unwrap();
        it.update_node("w2", NodeSpec::default());
        it.wait("it has one again", 5_000, runs_on(&[0, 1, 2]));
        it.converge();
        let after = it.picture();
        assert_eq!(before.split(", ").filter(|task| after.contains(task)).count(), 2, "{before}; {after}");
    });
}

#[test]
fn a_global_task_waits_for_its_node_and_runs_on_there() {
    script(3, |it| {
        it.create(it.leader(), global("A=1")).unwrap();
        it.converge();
        let before = it.picture();
        cut_off(it, 1);
        it.wait("the node is down", 10_000, node_is(1, NodeState::Down));
        it.pass(5_000);
        it.cluster().world.network.heal_all();
        it.wait("the node is back", 20_000, node_is(1, NodeState::Ready));
        it.converge();
        assert_eq!(it.picture(), before, "nothing was restarted");
        it.cluster().crash_worker(1, true);
        it.wait("the node is down", 10_000, node_is(1, NodeState::Down));
        runs_on(&[0, 2])(it.cluster()).unwrap();
    });
}

#[test]
fn a_global_service_is_updated_and_follows_the_labels_of_nodes() {
    script(3, |it| {
        it.create(it.leader(), global("A=1")).unwrap();
        it.converge();
        it.update(it.leader(), "update", global("A=2")).unwrap();
        it.converge();
        let view = it.cluster().view().unwrap();
        let versions: BTreeSet<_> = view.tasks().filter(|task| task.is_live()).map(|it| it.spec_version).collect();
        assert_eq!(versions, [2].into());
        let zoned = ServiceSpec { constraints: vec!["node.labels.zone==a".into()], ..global("A=2") };
        it.update(it.leader(), "zoned", zoned).unwrap();
        it.wait("no node has the label", 10_000, runs_on(&[]));
        let labels = [("zone".to_owned(), "a".to_owned())].into();
        it.update_node("w3", NodeSpec { labels, ..NodeSpec::default() });
        it.wait("one has it", 5_000, runs_on(&[2]));
    });
}

#[test]
fn a_service_keeps_its_mode() {
    script(1, |it| {
        it.create(it.leader(), global("A=1")).unwrap();
        let error = it.update(it.leader(), "other", spec("agent", 2)).unwrap_err();
        assert_eq!(Reason::of(&error), Some(Reason::Invalid));
        assert!(error.message().contains("service `agent` is global, and can't become replicated"), "{error}");
    });
}
