//! The real `ctl` while managers die under it: it repeats a request at the next manager, which carries it out once.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use flota_tests::{Cluster, wait_for};

const MANAGERS: [&str; 3] = ["m1", "m2", "m3"];
/// Users, and the services that each of them creates one after the other.
const USERS: usize = 4;
const SERVICES: usize = 15;
/// Daemons that are killed. While each of them dies and starts again, users create their share of the services.
const KILLS: usize = 6;

#[test]
fn services_are_created_once_each_while_managers_are_killed() {
    let cluster = Cluster::up(3, 0);
    let (kills, created) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let create = |name: String, number: usize| {
        wait_for("the next manager is killed", || match kills.load(Ordering::SeqCst) {
            begun if begun > number * KILLS / SERVICES => Ok(()),
            begun => Err(format!("{begun} kills")),
        });
        let made = cluster.ctl(&format!("service create --detach --name {name} --replicas 0 whoami"));
        assert_eq!(made.code, 0, "{name}: {}{}", made.stdout, made.stderr);
        created.lock().unwrap().insert(name, made.stdout.trim().to_owned());
    };
    std::thread::scope(|scope| {
        for user in 0..USERS {
            let create = &create;
            scope.spawn(move || (0..SERVICES).for_each(|number| create(format!("s{user}-{number}"), number)));
        }
        for kill in 0..KILLS {
            let victim = if kill % 2 == 0 { cluster.leader() } else { MANAGERS[kill % 3].to_owned() };
            kills.store(kill + 1, Ordering::SeqCst);
            cluster.sandbox_ok(&format!("kill --daemon-only {victim}"));
            cluster.sandbox_ok(&format!("start {victim}"));
            cluster.wait_state(&victim, "ready");
        }
    });
    let rows = cluster.rows("service ls");
    let column = |row: &serde_json::Value, name: &str| row[name].as_str().unwrap().to_owned();
    let found: BTreeMap<_, _> = rows.iter().map(|row| (column(row, "name"), column(row, "id"))).collect();
    assert_eq!(rows.len(), USERS * SERVICES, "no more than were created");
    assert_eq!(found, created.into_inner().unwrap(), "the ids are those that ctl printed");
}
