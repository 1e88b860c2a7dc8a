//! Bad cables: what `ctl sandbox link` does to them, and what a cluster promises over them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use flota_tests::{Background, Cluster, programs, wait_for};

/// Returns the shortest round-trip time of five packets from one node to another, in milliseconds; `None` if none came back.
fn ping(cluster: &Cluster, from: &str, to: &str) -> Option<f64> {
    let printed = cluster.sandbox(&format!("exec {from} -- busybox ping -c 5 -i 0.05 -W 1 {to}")).stdout;
    let times = printed.lines().filter_map(|line| line.split_once("time=")?.1.split_once(" ms")?.0.parse::<f64>().ok());
    times.reduce(f64::min)
}

/// Returns what `ctl sandbox ls` says about a node's cable.
fn link(cluster: &Cluster, node: &str) -> String {
    let list = cluster.sandbox_ok("ls");
    let row = list.lines().find(|row| row.split_whitespace().nth(1) == Some(node)).expect("the node is listed");
    row.split_once("198.18.0.").expect("it has an address").1.get(2..).unwrap_or_default().trim().to_owned()
}

/// Returns the forwarders of a cluster's sandbox.
fn forwarders(cluster: &str) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().into_string().ok()?.parse().ok());
    let is_one = |pid: &i32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        words.contains("__sandbox-forward") && words.contains(&format!("/{cluster}/"))
    };
    pids.filter(is_one).collect()
}

/// Serves a file of so many bytes on a node, from a folder that is removed when this value is dropped.
struct Served {
    _folder: tempfile::TempDir,
    _server: Background,
}

impl Served {
    fn on(cluster: &Cluster, node: &str, bytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), vec![7; bytes]).unwrap();
        let path = folder.path().display().to_string();
        let server = cluster.background(node, &["busybox", "httpd", "-f", "-p", "9000", "-h", &path]);
        Self { _folder: folder, _server: server }
    }

    /// Returns how long the file takes to another node.
    fn fetch(&self, cluster: &Cluster, node: &str, address: &str) -> Duration {
        let get = format!("exec {node} -- busybox wget -q -O /dev/null http://{address}:9000/file");
        let mut took = Duration::ZERO;
        wait_for("the file is served", || {
            let begun = Instant::now();
            let got = cluster.sandbox(&get);
            took = begun.elapsed();
            if got.code == 0 { Ok(()) } else { Err(got.stderr) }
        });
        took
    }
}

#[test]
fn a_cable_is_as_slow_as_stated_until_it_is_healed_and_partitions_stay_what_they_are() {
    let cluster = Cluster::bare(1, 1);
    // Packets to a machine that was away wait until it is asked for its MAC address again, which is once a second (arp(7)).
    let is_within = |range: std::ops::Range<f64>| {
        wait_for(&format!("the node answers in {range:?} ms"), || match ping(&cluster, "m1", "198.18.0.11") {
            Some(time) if range.contains(&time) => Ok(()),
            time => Err(format!("{time:?}")),
        });
    };
    let is_silent = || assert_eq!(ping(&cluster, "m1", "198.18.0.11"), None);
    is_within(0.0..30.0);
    cluster.sandbox_ok("link w1 --delay 40ms --jitter 5ms");
    assert_eq!(link(&cluster, "w1"), "delay 40ms, jitter 5ms");
    is_within(70.0..100.0);
    // The second one replaces the first, and the cables of both nodes count.
    cluster.sandbox_ok("link w1 m1 --delay 10ms");
    is_within(40.0..70.0);
    cluster.sandbox_ok("partition w1");
    assert_eq!(link(&cluster, "w1"), "cut off, delay 10ms");
    is_silent();
    // A machine that starts again is still at its cable.
    cluster.sandbox_ok("restart w1");
    assert_eq!(link(&cluster, "w1"), "cut off, delay 10ms");
    is_silent();
    cluster.sandbox_ok("heal");
    assert!(
        link(&cluster, "w1").is_empty() && link(&cluster, "m1").is_empty() && forwarders(cluster.name()).is_empty()
    );
    is_within(0.0..30.0);
    cluster.sandbox_ok("link w1 --loss 100%");
    is_silent();
    // Without settings it is a good cable.
    cluster.sandbox_ok("link w1");
    assert!(link(&cluster, "w1").is_empty());
    is_within(0.0..30.0);
}

#[test]
fn a_cable_has_the_stated_rate_and_is_no_bottleneck_without_one() {
    let cluster = Cluster::bare(1, 1);
    let served = Served::on(&cluster, "w1", 8 << 20);
    cluster.sandbox_ok("link w1 --delay 1ms");
    let fast = served.fetch(&cluster, "m1", "198.18.0.11");
    cluster.sandbox_ok("link w1 --rate 10mbit");
    let slow = served.fetch(&cluster, "m1", "198.18.0.11");
    assert!(slow > Duration::from_millis(6_500), "8 MiB at 10 Mbit/s take 6.7 s: {slow:?}");
    // How fast a cable without a rate is depends on the machine. It is faster than one with a low rate by a multiple.
    assert!(fast < slow / 2, "8 MiB over a cable without a rate: {fast:?}, at 10 Mbit/s: {slow:?}");
}

#[test]
fn what_no_cable_can_be_changes_nothing() {
    let cluster = Cluster::bare(1, 2);
    cluster.sandbox_ok("link w1 --delay 1ms");
    cluster.kill("w2");
    for (words, code, printed) in [
        ("link w1 --delay -5ms", 2, "--delay"),
        ("link w1 --delay 5ms --jitter 6ms", 2, "--jitter"),
        ("link w1 --loss 101%", 2, "--loss"),
        ("link w1 --rate 0mbit", 2, "--rate"),
        ("link --delay 5ms", 2, "no node is given"),
        ("link w1 w9 --delay 5ms", 3, "has no node `w9`"),
        ("link w1 w2 --delay 5ms", 1, "node w2 does not run"),
    ] {
        let refused = cluster.sandbox(words);
        assert!(
            refused.code == code && refused.stderr.contains(printed),
            "{words}: {}: {}",
            refused.code,
            refused.stderr
        );
        assert_eq!(link(&cluster, "w1"), "delay 1ms", "{words}");
    }
}

#[test]
fn a_forwarder_that_dies_is_noticed_and_replaced_and_nothing_is_left_of_any() {
    let cluster = Cluster::bare(1, 1);
    let name = cluster.name().to_owned();
    let kill = |pid: i32| {
        assert!(std::process::Command::new("kill").arg("-9").arg(pid.to_string()).status().unwrap().success())
    };
    let ctl = programs().join("ctl").display().to_string();
    // Descriptors that a caller has left open do not stay open: they may hold a lock.
    let script = format!("exec 9</dev/null; exec {ctl} sandbox link --name {name} w1 --delay 5ms");
    assert!(std::process::Command::new("sh").args(["-c", &script]).status().unwrap().success());
    let forwarder = forwarders(&name)[0];
    assert!(!std::path::Path::new(&format!("/proc/{forwarder}/fd/9")).exists());
    kill(forwarder);
    cluster.wait("the list shows it", |it| link(it, "w1") == "broken, delay 5ms");
    assert_eq!(ping(&cluster, "m1", "198.18.0.11"), None, "the node is cut off");
    cluster.sandbox_ok("link w1 --delay 5ms");
    assert_eq!((link(&cluster, "w1").as_str(), forwarders(&name).len()), ("delay 5ms", 1));
    assert!(ping(&cluster, "m1", "198.18.0.11").is_some());
    // A node that is gone needs none; when it comes back its cable is as bad as before.
    cluster.kill("w1");
    assert!(forwarders(&name).is_empty());
    cluster.sandbox_ok("start w1");
    assert_eq!((link(&cluster, "w1").as_str(), forwarders(&name).len()), ("delay 5ms", 1));
    // A command that is killed halfway may leave a forwarder that no state knows of.
    let mut command = std::process::Command::new(programs().join("ctl"));
    let words = ["sandbox", "link", "--name", &name, "m1", "--delay", "5ms"];
    let mut halfway = command.args(words).spawn().unwrap();
    wait_for("it has begun", || if forwarders(&name).len() > 1 { Ok(()) } else { Err("no second one".into()) });
    let _ = halfway.kill();
    let _ = halfway.wait();
    drop(cluster);
    assert!(forwarders(&name).is_empty());
    assert!(!std::path::Path::new("/run/flota-sandbox").join(&name).exists());
}

/// Returns the terms in which a manager has led.
fn terms(cluster: &Cluster) -> BTreeSet<String> {
    let logs = ["m1", "m2", "m3"].map(|node| cluster.sandbox_ok(&format!("logs {node}")));
    let lines = logs.iter().flat_map(|log| log.lines()).filter(|line| line.contains("this manager leads raft.term="));
    lines.filter_map(|line| line.rsplit_once('=')).map(|(_, term)| term.to_owned()).collect()
}

/// Makes an image of some megabytes that can't be compressed.
fn pack_large(cluster: &Cluster) {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("large");
    let mut bytes = std::fs::read(programs().join("whoami")).unwrap();
    let mut state = 1u64;
    // Xorshift (Marsaglia, 2003). What follows the program's own parts is never read.
    bytes.extend((0..1 << 20).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    }));
    std::fs::write(&program, bytes).unwrap();
    cluster.ok(&format!("image pack --tag large {}", program.display()));
}

#[test]
fn where_packets_take_100_ms_and_2_of_100_are_lost_everything_works() {
    // A round trip takes 200 ms, which is what this factor is for.
    let cluster = Cluster::up_with(3, 2, "raft-patience = 2");
    cluster.ok("network create front");
    let on_workers = "--network front --constraint node.role==worker";
    cluster.ok(&format!("service create --name web {on_workers} --replicas 2 --publish 8080:80 whoami"));
    cluster.ok("service create --name client --network front --constraint node.hostname==w1 whoami");
    let client = |it: &Cluster| it.running("client")[0]["id"].clone();
    let (before, begun) = (client(&cluster), terms(&cluster).len());
    // Each packet passes the cables of both nodes.
    cluster.sandbox_ok("link m1 m2 m3 w1 w2 --delay 50ms --loss 1%");
    for number in 0..10 {
        cluster.ok(&format!("service create --detach --name s{number} --replicas 0 whoami"));
    }
    pack_large(&cluster);
    cluster.ok("service create --name large --replicas 2 --constraint node.role==worker large");
    for name in ["web", "web.1", "web.2"] {
        cluster.ok(&format!("exec client -- /whoami get http://{name}/"));
    }
    let program = programs().join("whoami").display().to_string();
    cluster.sandbox_ok(&format!("exec m1 -- {program} get http://198.18.0.13:8080/"));
    cluster.ok("service update --env NEW=1 web");
    assert_eq!(cluster.rows("service ls").len(), 13, "what was acknowledged is there");
    assert_eq!(client(&cluster), before, "its node was never given up");
    let more = terms(&cluster).len() - begun;
    assert!(more <= 1, "{more} elections");
    for node in ["m1", "m2", "m3", "w1", "w2"] {
        let sessions = cluster.sandbox_ok(&format!("logs {node}")).matches("in session with the leader").count();
        assert!(sessions <= 2, "{node} began {sessions} sessions");
    }
}
