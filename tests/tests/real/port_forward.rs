//! `ctl port-forward` from this machine to tasks on any node of a real cluster. The tasks have no network.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flota_tests::{Cluster, programs};

/// Longest time that a connection may be silent.
const PATIENCE: Duration = Duration::from_secs(30);

/// A `ctl port-forward` that runs until this value is dropped.
struct Forward {
    child: Child,
    /// Where it listens.
    address: String,
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Forward {
    /// Forwards a free port of this machine to this port of a task or service.
    fn start(cluster: &Cluster, target: &str, port: u16) -> Self {
        let mut command = Command::new(programs().join("ctl"));
        command.args(["port-forward", target, &format!(":{port}")]);
        command.env("FLOTA_HOST", format!("unix://{}", cluster.socket("m1").display()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.split_once(" -> ").map(|(address, _)| address.to_owned());
        Self { child, address: address.unwrap_or_else(|| panic!("it does not begin: {line}")) }
    }

    fn connect(&self) -> TcpStream {
        let connection = TcpStream::connect(&self.address).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection
    }

    /// Presses Ctrl-C. Returns the exit code and what it has written to standard error.
    fn interrupt(mut self) -> (Option<i32>, String) {
        let pid = self.child.id().to_string();
        assert!(Command::new("busybox").args(["kill", "-INT", &pid]).status().unwrap().success());
        let code = self.child.wait().unwrap().code();
        let mut printed = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut printed).unwrap();
        (code, printed)
    }
}

/// Sends a request and ends the own side of the connection, before anything is read.
fn send_request(connection: &mut TcpStream) {
    connection.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
}

/// Returns the name of the task that answers, up to the node's id.
fn answer(mut connection: TcpStream) -> String {
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("TASK="));
    line.unwrap_or_else(|| panic!("no answer of whoami: {text}")).split('.').take(2).collect::<Vec<_>>().join(".")
}

/// Starts the service `web` with two tasks on the workers, which name themselves.
fn with_web() -> Cluster {
    let cluster = Cluster::up(1, 2);
    let service = "service create --name web --replicas 2 --constraint node.role==worker";
    cluster.ok(&format!("{service} --env TASK={{{{.Task.Name}}}} whoami"));
    cluster
}

#[test]
fn two_hundred_connections_at_once_reach_the_tasks_of_other_nodes_in_turn() {
    let cluster = with_web();
    let forward = Forward::start(&cluster, "web", 80);
    let mut connections: Vec<_> = (0..200).map(|_| forward.connect()).collect();
    connections.iter_mut().for_each(send_request);
    let answers: Vec<String> = connections.into_iter().map(answer).collect();
    let of = |task: &str| answers.iter().filter(|it| *it == task).count();
    assert_eq!((of("web.1"), of("web.2")), (100, 100), "{answers:?}");
    assert_eq!(forward.interrupt(), (Some(0), String::new()));
}

#[test]
fn connections_go_on_while_tasks_are_replaced() {
    let cluster = with_web();
    let forward = Forward::start(&cluster, "web", 80);
    let mut update = Command::new(programs().join("ctl"));
    update.args(["service", "update", "--force", "web"]).stderr(Stdio::null()).stdout(Stdio::null());
    update.env("FLOTA_HOST", format!("unix://{}", cluster.socket("m1").display()));
    let before: BTreeSet<String> = cluster.running("web").iter().map(|it| it["id"].to_string()).collect();
    let mut update = update.spawn().unwrap();
    let mut answered = BTreeSet::new();
    while update.try_wait().unwrap().is_none() || answered.len() < 2 {
        let mut connection = forward.connect();
        send_request(&mut connection);
        answered.insert(answer(connection));
    }
    let after: BTreeSet<String> = cluster.running("web").iter().map(|it| it["id"].to_string()).collect();
    assert!(update.wait().unwrap().success() && before.is_disjoint(&after), "{before:?} {after:?}");
}

#[test]
fn what_can_not_be_forwarded_is_refused_and_a_closed_port_ends_one_connection_alone() {
    let cluster = with_web();
    cluster.ok("service create --name none --replicas 0 whoami");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let local = taken.local_addr().unwrap();
    for (words, code, text) in [
        ("nothing 80", 3, "there is no task `nothing`".to_owned()),
        ("none :80", 1, "service `none` has no running task".to_owned()),
        ("web 0", 2, "REMOTE: 0 is not a port of a task".to_owned()),
        ("web 8080:65536", 2, "REMOTE: `65536` is not a port".to_owned()),
        ("web x:80", 2, "LOCAL: `x` is not a port".to_owned()),
        (&format!("web {}:80", local.port()), 1, format!("LOCAL: failed to listen on {local}")),
    ] {
        let refused = cluster.ctl(&format!("port-forward {words}"));
        assert!(refused.code == code && refused.stderr.contains(&text), "{words}: {} {}", refused.code, refused.stderr);
    }
    let forward = Forward::start(&cluster, "web.1", 81);
    for _ in 0..2 {
        forward.connect().read_to_end(&mut Vec::new()).expect_err("the connection is reset");
    }
    let (code, printed) = forward.interrupt();
    let lines: Vec<&str> = printed.lines().filter(|it| it.contains("task web.1: nothing listens on port 81")).collect();
    assert_eq!((code, lines.len()), (Some(0), 2), "{printed}");
}
