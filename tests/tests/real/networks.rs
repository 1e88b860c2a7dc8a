//! Networks between the nodes of a real cluster: names, virtual IPs, published ports, and what they promise while
//! everything moves.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};

use flota_tests::{Cluster, programs};

/// Starts a cluster with the network `front` and the service `web` in it, one task on each worker.
fn with_web(publish: &str) -> Cluster {
    let cluster = Cluster::up(1, 2);
    cluster.ok("network create front");
    let service = "service create --name web --network front --replicas 2 --constraint node.role==worker";
    cluster.ok(&format!("{service} --env TASK={{{{.Task.Name}}}} {publish} whoami"));
    cluster
}

/// Adds a client of the network `front` on a worker.
fn add_client(cluster: &Cluster) {
    cluster.ok("service create --name client --network front --constraint node.hostname==w1 whoami");
}

/// Starts `whoami load` in a task of the service `client`.
fn load_inside(cluster: &Cluster, url: &str, seconds: u32) -> Child {
    let mut command = Command::new(programs().join("ctl"));
    command.args(["exec", "client", "--", "/whoami", "load", url, &seconds.to_string()]);
    command.env("FLOTA_HOST", format!("unix://{}", cluster.socket("m1").display()));
    begin(command)
}

/// Starts `whoami load` on a node.
fn load_on(cluster: &Cluster, node: &str, url: &str, seconds: u32) -> Child {
    let program = programs().join("whoami").display().to_string();
    let mut command = Command::new(programs().join("ctl"));
    command.args(["sandbox", "exec", "--name", cluster.name(), node, "--", &program]);
    command.args(["load", url, &seconds.to_string()]);
    begin(command)
}

fn begin(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for a load to end. It must have sent requests, of which none has failed.
fn assert_none_failed(load: Child) {
    let output = load.wait_with_output().unwrap();
    let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(printed.trim_end().ends_with(" requests, 0 failed") && !printed.starts_with("0 "), "{printed}{errors}");
}

/// Lists what networks leave on a node.
fn leftovers(cluster: &Cluster, node: &str) -> String {
    let files = cluster.sandbox_ok(&format!("exec {node} -- find /run/flota/namespaces -type f"));
    let links = cluster.sandbox_ok(&format!("exec {node} -- busybox ls /sys/class/net"));
    files + &links.lines().filter(|it| it.starts_with("flota-")).collect::<String>()
}

/// Returns the name of the task that has given this answer.
fn answered_by(answer: &str) -> String {
    let line = answer.lines().find_map(|line| line.strip_prefix("TASK="));
    line.unwrap_or_else(|| panic!("no answer of whoami: {answer}")).to_owned()
}

#[test]
fn services_reach_each_other_by_name_and_through_the_virtual_ip_on_whichever_node_they_run() {
    let cluster = with_web("");
    add_client(&cluster);
    let get = |name: &str| cluster.ok(&format!("exec client -- /whoami get http://{name}/"));
    let answered: BTreeSet<String> = (0..50).map(|_| answered_by(&get("web"))).collect();
    assert_eq!(answered.len(), 2, "connections to the virtual IP are spread over both tasks: {answered:?}");
    assert!(answered_by(&get("tasks.web")).starts_with("web."));
    assert!(answered_by(&get("web.2")).starts_with("web.2."), "each task has a name");
    assert_ne!(cluster.ctl("exec client -- /whoami get http://nobody.front/").code, 0);
    cluster.ok("service rm web client");
    cluster.ok("network rm front");
    for node in ["w1", "w2"] {
        cluster.wait(&format!("{node} has nothing but the network of published ports"), |it| {
            leftovers(it, node).lines().count() <= 2
        });
    }
}

#[test]
fn a_published_port_answers_on_every_node_from_outside_from_the_node_itself_and_on_loopback() {
    let cluster = with_web("--publish 8080:80");
    let program = programs().join("whoami").display().to_string();
    let get = |node: &str, address: &str| {
        let answer = cluster.sandbox_ok(&format!("exec {node} -- {program} get http://{address}:8080/"));
        answered_by(&answer)
    };
    for address in ["198.18.0.10", "198.18.0.11", "198.18.0.12", "127.0.0.1"] {
        assert!(get("m1", address).starts_with("web."), "{address}");
    }
    assert!(get("w1", "198.18.0.11").starts_with("web."), "a node reaches its own port");
    cluster.ok("service rm web");
    cluster.wait("the port is closed", |it| {
        it.sandbox(&format!("exec m1 -- {program} get http://198.18.0.11:8080/")).code != 0
    });
}

// A new task gets connections as soon as it runs, which may be before its program listens, so tasks only stop here.
#[test]
fn tasks_that_stop_in_order_fail_no_request() {
    let cluster = with_web("--publish 8080:80");
    add_client(&cluster);
    cluster.ok("service scale web=6");
    let loads = [load_inside(&cluster, "http://web/", 8), load_on(&cluster, "m1", "http://198.18.0.11:8080/", 8)];
    for replicas in [5, 3, 1] {
        cluster.ok(&format!("service scale web={replicas}"));
    }
    loads.into_iter().for_each(assert_none_failed);
}

#[test]
fn nothing_on_the_other_nodes_leads_to_the_tasks_of_a_lost_node() {
    let cluster = with_web("--publish 8080:80");
    add_client(&cluster);
    cluster.kill("w2");
    cluster.wait_state("w2", "down");
    let program = programs().join("whoami").display().to_string();
    for _ in 0..20 {
        // Each waits for 10 s if it is sent to the lost node.
        for name in ["web", "tasks.web"] {
            cluster.ok(&format!("exec client -- /whoami get http://{name}/"));
        }
        cluster.sandbox_ok(&format!("exec m1 -- {program} get http://198.18.0.11:8080/"));
    }
    cluster.wait("its slot runs elsewhere", |it| it.running("web").len() == 2);
}

#[test]
fn daemons_that_restart_one_after_the_other_fail_no_request() {
    let cluster = with_web("--publish 8080:80");
    // A command of `ctl exec` would end with the daemon of its node. The client prints each failure at once.
    let client = "service create --name client --network front --constraint node.hostname==w1";
    cluster.ok(&format!("{client} whoami load http://web/ 3600"));
    let outside = load_on(&cluster, "m1", "http://198.18.0.11:8080/", 15);
    for node in ["w1", "w2"] {
        cluster.sandbox_ok(&format!("kill --daemon-only {node}"));
        cluster.sandbox_ok(&format!("start {node}"));
        cluster.wait_state(node, "ready");
    }
    assert_none_failed(outside);
    let seen = cluster.ok("service logs web").lines().count();
    cluster.wait("the client continues", |it| it.ok("service logs web").lines().count() > seen);
    assert_eq!(cluster.ok("service logs client"), "");
}
