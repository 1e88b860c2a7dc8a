//! Histories of real clusters under a load of writes while things go wrong, checked as those of simulated ones are. Minutes
//! long, so they run with `make test-long` alone.

mod writers;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use flota_tests::sim::time;
use flota_tests::sim::user::{History, Users, Wishes};
use flota_tests::{Cluster, channel, wait_for};

const MANAGERS: [&str; 3] = ["m1", "m2", "m3"];
/// Number of things that go wrong, one after the other.
const ROUNDS: usize = 100;
/// Users act between two things that go wrong for so many more operations.
const OPERATIONS: usize = 60;
/// The log message of a manager whose tables are not those of the leader after the same entry.
const DIFFER: &str = "tables of this manager and of the leader differ";

/// Users and writers at all three managers while `fault` is done [`ROUNDS`] times, each time to the leader of that moment.
/// In the end the history is linearizable, and the managers have the same tables.
fn history_with(mut fault: impl FnMut(&Cluster, &str)) {
    let cluster = Cluster::up(3, 1);
    let history = History::default();
    let sockets = MANAGERS.map(|manager| cluster.socket(manager));
    let recorded = history.clone();
    history.start();
    let users = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        time::begin();
        runtime.block_on(async {
            let channels = || sockets.iter().map(|socket| channel(socket)).collect();
            // Replicas are left out: what is looked at is the store.
            let wishes = Wishes { image: "whoami", ..Wishes::default() };
            let users = Users { clients: 4, pause: 20, wishes, channels: channels(), history: recorded.clone() };
            tokio::join!(users.run(1), writers::run(channels(), recorded)).1
        })
    });
    for _ in 0..ROUNDS {
        let leader = cluster.leader();
        fault(&cluster, &leader);
        let enough = history.count().0 + OPERATIONS;
        let until = Instant::now() + Duration::from_secs(60);
        while history.count().0 < enough && !users.is_finished() {
            assert!(Instant::now() < until, "users are not served any more");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
    history.stop();
    let written = users.join().unwrap();
    let count = history.count().0;
    history.check(&Default::default()).unwrap_or_else(|violation| panic!("{violation}"));
    assert!(count > ROUNDS * OPERATIONS, "{count} operations were recorded");
    let tables = tables(&cluster);
    println!("{ROUNDS} faults, {count} operations and {written} writes: linearizable, and all tables are {tables}");
}

/// Waits until all managers have applied the same entry, and returns it with the digest of their tables after it.
fn tables(cluster: &Cluster) -> String {
    let seen = |manager: &str| {
        let info = cluster.ctl_on(manager, "system info --format json").stdout;
        let info: serde_json::Value = serde_json::from_str(&info).unwrap_or_default();
        Some((info["appliedIndex"].as_u64()?, info["tablesDigest"].as_str()?.to_owned()))
    };
    let mut tables = BTreeSet::new();
    wait_for("all managers have applied the same entry", || {
        tables = MANAGERS.into_iter().map(seen).collect();
        let indices: BTreeSet<Option<u64>> = tables.iter().map(|it| it.as_ref().map(|(index, _)| *index)).collect();
        if indices.len() == 1 && !indices.contains(&None) { Ok(()) } else { Err(format!("{tables:?}")) }
    });
    assert_eq!(tables.len(), 1, "the tables of managers differ: {tables:?}");
    for manager in MANAGERS {
        let logs = cluster.sandbox_ok(&format!("logs {manager}"));
        assert!(!logs.contains(DIFFER), "{manager} had other tables than the leader");
    }
    tables.into_iter().flatten().map(|(index, digest)| format!("{digest} after entry {index}")).collect()
}

#[test]
#[ignore = "minutes long: make test-long"]
fn history_with_daemons_of_leaders_killed_and_started_at_once_is_linearizable() {
    history_with(|cluster, leader| {
        cluster.sandbox_ok(&format!("kill --daemon-only {leader}"));
        cluster.sandbox_ok(&format!("start {leader}"));
    });
}

#[test]
#[ignore = "minutes long: make test-long"]
fn history_with_machines_of_leaders_lost_is_linearizable() {
    history_with(|cluster, leader| {
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
    history_with(|cluster, leader| {
        cluster.sandbox_ok(&format!("pause {leader}"));
        let other = MANAGERS.into_iter().find(|manager| *manager != leader).unwrap();
        cluster.wait("another manager leads", |it| it.ctl_on(other, "service ls").code == 0);
        cluster.sandbox_ok(&format!("start {leader}"));
    });
}

#[test]
#[ignore = "minutes long: make test-long"]
fn history_with_leaders_cut_off_is_linearizable() {
    history_with(|cluster, leader| {
        cluster.sandbox_ok(&format!("partition {leader}"));
        let other = MANAGERS.into_iter().find(|manager| *manager != leader).unwrap();
        cluster.wait("another manager leads", |it| it.ctl_on(other, "service ls").code == 0);
        cluster.sandbox_ok("heal");
    });
}

#[test]
#[ignore = "minutes long: make test-long"]
fn history_with_all_managers_lost_at_once_is_linearizable() {
    history_with(|cluster, _| {
        MANAGERS.iter().for_each(|manager| cluster.kill(manager));
        MANAGERS.iter().for_each(|manager| drop(cluster.sandbox_ok(&format!("start {manager}"))));
    });
}
