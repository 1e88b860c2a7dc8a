//! What users see of updates, rollbacks, and services that stop, run on each node, or end.

use flota_tests::Cluster;
use serde_json::json;

/// How an inspected service's update stands.
fn update_state(cluster: &Cluster, service: &str) -> String {
    let inspected: serde_json::Value =
        serde_json::from_str(&cluster.ok(&format!("service inspect {service}"))).unwrap();
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
    assert_eq!(running(&cluster, "web").len(), 2, "no other slot is touched");
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

#[test]
fn a_service_is_restarted_stopped_and_started() {
    let cluster = Cluster::up(1, 1);
    cluster.ok("service create --name web --replicas 2 --update-monitor 0s --update-order start-first whoami");
    let before = running(&cluster, "web");
    cluster.ok("service restart web");
    let after = running(&cluster, "web");
    assert!(after.len() == 2 && before.iter().all(|id| !after.contains(id)), "{before:?} {after:?}");
    cluster.ok("service stop web");
    assert!(cluster.rows("service ps web").is_empty());
    let listed = cluster.ok("service ls");
    assert!(listed.contains("0/2 (stopped)"), "{listed}");
    cluster.ok("service scale web=3");
    assert!(cluster.rows("service ps web").is_empty());
    cluster.ok("service start web");
    assert_eq!(running(&cluster, "web").len(), 3);
}

#[test]
fn a_global_service_runs_on_each_node_and_a_job_to_its_end() {
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
