//! Tests the operations on a store in memory: their refusals and their answers.

use flota_api::model::{
    Cluster, Image, LogRange, NetworkSpec, Node, NodeCertificate, NodeState, Program, Rebalance, Role, RoleChange,
    Service, ServiceMode, ServiceSpec, Stack, StackSpec, Task, TaskStatus,
};
use flota_api::reason::{Detail, Reason};
use flota_api::state::TaskState;
use flota_api::version::Timestamp;
use flota_raft_store::{ProposeError, WriteTx};
use futures::stream;
use tonic::Status;

use super::cluster::ClusterDefaults;
use super::filter::Filter;
use super::images::Naming;
use super::pins::ResolveImage::Never;
use super::registries::RegistrySummary;
use super::stacks::Absent::{self, Keep, Remove};
use super::streams::LogSource;
use super::tasks::TaskScope;
use super::*;
use alone::{Alone, OWN_RAFT_ID, SILENT_RAFT_ID};

pub(super) mod alone;
mod levels;
mod mounted_images;
mod pins;
mod races;
mod scaling;
mod streams;

fn spec(name: &str) -> ServiceSpec {
    ServiceSpec { name: name.into(), image: "web".into(), ..ServiceSpec::default() }
}

fn service(id: &str, name: &str) -> Service {
    Service { id: id.into(), spec: Arc::new(spec(name)), spec_version: 1, ..Service::default() }
}

fn node(id: &str, name: &str, role: Role, raft_id: u64) -> Node {
    let raft_id = Some(raft_id).filter(|id| *id != 0);
    let mut node = Node { id: id.into(), role, raft_id, state: NodeState::Ready, ..Node::default() };
    node.description.hostname = name.into();
    node
}

fn task(id: &str, service: &str, slot: u64, node: &str) -> Task {
    let status = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
    let (service_id, node_id) = (service.into(), Some(node.into()));
    Task { id: id.into(), service_id, spec_version: 1, slot, node_id, status, ..Task::default() }
}

/// A name for an image on this node.
fn naming(node: &str) -> Naming {
    let digest = format!("sha256:{}", "1".repeat(64));
    Naming { reference: "new".into(), digest, size: 7, node: node.into(), platforms: Vec::new() }
}

fn filter(key: &str, value: &str) -> Filter {
    Filter { key: key.into(), value: value.into() }
}

/// Creates a cluster with a leader, another manager, a worker, two services and an image that both use.
async fn cluster() -> Control<Alone> {
    let control = Control::alone();
    control.put(Cluster { id: "cluster".into(), ..Cluster::default() }).await;
    for (id, name, role, raft_id) in
        [("n1", "m1", Role::Manager, OWN_RAFT_ID), ("n2", "m2", Role::Manager, 8), ("n3", "w1", Role::Worker, 0)]
    {
        control.put(node(id, name, role, raft_id)).await;
    }
    let references = ["docker.io/library/web:latest".to_owned()].into();
    control.put(Image { id: "i1".into(), references, digest: "sha256:aa".into(), ..Image::default() }).await;
    control.put(service("s1", "web")).await;
    control.put(service("s2", "db")).await;
    control.put(task("t1", "s1", 1, "n3")).await;
    control.put(task("t2", "s1", 2, "n1")).await;
    control.put(task("t3", "s2", 1, "n3")).await;
    control
}

/// Returns the reason that a front receives.
fn refusal<T>(answer: Result<T, ControlError>) -> Option<Reason> {
    Reason::of(&Status::from(answer.err()?))
}

#[tokio::test]
async fn what_is_not_there_is_not_found_whatever_is_asked_of_it() {
    let control = cluster().await;
    let missing = [
        refusal(control.get_node("none").await),
        refusal(control.get_service("none").await),
        refusal(control.get_task("none").await),
        refusal(control.get_stack("none").await),
        refusal(control.get_image("none").await),
        refusal(control.get_registry("none").await),
        refusal(control.get_network("none").await),
        refusal(control.exec("none", Program::default(), stream::pending()).await),
        refusal(control.logs(&LogSource::Task("none".into()), LogRange::default()).await),
        refusal(control.logs(&LogSource::Service("none".into()), LogRange::default()).await),
        refusal(control.forward("none", 80.try_into().expect("it is one"), 0, stream::pending()).await),
        refusal(control.check_forward("none").await),
        refusal(control.watch_service("none").await),
        refusal(control.update_node(None, "none", None, &Default::default()).await),
        refusal(control.update_service(None, "none", None, &spec("none"), Never, false).await),
        refusal(control.remove_node(None, "none", true).await),
        refusal(control.remove_service(None, "none").await),
        refusal(control.remove_task(None, "none", false).await),
        refusal(control.remove_stack(None, "none", true).await),
        refusal(control.remove_image(None, "none", true).await),
        refusal(control.name_image(None, &naming("none")).await),
        refusal(control.remove_registry(None, "none").await),
        refusal(control.remove_network(None, "none").await),
        refusal(control.get_volume("none").await),
        refusal(control.remove_volume(None, "none").await),
    ];
    assert_eq!(missing, [Some(Reason::NotFound); 25]);
    let scope = TaskScope { services: vec!["none".into()], nodes: Vec::new() };
    let listed = control.list_tasks(Freshness::Linearizable, &scope, &[]).await;
    assert_eq!(refusal(listed), Some(Reason::NotFound));
}

#[tokio::test]
async fn a_name_of_several_objects_is_ambiguous_and_the_candidates_travel() {
    let control = cluster().await;
    control.put(node("n4", "w1", Role::Worker, 0)).await;
    let status = Status::from(control.remove_node(None, "w1", true).await.expect_err("it is ambiguous"));
    let detail = Detail::of(&status).expect("a detail");
    let ids: Vec<&str> = detail.candidates.iter().map(|it| it.id.as_str()).collect();
    assert_eq!((detail.reason, ids), (Reason::Ambiguous, vec!["n3", "n4"]));
    assert_eq!(control.store.view().nodes().count(), 4, "none of them was removed");
}

#[tokio::test]
async fn values_that_break_a_rule_are_refused_before_anything_is_written() {
    let control = cluster().await;
    let before = control.store.view().version;
    let bad = ServiceSpec { image: "No Image".into(), ..spec("web") };
    let stack = StackSpec { name: "stack".into(), services: vec![bad.clone()], ..StackSpec::default() };
    let login = RegistrySummary { host: "a/b".into(), username: "u".into() };
    let refused = [
        refusal(control.create_service(None, bad.clone(), Never).await),
        refusal(control.update_service(None, "web", None, &bad, Never, false).await),
        refusal(control.deploy_stack(None, &stack, &[], Keep, Never).await),
        refusal(control.put_registry(None, login, "secret".into()).await),
        refusal(control.update_service(None, "web", None, &spec("other"), Never, false).await),
    ];
    assert_eq!(refused, [Some(Reason::Invalid); 5]);
    let text = control.deploy_stack(None, &stack, &[], Keep, Never).await.expect_err("it is invalid").to_string();
    assert!(text.starts_with("services.web.image: "), "{text}");
    assert_eq!(control.store.view().version, before);
}

#[tokio::test]
async fn a_name_that_is_taken_is_refused() {
    let control = cluster().await;
    assert_eq!(refusal(control.create_service(None, spec("web"), Never).await), Some(Reason::AlreadyExists));
    let stack = StackSpec { name: "stack".into(), services: vec![spec("web")], ..StackSpec::default() };
    assert_eq!(refusal(control.deploy_stack(None, &stack, &[], Keep, Never).await), Some(Reason::AlreadyExists));
    assert!(control.store.view().stack_by_name("stack").is_none(), "nothing half made");
}

#[tokio::test]
async fn a_change_of_another_version_is_refused() {
    let control = cluster().await;
    let changed = spec("web");
    let old = Some(1_000_000);
    assert_eq!(
        refusal(control.update_service(None, "web", old, &changed, Never, false).await),
        Some(Reason::ChangedMeanwhile)
    );
    let node_spec = Default::default();
    assert_eq!(refusal(control.update_node(None, "w1", old, &node_spec).await), Some(Reason::ChangedMeanwhile));
    let version = Some(control.store.view().service("s1").expect("it is there").meta.version);
    let more = ServiceSpec { mode: ServiceMode::Replicated { replicas: 3 }, ..changed };
    let updated = control.update_service(None, "web", version, &more, Never, false).await;
    assert_eq!(updated.expect("it has this version").changed.spec.mode.replicas(), Some(3));
}

#[tokio::test]
async fn a_node_that_is_needed_is_not_removed() {
    let control = cluster().await;
    assert_eq!(refusal(control.remove_node(None, "m1", true).await), Some(Reason::NodeLeads));
    assert_eq!(refusal(control.remove_node(None, "m2", false).await), Some(Reason::NodeIsManager));
    assert_eq!(refusal(control.remove_node(None, "w1", false).await), Some(Reason::NodeNotDown));
    control.remove_node(None, "w1", true).await.expect("it is forced");
    let view = control.store.view();
    assert!(view.node("n3").is_none());
    let revoked: Vec<_> = view.cluster().expect("a cluster").revoked.iter().map(|it| it.node_id.to_string()).collect();
    assert_eq!(revoked, ["n3"], "its certificate opens nothing any more");
    control.remove_node(None, "m2", true).await.expect("the leader goes on alone");
    let view = control.store.view();
    let revoked: Vec<_> = view.cluster().expect("a cluster").revoked.iter().map(|it| it.node_id.to_string()).collect();
    assert_eq!((view.nodes().count(), revoked), (1, vec!["n3".to_owned(), "n2".to_owned()]));
}

#[tokio::test]
async fn a_manager_without_which_no_majority_answers_is_not_removed() {
    let control = cluster().await;
    // It votes, and does not answer.
    control.put(node("n4", "m3", Role::Manager, SILENT_RAFT_ID)).await;
    let before = control.store.view().version;
    assert_eq!(refusal(control.remove_node(None, "m2", true).await), Some(Reason::MajorityNeeded));
    assert_eq!(control.store.view().version, before, "nothing was written");
    control.remove_node(None, "m3", true).await.expect("it is missed by nobody");
    control.remove_node(None, "m2", true).await.expect("the leader goes on alone");
}

#[tokio::test]
async fn a_manager_is_demoted_only_if_the_others_have_a_majority_that_answers() {
    let control = cluster().await;
    // It votes, and does not answer.
    let certificates = vec![NodeCertificate { key: "k".into(), expires_at: Timestamp(2_000) }];
    control.put(Node { certificates, ..node("n4", "m3", Role::Manager, SILENT_RAFT_ID) }).await;
    let before = control.store.view().version;
    assert_eq!(refusal(control.change_role(None, "m2", Role::Worker).await), Some(Reason::MajorityNeeded));
    // The leader would leave the same two behind, so it hands nothing over.
    assert_eq!(refusal(control.change_role(None, "m1", Role::Worker).await), Some(Reason::MajorityNeeded));
    assert_eq!(control.store.view().version, before, "nothing was written");
    let demoted = control.change_role(None, "m3", Role::Worker).await.expect("it is missed by nobody");
    assert_eq!((demoted.role, demoted.raft_id), (Role::Worker, Some(SILENT_RAFT_ID)), "it votes until it is taken out");
    assert!(control.store.view().cluster().expect("a cluster").is_retired("k"));
    let again = control.change_role(None, "m3", Role::Worker).await.expect("twice is as good as once");
    assert_eq!(again.meta.version, demoted.meta.version);
}

#[tokio::test]
async fn a_leader_hands_over_before_it_is_demoted_and_the_request_can_be_repeated() {
    let control = cluster().await;
    let before = control.store.view().version;
    let key = Some("demote");
    assert_eq!(refusal(control.change_role(key, "m1", Role::Worker).await), Some(Reason::LeadershipMoved));
    assert_eq!(control.store.view().version, before, "the request is not taken for one that was refused");
}

#[tokio::test]
async fn a_worker_that_is_ready_is_promoted_and_asks_for_a_raft_id_of_its_own() {
    let control = cluster().await;
    let promoted = control.change_role(None, "w1", Role::Manager).await.expect("it is ready");
    assert_eq!((promoted.role, promoted.raft_id), (Role::Manager, None));
    let row = control.get_node("w1").await.expect("it is there");
    assert_eq!(row.role_change, Some(RoleChange::Promoting));
    let down = Node { state: NodeState::Down, ..node("n5", "w2", Role::Worker, 0) };
    control.put(down).await;
    let before = control.store.view().version;
    assert_eq!(refusal(control.change_role(None, "w2", Role::Manager).await), Some(Reason::NodeNotReady));
    assert_eq!(control.store.view().version, before, "nothing was written");
}

#[tokio::test]
async fn an_image_that_a_service_uses_is_removed_by_force_alone() {
    let control = cluster().await;
    assert_eq!(refusal(control.remove_image(None, "web", false).await), Some(Reason::InUse));
    control.remove_image(None, "web", true).await.expect("it is forced");
    assert!(control.store.view().image("i1").is_none());
}

#[tokio::test]
async fn before_the_first_entry_there_is_no_cluster_yet() {
    let control = Control::alone();
    assert_eq!(refusal(control.get_cluster().await), Some(Reason::NoClusterYet));
    assert_eq!(refusal(control.rotate_join_token(None, Role::Worker, None).await), Some(Reason::NoClusterYet));
    assert_eq!(refusal(control.update_cluster(None, ClusterDefaults::default()).await), Some(Reason::NoClusterYet));
}

#[tokio::test]
async fn a_default_of_the_cluster_stays_until_another_is_given() {
    let control = cluster().await;
    for (given, expected) in [(None, false), (Some(true), true), (None, true), (Some(false), false)] {
        let [privileges, rebalance] = [
            ClusterDefaults { no_new_privileges: given, ..ClusterDefaults::default() },
            ClusterDefaults { auto_rebalance: given, ..ClusterDefaults::default() },
        ];
        control.update_cluster(None, privileges).await.expect("there is a cluster");
        let updated = control.update_cluster(None, rebalance).await.expect("there is a cluster").cluster;
        assert_eq!((updated.no_new_privileges, updated.auto_rebalance), (expected, expected), "{given:?}");
    }
}

#[tokio::test]
async fn how_many_tasks_of_a_slot_are_kept_is_a_setting_within_bounds() {
    let control = cluster().await;
    let limit = |task_history_limit| ClusterDefaults { task_history_limit, ..ClusterDefaults::default() };
    for (given, expected) in [(None, 2), (Some(7), 7), (None, 7), (Some(1), 1)] {
        let updated = control.update_cluster(None, limit(given)).await.expect("it is within the bounds").cluster;
        assert_eq!(updated.task_history_limit().get(), expected, "{given:?}");
    }
    for given in [0, 101] {
        let refused = control.update_cluster(None, limit(Some(given))).await.expect_err("it is out of bounds");
        assert!(refused.to_string().contains("task_history_limit: it is from 1 to 100"), "{refused}");
    }
}

#[tokio::test]
async fn how_lost_nodes_are_found_is_chosen_within_bounds() {
    let control = cluster().await;
    let heartbeat = |millis: u64, missed: u64| ClusterDefaults {
        heartbeat: Some(Duration::from_millis(millis)),
        heartbeats_missed: Some(missed),
        ..ClusterDefaults::default()
    };
    let updated = control.update_cluster(None, heartbeat(500, 5)).await.expect("it is within the bounds").cluster;
    assert_eq!(
        (updated.heartbeat, updated.heartbeats_missed.map(u64::from)),
        (Some(Duration::from_millis(500)), Some(5))
    );
    let kept = control.update_cluster(None, ClusterDefaults::default()).await.expect("it changes nothing").cluster;
    assert_eq!((kept.heartbeat, kept.heartbeats_missed), (updated.heartbeat, updated.heartbeats_missed));
    let refused = control.update_cluster(None, heartbeat(100, 1)).await.expect_err("both are too small").to_string();
    assert!(
        refused.contains("dispatcher_heartbeat: it is from") && refused.contains("missed_heartbeats: it is from 2"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_new_join_token_expires_only_if_a_time_is_given() {
    let control = cluster().await;
    let hour = Duration::from_secs(3_600);
    let rotated = async |ttl| control.rotate_join_token(None, Role::Worker, ttl).await;
    let before = control.clock.wall().now();
    let brief = rotated(Some(hour)).await.expect("there is a cluster");
    let expires_at = brief.cluster.worker_token_expires_at.expect("it expires");
    assert!(expires_at >= before + hour && expires_at <= control.clock.wall().now() + hour);
    assert_eq!(brief.cluster.manager_token_expires_at, None, "the other token stays as it is");
    let lasting = rotated(None).await.expect("there is a cluster");
    assert_eq!(lasting.cluster.worker_token_expires_at, None);
    assert_ne!(lasting.worker_token, brief.worker_token);
    let refused = rotated(Some(Duration::from_millis(1))).await.expect_err("it is too short").to_string();
    assert!(refused.contains("ttl: it is at least 1s"), "{refused}");
}

#[tokio::test]
async fn a_rebalance_that_is_under_way_is_not_begun_again() {
    let control = cluster().await;
    let first = control.rebalance(None).await.expect("there is a cluster").cluster.rebalance.expect("it is under way");
    let moved = Rebalance { moved: 3, ..first };
    let cluster = control.store.view().cluster().expect("there is a cluster").as_ref().clone();
    let mut tx = WriteTx::new(control.store.view(), None);
    tx.update(Cluster { rebalance: Some(moved), ..cluster });
    control.member.propose(tx.finish()).await.expect("it is taken");
    assert_eq!(control.rebalance(None).await.expect("there is a cluster").cluster.rebalance, Some(moved));
}

#[tokio::test]
async fn a_manager_that_does_not_lead_judges_nothing_and_answers_only_what_may_be_stale() {
    let control = cluster().await;
    control.depose();
    assert_eq!(refusal(control.get_service("web").await), Some(Reason::LeadershipMoved));
    assert_eq!(refusal(control.get_service("none").await), Some(Reason::LeadershipMoved));
    assert_eq!(refusal(control.remove_service(None, "web").await), Some(Reason::LeadershipMoved));
    assert_eq!(refusal(control.remove_service(None, "none").await), Some(Reason::Unproven));
    let listed = control.list_services(Freshness::Linearizable, &[]).await;
    assert_eq!(refusal(listed), Some(Reason::LeadershipMoved));
    // Watches and streams begin with what was acknowledged before them.
    assert_eq!(refusal(control.watch_service("web").await), Some(Reason::LeadershipMoved));
    assert_eq!(refusal(control.watch_image("web".into(), None).await), Some(Reason::LeadershipMoved));
    let program = Program::default();
    assert_eq!(refusal(control.exec("web", program, stream::pending()).await), Some(Reason::LeadershipMoved));
    let (source, port) = (LogSource::Service("web".into()), 80.try_into().expect("it is one"));
    assert_eq!(refusal(control.logs(&source, LogRange::default()).await), Some(Reason::LeadershipMoved));
    assert_eq!(refusal(control.forward("web", port, 0, stream::pending()).await), Some(Reason::LeadershipMoved));
    assert_eq!(refusal(control.check_forward("web").await), Some(Reason::LeadershipMoved));
    let listed = control.list_services(Freshness::Stale, &[]).await.expect("it has some");
    assert_eq!((listed.rows.len(), listed.age), (2, Age::Stale(Some(Duration::from_secs(3)))));
}

#[tokio::test]
async fn a_retry_is_answered_as_the_first_try_was_or_with_what_became_of_it() {
    let control = cluster().await;
    let first = control.create_service(Some("r"), spec("new"), Never).await.expect("it is new");
    let again = control.create_service(Some("r"), spec("new"), Never).await.expect("it is the same request");
    assert_eq!(first.changed.id, again.changed.id);
    control.remove_service(None, "new").await.expect("it is there");
    assert_eq!(refusal(control.create_service(Some("r"), spec("new"), Never).await), Some(Reason::RemovedMeanwhile));
}

#[tokio::test]
async fn every_kind_of_row_is_filtered_and_refuses_a_key_that_it_does_not_have() {
    let control = cluster().await;
    control
        .put(Stack {
            id: "k1".into(),
            spec: StackSpec { name: "stack".into(), ..Default::default() },
            ..Default::default()
        })
        .await;
    let login = RegistrySummary { host: "registry".into(), username: "u".into() };
    control.put_registry(None, login, "secret".into()).await.expect("it is valid");
    let network = NetworkSpec { name: "back".into(), ..NetworkSpec::default() };
    control.create_network(None, network).await.expect("it is valid");
    let (now, scope) = (Freshness::Linearizable, TaskScope::default());
    let colour = [filter("colour", "red")];
    let unknown = [
        refusal(control.list_nodes(now, &colour).await),
        refusal(control.list_services(now, &colour).await),
        refusal(control.list_tasks(now, &scope, &colour).await),
        refusal(control.list_stacks(now, &colour).await),
        refusal(control.list_images(now, &colour).await),
        refusal(control.list_registries(now, &colour).await),
        refusal(control.list_networks(now, &colour).await),
    ];
    assert_eq!(unknown, [Some(Reason::UnknownFilter); 7]);
    let counts = [
        control.list_nodes(now, &[filter("leader", "true")]).await.expect("nodes").rows.len(),
        control.list_services(now, &[filter("name", "db")]).await.expect("services").rows.len(),
        control.list_tasks(now, &scope, &[filter("name", "web.2")]).await.expect("tasks").rows.len(),
        control.list_stacks(now, &[filter("services", "0")]).await.expect("stacks").rows.len(),
        control.list_images(now, &[filter("digest", "sha256:aa")]).await.expect("images").rows.len(),
        control.list_registries(now, &[filter("host", "registry")]).await.expect("registries").rows.len(),
        control.list_networks(now, &[filter("name", "back")]).await.expect("networks").rows.len(),
    ];
    assert_eq!(counts, [1; 7]);
    assert!(control.list_nodes(now, &[filter("leader", "yes")]).await.expect("nodes").rows.is_empty());
    let stack = StackSpec {
        name: "shop".into(),
        networks: vec![NetworkSpec { name: "shop_default".into(), ..NetworkSpec::default() }],
        ..StackSpec::default()
    };
    let deployed = control.deploy_stack(None, &stack, &[], Keep, Never).await.expect("it is valid");
    let stack = &deployed.changed.stack.id;
    let of_stack = control.list_networks(now, &[filter("stackId", &stack.to_string())]).await.expect("networks");
    assert_eq!(of_stack.rows.iter().map(|it| it.network.spec.name.as_str()).collect::<Vec<_>>(), ["shop_default"]);
}

#[tokio::test]
async fn a_list_of_tasks_is_about_the_services_and_nodes_that_it_names() {
    let control = cluster().await;
    let control = &control;
    let ids = async |services: &[&str], nodes: &[&str]| {
        let own = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect();
        let scope = TaskScope { services: own(services), nodes: own(nodes) };
        let listed = control.list_tasks(Freshness::Linearizable, &scope, &[]).await.expect("they are there");
        listed.rows.iter().map(|row| row.task.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&[], &[]).await, ["t1", "t2", "t3"]);
    assert_eq!(ids(&["web"], &[]).await, ["t1", "t2"]);
    assert_eq!(ids(&["web", "s1", "db"], &[]).await, ["t1", "t2", "t3"], "each once");
    assert_eq!(ids(&[], &["w1"]).await, ["t1", "t3"]);
    assert_eq!(ids(&["web"], &["w1"]).await, ["t1"]);
}

#[tokio::test]
async fn a_stack_answers_with_the_services_that_it_has_and_loses_what_its_file_lacks_only_when_asked() {
    let control = cluster().await;
    let deploy = async |names: &[&str], absent: Absent| {
        let services = names.iter().map(|name| spec(name)).collect();
        let stack = StackSpec { name: "stack".into(), services, ..StackSpec::default() };
        let summary = control.deploy_stack(None, &stack, &[], absent, Never).await.expect("it is valid");
        let mut names: Vec<String> = summary.changed.services.into_iter().map(|(_, name)| name).collect();
        names.sort();
        (names.join(" "), summary.warnings)
    };
    let (a, b, c) = ("stack_a", "stack_b", "stack_c");
    assert_eq!(deploy(&[a, b], Remove).await, ("stack_a stack_b".into(), vec![]));
    let stays = "service `stack_a` is not in the file any more, and stays as it is: --prune removes it".to_owned();
    assert_eq!(deploy(&[b, c], Keep).await, ("stack_a stack_b stack_c".into(), vec![stays]));
    assert_eq!(deploy(&[b, c], Remove).await, ("stack_b stack_c".into(), vec![]));
    control.remove_stack(None, "stack", false).await.expect("it is there");
    assert_eq!(control.store.view().services().count(), 2, "only those of the stack were removed");
}

#[tokio::test]
async fn a_task_that_is_removed_keeps_its_service_unless_that_is_to_shrink() {
    let control = cluster().await;
    control.remove_task(None, "web.1", false).await.expect("it is there");
    let view = control.store.view();
    assert!(view.task("t1").expect("it is stopped first").desired_state.is_stopping());
    assert_eq!(view.service("s1").expect("it is there").spec.mode.replicas(), Some(1));
    control.remove_task(None, "web.2", true).await.expect("it is there");
    let view = control.store.view();
    assert!(view.task("t2").expect("it is stopped first").desired_state.is_stopping());
    assert_eq!(view.service("s1").expect("it is there").spec.mode.replicas(), Some(0));
}

#[tokio::test]
async fn a_watch_reports_each_change_until_the_service_has_what_it_asks_for() {
    let control = cluster().await;
    let mut watch = control.watch_service("db").await.expect("it is there");
    let report = watch.recv().await.expect("a report").expect("it leads");
    assert!(report.converged && report.running == 1);
    assert!(watch.recv().await.is_none(), "nothing follows");
    control.put(service("s3", "late")).await;
    let mut watch = control.watch_service("late").await.expect("it is there");
    assert!(!watch.recv().await.expect("a report").expect("it leads").converged);
    control.put(task("t9", "s3", 1, "n3")).await;
    assert!(watch.recv().await.expect("a report").expect("it leads").converged);
}

#[tokio::test]
async fn a_watch_ends_with_leadership() {
    let control = Control { leading: watch::channel(None).1, ..cluster().await };
    let mut watch = control.watch_image("none".into(), None).await.expect("it need not exist");
    let ended = watch.recv().await.expect("a word");
    assert_eq!(refusal(ended), Some(Reason::LeadershipMoved));
}

#[test]
fn a_proposal_that_fails_says_whether_it_may_still_commit() {
    use flota_raft_store::Conflict;
    let cases = [
        (ProposeError::NotLeader, Reason::LeadershipMoved, tonic::Code::Unavailable),
        (ProposeError::Unknown, Reason::OutcomeUnknown, tonic::Code::Unavailable),
        (ProposeError::Unproven, Reason::Unproven, tonic::Code::Unavailable),
        (ProposeError::TooLarge { actions: 1, bytes: 2 }, Reason::TooLarge, tonic::Code::InvalidArgument),
        (
            Conflict::NameTaken { kind: "service".into(), name: "web".into() }.into(),
            Reason::AlreadyExists,
            tonic::Code::AlreadyExists,
        ),
    ];
    for (error, reason, code) in cases {
        let status = Status::from(ControlError::Propose(error));
        assert_eq!((Reason::of(&status), status.code()), (Some(reason), code));
    }
    let open = crate::streams::OpenError::NoNode { task: "web.1".into(), reason: None };
    assert_eq!(refusal::<()>(Err(open.into())), Some(Reason::TaskUnreachable));
}
