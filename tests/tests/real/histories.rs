//! Histories of real clusters while things go wrong, checked as those of simulated ones are. Minutes long, so they run
//! with `make test-long` alone.

use std::time::{Duration, Instant};

use flota_tests::sim::time;
use flota_tests::sim::user::{History, Users, Wishes};
use flota_tests::{Cluster, channel};

const MANAGERS: [&str; 3] = ["m1", "m2", "m3"];
/// Users act between two things that go wrong for so many more operations.
const OPERATIONS: usize = 60;

/// Users at all three managers while `fault` is done so many times, each time to whoever leads then.
fn history_with(rounds: usize, mut fault: impl FnMut(&Cluster, &str)) {
    let cluster = Cluster::up(3, 1);
    let history = History::default();
    let sockets = MANAGERS.map(|manager| cluster.socket(manager));
    let recorded = history.clone();
    history.start();
    let users = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        time::begin();
        runtime.block_on(async {
            // Replicas are left out: what is looked at is the store.
            let wishes = Wishes { image: "whoami", replicas: 0, devices: false, networks: false };
            let channels = sockets.iter().map(|socket| channel(socket)).collect();
            Users { clients: 4, pause: 20, wishes, channels, history: recorded }.run(1).await;
        });
    });
    for _ in 0..rounds {
        let leader = cluster.leader();
        fault(&cluster, &leader);
        let enough = history.count().0 + OPERATIONS;
        let until = Instant::now() + Duration::from_secs(60);
        while history.count().0 < enough {
            assert!(Instant::now() < until, "users are not served any more");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
    history.stop();
    users.join().unwrap();
    let count = history.count().0;
    history.check(&Default::default()).unwrap_or_else(|violation| panic!("{violation}"));
    assert!(count > rounds * OPERATIONS, "{count} operations were recorded");
}

#[test]
#[ignore = "minutes long: make test-long"]
fn history_with_daemons_of_leaders_killed_and_started_at_once_is_linearizable() {
    history_with(20, |cluster, leader| {
        cluster.sandbox_ok(&format!("kill --daemon-only {leader}"));
        cluster.sandbox_ok(&format!("start {leader}"));
    });
}

#[test]
#[ignore = "minutes long: make test-long"]
fn history_with_machines_of_leaders_lost_is_linearizable() {
    history_with(10, |cluster, leader| {
        cluster.kill(leader);
        let other = MANAGERS.into_iter().find(|manager| *manager != leader).unwrap();
        cluster.wait("another manager leads", |it| {
            let led = it.ctl_on(other, "node ls --filter leader=true --format json");
            led.code == 0 && !led.stdout.contains(&format!("\"{leader}\""))
        });
        cluster.sandbox_ok(&format!("start {leader}"));
    });
}

#[test]
#[ignore = "minutes long: make test-long"]
fn history_with_leaders_paused_is_linearizable() {
    history_with(15, |cluster, leader| {
        cluster.sandbox_ok(&format!("pause {leader}"));
        let other = MANAGERS.into_iter().find(|manager| *manager != leader).unwrap();
        cluster.wait("another manager leads", |it| it.ctl_on(other, "service ls").code == 0);
        cluster.sandbox_ok(&format!("start {leader}"));
    });
}

#[test]
#[ignore = "minutes long: make test-long"]
fn history_with_leaders_cut_off_is_linearizable() {
    history_with(15, |cluster, leader| {
        cluster.sandbox_ok(&format!("partition {leader}"));
        let other = MANAGERS.into_iter().find(|manager| *manager != leader).unwrap();
        cluster.wait("another manager leads", |it| it.ctl_on(other, "service ls").code == 0);
        cluster.sandbox_ok("heal");
    });
}

#[test]
#[ignore = "minutes long: make test-long"]
fn history_with_all_managers_lost_at_once_is_linearizable() {
    history_with(8, |cluster, _| {
        MANAGERS.iter().for_each(|manager| cluster.kill(manager));
        MANAGERS.iter().for_each(|manager| drop(cluster.sandbox_ok(&format!("start {manager}"))));
    });
}
