//! Images for several platforms, and for another one than that of the only node.

use flota_tests::Cluster;
use serde_json::{Value, json};

use crate::archives::tar;
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

/// A 32-bit program for x86 that ends at once: exit(0) through `int 0x80`, in a file of one segment (elf(5)).
#[cfg(target_arch = "x86_64")]
fn program_of_32_bits() -> Vec<u8> {
    const CODE: &[u8] = &[0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80];
    const HEADERS: u32 = 84;
    const BASE: u32 = 0x0804_8000;
    let size = HEADERS + u32::try_from(CODE.len()).unwrap();
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2u16, 3].iter().flat_map(|it| it.to_le_bytes()));
    file.extend([1, BASE + HEADERS, 52, 0, 0].iter().flat_map(|it: &u32| it.to_le_bytes()));
    file.extend([52u16, 32, 1, 0, 0, 0].iter().flat_map(|it| it.to_le_bytes()));
    file.extend([1, 0, BASE, BASE, size, size, 5, 0x1000].iter().flat_map(|it: &u32| it.to_le_bytes()));
    file.extend(CODE);
    file
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_program_of_32_bits_runs_where_its_image_has_nothing_better() {
    let cluster = Cluster::bare(1, 0);
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::new(dir.path(), "app");
    let foreign = repository.image("s390x", b"no layer that anyone unpacks");
    let old = repository.image("386", &tar(&[("whoami", &program_of_32_bits())]));
    repository.tag("old", &repository.index(&[foreign, old]));
    let _registry = registry(&cluster, "m1", dir.path());
    log_in(&cluster);
    cluster.ok("service create --mode replicated-job --name old localhost:5000/app:old");
    assert_eq!(cluster.rows("service ps old")[0]["state"], "complete");
    assert_eq!(inspected(&cluster, "old")["imagePlatforms"], json!(["linux/386", "linux/s390x"]));
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
