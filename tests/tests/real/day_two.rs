//! What the owner of a cluster does when a manager or the key of the CA is lost, by the pages in deploy/runbooks.

use flota_tests::Cluster;

use super::ca;
use super::runbook::{Runbook, wipe};

/// The names of the managers that the cluster has.
fn managers(cluster: &Cluster) -> Vec<String> {
    let rows = cluster.rows("node ls --filter role=manager");
    let mut names: Vec<String> = rows.iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn manager_replaced() {
    let (cluster, page) = (Cluster::up(3, 2), Runbook::open("manager-replaced.md"));
    let [look, remove, promote, token, by_itself]: [String; 5] =
        page.blocks("manager").try_into().expect("five blocks");
    let [join] = <[String; 1]>::try_from(page.blocks("new-manager")).expect("one block");
    cluster.ok("service create --name web --replicas 4 whoami");
    let lost = cluster.leader();
    let left = ["m1", "m2", "m3"].into_iter().find(|name| *name != lost).unwrap();
    cluster.kill(&lost);
    cluster.wait("it is down", |it| it.ctl_on(left, "node ls --filter state=down -q").stdout.lines().count() == 1);
    assert!(page.ok(&cluster, left, &look).contains(&lost));
    page.ok(&cluster, left, &remove.replace("LOST", &lost));
    let seen = page.ok(&cluster, left, &promote.replace("WORKER", "w1"));
    assert!(!seen.contains(&lost) && managers(&cluster).contains(&"w1".to_owned()), "{seen}");

    let printed = page.ok(&cluster, left, &token);
    let words: Vec<&str> = printed.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "--token").expect("the command has a token");
    wipe(&cluster, &lost);
    cluster.sandbox_ok(&format!("start {lost}"));
    cluster.wait("its daemon answers", |it| it.ctl_on(&lost, "system info").stdout.contains("cluster: none"));
    page.ok(&cluster, &lost, &join.replace("TOKEN", words[at + 1]).replace("ADDRESS", words[at + 2]));
    cluster.wait_state(&lost, "ready");
    assert_eq!(managers(&cluster), ["m1", "m2", "m3", "w1"]);

    // The same by itself, sooner than the page says.
    page.ok(&cluster, left, &by_itself.replace("CANDIDATE", "w2"));
    cluster.ok("swarm update --dead-manager-after 10s");
    let dies = ["m1", "m2", "m3"].into_iter().find(|name| *name != left && **name != *cluster.leader()).unwrap();
    cluster.kill(dies);
    cluster.wait("another node takes its place", |it| {
        let managers = managers(it);
        managers.contains(&"w2".to_owned()) && !managers.contains(&dies.to_owned())
    });
    cluster.wait("all tasks run", |it| it.running("web").len() == 4);
}

#[test]
fn ca_leaked() {
    let (cluster, page) = (Cluster::up(1, 2), Runbook::open("ca-leaked.md"));
    let [rotate, look, remove, end]: [String; 4] = page.blocks("manager").try_into().expect("four blocks");
    cluster.ok("service create --name web --replicas 2 --constraint node.hostname==w1 whoami");
    let tasks = |it: &Cluster| it.running("web").iter().map(|row| row["id"].clone()).collect::<Vec<_>>();
    let (before, token) = (tasks(&cluster), cluster.ok("swarm join-token -q worker"));
    cluster.sandbox_ok("stop w2");
    cluster.wait_state("w2", "down");
    page.ok(&cluster, "m1", &rotate);
    cluster.wait("all others use the new one", |it| page.ok(it, "m1", &look).contains("2 of 3 nodes use the new one"));
    assert!(page.ok(&cluster, "m1", &look).contains("missing: w2"));
    assert_eq!(ca::digests(&cluster).len(), 2, "the former one is still trusted");
    page.ok(&cluster, "m1", &remove.replace("AWAY", "w2"));
    cluster.wait("the former one has gone", |it| ca::digests(it).len() == 1);
    assert!(!page.ok(&cluster, "m1", &end).contains(token.trim()), "the token has changed");
    assert_eq!(tasks(&cluster), before, "no task was touched");

    // What a stolen manager knew beside the CA is replaced, too: the key of grants, and those of the data on disks.
    cluster.pack_busybox();
    cluster.ok("service create -d --name late --constraint node.hostname==w1 busybox busybox sleep 1000");
    cluster.wait("a node fetches an image by a grant of the new key", |it| it.running("late").len() == 1);
    for (node, name) in [("m1", "data.key"), ("m1", "raft.key"), ("w1", "data.key")] {
        let keys = std::fs::metadata(cluster.data(node).join(name)).unwrap().len();
        assert_eq!(keys, 2 * 32, "{node} has a new key and its former one in {name}");
    }
}

#[test]
fn addresses_changed() {
    let (cluster, page) = (Cluster::up(3, 1), Runbook::open("addresses-changed.md"));
    let [look, managers, list] = <[String; 3]>::try_from(page.blocks("manager")).expect("three blocks");
    let [worker] = <[String; 1]>::try_from(page.blocks("worker")).expect("one block");
    cluster.ok("service create --name web --replicas 4 whoami");
    let nodes = ["m1", "m2", "m3", "w1"];
    cluster.sandbox_ok("stop m1 m2 m3 w1");
    for (number, node) in nodes.iter().enumerate() {
        cluster.move_to(node, &format!("198.18.0.{}", 70 + number));
    }
    cluster.sandbox_ok("start m1 m2 m3 w1");
    let address = |node: &str| {
        let info = page.ok(&cluster, node, &look);
        info.lines().find_map(|line| line.strip_prefix("address: ")).expect("it has one").trim().to_owned()
    };
    cluster.wait("the daemons answer", |it| nodes.iter().all(|node| it.ctl_on(node, "system info").code == 0));
    let addresses = nodes.map(address);
    assert_eq!(addresses[0], "198.18.0.70:2377");
    assert_eq!(cluster.ctl_on("m1", "node ls").code, 5, "none finds another one");

    let wrong = managers.replace("FIRST SECOND THIRD", &format!("198.18.0.99 {}", addresses[3]));
    let refused = page.run(&cluster, "m1", &wrong);
    let why = "no other manager of this cluster answers at 198.18.0.99:2377, 198.18.0.73:2377";
    assert!(refused.code == 5 && refused.stderr.contains(why), "{}", refused.stderr);

    let refused = page.run(&cluster, "w1", "ctl swarm reconnect 'm 1'");
    assert!(refused.code == 1 && refused.stderr.contains("`m 1:2377` is not HOST:PORT"), "{}", refused.stderr);

    let with = |command: &str| {
        let named = command.replace("FIRST", &addresses[0]).replace("SECOND", &addresses[1]);
        named.replace("THIRD", &addresses[2])
    };
    for node in ["m1", "m2", "m3"] {
        assert_eq!(page.ok(&cluster, node, &with(&managers)), "This manager has found 2 others.\n");
    }
    assert_eq!(page.ok(&cluster, "w1", &with(&worker)), "This node has found the leader of its cluster.\n");
    cluster.wait("all are ready where they are now", |it| {
        let listed = page.ok(it, "m2", &list);
        let is_there = |(node, address): (&&str, &String)| {
            it.rows(&format!("node ls --filter name={node} --filter state=ready --filter address={address}")).len() == 1
        };
        listed.contains("w1") && nodes.iter().zip(&addresses).all(is_there)
    });
    cluster.wait("all tasks run", |it| it.running("web").len() == 4);
    // The managers have recorded where the others are, so that each of them is found after the loss of one.
    cluster.kill("m1");
    cluster.wait("another one leads", |it| it.ctl_on("m2", "service ls").stdout.contains("web"));
}

#[test]
fn disk_full() {
    let (cluster, page) = (Cluster::up(1, 2), Runbook::open("disk-full.md"));
    let [look, pause, room, again] = <[String; 4]>::try_from(page.blocks("manager")).expect("four blocks");
    cluster.pack_busybox();
    // The node gets a small disk of its own, with what it has now.
    cluster.sandbox_ok("kill --daemon-only w1");
    let script = cluster.data("w1").join("small.sh");
    let small = "cp -a /var/lib/flota /tmp/before && mount -t tmpfs -o size=48m none /var/lib/flota && \
                 cp -a /tmp/before/. /var/lib/flota && rm -r /tmp/before\n";
    std::fs::write(script, small).unwrap();
    cluster.sandbox_ok("exec w1 -- sh -e /var/lib/flota/small.sh");
    cluster.sandbox_ok("start w1");
    cluster.wait_state("w1", "ready");
    let fill = "service create -d --name fill --restart-condition none --constraint node.hostname==w1 \
                --mount type=volume,source=data,target=/data busybox busybox dd if=/dev/zero of=/data/much bs=4k";
    cluster.ok(fill);
    cluster.wait("the disk is full", |it| it.rows("service ps fill --filter state=failed").len() == 1);
    cluster.ok("service rm fill");

    let web = "service create -d --name web --constraint node.hostname==w1 whoami";
    cluster.ok(web);
    cluster.wait("it says why it does not run", |it| {
        page.ok(it, "m1", &look.replace("SERVICE", "web")).contains("No space left on device")
    });
    page.ok(&cluster, "m1", &pause.replace("FULL", "w1"));
    assert!(page.ok(&cluster, "m1", &room.replace("VOLUME", "data")).contains("data"));
    assert!(page.ok(&cluster, "m1", &again.replace("FULL", "w1")).contains("w1"));
    cluster.wait("it runs", |it| it.running("web").len() == 1);
}
