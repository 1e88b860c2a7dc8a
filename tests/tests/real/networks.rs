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
    let files = cluster.find(node, "/run/flota/namespaces/networks /run/flota/namespaces/tasks -type f").concat();
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

/// Asks a URL from a node, and returns the answer if there is one.
fn get_on(cluster: &Cluster, node: &str, url: &str) -> Option<String> {
    let program = programs().join("whoami").display().to_string();
    let output = cluster.sandbox(&format!("exec {node} -- {program} get {url}"));
    (output.code == 0).then_some(output.stdout)
}

#[test]
fn a_task_without_networks_reaches_the_outside_and_one_of_none_or_host_has_what_its_name_says() {
    let cluster = Cluster::up(1, 1);
    let create = |name: &str, options: &str, program: &str| {
        let placed = "--constraint node.hostname==w1";
        cluster.ok(&format!("service create --name {name} {placed} {options} {program}"));
    };
    create("web", "--publish 8080:80 --env TASK={{.Task.Name}}", "whoami");
    create("plain", "--publish published=8081,target=80,mode=host --env TASK={{.Task.Name}}", "whoami");
    create("alone", "--network none", "whoami");
    create("open", "--network host --env PORT=8082 --env TASK={{.Task.Name}}", "whoami");
    let get = |service: &str, url: &str| cluster.ctl(&format!("exec {service} -- /whoami get {url}"));
    // The manager is another machine; its published port leads back to this node's task.
    assert!(answered_by(&get("plain", "http://198.18.0.10:8080/").stdout).starts_with("web."));
    assert_ne!(get("plain", "http://198.18.0.10:2377/").code, 0, "the managers' port is not for tasks");
    assert_ne!(get("alone", "http://198.18.0.10:8080/").code, 0);
    assert!(
        get_on(&cluster, "m1", "http://198.18.0.11:8081/").is_some_and(|it| answered_by(&it).starts_with("plain."))
    );
    assert!(get_on(&cluster, "m1", "http://198.18.0.11:8082/").is_some_and(|it| answered_by(&it).starts_with("open.")));
    cluster.wait("w1 reports on which port `open` listens", |it| it.ok("node inspect w1").contains("8082/tcp"));
    let refused = cluster.ctl("service create --name other --publish 8082:80 whoami").stderr;
    assert!(refused.contains("8082/tcp is in use by task `open.1`, which has the network of node `w1`"), "{refused}");
    cluster.sandbox_ok("kill --daemon-only w1");
    cluster.sandbox_ok("start w1");
    cluster.wait_state("w1", "ready");
    assert!(answered_by(&get("plain", "http://198.18.0.10:8080/").stdout).starts_with("web."));
}

#[test]
fn a_port_on_which_a_program_of_a_node_listens_is_refused_and_one_that_begins_later_keeps_it() {
    let cluster = with_web("--publish 8080:80");
    let _sshd = cluster.background("w1", &["busybox", "nc", "-ll", "-p", "22", "-e", "busybox", "true"]);
    cluster.wait("w1 reports its listener", |it| it.ok("node inspect w1").contains("22/tcp"));
    let refused = cluster.ctl("service create --name a --publish 22:80 whoami");
    assert!(refused.stderr.contains("22/tcp is in use by a program of node `w1` itself"), "{}", refused.stderr);
    let url = "http://198.18.0.11:8080/";
    assert!(get_on(&cluster, "m1", url).is_some());
    let _later = cluster.background("w1", &["busybox", "nc", "-ll", "-p", "8080", "-e", "busybox", "true"]);
    cluster.wait("w1's own program gets its port", |it| get_on(it, "m1", url).is_none());
    assert!(get_on(&cluster, "m1", "http://198.18.0.12:8080/").is_some(), "other nodes still lead to the service");
    cluster.ok("service update --env-add A=1 web");
}

#[test]
fn nodes_whose_owner_wants_nftables_balance_by_rules() {
    let cluster = with_web("--publish 8080:80");
    for node in ["w1", "w2"] {
        assert!(cluster.ok(&format!("node inspect {node}")).contains(r#""balancer": "bpf""#));
        cluster.set(node, "balancer = \"nftables\"\n");
        assert!(cluster.ok(&format!("node inspect {node}")).contains(r#""balancer": "nftables""#));
    }
    add_client(&cluster);
    let get = |name: &str| cluster.ok(&format!("exec client -- /whoami get http://{name}/"));
    let answered: BTreeSet<String> = (0..50).map(|_| answered_by(&get("web"))).collect();
    assert_eq!(answered.len(), 2, "{answered:?}");
    let load = load_inside(&cluster, "http://web/", 4);
    cluster.ok("service scale web=1");
    assert_none_failed(load);
}

#[test]
fn a_bridge_network_connects_the_tasks_of_one_node() {
    let cluster = Cluster::up(1, 1);
    cluster.ok("network create --driver bridge local");
    let placed = "--network local --constraint node.hostname==w1 --env TASK={{.Task.Name}}";
    cluster.ok(&format!("service create --name web --replicas 2 {placed} whoami"));
    cluster.ok(&format!("service create --name client {placed} whoami"));
    let get = || answered_by(&cluster.ok("exec client -- /whoami get http://web/"));
    let answered: BTreeSet<String> = (0..50).map(|_| get()).collect();
    assert_eq!(answered.len(), 2, "{answered:?}");
    cluster.ok("service rm web client");
    cluster.ok("network rm local");
    cluster.wait("w1 has nothing but the network of published ports", |it| leftovers(it, "w1").lines().count() <= 2);
}

#[test]
fn a_task_in_a_macvlan_network_is_a_machine_of_the_nodes_own_network() {
    let cluster = Cluster::up(1, 1);
    let range = "--subnet 198.18.0.0/24 --gateway 198.18.0.1 --ip-range 198.18.0.128/25";
    cluster.ok(&format!("network create --driver macvlan --opt parent=eth0 {range} lan"));
    let placed = "--constraint node.hostname==w1 --env TASK={{.Task.Name}}";
    cluster.ok(&format!("service create --name web --network lan {placed} whoami"));
    let inspected: serde_json::Value = serde_json::from_str(&cluster.ok("network inspect lan")).unwrap();
    let address = inspected[0]["endpoints"][0]["addresses"][0].as_str().unwrap().to_owned();
    assert!(address.starts_with("198.18.0."), "{address}");
    let answer = get_on(&cluster, "m1", &format!("http://{address}/"));
    assert!(answer.is_some_and(|it| answered_by(&it).starts_with("web.")), "another machine reaches it directly");
}

#[test]
fn services_reach_each_other_by_ipv6_too() {
    let cluster = Cluster::up(1, 2);
    cluster.ok("network create --ipv6 --subnet fd55::/64 --subnet 10.55.0.0/24 front");
    let service = "service create --name web --network front --replicas 2 --constraint node.role==worker";
    cluster.ok(&format!("{service} --env TASK={{{{.Task.Name}}}} whoami"));
    add_client(&cluster);
    let inspected: serde_json::Value = serde_json::from_str(&cluster.ok("service inspect web")).unwrap();
    let addresses = inspected[0]["virtualIps"][0]["addresses"].as_array().unwrap().clone();
    let virtual_ip = addresses.iter().find_map(|it| it.as_str().filter(|it| it.starts_with("fd55:"))).unwrap();
    let get = |host: &str| answered_by(&cluster.ok(&format!("exec client -- /whoami get http://{host}/")));
    let answered: BTreeSet<String> = (0..50).map(|_| get(&format!("[{virtual_ip}]:80"))).collect();
    assert_eq!(answered.len(), 2, "{answered:?}");
}

#[test]
fn published_ports_answer_by_ipv6_on_every_node_and_on_loopback() {
    let cluster = with_web("--publish 8080:80");
    let host_port = "--publish published=8081,target=80,mode=host --constraint node.hostname==w1";
    cluster.ok(&format!("service create --name plain {host_port} --env TASK={{{{.Task.Name}}}} whoami"));
    for (node, last) in [("m1", 10), ("w1", 11), ("w2", 12)] {
        cluster.sandbox_ok(&format!("exec {node} -- busybox ip -6 addr add fd99::{last}/64 dev eth0"));
    }
    // An address can be used once the kernel has found that nobody else has it (RFC 4862).
    let get = |node: &str, url: &str, by: &str| {
        cluster.wait(&format!("{node} reaches {url}"), |it| {
            get_on(it, node, url).is_some_and(|answer| answered_by(&answer).starts_with(by))
        });
    };
    for host in ["[fd99::10]", "[fd99::11]", "[fd99::12]", "[::1]"] {
        get("m1", &format!("http://{host}:8080/"), "web.");
    }
    get("m1", "http://[fd99::11]:8081/", "plain.");
    get("w1", "http://[::1]:8081/", "plain.");
}

#[test]
fn data_and_control_each_use_the_address_that_they_are_given() {
    let cluster = Cluster::up(1, 2);
    for (node, last) in [("w1", 11), ("w2", 12)] {
        cluster.sandbox_ok(&format!("exec {node} -- busybox ip addr add 198.18.9.{last}/24 dev eth0"));
        let file = cluster.data(node).with_file_name("flotad.toml");
        std::fs::write(file, format!("data-path-addr = \"198.18.9.{last}\"\n")).unwrap();
        cluster.sandbox_ok(&format!("stop --daemon-only {node}"));
        cluster.sandbox_ok(&format!("start {node}"));
        cluster.wait_state(node, "ready");
        // Whoever takes the other address gets nowhere.
        for rule in [
            "add table inet foreign",
            "add chain inet foreign c { type filter hook output priority 0 ; }",
            "add rule inet foreign c ip daddr 198.18.0.0/24 udp dport 4789 drop",
            "add rule inet foreign c ip daddr 198.18.9.0/24 tcp dport 2377 drop",
        ] {
            cluster.sandbox_ok(&format!("exec {node} -- nft {rule}"));
        }
    }
    cluster.ok("network create front");
    let service = "service create --network front --constraint node.hostname==";
    cluster.ok(&format!("{service}w2 --name web --env TASK={{{{.Task.Name}}}} whoami"));
    cluster.ok(&format!("{service}w1 --name client whoami"));
    assert!(answered_by(&cluster.ok("exec client -- /whoami get http://web/")).starts_with("web."));
    for node in ["w1", "w2"] {
        cluster.sandbox_ok(&format!("exec {node} -- nft add rule inet foreign c ip daddr 198.18.9.0/24 drop"));
    }
    let cut = cluster.ctl("network check front");
    assert!(cut.stdout.contains("underlay: "), "{}{}", cut.stdout, cut.stderr);
    assert_eq!(cluster.rows("node ls --filter state=ready").len(), 3, "sessions do not need that address");
}
