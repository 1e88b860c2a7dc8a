//! Certificates that renew while everything runs, and nodes that come back after theirs have expired. Builds for tests allow
//! certificates that live for less than a minute.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use flota_tests::{Cluster, programs, wait_for};
use serde_json::Value;

use super::runbook::Runbook;

/// Validity of the certificates: long enough that a slow machine renews them in time.
const EXPIRY: Duration = Duration::from_secs(30);
/// A short time for which an expired certificate can be renewed.
const GRACE: Duration = Duration::from_secs(10);

/// Starts a cluster whose certificates expire soon.
fn brief(managers: usize, workers: usize) -> Cluster {
    let cluster = Cluster::bare(u32::try_from(managers).unwrap(), u32::try_from(workers).unwrap());
    // The nodes of a sandbox have certificates that live for long, so all leave, and begin another cluster.
    let names = names(managers, workers);
    for name in names.iter().rev() {
        let left = cluster.ctl_on(name, "swarm leave --force");
        assert_eq!(left.code, 0, "{name}: {}", left.stderr);
    }
    let init = cluster.ctl_on("m1", &format!("swarm init --cert-expiry {}s", EXPIRY.as_secs()));
    assert_eq!(init.code, 0, "{}", init.stderr);
    for name in &names[1..] {
        let role = if name.starts_with('m') { "manager" } else { "worker" };
        let token = cluster.ok(&format!("swarm join-token -q {role}"));
        let joined = cluster.ctl_on(name, &format!("swarm join --token {} 198.18.0.10", token.trim()));
        assert_eq!(joined.code, 0, "{name}: {}", joined.stderr);
    }
    for name in &names {
        cluster.wait_state(name, "ready");
    }
    cluster
}

fn names(managers: usize, workers: usize) -> Vec<String> {
    let managers = (1..=managers).map(|number| format!("m{number}"));
    managers.chain((1..=workers).map(|number| format!("w{number}"))).collect()
}

fn inspect(cluster: &Cluster, node: &str) -> Value {
    serde_json::from_str::<Value>(&cluster.ok(&format!("node inspect {node}"))).unwrap()[0].clone()
}

/// The key of the certificate that a node has got last.
fn key(cluster: &Cluster, node: &str) -> String {
    newest(&inspect(cluster, node))["key"].as_str().unwrap().to_owned()
}

fn newest(node: &Value) -> Value {
    node["certificates"].as_array().and_then(|all| all.last()).cloned().expect("it has a certificate")
}

/// The TCP connections of a node to the port of other nodes, each with its own port.
fn connections(cluster: &Cluster, node: &str) -> BTreeSet<String> {
    let text = cluster.sandbox_ok(&format!("exec {node} -- busybox netstat -tn"));
    let established = text.lines().filter(|line| line.contains("ESTABLISHED"));
    let pair = |line: &str| {
        let ends: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
        ends[1].ends_with(":2377").then(|| ends.join(" "))
    };
    established.filter_map(pair).collect()
}

/// Waits until this node has renewed so many times.
fn renewals(cluster: &Cluster, node: &str, count: usize) {
    let mut seen = BTreeSet::from([key(cluster, node)]);
    wait_for(&format!("{node} renews {count} times"), || {
        seen.insert(key(cluster, node));
        if seen.len() > count { Ok(()) } else { Err(inspect(cluster, node).to_string()) }
    });
}

/// Waits until every certificate that was issued before this call has expired, and then this long.
fn expiry_and(more: Duration) {
    let until = SystemTime::now() + EXPIRY + more + Duration::from_secs(1);
    wait_for(
        "the certificates expire",
        || {
            if SystemTime::now() > until { Ok(()) } else { Err("they have not".into()) }
        },
    );
}

/// A `ctl events` of one manager, which goes on until this value is dropped.
struct Events {
    child: Child,
    file: tempfile::NamedTempFile,
}

impl Events {
    fn follow(cluster: &Cluster, manager: &str) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new(programs().join("ctl"));
        command.args(["events", "--since", "0", "--format", "json"]);
        command.env("FLOTA_HOST", format!("unix://{}", cluster.socket(manager).display()));
        let child = command.stdout(file.reopen().unwrap()).stderr(Stdio::inherit()).spawn().unwrap();
        Self { child, file }
    }

    fn tell_of(&self, name: &str) -> bool {
        std::fs::read_to_string(self.file.path()).unwrap().contains(name)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn certificates_renew_while_sessions_streams_and_raft_go_on() {
    let cluster = brief(3, 1);
    let leader = cluster.leader();
    let follower = names(3, 0).into_iter().find(|name| *name != leader).unwrap();
    let events = Events::follow(&cluster, &follower);
    cluster.wait("the stream begins", |_| events.tell_of("m1"));
    let (worker, session) = (inspect(&cluster, "w1"), connections(&cluster, "w1"));
    let raft = connections(&cluster, &follower);
    assert_eq!(session.len(), 1, "the session alone: {session:?}");
    assert!(!raft.is_empty());
    // The second certificate is the first that was got by means of a renewed one.
    for node in ["w1", &leader, &follower] {
        renewals(&cluster, node, 2);
    }
    assert_eq!(connections(&cluster, "w1"), session, "the session is the same connection");
    let (now, lost) = (connections(&cluster, &follower), inspect(&cluster, "w1"));
    assert!(raft.is_subset(&now), "{raft:?} are not all in {now:?}");
    assert_eq!((&lost["stateSince"], &lost["losses"]), (&worker["stateSince"], &worker["losses"]));
    assert_eq!(cluster.leader(), leader, "no election was needed");
    cluster.ok("service create --detach --name web --replicas 0 whoami");
    cluster.wait("the stream goes on", |_| events.tell_of("\"web\""));
    // What is on disk is what is in use: daemons that start again are the same nodes.
    cluster.sandbox_ok(&format!("restart w1 {follower}"));
    cluster.wait_state("w1", "ready");
    cluster.wait_state(&follower, "ready");
    assert_eq!(inspect(&cluster, "w1")["id"], worker["id"]);
}

#[test]
#[ignore = "longer than a minute: make test-long"]
fn a_node_that_was_off_until_its_certificate_expired_comes_back() {
    let cluster = brief(3, 1);
    let off = names(3, 0).into_iter().find(|name| *name != cluster.leader()).unwrap();
    let before = ["w1", &off].map(|node| inspect(&cluster, node)["id"].clone());
    cluster.sandbox_ok(&format!("stop w1 {off}"));
    expiry_and(Duration::ZERO);
    cluster.ok("service create --detach --name web --replicas 0 whoami");
    cluster.sandbox_ok(&format!("start w1 {off}"));
    cluster.wait_state("w1", "ready");
    cluster.wait_state(&off, "ready");
    assert_eq!(["w1", &off].map(|node| inspect(&cluster, node)["id"].clone()), before);
    cluster.wait("the manager has what it missed", |it| it.ctl_on(&off, "service ls --stale").stdout.contains("web"));
    // One that was removed meanwhile does not.
    cluster.sandbox_ok("stop w1");
    cluster.ok("node rm --force w1");
    expiry_and(Duration::ZERO);
    cluster.sandbox_ok("start w1");
    cluster.wait("it is told why", |it| it.sandbox("logs w1").stdout.contains("is not in the cluster any more"));
    assert!(cluster.rows("node ls --filter name=w1").is_empty());
}

#[test]
#[ignore = "longer than a minute: make test-long"]
fn a_cluster_that_was_off_until_all_its_certificates_expired_comes_back() {
    let cluster = brief(3, 1);
    let ids = || names(3, 1).into_iter().map(|node| inspect(&cluster, &node)["id"].clone()).collect::<Vec<_>>();
    let before = ids();
    cluster.ok(&format!("image pack --tag whoami {}", programs().join("whoami").display()));
    cluster.ok("service create --name web whoami");
    cluster.sandbox_ok("stop w1 m1 m2 m3");
    expiry_and(Duration::ZERO);
    cluster.sandbox_ok("start m1 m2 m3 w1");
    for node in names(3, 1) {
        cluster.wait(&format!("{node} is ready"), |it| {
            let listed = it.ctl(&format!("node ls --filter name={node} --filter state=ready -q"));
            listed.code == 0 && !listed.stdout.trim().is_empty()
        });
    }
    assert_eq!(ids(), before);
    let page = Runbook::open("all-nodes-off.md");
    let [nodes, services, remove] = <[String; 3]>::try_from(page.blocks("manager")).expect("three blocks");
    assert_eq!(page.ok(&cluster, "m2", &nodes).matches("ready").count(), 4);
    cluster.wait("its task runs again", |it| page.ok(it, "m3", &services).contains("1/1"));
    cluster.kill("w1");
    page.ok(&cluster, "m1", &remove.replace("GONE", "w1"));
    assert!(!page.ok(&cluster, "m2", &nodes).contains("w1"));
}

#[test]
#[ignore = "longer than a minute: make test-long"]
fn a_cluster_that_was_off_for_longer_than_the_grace_comes_back_with_a_longer_one() {
    let cluster = brief(3, 1);
    let before = inspect(&cluster, "w1")["id"].clone();
    cluster.ok(&format!("swarm update --cert-renewal-grace {}s", GRACE.as_secs()));
    cluster.sandbox_ok("stop w1 m1 m2 m3");
    expiry_and(GRACE);
    cluster.sandbox_ok("start m1 m2 m3 w1");
    for node in names(3, 0) {
        cluster.wait(&format!("{node} is ready"), |it| {
            let listed = it.ctl(&format!("node ls --filter name={node} --filter state=ready -q"));
            listed.code == 0 && !listed.stdout.trim().is_empty()
        });
    }
    cluster.wait("the worker says why it is refused", |it| {
        it.sandbox("logs w1").stdout.contains("and can be renewed for 0 hours after that")
    });
    let page = Runbook::open("all-nodes-off.md");
    let [longer] = <[String; 1]>::try_from(page.blocks("manager-late")).expect("one block");
    page.ok(&cluster, "m2", &longer);
    cluster.wait_state("w1", "ready");
    assert_eq!(inspect(&cluster, "w1")["id"], before);
}
