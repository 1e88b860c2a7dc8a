//! Images for several platforms, and for another one than that of the only node.

use flota_tests::Cluster;
use serde_json::{Value, json};

use crate::registries::{Repository, architecture, digest_of, log_in, registry};

/// The errors of the service's tasks.
fn errors(cluster: &Cluster, service: &str) -> Vec<String> {
    let tasks = cluster.rows(&format!("service ps {service}"));
    tasks.iter().map(|task| task["error"].as_str().unwrap_or_default().to_owned()).collect()
}

fn inspected(cluster: &Cluster, service: &str) -> Value {
    serde_json::from_str::<Value>(&cluster.ok(&format!("service inspect {service}"))).unwrap()[0].clone()
}

#[test]
fn a_task_waits_for_a_node_of_its_images_platform_and_runs_once_the_image_has_that_of_a_node() {
    let cluster = Cluster::bare(1, 0);
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::new(dir.path(), "app");
    let (own, other) = (architecture(), if architecture() == "arm64" { "amd64" } else { "arm64" });
    let foreign = repository.image(other, b"no layer that anyone unpacks");
    let attestation = {
        let mut it = repository.image("unknown", b"nor this one");
        it["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
        it
    };
    repository.tag("foreign", &repository.index(&[foreign.clone(), attestation.clone()]));
    repository.tag("single", &foreign);
    let both = repository.index(&[foreign.clone(), attestation, repository.whoami()]);
    repository.tag("both", &both);
    let _registry = registry(&cluster, "m1", dir.path());
    log_in(&cluster);

    let waits = format!("no node fits: 1 of 1 of another platform than the image's (linux/{other})");
    for tag in ["foreign", "single"] {
        cluster.ok(&format!("service create --detach --name {tag} localhost:5000/app:{tag}"));
        cluster.wait("the task says why it waits", |it| errors(it, tag) == [waits.clone()]);
        assert_eq!(inspected(&cluster, tag)["imagePlatforms"], json!([format!("linux/{other}")]));
    }
    cluster.ok("service update --image localhost:5000/app:both foreign");
    assert_eq!(cluster.running("foreign").len(), 1);
    let mut platforms = vec![format!("linux/{own}"), format!("linux/{other}")];
    platforms.sort();
    let service = inspected(&cluster, "foreign");
    assert_eq!((&service["imagePlatforms"], &service["imageDigest"]), (&json!(platforms), &both["digest"]));
    let blobs = cluster.data("m1").join("worker/images/blobs/sha256");
    let has = |descriptor: &Value| blobs.join(digest_of(descriptor).trim_start_matches("sha256:")).exists();
    assert!(has(&both) && !has(&foreign), "of an index a node pulls its own manifest alone");

    // Who asks no registry does not know; then the node itself refuses.
    cluster.ok(
        "service create --detach --no-resolve-image --restart-max-attempts 1 --name blind localhost:5000/app:single",
    );
    let refuses = format!("the image is not for linux/{own}: it is for linux/{other}");
    cluster.wait("the node refuses it", |it| errors(it, "blind").iter().any(|error| error.contains(&refuses)));
}

#[test]
fn a_global_service_has_no_task_where_its_image_does_not_run_unless_it_runs_nowhere() {
    let cluster = Cluster::bare(1, 0);
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::new(dir.path(), "app");
    let other = if architecture() == "arm64" { "amd64" } else { "arm64" };
    repository.tag("1", &repository.whoami());
    repository.tag("2", &repository.image(other, b"no layer that anyone unpacks"));
    let _registry = registry(&cluster, "m1", dir.path());
    log_in(&cluster);
    cluster.ok("service create --mode global --name agent localhost:5000/app:1");
    let before = cluster.running("agent")[0]["id"].clone();
    cluster.ok("service update --detach --image localhost:5000/app:2 agent");
    cluster.wait("the new task says why it waits", |it| {
        errors(it, "agent").iter().any(|error| error.contains("of another platform than the image's"))
    });
    assert_eq!(cluster.running("agent")[0]["id"], before, "what runs goes on");
}
