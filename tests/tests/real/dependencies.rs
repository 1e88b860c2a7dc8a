//! Services of a stack that depend on each other.

use flota_tests::Cluster;

use super::{archives, timeline};

/// A database that takes its time to be healthy, a job that needs it, and two services that need what the job has done.
const SHOP: &str = "services:
  front: { image: 'saved:1', healthcheck: { disable: true }, stop_signal: KILL, depends_on: [web] }
  web:
    image: saved:1
    healthcheck: { disable: true }
    stop_signal: KILL
    environment: [VERSION]
    depends_on: { db: { condition: service_started }, job: { condition: service_completed_successfully } }
    deploy: { update_config: { monitor: 0s } }
  job:
    image: saved:1
    healthcheck: { disable: true }
    entrypoint: [/bin/sh, -c]
    command: ['until [ -e /end ]; do /bin/busybox sleep 0.1; done']
    depends_on: { db: { condition: service_healthy } }
    deploy: { mode: replicated-job }
  db:
    image: saved:1
    healthcheck: { interval: 100ms, retries: 1000 }
    stop_signal: KILL
    environment: [VERSION]
    deploy: { update_config: { monitor: 0s } }
";

/// Whether a service has a task in this state.
fn is(cluster: &Cluster, service: &str, state: &str) -> bool {
    !cluster.rows(&format!("service ps shop_{service} --filter state={state} --filter desiredState=running")).is_empty()
}

fn id(cluster: &Cluster, service: &str) -> String {
    let tasks = cluster.running(&format!("shop_{service}"));
    tasks.first().map_or(String::new(), |task| task["id"].as_str().unwrap().to_owned())
}

/// Returns how many tasks a service has, and what it says that it waits for.
fn seen(cluster: &Cluster, service: &str) -> (usize, String) {
    let row = &cluster.rows(&format!("service ls --filter name=shop_{service}"))[0];
    (cluster.rows(&format!("service ps shop_{service}")).len(), row["waits"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_stack_starts_updates_and_stops_its_services_in_the_order_in_which_they_depend_on_each_other() {
    let cluster = Cluster::bare(1, 0);
    let dir = tempfile::tempdir().unwrap();
    cluster.ok(&format!("image import {}", archives::checked_busybox(dir.path())));
    let file = dir.path().join("shop.yaml");
    let deploy = |version: &str| {
        std::fs::write(&file, SHOP.replace("[VERSION]", &format!("[VERSION={version}]"))).unwrap();
        cluster.ok(&format!("stack deploy --detach -c {} shop", file.display()));
    };
    deploy("1");
    cluster.wait("the database starts", |it| is(it, "db", "starting"));
    assert_eq!(seen(&cluster, "job"), (0, "waits for `shop_db`: 0 of 1 healthy".into()));
    cluster.ok("exec shop_db.1 -- /bin/busybox touch /well");
    cluster.wait("the job works", |it| is(it, "job", "running"));
    assert_eq!(seen(&cluster, "web"), (0, "waits for `shop_job`: 0 of 1 completed".into()));
    cluster.ok("exec shop_job.1 -- /bin/busybox touch /end");
    cluster.wait("the last one runs", |it| is(it, "front", "running"));
    let events = timeline::tasks(&cluster);
    let start = |service: &str| timeline::place(&events, &format!("shop_{service}"), "start", false);
    assert!(timeline::place(&events, "shop_job", "die", false) < start("web") && start("web") < start("front"));

    let before = ["db", "web", "front", "job"].map(|service| id(&cluster, service));
    deploy("2");
    cluster.wait("the new database starts", |it| is(it, "db", "starting"));
    assert_eq!(id(&cluster, "web"), before[1], "it is updated after the database");
    cluster.ok("exec shop_db.1 -- /bin/busybox touch /well");
    cluster.wait("all are updated", |it| id(it, "web") != before[1] && is(it, "web", "running"));
    assert_ne!(id(&cluster, "db"), before[0]);
    assert_eq!(id(&cluster, "front"), before[2], "what has not changed runs on");
    assert_eq!(cluster.rows("service ps shop_job").len(), 1, "and is not done again");

    let told = timeline::tasks(&cluster).len();
    cluster.ok("stack rm shop");
    let events = timeline::tasks(&cluster).split_off(told);
    let place = |service: &str, action: &str| timeline::place(&events, &format!("shop_{service}"), action, false);
    assert!(place("front", "die") < place("web", "stop") && place("web", "die") < place("db", "stop"), "{events:#?}");
}
