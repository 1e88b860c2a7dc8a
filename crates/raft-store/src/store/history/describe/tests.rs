//! Tables of changes and the events that they are.

use std::sync::Arc;

use flota_api::model::{
    NodeState, NodeStateReason, ServiceMode, ServiceSpec, Stack, StackSpec, StoredConfig, StoredSecret, TaskStatus,
    ValueData,
};
use flota_api::object::{Kind, StoreObject};
use flota_api::state::DesiredState;

use super::*;

fn node(state: NodeState) -> Node {
    let mut node = Node { id: "n1".into(), state, ..Node::default() };
    node.description.hostname = "w1".into();
    node
}

fn service(replicas: u64) -> Service {
    let mode = ServiceMode::Replicated { replicas };
    // A value that must not be in an event.
    let env = vec!["PASSWORD=hidden".to_owned()];
    let spec = Arc::new(ServiceSpec { name: "web".into(), image: "app".into(), mode, env, ..ServiceSpec::default() });
    Service { id: "s1".into(), spec, spec_version: 1, stack_id: Some("k1".into()), ..Service::default() }
}

fn task(attempt: u32, state: TaskState) -> Task {
    let status = TaskStatus { attempt, state, ..TaskStatus::default() };
    Task { id: "t1".into(), service_id: "s1".into(), spec_version: 1, slot: 2, status, ..Task::default() }
}

fn on_node(task: Task) -> Task {
    Task { node_id: Some("n1".into()), ..task }
}

fn with_health(state: HealthState) -> Task {
    let mut task = on_node(task(1, TaskState::Running));
    task.status.health = Some(Box::new(Health { state, ..Health::default() }));
    task
}

fn tables(objects: Vec<Object>) -> Tables {
    let mut tables = Tables::default();
    objects.into_iter().for_each(|object| tables.put(object));
    tables
}

/// Returns the lines that the events of the changes are for people, over tables that have what the changes name.
fn lines(changes: &[Event], after: &Tables) -> Vec<String> {
    let stack =
        Stack { id: "k1".into(), spec: StackSpec { name: "shop".into(), ..StackSpec::default() }, ..Stack::default() };
    let before = tables(vec![stack.into_object(), service(1).into_object(), node(NodeState::Ready).into_object()]);
    let line = |event: ClusterEvent| {
        assert_eq!(event.at, Timestamp(5));
        let attribute = |it: &EventAttribute| match &it.old {
            Some(old) => format!("{}={old}>{}", it.key, it.value),
            None => format!("{}={}", it.key, it.value),
        };
        let attributes: Vec<_> = event.attributes.iter().map(attribute).collect();
        format!("{} {} {} {} {}", event.cursor, event.kind, event.action, event.name, attributes.join(" "))
    };
    describe(9, Timestamp(5), changes, &before, after).into_iter().map(line).collect()
}

fn updated(old: impl StoreObject, new: impl StoreObject) -> Event {
    Event::Updated { old: old.into_object(), new: new.into_object() }
}

#[test]
fn an_update_of_a_task_is_what_happened_to_its_program() {
    let stopped = |task: Task| Task { desired_state: DesiredState::Shutdown, ..task };
    let of = |attempt, state| on_node(task(attempt, state));
    let running = || of(1, TaskState::Running);
    let cases = [
        (task(1, TaskState::Pending), of(1, TaskState::Assigned), "assign"),
        (of(1, TaskState::Assigned), of(1, TaskState::Preparing), "update"),
        (of(1, TaskState::Starting), running(), "start"),
        (running(), running(), "update"),
        (running(), stopped(running()), "stop"),
        (running(), of(1, TaskState::Failed), "die"),
        (running(), of(1, TaskState::Complete), "die"),
        (of(1, TaskState::Preparing), of(1, TaskState::Complete), "start die"),
        (running(), of(2, TaskState::Complete), "die start die"),
        (stopped(running()), stopped(of(1, TaskState::Shutdown)), "die"),
        (stopped(of(1, TaskState::Preparing)), stopped(of(1, TaskState::Shutdown)), "update"),
        (of(1, TaskState::Preparing), of(1, TaskState::Rejected), "reject"),
        (running(), of(1, TaskState::Orphaned), "orphan"),
        (running(), of(2, TaskState::Ready), "die"),
        (of(2, TaskState::Ready), of(2, TaskState::Running), "start"),
        (running(), of(2, TaskState::Running), "die start"),
        (running(), of(2, TaskState::Failed), "die"),
        (of(1, TaskState::Failed), of(1, TaskState::Failed), "update"),
        (task(1, TaskState::Pending), stopped(running()), "assign stop start"),
        (of(1, TaskState::Starting), with_health(HealthState::Starting), "start"),
        (of(1, TaskState::Starting), with_health(HealthState::Healthy), "start health_status"),
        (with_health(HealthState::Starting), with_health(HealthState::Healthy), "health_status"),
        (with_health(HealthState::Healthy), with_health(HealthState::Unhealthy), "health_status"),
        (with_health(HealthState::Healthy), with_health(HealthState::Healthy), "update"),
        (running(), Task { paused: true, ..running() }, "pause"),
        (Task { paused: true, ..running() }, running(), "unpause"),
    ];
    for (old, new, expected) in cases {
        let words: Vec<_> = task_actions(&old, &new).into_iter().map(EventAction::as_str).collect();
        let words = if words.is_empty() { "update".to_owned() } else { words.join(" ") };
        assert_eq!(words, expected, "{old:?} {new:?}");
    }
}

#[test]
fn the_changes_of_an_entry_are_numbered_and_carry_names_and_what_was_before() {
    let mut died = on_node(task(1, TaskState::Failed));
    (died.status.exit_code, died.status.error) = (Some(3), "exit code 3".into());
    let down = Node { state_reason: Some(NodeStateReason::SessionBroke), ..node(NodeState::Down) };
    let changes = [
        Event::Created(service(2).into_object()),
        updated(on_node(task(1, TaskState::Running)), died),
        updated(node(NodeState::Ready), down),
        Event::Removed(on_node(task(1, TaskState::Failed)).into_object()),
        Event::Committed(9),
    ];
    let task = "service=web node=w1";
    let expected = [
        "9.1 service create web stack=shop mode=replicated replicas=2 image=app update=completed specVersion=1 \
         stackId=k1"
            .to_owned(),
        format!(
            "9.2 task die web.2 {task} state=running>failed desiredState=running exitCode=3 reason=exit code 3 attempt=1 \
             serviceId=s1 nodeId=n1"
        ),
        "9.3 node update w1 role=worker state=ready>down reason=its session broke availability=active".to_owned(),
        format!("9.4 task remove web.2 {task} state=failed desiredState=running attempt=1 serviceId=s1 nodeId=n1"),
    ];
    assert_eq!(lines(&changes, &tables(Vec::new())), expected);
}

#[test]
fn a_task_that_is_preempted_says_for_which_one_while_it_stops_and_when_it_has_ended() {
    let told = Task {
        desired_state: DesiredState::Shutdown,
        preempted_by: Some("db.1".into()),
        ..on_node(task(1, TaskState::Running))
    };
    let mut ended = told.clone();
    (ended.status.state, ended.status.error) = (TaskState::Shutdown, "exit code 143".into());
    let changes = [updated(on_node(task(1, TaskState::Running)), told.clone()), updated(told, ended)];
    let seen = lines(&changes, &tables(Vec::new()));
    let reason = "reason=preempted by db.1, whose priority is higher";
    assert!(seen[0].starts_with("9.1 task stop web.2") && seen[0].contains(reason), "{seen:?}");
    assert!(seen[1].starts_with("9.2 task die web.2") && seen[1].contains(reason), "{seen:?}");
}

#[test]
fn two_events_of_one_change_have_its_number_and_a_fact_that_is_gone_is_empty() {
    let mut unhealthy = with_health(HealthState::Unhealthy);
    unhealthy.status.error = "unhealthy".into();
    let again = on_node(task(2, TaskState::Running));
    let seen = lines(&[updated(unhealthy, again)], &tables(Vec::new()));
    let rest = "web.2 service=web node=w1 state=running desiredState=running attempt=1>2 serviceId=s1 nodeId=n1 \
                health=unhealthy> reason=unhealthy>";
    assert_eq!(seen, [format!("9.1 task die {rest}"), format!("9.1 task start {rest}")]);
}

#[test]
fn every_kind_of_object_has_a_name_and_no_environment() {
    let removed = Volume { id: "v1".into(), is_removed: true, ..Volume::default() };
    let objects = [
        flota_api::model::Cluster { id: "c1".into(), ..Default::default() }.into_object(),
        node(NodeState::Ready).into_object(),
        service(1).into_object(),
        task(1, TaskState::Pending).into_object(),
        Image { id: "i1".into(), digest: "sha256:aa".into(), ..Image::default() }.into_object(),
        Stack { id: "k1".into(), ..Stack::default() }.into_object(),
        flota_api::model::Registry { id: "r1".into(), host: "example.org".into(), ..Default::default() }.into_object(),
        Network { id: "w1".into(), ..Network::default() }.into_object(),
        removed.into_object(),
        StoredSecret { id: "p1".into(), ..StoredSecret::default() }.into_object(),
        StoredConfig { id: "q1".into(), ..StoredConfig::default() }.into_object(),
        ValueData { id: "d1".into(), bytes: b"hidden".to_vec().into(), ..ValueData::default() }.into_object(),
        User { id: "u1".into(), name: "ada".into(), ..User::default() }.into_object(),
        Audit { id: "x1".into(), request: "CreateService".into(), ..Audit::default() }.into_object(),
    ];
    assert_eq!(objects.len(), Kind::ALL.len());
    let changes: Vec<_> = objects.into_iter().map(Event::Created).collect();
    let seen = lines(&changes, &tables(Vec::new()));
    let names: Vec<_> = seen.iter().map(|line| line.split(' ').nth(3).unwrap_or_default()).collect();
    assert_eq!(
        names,
        [
            "cluster",
            "w1",
            "web",
            "web.2",
            "i1",
            "k1",
            "example.org",
            "w1",
            "v1",
            "p1",
            "q1",
            "d1",
            "ada",
            "CreateService"
        ]
    );
    assert!(!seen.concat().contains("hidden"), "{seen:?}");
}

#[test]
fn texts_of_workers_are_bounded_and_control_no_terminal() {
    let mut failed = on_node(task(1, TaskState::Failed));
    failed.status.error = format!("\u{1b}[2J{}", "x".repeat(10_000));
    let events =
        describe(1, Timestamp(5), &[Event::Created(failed.into_object())], &tables(Vec::new()), &tables(Vec::new()));
    let reason = events[0].attribute("reason").expect("it has one");
    assert!(reason.len() <= VALUE_BOUND && reason.starts_with(r"\u001b[2Jxx"), "{reason}");
    assert_eq!(events[0].name, "s1.2", "nothing knows the name of its service");
}
