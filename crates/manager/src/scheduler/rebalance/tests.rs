//! Tests of the choice of tasks that move.

use std::num::NonZeroU64;

use super::*;
use flota_api::constraint::{Constraint, NodeProperty};
use flota_api::model::{
    Dependency, DependencyCondition, FileSystem, Mount, MountSource, NodeSpec, Rebalance as Asked, ServiceSpec,
    TaskStatus, UpdatePolicy, UpdateStatus, Volume, VolumeMount, VolumeSpec,
};
use flota_api::object::StoreObject;
use flota_api::state::TaskState;
use flota_api::version::Meta;

const NOW: Timestamp = Timestamp(10_000_000);

/// A cluster of nodes that are ready since long ago, in zones, and services that may move all their tasks at once.
#[derive(Clone, Default)]
struct Lab {
    view: Tables,
}

impl Lab {
    fn new(nodes: &[(&str, &str)]) -> Self {
        let mut lab = Self::default();
        let asked = Asked { begun_at: NOW, ..Asked::default() };
        lab.view.put(Cluster { id: "c".into(), rebalance: Some(asked), ..Cluster::default() }.into_object());
        for (name, zone) in nodes {
            let labels = [("zone".to_owned(), (*zone).to_owned())].into();
            let spec = NodeSpec { labels, ..NodeSpec::default() };
            lab.view.put(Node { id: (*name).into(), state: NodeState::Ready, spec, ..Node::default() }.into_object());
        }
        lab
    }

    /// Adds a service with tasks on these nodes.
    fn service(&mut self, name: &str, nodes: &[&str], change: impl Fn(&mut ServiceSpec)) {
        let update = UpdatePolicy { parallelism: None, ..UpdatePolicy::default() };
        let mode = ServiceMode::Replicated { replicas: nodes.len() as u64 };
        let mut spec = ServiceSpec { name: name.into(), update, mode, ..ServiceSpec::default() };
        change(&mut spec);
        let service = Service { id: name.into(), spec: Arc::new(spec), spec_version: 1, ..Service::default() };
        self.view.put(service.into_object());
        for (slot, node) in (1..).zip(nodes) {
            self.task(&format!("{name}.{slot}"), name, (slot, node), |_| {});
        }
    }

    fn task(&mut self, id: &str, service: &str, (slot, node): (u64, &str), change: impl Fn(&mut Task)) {
        let status = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
        let meta = Meta { created: self.view.count(flota_api::object::Kind::Task) as u64, ..Meta::default() };
        let (id, service_id, node_id) = (id.into(), service.into(), Some(node.into()));
        let mut task = Task { id, meta, service_id, spec_version: 1, slot, node_id, status, ..Task::default() };
        change(&mut task);
        self.view.put(task.into_object());
    }

    fn plan(&self) -> Plan {
        Rebalance.plan(&Key::of("c"), &self.view, &mut PlanContext::at(NOW))
    }

    /// The tasks that are told to move, and the end of the rebalance.
    fn told(&self) -> (Vec<String>, Option<Option<Timestamp>>) {
        let plan = self.plan();
        let (mut tasks, mut ended) = (Vec::new(), None);
        for change in plan.changes {
            match change {
                crate::plan::Change::Put(Object::Task(task)) => {
                    assert!(task.relocates);
                    tasks.push(task.id.to_string());
                }
                crate::plan::Change::Put(Object::Cluster(it)) => ended = it.rebalance.map(|it| it.ended_at),
                other => panic!("unexpected: {other:?}"),
            }
        }
        (tasks, ended)
    }

    /// Moves what is told to move to where the scheduler would place it, until nothing moves. Returns the number of moves.
    fn settle(&mut self) -> usize {
        for moves in 0.. {
            let Some(id) = self.told().0.into_iter().next() else { return moves };
            assert!(moves < 1_000, "it does not come to an end");
            let task = self.view.task(&id).expect("it is there").as_ref().clone();
            let service = task.service_id.clone();
            let rank = |node: &&Arc<Node>| (self.view.live_tasks(&service, &node.id), self.view.load(&node.id).live);
            let other = |node: &&Arc<Node>| !task.is_on(&node.id);
            let to = self.view.takers().filter(other).min_by_key(rank).expect("a node").id.clone();
            self.view.put(Task { node_id: Some(to), ..task }.into_object());
        }
        unreachable!("the loop returns")
    }
}

#[test]
fn a_node_that_has_come_gets_tasks_until_all_have_the_same_number() {
    let mut lab = Lab::new(&[("a", ""), ("b", ""), ("new", "")]);
    lab.service("web", &["a", "a", "a", "b", "b", "b"], |_| {});
    let (tasks, ended) = lab.told();
    assert_eq!((tasks.len(), ended), (2, Some(None)), "one from each, in one batch");
    assert_eq!(lab.settle(), 2);
    assert_eq!(lab.told(), (vec![], Some(Some(NOW))), "nothing is left to do, so the rebalance has ended");
}

#[test]
fn many_small_services_are_spread_too() {
    let mut lab = Lab::new(&[("a", ""), ("b", ""), ("new", "")]);
    for number in 0..9 {
        lab.service(&format!("s{number}"), &[["a", "b"][number % 2]], |_| {});
    }
    lab.settle();
    let live: Vec<_> = ["a", "b", "new"].map(|node| lab.view.load(&node.into()).live).into();
    assert_eq!(live, [3, 3, 3]);
}

#[test]
fn nothing_moves_without_need() {
    let even = |lab: &mut Lab| lab.service("web", &["a", "b", "b"], |_| {});
    let uneven = |change: fn(&mut ServiceSpec)| move |lab: &mut Lab| lab.service("web", &["a", "a", "a"], change);
    type Fill = Box<dyn Fn(&mut Lab)>;
    let cases: [(&str, Fill); 6] = [
        ("two nodes differ by one", Box::new(even)),
        ("it is stopped", Box::new(uneven(|spec| spec.stopped = true))),
        ("it keeps its tasks on their nodes", Box::new(uneven(|spec| spec.keep_on_node_loss = true))),
        (
            "no other node fits",
            Box::new(uneven(|spec| {
                spec.constraints = vec![Constraint::parse("node.id==a").expect("it is one")];
            })),
        ),
        ("it is global", Box::new(uneven(|spec| spec.mode = ServiceMode::Global {}))),
        (
            "it is a job",
            Box::new(uneven(|spec| {
                spec.mode = ServiceMode::ReplicatedJob { completions: 3, max_concurrent: None };
            })),
        ),
    ];
    for (why, fill) in cases {
        let mut lab = Lab::new(&[("a", ""), ("b", "")]);
        fill(&mut lab);
        assert_eq!(lab.told().0, Vec::<String>::new(), "{why}");
    }
    let mut lab = Lab::new(&[("a", ""), ("b", "")]);
    uneven(|_| {})(&mut lab);
    assert_eq!(lab.told().0.len(), 1, "else it moves");
}

#[test]
fn a_task_that_does_not_serve_or_has_failed_to_move_stays() {
    let mut lab = Lab::new(&[("a", ""), ("b", "")]);
    lab.service("web", &["a", "a"], |_| {});
    lab.task("web.1", "web", (1, "a"), |task| task.status.state = TaskState::Starting);
    lab.task("failed", "web", (2, "b"), |task| {
        task.status.state = TaskState::Failed;
        task.meta.created = 100;
    });
    assert_eq!(lab.told().0, Vec::<String>::new());
}

#[test]
fn slots_that_do_not_serve_count_where_a_move_stops_the_old_task_first() {
    let told = |parallelism, order, status: (TaskState, u32)| {
        let mut lab = Lab::new(&[("a", ""), ("b", "")]);
        lab.service("web", &["a"; 5], |spec| {
            spec.update = UpdatePolicy { parallelism: NonZeroU64::new(parallelism), order, ..UpdatePolicy::default() };
        });
        lab.task("web.1", "web", (1, "a"), |task| (task.status.state, task.status.attempt) = status);
        lab.told().0.len()
    };
    let crashes = (TaskState::Ready, 5);
    assert_eq!(told(1, UpdateOrder::StopFirst, crashes), 0, "a crash loop takes all of what may be missing");
    assert_eq!(told(2, UpdateOrder::StopFirst, crashes), 1);
    assert_eq!(told(1, UpdateOrder::StartFirst, crashes), 1, "no task is missing by such a move");
    assert_eq!(told(1, UpdateOrder::StopFirst, (TaskState::Starting, 1)), 1, "it will serve soon");
    assert_eq!(told(1, UpdateOrder::StopFirst, (TaskState::Complete, 1)), 1, "it has ended for good");
}

#[test]
fn groups_come_before_nodes() {
    let spread = |spec: &mut ServiceSpec| {
        spec.spread_over = vec![NodeProperty::parse("node.labels.zone").expect("it is one")];
    };
    let mut lab = Lab::new(&[("a", "east"), ("b", "east"), ("c", "west")]);
    lab.service("web", &["a", "b", "c", "c"], spread);
    assert_eq!(lab.told().0, Vec::<String>::new(), "each zone has two");
    let mut lab = Lab::new(&[("a", "east"), ("b", "east"), ("c", "west")]);
    lab.service("web", &["a", "a", "b", "b"], spread);
    assert_eq!(lab.told().0.len(), 2, "two go to the empty zone, though its node gets as many as the others have");
}

#[test]
fn no_more_tasks_move_at_once_than_the_update_policy_allows_and_no_batch_begins_while_one_moves() {
    let mut lab = Lab::new(&[("a", ""), ("b", "")]);
    lab.service("web", &["a"; 10], |spec| spec.update.parallelism = NonZeroU64::new(2));
    assert_eq!(lab.told().0.len(), 2);
    let mut full = Lab::new(&[("a", ""), ("b", "")]);
    full.service("web", &["a"; 100], |_| {});
    assert_eq!(full.told().0.len(), BATCH);
    for (why, change) in [
        ("one was told to", (|task| task.relocates = true) as fn(&mut Task)),
        ("one is prepared elsewhere", |task| task.desired_state = DesiredState::Ready),
        ("one was started beside another", |task| task.replaces = Some("web.1".into())),
    ] {
        let mut lab = lab.clone();
        lab.task("other", "web", (11, "b"), change);
        let plan = lab.plan();
        assert_eq!((plan.changes.len(), plan.retry_at), (0, Some(NOW + LOOK_AFTER)), "{why}");
    }
}

#[test]
fn by_itself_the_cluster_moves_tasks_only_to_nodes_that_have_been_there_for_a_while() {
    let mut lab = Lab::new(&[("a", ""), ("b", "")]);
    lab.service("web", &["a", "a", "a", "a"], |_| {});
    let cluster = Cluster { id: "c".into(), auto_rebalance: true, ..Cluster::default() };
    lab.view.put(cluster.clone().into_object());
    let ready_for = |lab: &mut Lab, time: Duration| {
        let node = lab.view.node("b").expect("it is there").as_ref().clone();
        lab.view.put(Node { state_since: Timestamp(NOW.0 - time.as_millis() as u64), ..node }.into_object());
    };
    ready_for(&mut lab, Duration::from_secs(5));
    assert_eq!(lab.plan(), Plan { retry_at: Some(NOW + SETTLES_AFTER), ..Plan::default() });
    ready_for(&mut lab, SETTLES_AFTER);
    assert_eq!(lab.told().0.len(), 2);
    lab.view.put(Cluster { auto_rebalance: false, ..cluster }.into_object());
    assert_eq!(lab.plan(), Plan::default(), "it is off");
}

#[test]
fn a_rebalance_ends_after_an_hour_at_the_latest() {
    let mut lab = Lab::new(&[("a", ""), ("b", "")]);
    lab.service("web", &["a", "a"], |_| {});
    let asked = Asked { begun_at: Timestamp(NOW.0 - REBALANCE_LIMIT.as_millis() as u64), ..Asked::default() };
    lab.view.put(Cluster { id: "c".into(), rebalance: Some(asked), ..Cluster::default() }.into_object());
    assert_eq!(lab.told(), (vec![], Some(Some(NOW))));
}

#[test]
fn no_task_moves_to_a_node_on_which_its_spec_has_failed_or_that_comes_and_goes() {
    let mut lab = Lab::new(&[("a", ""), ("b", "")]);
    lab.service("web", &["a", "a", "a"], |_| {});
    let mut failed = lab.clone();
    failed.task("failed", "web", (9, "b"), |task| {
        task.status.state = TaskState::Failed;
        task.meta.updated_at = NOW;
    });
    assert_eq!(failed.told().0, Vec::<String>::new());
    let node = lab.view.node("b").expect("it is there").as_ref().clone();
    lab.view.put(Node { losses: vec![NOW, NOW], ..node }.into_object());
    assert_eq!(lab.told().0, Vec::<String>::new(), "also when a user asks");
}

#[test]
fn a_task_of_an_earlier_spec_that_was_told_to_move_holds_nothing_up() {
    let mut lab = Lab::new(&[("a", ""), ("b", "")]);
    lab.service("web", &["a", "a", "a"], |_| {});
    lab.service("paused", &[], |_| {});
    lab.task("old", "paused", (1, "b"), |task| {
        task.relocates = true;
        task.spec_version = 0;
    });
    assert_eq!(lab.told().0.len(), 1);
}

#[test]
fn an_update_that_waits_for_others_holds_up_only_its_own_service() {
    let mut lab = Lab::new(&[("a", ""), ("b", "")]);
    lab.service("web", &["a", "a"], |_| {});
    let needs = |on: &str| Dependency { service: on.into(), condition: DependencyCondition::Started, required: true };
    lab.service("late", &["a", "a"], |spec| spec.depends_on = vec![needs("missing")]);
    let late = lab.view.service("late").expect("it is there").as_ref().clone();
    lab.view.put(Service { update: UpdateStatus::begun(1), ..late.clone() }.into_object());
    assert_eq!(lab.told().0.len(), 1, "of `web`");
    let spec = ServiceSpec { depends_on: Vec::new(), ..late.spec.as_ref().clone() };
    lab.view.put(Service { update: UpdateStatus::begun(1), spec: spec.into(), ..late }.into_object());
    assert_eq!(lab.told().0, Vec::<String>::new(), "it goes on, and its tasks move");
}

#[test]
fn data_on_a_node_keeps_a_service_there_and_a_file_system_does_not() {
    let mount = |name: &str| {
        let source = MountSource::Volume(VolumeMount { name: Some(name.into()), ..VolumeMount::default() });
        Mount { target: format!("/{name}"), read_only: false, source }
    };
    let moves = |names: &[&str]| {
        let mut view = Tables::default();
        for (name, file_system) in [("folder", None), ("share", FileSystem::of("nfs", "nas:/srv", "").ok())] {
            let spec = VolumeSpec { name: name.into(), file_system, ..VolumeSpec::default() };
            view.put(Volume { id: name.into(), spec, ..Volume::default() }.into_object());
        }
        let spec = ServiceSpec { mounts: names.iter().map(|name| mount(name)).collect(), ..ServiceSpec::default() };
        may_move(&Service { spec: spec.into(), ..Service::default() }, &view)
    };
    assert_eq!(
        [moves(&[]), moves(&["share"]), moves(&["folder"]), moves(&["share", "folder"]), moves(&["none"])],
        [true, true, false, false, false]
    );
}
