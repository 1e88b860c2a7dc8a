//! What users see of updates, rollbacks, and services that stop, run on each node, or end.

use flota_tests::Cluster;
use serde_json::{Value, json};

use super::{archives, timeline};

/// A program that does nothing and stays.
const STAYS: &str = "exec /bin/busybox sleep 1000000";

/// How an inspected service's update stands.
fn update_state(cluster: &Cluster, service: &str) -> String {
    let inspected: Value = serde_json::from_str(&cluster.ok(&format!("service inspect {service}"))).unwrap();
    inspected[0]["updateStatus"]["state"].as_str().unwrap().to_owned()
}

/// The ids of the running tasks of a service.
fn running(cluster: &Cluster, service: &str) -> Vec<String> {
    cluster.running(service).iter().map(|task| task["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_bad_update_is_rolled_back_or_paused_and_the_user_goes_on_from_there() {
    let cluster = Cluster::up(1, 2);
    let policy = "--update-failure-action rollback --update-monitor 1s --rollback-monitor 0s";
    cluster.ok(&format!("service create --name web --replicas 3 {policy} whoami"));
    let before = running(&cluster, "web");

    let bad = cluster.ctl_args(&["service", "update", "--args", "fail 3", "web"]);
    assert_eq!(bad.code, 1, "{}", bad.stderr);
    assert!(bad.stderr.contains("the update has failed and was rolled back: web."), "{}", bad.stderr);
    assert!(
        bad.stderr.contains("exit code 3") && bad.stderr.contains("hint: `ctl service history web`"),
        "{}",
        bad.stderr
    );
    assert_eq!(update_state(&cluster, "web"), "rolled-back");
    let after = running(&cluster, "web");
    assert_eq!(before.iter().filter(|id| after.contains(id)).count(), 2, "two slots were not touched");

    cluster.ok("service update --update-failure-action pause web");
    let bad = cluster.ctl_args(&["service", "update", "--args", "fail 4", "web"]);
    assert!(bad.code == 1 && bad.stderr.contains("the update is paused: web."), "{}", bad.stderr);
    assert_eq!(update_state(&cluster, "web"), "paused");
    // The task of the new spec is started again and again.
    let kept = running(&cluster, "web").iter().filter(|id| after.contains(id)).count();
    assert_eq!(kept, 2, "no other slot is touched");
    cluster.ok("service rollback web");
    assert_eq!(update_state(&cluster, "web"), "rolled-back");
    assert_eq!(running(&cluster, "web").len(), 3);
    let history = cluster.rows("service history web");
    assert_eq!(history[0]["version"], 1, "an earlier spec has its number again");
    assert_eq!(history[0]["present"], true);
    assert!(history.iter().any(|it| it["changes"] == json!(["command"])), "{history:?}");
    let unknown = cluster.ctl("service rollback --to 99 web");
    assert!(unknown.code != 0 && unknown.stderr.contains("there is no spec 99"), "{}", unknown.stderr);
}

/// A cluster with a shell, and the service `web` that stays.
fn with_shell(workers: u32, flags: &str) -> Cluster {
    let cluster = Cluster::bare(1, workers);
    let folder = tempfile::tempdir().unwrap();
    cluster.ok(&format!("image import {}", archives::checked_busybox(folder.path())));
    let words = format!("service create --name web --replicas 2 --no-healthcheck --stop-signal KILL {flags}");
    let rest = ["--entrypoint", "/bin/sh -c", "saved:1", STAYS];
    let created = cluster.ctl_args(&words.split_whitespace().chain(rest).collect::<Vec<_>>());
    assert_eq!(created.code, 0, "{}", created.stderr);
    cluster
}

#[test]
fn an_update_that_hangs_or_stays_unhealthy_ends_in_time_and_is_not_reported_as_good() {
    let cluster = with_shell(0, "--update-monitor 0s --rollback-monitor 0s --stop-grace-period 100ms");
    let before = running(&cluster, "web");
    let soon = "--update-progress-deadline 1s";
    let check = "--health-interval 100ms --health-retries 1 --health-cmd";
    for (action, flags, command, untouched, why) in [
        (
            "rollback",
            format!("{soon} --reserve-memory 900g"),
            None,
            2,
            "was rolled back: web.1: it does not serve within 1 s: no node fits: 1 of 1 without enough memory",
        ),
        (
            "rollback",
            check.to_owned(),
            Some("exit 1"),
            1,
            "was rolled back: web.1: it does not stay up (unhealthy: the check ended with exit code 1)",
        ),
        (
            "pause",
            format!("{soon} --health-timeout 1m {check}"),
            Some("/bin/busybox sleep 1000"),
            1,
            "is paused: web.1: it does not serve within 1 s",
        ),
    ] {
        let words = format!("service update --timeout 1m --update-failure-action {action} {flags}");
        let words = words.split_whitespace().chain(command).chain(["web"]);
        let ended = cluster.ctl_args(&words.collect::<Vec<_>>());
        assert!(ended.code == 1 && ended.stderr.contains(why), "{}", ended.stderr);
        let kept = running(&cluster, "web").iter().filter(|id| before.contains(id)).count();
        assert_eq!(kept, untouched, "{why}");
    }
    assert_eq!(update_state(&cluster, "web"), "paused");
    cluster.ok("service rollback web");
    assert_eq!(running(&cluster, "web").len(), 2);
}

#[test]
fn updates_that_start_first_work_with_one_task_a_node_and_their_rollback_leaves_healthy_old_tasks_alone() {
    let order = "--update-order start-first --rollback-order start-first --update-failure-action rollback";
    let flags = "--replicas-max-per-node 1 --update-monitor 200ms --rollback-monitor 0s --env SLOT={{.Task.Slot}}";
    let cluster = with_shell(1, &format!("{order} {flags}"));
    let task = |slot: u64| {
        cluster
            .rows(&format!("service ps web --filter slot={slot} --filter state=running --filter desiredState=running"))
            [0]
        .clone()
    };
    let first = running(&cluster, "web");
    cluster.ok("service update --env-add NEW=1 web");
    let before = [task(1), task(2)];
    assert!(first.iter().all(|id| before.iter().all(|task| task["id"] != id.as_str())), "both are replaced");
    assert_ne!(before[0]["node"], before[1]["node"], "one on each node");

    // The new task of the first slot is healthy and replaces the old one, and that of the second never is.
    let check = ["--health-interval", "100ms", "--health-retries", "1", "--health-cmd", "[ $SLOT = 1 ]"];
    let bad = cluster.ctl_args(&[&["service", "update"], &check[..], &["web"]].concat());
    assert!(bad.code == 1 && bad.stderr.contains("was rolled back: web.2"), "{}", bad.stderr);
    assert_ne!(task(1)["id"], before[0]["id"]);
    for key in ["id", "attempt", "restarts"] {
        assert_eq!(task(2)[key], before[1][key], "the old task runs on: {key}");
    }
    let events = timeline::of(&cluster, "web");
    assert_eq!(timeline::least_serving(&events, 2), 2, "{events:#?}");
    let refused = cluster.ctl("service scale --timeout 1s web=3");
    let why = "no node fits: 2 of 2 with as many tasks of the service as allowed";
    assert!(refused.code == 1 && refused.stderr.contains(why), "{}", refused.stderr);
}

#[test]
fn an_update_has_as_many_tasks_less_and_more_as_its_policy_allows_and_uses_all_of_that() {
    let cluster = Cluster::up(1, 1);
    let policies = [("stop-first", 1), ("stop-first", 2), ("start-first", 1), ("start-first", 2), ("start-first", 0)];
    for (index, (order, at_once)) in policies.into_iter().enumerate() {
        let name = format!("web{index}");
        let policy = format!("--update-order {order} --update-parallelism {at_once} --update-monitor 0s");
        cluster.ok(&format!("service create --name {name} --replicas 4 {policy} whoami"));
        cluster.ok(&format!("service update --env-add NEW=1 {name}"));
        let events = timeline::of(&cluster, &name);
        let at_once = if at_once == 0 { 4 } else { at_once };
        let (less, more) = if order == "stop-first" { (at_once, 0) } else { (0, at_once) };
        assert_eq!(timeline::least_serving(&events, 4), 4 - less, "{order} {at_once}: {events:#?}");
        let most = timeline::most_running(&events);
        // A task that starts beside others may end before the last of them has begun.
        assert!(most <= 4 + more && (more == 0 || most > 4), "{order} {at_once}: {most}: {events:#?}");
        cluster.ok(&format!("service rm {name}"));
    }
}

#[test]
fn services_on_some_nodes_and_on_each_are_restarted_stopped_and_started() {
    let cluster = Cluster::up(1, 1);
    for (service, mode) in [("web", "--replicas 2"), ("agent", "--mode global")] {
        let flags = "--update-monitor 0s --update-order start-first";
        cluster.ok(&format!("service create --name {service} {mode} {flags} whoami"));
        let before = running(&cluster, service);
        cluster.ok(&format!("service restart {service}"));
        let after = running(&cluster, service);
        assert!(after.len() == 2 && before.iter().all(|id| !after.contains(id)), "{before:?} {after:?}");
        cluster.ok(&format!("service stop {service}"));
        // The command returns when they have ended, and then they are removed.
        cluster.wait("its tasks have gone", |it| it.rows(&format!("service ps {service}")).is_empty());
    }
    let listed = cluster.ok("service ls");
    assert_eq!(listed.matches("(stopped)").count(), 2, "{listed}");
    assert!(listed.contains("0/2 (stopped)"), "{listed}");
    cluster.ok("service scale web=3");
    assert!(cluster.rows("task ls").is_empty());
    cluster.ok("service start web agent");
    assert_eq!((running(&cluster, "web").len(), running(&cluster, "agent").len()), (3, 2));
}

#[test]
fn a_global_service_runs_on_each_node_and_leaves_those_that_are_drained() {
    let cluster = Cluster::up(1, 2);
    cluster.ok("service create --name agent --mode global whoami");
    let nodes = |cluster: &Cluster| {
        let tasks = cluster.running("agent");
        let mut nodes: Vec<_> = tasks.iter().map(|task| task["node"].as_str().unwrap().to_owned()).collect();
        nodes.sort();
        nodes
    };
    assert_eq!(nodes(&cluster), ["m1", "w1", "w2"]);
    cluster.ok("node drain w1");
    assert_eq!(nodes(&cluster), ["m1", "w2"]);
    cluster.ok("node activate w1");
    cluster.wait("it has its task again", |it| nodes(it).len() == 3);
    let refused = cluster.ctl("service scale agent=2");
    assert!(refused.code == 2 && refused.stderr.contains("has a task on each node"), "{}", refused.stderr);
}

#[test]
fn a_job_runs_to_its_end_and_one_that_fails_for_good_is_reported() {
    let cluster = Cluster::up(1, 0);
    cluster.ok("service create --name calm --mode replicated-job --replicas 4 --max-concurrent 2 whoami env");
    let row = &cluster.rows("service ls --filter name=calm")[0];
    assert_eq!(
        (&row["mode"], &row["replicas"]),
        (&json!("replicated-job"), &json!({"running": 0, "desired": 4, "done": 4}))
    );
    let broken = "service create --name broken --mode replicated-job --restart-condition none whoami fail 7";
    let broken = cluster.ctl(broken);
    assert!(broken.code == 1 && broken.stderr.contains("have failed for good"), "{}", broken.stderr);
}
