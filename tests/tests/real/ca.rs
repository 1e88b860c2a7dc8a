//! The CA of a cluster: replaced while everything runs, and given by a user.

use std::path::Path;

use flota_tests::{Cluster, wait_for};
use serde_json::Value;

fn inspect(cluster: &Cluster, node: &str) -> Value {
    serde_json::from_str::<Value>(&cluster.ok(&format!("node inspect {node}"))).unwrap()[0].clone()
}

/// The digests of the CAs that `ctl swarm ca` shows.
pub(super) fn digests(cluster: &Cluster) -> Vec<String> {
    let shown = cluster.ok("swarm ca");
    shown.lines().filter_map(|line| line.trim().strip_prefix("SHA-256:")).map(|it| it.trim().to_owned()).collect()
}

/// The CA's certificates in a node's folder, one after the other.
fn trusted_on_disk(cluster: &Cluster, node: &str) -> Vec<u8> {
    std::fs::read(cluster.data(node).join("identity/ca.crt")).unwrap()
}

/// Writes a CA of a user's own into the folder, as they would make it.
fn own_ca(folder: &Path) -> (String, String) {
    let [key, certificate] = ["key.pem", "ca.pem"].map(|name| folder.join(name).display().to_string());
    let (own, mut params) = (rcgen::KeyPair::generate().unwrap(), rcgen::CertificateParams::default());
    params.distinguished_name.push(rcgen::DnType::CommonName, "acme-ca");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    std::fs::write(&certificate, params.self_signed(&own).unwrap().pem()).unwrap();
    std::fs::write(&key, own.serialize_pem()).unwrap();
    (certificate, key)
}

/// Copies a node's identity, as whoever has stolen its disk has it.
fn stolen(cluster: &Cluster, node: &str, folder: &Path) {
    for name in ["node.crt", "node.key", "ca.crt"] {
        std::fs::copy(cluster.data(node).join("identity").join(name), folder.join(name)).unwrap();
    }
}

/// Puts an identity back into a node's folder, where a build without folders has it.
fn put_back(cluster: &Cluster, node: &str, folder: &Path) {
    let identity = cluster.data(node).join("identity");
    std::fs::remove_dir_all(&identity).unwrap();
    std::fs::create_dir(&identity).unwrap();
    for name in ["node.crt", "node.key", "ca.crt"] {
        std::fs::copy(folder.join(name), identity.join(name)).unwrap();
    }
}

#[test]
fn the_ca_is_replaced_while_tasks_run_and_the_former_one_is_refused_afterwards() {
    let cluster = Cluster::up(3, 1);
    let nodes = ["m1", "m2", "m3", "w1"];
    cluster.ok("service create --detach --name web --replicas 4 whoami");
    cluster.wait("the service runs", |it| it.running("web").len() == 4);
    let leader = cluster.leader();
    let away = ["m3", "m2"].into_iter().find(|name| *name != leader).unwrap();
    let tasks = |it: &Cluster| {
        let stay = it.running("web").into_iter().filter(|row| row["node"] != away);
        let mut ids: Vec<String> = stay.map(|row| row["id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    };
    let (before, former, token) = (tasks(&cluster), digests(&cluster), cluster.ok("swarm join-token -q worker"));
    let copy = tempfile::tempdir().unwrap();
    stolen(&cluster, "w1", copy.path());
    let losses = nodes.map(|node| inspect(&cluster, node)["losses"].clone());
    // A manager is away, so the rotation waits, with nodes of both CAs in the cluster.
    cluster.sandbox_ok(&format!("stop {away}"));
    let begun = cluster.ok("swarm ca --rotate --detach");
    assert!(begun.contains("being replaced"), "{begun}");
    cluster.wait("all others use the new one", |it| it.ok("swarm ca").contains("3 of 4 nodes use the new one"));
    let shown = cluster.ok("swarm ca");
    assert!(shown.contains(&format!("missing: {away} (")) && shown.contains("ctl node rm"), "{shown}");
    assert_eq!(digests(&cluster)[1..], former);
    // A daemon starts again in the middle: what is on disk is what is in use.
    cluster.sandbox_ok("stop --daemon-only w1");
    cluster.sandbox_ok("start w1");
    cluster.wait_state("w1", "ready");
    // A second rotation wins, and the manager that comes back renews with a certificate of the first CA.
    let middle = digests(&cluster);
    cluster.ok("swarm ca --rotate --detach");
    assert_ne!(digests(&cluster)[0], middle[0]);
    assert_eq!(digests(&cluster)[1], middle[1]);
    cluster.sandbox_ok(&format!("start {away}"));
    cluster.wait("the rotation ends", |it| digests(it).len() == 1);
    let now = digests(&cluster);
    assert_ne!(now, former);
    for node in nodes {
        wait_for(&format!("{node} trusts only the new CA"), || {
            let trusted = trusted_on_disk(&cluster, node);
            if flota_identity::sha256_hex(&trusted) == now[0] { Ok(()) } else { Err("it does not".into()) }
        });
        cluster.wait_state(node, "ready");
    }
    let now_there = tasks(&cluster);
    assert!(before.iter().all(|task| now_there.contains(task)), "{before:?} were replaced: {now_there:?}");
    let staying = nodes.iter().zip(losses).filter(|(node, _)| **node != away && **node != "w1");
    for (node, losses) in staying {
        assert_eq!(inspect(&cluster, node)["losses"], losses, "{node} was not lost");
    }
    // The old token names a CA that no manager presents.
    assert_ne!(cluster.ok("swarm join-token -q worker"), token);
    // The stolen identity is good for nothing, and the node is told why.
    cluster.sandbox_ok("stop w1");
    put_back(&cluster, "w1", copy.path());
    cluster.sandbox_ok("start w1");
    cluster.wait("it is refused", |it| it.sandbox("logs w1").stdout.contains("was not signed by"));
    cluster.wait_state("w1", "down");
}

#[test]
fn a_cluster_uses_a_ca_that_its_owner_gives_at_its_beginning_and_later() {
    let cluster = Cluster::bare(1, 1);
    for name in ["w1", "m1"] {
        assert_eq!(cluster.ctl_on(name, "swarm leave --force").code, 0);
    }
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (certificate, key) = own_ca(folder.path());
    let (next, next_key) = own_ca(other.path());
    let refused = cluster.ctl_on("m1", &format!("swarm init --ca-cert {certificate} --ca-key {next_key}"));
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("the key does not belong to the certificate"), "{}", refused.stderr);
    let init = cluster.ctl_on("m1", &format!("swarm init --ca-cert {certificate} --ca-key {key}"));
    assert_eq!(init.code, 0, "{}", init.stderr);
    assert!(cluster.ok("swarm ca").contains("CN=acme-ca"));
    let token = cluster.ok("swarm join-token -q worker");
    let joined = cluster.ctl_on("w1", &format!("swarm join --token {} 198.18.0.10", token.trim()));
    assert_eq!(joined.code, 0, "{}", joined.stderr);
    cluster.wait_state("w1", "ready");
    let before = digests(&cluster);
    let again = cluster.ctl(&format!("swarm ca --rotate --ca-cert {certificate} --ca-key {key}"));
    assert!(again.stderr.contains("signs the cluster's certificates already"), "{}", again.stderr);
    let rotated = cluster.ok(&format!("swarm ca --rotate --ca-cert {next} --ca-key {next_key}"));
    assert!(rotated.contains("The CA has been replaced"), "{rotated}");
    assert_ne!(digests(&cluster), before);
    cluster.wait_state("w1", "ready");
}
