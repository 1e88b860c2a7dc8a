//! Tests of the requests that commands send: one request for one object, and never a whole list to find it in.

use std::sync::Arc;

use clap::Parser;
use tonic::Status;

use flota_api::model;
use flota_api::proto::control::{
    NodeRow, ServiceHistory, ServiceName, ServiceProgress, ServiceRow, StackRow, TaskRow, Tasks,
};
use flota_api::proto::streams::Frame;
use flota_api::proto::streams::frame::Frame as F;
use flota_api::reason::Reason;

use crate::cli::Cli;
use crate::client::fake::{Act, FakeManager};
use crate::error::code;

fn service() -> Box<ServiceRow> {
    service_of(false, model::UpdateStatus::default())
}

fn service_of(stopped: bool, update: model::UpdateStatus) -> Box<ServiceRow> {
    let spec = model::ServiceSpec { name: "web".into(), image: "web".into(), stopped, ..Default::default() };
    let service = model::Service { id: "s1".into(), spec: Arc::new(spec), update, ..model::Service::default() };
    Box::new(ServiceRow { service: Some((&service).into()), ..ServiceRow::default() })
}

fn task() -> TaskRow {
    let task = model::Task { id: "t1".into(), service_id: "s1".into(), ..model::Task::default() };
    TaskRow { task: Some((&task).into()), service_name: "web".into(), ..TaskRow::default() }
}

fn node(devices: &[&str]) -> NodeRow {
    let device = |id: &&str| model::NodeDevice { kind: "gpu".into(), id: (*id).into(), paths: Vec::new() };
    let mut node = model::Node { id: "n1".into(), ..model::Node::default() };
    node.description.devices = devices.iter().map(device).collect();
    NodeRow { node: Some((&node).into()), leader: false, ..NodeRow::default() }
}

fn stack() -> StackRow {
    let spec = model::StackSpec { name: "stack".into(), ..model::StackSpec::default() };
    let stack = model::Stack { id: "k1".into(), spec, ..model::Stack::default() };
    let services = vec![ServiceName { id: "s1".into(), name: "stack_web".into() }];
    StackRow { stack: Some((&stack).into()), services }
}

/// Runs a command line against a manager with these acts. Returns the exit code and the calls that the manager got.
async fn run(words: &str, acts: impl IntoIterator<Item = Act>) -> (u8, Vec<String>) {
    let folder = tempfile::tempdir().expect("a folder");
    let manager = FakeManager::start(folder.path(), "manager", acts.into_iter().collect::<Vec<_>>());
    let host = format!("unix://{}", manager.socket.display());
    let words = ["ctl", "--host", &host].into_iter().chain(words.split_whitespace());
    let cli = Cli::try_parse_from(words).expect("it is a command line");
    let code = cli.run().await.unwrap_or_else(|error| code(&error));
    (code, manager.seen())
}

async fn asked(words: &str, acts: impl IntoIterator<Item = Act>) -> Vec<String> {
    let (code, asked) = run(words, acts).await;
    assert_eq!(code, 0, "{words}");
    asked
}

#[tokio::test]
async fn an_inspected_object_is_asked_for_by_what_the_user_typed() {
    assert_eq!(asked("service inspect web", [Act::Service(service())]).await, ["GetService web"]);
    assert_eq!(asked("task inspect web.1", [Act::Task(task())]).await, ["GetTask web.1"]);
    assert_eq!(asked("node inspect w1", [Act::Node(node(&[]))]).await, ["GetNode w1"]);
    let two = [Act::Service(service()), Act::Service(service())];
    assert_eq!(asked("service inspect web s1", two).await, ["GetService web", "GetService s1"]);
}

#[tokio::test]
async fn holders_of_devices_are_looked_for_among_the_nodes_own_tasks() {
    let acts = [Act::Node(node(&["nvidia0"])), Act::Pages(vec![Tasks::default()])];
    assert_eq!(asked("node inspect w1", acts).await, ["GetNode w1", "ListTasks n1"]);
}

#[tokio::test]
async fn tasks_of_services_are_one_list_that_the_manager_narrows() {
    let pages = || Act::Pages(vec![Tasks { tasks: vec![task()], ..Tasks::default() }]);
    assert_eq!(asked("service ps web db", [pages()]).await, ["ListTasks web db"]);
    assert_eq!(asked("task ls", [pages()]).await, ["ListTasks"]);
}

#[tokio::test]
async fn a_change_is_made_to_the_object_that_was_read() {
    let acts = [Act::Service(service()), Act::Update(service())];
    assert_eq!(asked("service scale --detach web=3", acts).await, ["GetService web", "UpdateService s1"]);
    let acts = [Act::Service(service()), Act::Remove];
    assert_eq!(asked("service rm --detach web", acts).await, ["GetService web", "RemoveService s1"]);
    let acts = [Act::Task(task()), Act::Remove];
    assert_eq!(asked("task rm --detach web.1", acts).await, ["GetTask web.1", "RemoveTask t1"]);
    let acts = [Act::Stack(stack()), Act::Remove];
    assert_eq!(asked("stack rm --detach stack", acts).await, ["GetStack stack", "RemoveStack k1"]);
    assert_eq!(asked("node rm w1", [Act::Remove]).await, ["RemoveNode w1"], "nothing is waited for");
}

#[tokio::test]
async fn a_change_of_a_service_is_made_again_if_only_the_system_has_changed_something() {
    let changed = || Act::Refuse(Reason::ChangedMeanwhile.attach(Status::aborted("it has changed meanwhile")));
    let again = || [Act::Service(service()), changed()];
    let acts = again().into_iter().chain([Act::Service(service()), Act::Update(service())]);
    let twice = ["GetService web", "UpdateService s1", "GetService s1", "UpdateService s1"];
    assert_eq!(asked("service scale --detach web=3", acts).await, twice);
    let stopped = service_of(true, model::UpdateStatus::default());
    let (code, calls) = run("service scale --detach web=3", again().into_iter().chain([Act::Service(stopped)])).await;
    assert_eq!((code, calls.len()), (4, 3), "a user has changed the spec");
    let update = model::UpdateStatus { reason: Some("one task has failed".into()), ..Default::default() };
    let updating = Act::Service(service_of(false, update));
    let acts = again().into_iter().chain([updating, Act::Update(service_of(true, model::UpdateStatus::default()))]);
    let stops = ["GetService web", "UpdateService s1 stopped", "GetService s1", "UpdateService s1 stopped"];
    assert_eq!(asked("service stop --detach web", acts).await, stops);
}

#[tokio::test]
async fn services_are_stopped_and_started_only_if_they_are_not_so_already() {
    let running = || Act::Service(service());
    let stopped = || service_of(true, model::UpdateStatus::default());
    let acts = [running(), Act::Update(stopped())];
    assert_eq!(asked("service stop -d web", acts).await, ["GetService web", "UpdateService s1 stopped"]);
    let acts = [Act::Service(stopped()), Act::Update(service())];
    assert_eq!(asked("service start -d web", acts).await, ["GetService web", "UpdateService s1"]);
    assert_eq!(asked("service stop -d web", [Act::Service(stopped())]).await, ["GetService web"]);
    assert_eq!(asked("service start -d web s1", [running()]).await, ["GetService web", "GetService s1"]);
    let acts = [Act::Service(stopped()), Act::Update(stopped())];
    assert_eq!(asked("service scale -d web=3", acts).await, ["GetService web", "UpdateService s1 stopped"]);
    let acts = [running(), Act::Update(service())];
    assert_eq!(asked("service restart -d web", acts).await, ["GetService web", "UpdateService s1 force=1"]);
}

#[tokio::test]
async fn decisions_on_an_update_and_runs_are_one_request() {
    let changed = || [Act::Service(service())];
    for (words, expected) in [
        ("service rollback -d web", "RollbackService web"),
        ("service rollback -d --to 3 web", "RollbackService web to 3"),
        ("service update -d --rollback web", "RollbackService web"),
        ("service update --pause web", "PauseUpdate web true"),
        ("service run web", "RunService web"),
        ("service update -d --resume web", "PauseUpdate web false"),
    ] {
        assert_eq!(asked(words, changed()).await, [expected], "{words}");
    }
    let history = Act::History(ServiceHistory::default());
    assert_eq!(asked("service history web", [history]).await, ["GetServiceHistory web"]);
}

#[tokio::test]
async fn a_rollback_is_a_failure_of_the_update_that_was_rolled_back_alone() {
    use model::UpdatePhase::{RolledBack, RollingBack, Updating};
    let cause = Some("web.1: no".to_owned());
    let status = |phase| model::UpdateStatus { phase, rollback_cause: cause.clone(), ..Default::default() };
    let row = |phase, spec_version| {
        let mut row = service_of(false, status(phase));
        row.service.as_mut().expect("it is there").spec_version = spec_version;
        row
    };
    let watch = || {
        let update = Some((&status(RolledBack)).into());
        Act::Watch(vec![ServiceProgress { converged: true, update, ..ServiceProgress::default() }], None)
    };
    let update = |new| [Act::Service(row(RolledBack, 1)), Act::Update(new), watch()];
    assert_eq!(run("service update --env A=1 web", update(row(Updating, 2))).await.0, 1);
    assert_eq!(run("service scale web=3", update(row(RolledBack, 1))).await.0, 0, "no task is replaced");
    let resumed = |phase| [Act::Service(row(phase, 2)), watch()];
    assert_eq!(run("service update --resume web", resumed(Updating)).await.0, 1);
    assert_eq!(run("service update --resume web", resumed(RollingBack)).await.0, 0);
    let by_user = model::UpdateStatus { rollback_cause: None, ..status(RolledBack) };
    let last = ServiceProgress { converged: true, update: Some((&by_user).into()), ..ServiceProgress::default() };
    let back = [Act::Service(row(RollingBack, 1)), Act::Watch(vec![last], None)];
    assert_eq!(run("service rollback web", back).await.0, 0, "that is what the user wants");
}

#[tokio::test]
async fn a_task_that_is_gone_is_not_waited_for() {
    let gone = Act::Refuse(Reason::NotFound.attach(Status::not_found("there is no task `t1`")));
    let acts = [Act::Task(task()), Act::Remove, Act::Task(task()), gone];
    assert_eq!(asked("task rm web.1", acts).await, ["GetTask web.1", "RemoveTask t1", "GetTask t1", "GetTask t1"]);
}

#[tokio::test]
async fn a_refusal_ends_the_command_with_the_code_of_its_reason() {
    for (reason, code) in [(Reason::NotFound, 3), (Reason::Ambiguous, 2), (Reason::ChangedMeanwhile, 4)] {
        let refuse = Act::Refuse(reason.attach(Status::internal("no")));
        let update = [Act::Service(service()), refuse.clone()];
        assert_eq!(run("service scale web=3", update).await.0, code, "{reason:?}");
        assert_eq!(run("service inspect web", [refuse]).await.0, code, "{reason:?}");
    }
    let unknown = Act::Refuse(Reason::UnknownFilter.attach(Status::invalid_argument("no")));
    assert_eq!(run("task ls --filter colour=red", [unknown]).await.0, 2);
}

#[tokio::test]
async fn an_ambiguous_name_ends_every_verb_with_the_same_code() {
    let ambiguous = || Act::Refuse(Reason::Ambiguous.attach(Status::invalid_argument("it may be any of two")));
    for words in [
        "service inspect x",
        "service ps x",
        "service scale x=1",
        "service update x",
        "service rollback x",
        "service history x",
        "service restart x",
        "service stop x",
        "service start x",
        "service update --pause x",
        "service logs x",
        "service rm x",
        "task inspect x",
        "task logs x",
        "task rm x",
        "exec x -- true",
        "port-forward x 80",
        "node inspect x",
        "node drain x",
        "node rm x",
        "stack rm x",
    ] {
        assert_eq!(run(words, [ambiguous()]).await.0, 2, "{words}");
    }
}

#[tokio::test]
async fn exec_ends_as_the_command_does_or_as_a_shell_that_can_not_run_it() {
    let frame = |frame| Frame { frame: Some(frame) };
    let error = || frame(F::Error("No such file or directory".into()));
    for (frames, wanted) in [
        (vec![frame(F::ExitCode(3))], 3),
        (vec![error(), frame(F::ExitCode(127))], 127),
        (vec![error(), frame(F::ExitCode(126))], 126),
        // The text does not affect the exit code.
        (vec![error()], 125),
        (vec![], 1),
    ] {
        assert_eq!(run("exec web -- /no/such", [Act::Frames(frames, None)]).await.0, wanted);
    }
}

#[test]
fn a_filter_without_a_value_is_wrong_usage() {
    let refused = Cli::try_parse_from(["ctl", "task", "ls", "--filter", "state"]).expect_err("it has no value");
    assert!(refused.exit_code() == 2 && refused.to_string().contains("it is KEY=VALUE"), "{refused}");
}
