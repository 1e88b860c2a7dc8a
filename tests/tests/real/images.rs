//! Images: into the cluster, between nodes, from a registry.

use std::io::Write;
use std::path::Path;

use flota_tests::{Cluster, programs};

#[test]
fn lesson_29_an_image_lies_on_two_nodes_and_reaches_the_others_without_a_registry() {
    let cluster = Cluster::up(3, 2);
    let image = &cluster.rows("image ls")[0];
    assert_eq!(image["holders"].as_array().map(Vec::len), Some(2));
    cluster.ok("service create --name web --replicas 5 whoami");
    assert_eq!(cluster.running("web").len(), 5, "also on nodes that did not have it");
    // A holder is lost: the count is restored.
    cluster.ok("service rm web");
    cluster.kill("w1");
    cluster.kill("w2");
    cluster.wait_state("w2", "down");
    cluster.wait("two nodes that live hold it", |it| {
        let ready: Vec<_> = it.rows("node ls --filter state=ready").iter().map(|node| node["id"].clone()).collect();
        let image = &it.rows("image ls")[0];
        image["holders"].as_array().is_some_and(|all| all.iter().filter(|id| ready.contains(id)).count() >= 2)
    });
}

/// A tar in memory.
fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        // Set by hand: the library refuses the names that are wanted here.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.append(&header, *bytes).unwrap();
    }
    archive.into_inner().unwrap()
}

fn docker_archive(dir: &Path, layer: &[u8]) -> String {
    let config = br#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/whoami"]},"rootfs":{"type":"layers","diff_ids":[]}}"#;
    let manifest = br#"[{"Config":"config.json","RepoTags":["saved:1"],"Layers":["layer.tar"]}]"#;
    let path = dir.join("image.tar");
    let archive = tar(&[("config.json", config), ("layer.tar", layer), ("manifest.json", manifest)]);
    std::fs::File::create(&path).unwrap().write_all(&archive).unwrap();
    path.display().to_string()
}

#[test]
fn archives_are_imported_and_bad_ones_refused_without_a_trace() {
    let cluster = Cluster::bare(1, 0);
    let dir = tempfile::tempdir().unwrap();
    let program = std::fs::read(programs().join("whoami")).unwrap();
    let good = docker_archive(dir.path(), &tar(&[("whoami", &program)]));
    cluster.ok(&format!("image import {good}"));
    cluster.ok("service create --name web saved:1");
    assert_eq!(cluster.running("web").len(), 1);
    let refused = |layer: &[u8], why: &str| {
        let result = cluster.ctl(&format!("image import --tag bad {}", docker_archive(dir.path(), layer)));
        assert_eq!(result.code, 1, "{why}");
        assert!(result.stderr.contains(why), "{}", result.stderr);
    };
    refused(&tar(&[("../escape", b"x")]), "leads out of its folder");
    refused(&tar(&[("/absolute", b"x")]), "is an absolute path");
    let whole = tar(&[("whoami", &program)]);
    refused(&whole[..whole.len() / 2], "it is cut off or no tar");
    assert_eq!(cluster.rows("image ls").len(), 1, "nothing of a refused image is there");
    let file = dir.path().join("junk");
    std::fs::write(&file, b"this is no archive").unwrap();
    let junk = cluster.ctl(&format!("image import {}", file.display()));
    assert!(junk.code == 1 && junk.stderr.contains("the archive is refused"), "{}", junk.stderr);
    std::fs::copy("/bin/ls", &file).unwrap();
    let dynamic = cluster.ctl(&format!("image pack --tag ls {}", file.display()));
    assert!(dynamic.code == 1 && dynamic.stderr.contains("linked dynamically"), "{}", dynamic.stderr);
}
