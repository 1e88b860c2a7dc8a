//! Requests that never pause while everything moves: through a virtual IP from a task, and through a published port from
//! another node. The clients retry nothing, and each request has a connection of its own.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use flota_tests::{Cluster, programs};
use serde_json::Value;

/// The counts of a client in the end.
#[derive(Debug)]
struct Seen {
    /// All that it printed.
    text: String,
    requests: u64,
    /// When requests failed, in milliseconds since the client began.
    failures: Vec<u64>,
}

impl Seen {
    /// Reads what `whoami load` prints.
    fn of(text: String) -> Self {
        let failed = |line: &str| line.strip_prefix("after ")?.split_once(" ms: ")?.0.parse().ok();
        let failures = text.lines().filter_map(failed).collect();
        let requests = text.lines().find_map(|line| line.split_once(" requests, ")?.0.parse().ok());
        Self { requests: requests.unwrap_or_default(), failures, text }
    }
}

/// Two clients, which run until they are ended.
pub(super) struct Traffic<'a> {
    cluster: &'a Cluster,
    /// The node of the client outside. Both clients use the published ports and the network of another one.
    node: String,
    outside: Child,
    /// Holds the program of the client outside, which has a name of its own so that it can be ended by it.
    _program: tempfile::TempDir,
    begun: Instant,
    steps: Vec<(u128, String)>,
}

impl<'a> Traffic<'a> {
    /// Starts the clients on the two managers that do not lead.
    pub(super) fn start(cluster: &'a Cluster) -> Self {
        let leader = cluster.leader();
        let [first, second] = [("m1", 10), ("m2", 11), ("m3", 12)]
            .into_iter()
            .filter(|(name, _)| *name != leader)
            .collect::<Vec<_>>()[..]
        else {
            panic!("three managers");
        };
        let create =
            "service create --name client --network front --restart-condition none --constraint node.hostname==";
        cluster.ok(&format!("{create}{} whoami load http://web/inside 3600", first.0));
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("prober");
        std::fs::copy(programs().join("whoami"), &program).unwrap();
        let url = format!("http://198.18.0.{}:8080/outside", first.1);
        let mut command = Command::new(programs().join("ctl"));
        command
            .args(["sandbox", "exec", "--name", cluster.name(), second.0, "--"])
            .arg(&program)
            .args(["load", &url, "3600"]);
        let outside = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let node = second.0.to_owned();
        Self { cluster, node, outside, _program: folder, begun: Instant::now(), steps: Vec::new() }
    }

    /// Notes what happens from now on, for the text of a failure.
    pub(super) fn step(&mut self, what: &str) {
        self.steps.push((self.begun.elapsed().as_millis(), what.to_owned()));
    }

    /// Runs `ctl` with these words, which are the next step.
    fn ctl(&mut self, words: &str) {
        self.step(words);
        self.cluster.ok(words);
    }

    /// Ends the clients and returns what the one inside and the one outside have seen.
    fn end(self) -> [Seen; 2] {
        // A client may have begun late.
        self.cluster.wait("both clients send requests", |it| {
            let log = it.ctl("service logs --raw web").stdout;
            ["GET /inside ", "GET /outside "].iter().all(|request| log.matches(request).count() > 20)
        });
        // Also while the leader takes its node for unknown: a new leader may not have heard from the node yet.
        let client = self.cluster.rows("service ps client")[0].clone();
        signal(self.cluster, &client, "TERM");
        self.cluster.wait("the client has ended", |it| it.ok("service logs --raw client").contains(" requests, "));
        let inside = self.cluster.ok("service logs --raw client");
        self.cluster.sandbox_ok(&format!("exec {} -- busybox killall -TERM prober", self.node));
        let output = self.outside.wait_with_output().unwrap();
        let text = [output.stderr, output.stdout].map(|it| String::from_utf8_lossy(&it).into_owned()).concat();
        let seen = [Seen::of(inside), Seen::of(text)];
        for (seen, which) in seen.iter().zip(["inside", "outside"]) {
            assert!(seen.requests > 20, "the client {which} has sent few requests: {}", seen.text);
            println!("{which}: {} requests, {} failed; steps: {:?}", seen.requests, seen.failures.len(), self.steps);
        }
        seen
    }

    /// Ends the clients, of whose requests none may have failed. No task may have stopped without the confirmation of all nodes.
    pub(super) fn assert_none_failed(self) {
        let (cluster, steps) = (self.cluster, format!("{:#?}", self.steps));
        for seen in self.end() {
            assert!(seen.failures.is_empty(), "{}\n{steps}", seen.text);
        }
        for manager in ["m1", "m2", "m3"] {
            let log = cluster.sandbox(&format!("logs {manager}")).stdout;
            let late: Vec<&str> = log.lines().filter(|it| it.contains("a task stops although")).collect();
            assert!(late.is_empty(), "{late:#?}\n{steps}");
        }
    }

    /// Ends the clients. The failed requests of each may be at most so many, within so many milliseconds.
    fn assert_few_failed(self, most: usize, window: u64) {
        let steps = format!("{:#?}", self.steps);
        for seen in self.end() {
            let lasted = seen.failures.last().zip(seen.failures.first()).map_or(0, |(last, first)| last - first);
            assert!(seen.failures.len() <= most && lasted <= window, "{lasted} ms: {}\n{steps}", seen.text);
        }
    }
}

/// Sends a signal to the program of a task.
fn signal(cluster: &Cluster, task: &Value, signal: &str) {
    let (node, id) = (task["node"].as_str().unwrap(), task["id"].as_str().unwrap());
    let state = cluster.sandbox_ok(&format!("exec {node} -- cat /run/flota/tasks/{id}/state.json"));
    let pid = serde_json::from_str::<Value>(&state).unwrap()["pid"].clone();
    cluster.sandbox_ok(&format!("exec {node} -- kill -{signal} {pid}"));
}

/// Starts a cluster with the network `front` and the service `web` on its two workers.
fn with_web(replicas: u32) -> Cluster {
    let cluster = Cluster::up(3, 2);
    // On each node there is a task with the node's own network, which holds up nothing.
    cluster.ok("service create --name agent --mode global --network host --env PORT=8099 whoami");
    create_web(&cluster, replicas, &["--health-tcp", "80"]);
    cluster
}

pub(super) fn create_web(cluster: &Cluster, replicas: u32, flags: &[&str]) {
    cluster.ok("network create front");
    let service = "service create --name web --network front --publish 8080:80 --constraint node.role==worker \
        --health-start-period 30s --health-start-interval 50ms --replicas";
    let replicas = replicas.to_string();
    let words = service.split_whitespace().chain([replicas.as_str()]).chain(flags.iter().copied()).chain(["whoami"]);
    let created = cluster.ctl_args(&words.collect::<Vec<_>>());
    assert_eq!(created.code, 0, "{}", created.stderr);
}

#[test]
fn scaling_updates_and_drains_fail_no_request() {
    let cluster = with_web(2);
    let mut traffic = Traffic::start(&cluster);
    for words in [
        "service scale web=6",
        "service scale web=2",
        "service update --env NEW=1 web",
        "node update --availability drain w2",
    ] {
        traffic.ctl(words);
    }
    cluster
        .wait("both tasks run on w1", |it| it.running("web").iter().filter(|task| task["node"] == "w1").count() == 2);
    traffic.ctl("node update --availability active w2");
    traffic.ctl("service update --force web");
    traffic.assert_none_failed();
}

#[test]
fn unhealthy_tasks_leave_names_and_balancers_before_they_are_restarted_and_fail_no_request() {
    let cluster = Cluster::up(3, 2);
    // The only program of an image that tasks have beside their own: a shell.
    let folder = tempfile::tempdir().unwrap();
    let shell = folder.path().join("sh");
    std::fs::copy("/bin/busybox", &shell).unwrap();
    cluster.ok(&format!("image pack --tag shell {}", shell.display()));
    let check = ["--health-cmd", "[ ! -e /sick ]", "--health-interval", "100ms", "--health-retries", "2"];
    create_web(&cluster, 3, &[&["--mount", "type=image,source=shell,target=/bin"], &check[..]].concat());
    let mut traffic = Traffic::start(&cluster);
    for slot in 1..=3 {
        traffic.step("a task becomes unhealthy");
        let sick = cluster.ctl_args(&["exec", &format!("web.{slot}"), "--", "/bin/sh", "-c", "echo > /sick"]);
        assert_eq!(sick.code, 0, "{}", sick.stderr);
        let filter = format!("service ps web --filter slot={slot} --filter state=running");
        cluster.wait("it is restarted, and healthy again", |it| {
            it.rows(&filter).iter().any(|task| task["attempt"] == 2 && task["health"] == "healthy")
        });
    }
    traffic.assert_none_failed();
}

#[test]
fn daemons_that_restart_on_every_node_in_turn_fail_no_request() {
    let cluster = with_web(2);
    let mut traffic = Traffic::start(&cluster);
    for node in ["m1", "m2", "m3", "w1", "w2"] {
        traffic.step(node);
        cluster.sandbox_ok(&format!("stop --daemon-only {node}"));
        cluster.sandbox_ok(&format!("start {node}"));
        cluster.wait("every node is ready", |it| {
            it.ctl("node ls").code == 0 && it.rows("node ls --filter state=ready").len() == 5
        });
    }
    traffic.assert_none_failed();
}

#[test]
fn a_leader_that_dies_fails_no_request() {
    let cluster = with_web(2);
    let mut traffic = Traffic::start(&cluster);
    let leader = cluster.leader();
    traffic.step("kill the leader");
    cluster.kill(&leader);
    cluster.wait("another one leads", |it| {
        it.ctl("node ls").code == 0 && it.rows("node ls --filter leader=true").len() == 1
    });
    traffic.ctl("service scale web=3");
    traffic.assert_none_failed();
}

#[test]
fn a_task_that_dies_fails_requests_until_that_is_noticed() {
    let cluster = with_web(4);
    let mut traffic = Traffic::start(&cluster);
    traffic.step("kill a task");
    signal(&cluster, &cluster.running("web")[0], "KILL");
    cluster.wait("it runs again", |it| it.running("web").iter().any(|task| task["attempt"] == 2));
    cluster.wait("all run", |it| it.running("web").len() == 4);
    traffic.assert_few_failed(1_000, 500);
}

#[test]
#[ignore = "long: make test-long"]
fn a_worker_that_dies_fails_requests_until_that_is_noticed() {
    let cluster = with_web(4);
    let mut traffic = Traffic::start(&cluster);
    traffic.step("kill w2");
    cluster.kill("w2");
    cluster.wait_state("w2", "down");
    cluster.wait("all run on w1", |it| it.running("web").len() == 4);
    traffic.assert_few_failed(4, 6_000);
}

#[test]
#[ignore = "long: make test-long"]
fn a_worker_that_is_cut_off_fails_requests_until_that_is_noticed_and_none_when_it_is_back() {
    let cluster = with_web(4);
    let mut traffic = Traffic::start(&cluster);
    traffic.step("cut w2 off");
    cluster.sandbox_ok("partition w2");
    cluster.wait_state("w2", "down");
    cluster.wait("all run on w1", |it| it.running("web").len() == 4);
    traffic.step("heal");
    cluster.sandbox_ok("heal");
    cluster.wait_state("w2", "ready");
    traffic.ctl("service scale web=6");
    traffic.assert_few_failed(4, 6_000);
}
