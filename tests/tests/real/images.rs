//! Images: into the cluster, between nodes, from a registry.

use std::fs;
use std::io::Write;
use std::path::Path;

use flota_tests::{Cluster, programs};

use crate::archives::{archive, docker_archive, tar};
use crate::registries::{Repository, registry};

#[test]
fn an_image_lies_on_two_nodes_and_reaches_the_others_without_a_registry() {
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

#[test]
fn where_overlayfs_can_not_write_layers_are_copied_to_the_same_result() {
    let cluster = Cluster::bare(1, 1);
    let dir = tempfile::tempdir().unwrap();
    // w1's data lies on an overlay, which can't be another one's upper layer.
    cluster.sandbox_ok("kill --daemon-only w1");
    let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
    fs::create_dir_all(&upper).unwrap();
    fs::create_dir_all(&work).unwrap();
    let options = format!("lowerdir=/var/lib/flota,upperdir={},workdir={}", upper.display(), work.display());
    cluster.sandbox_ok(&format!("exec w1 -- busybox mount -t overlay overlay -o {options} /var/lib/flota"));
    cluster.sandbox_ok("start w1");
    cluster.wait_state("w1", "ready");
    assert!(cluster.sandbox_ok("logs w1").contains("overlayfs can't write here"), "the log says so at the start");
    let busybox = fs::read("/bin/busybox").unwrap();
    let below = tar(&[("busybox", &busybox), ("gone", b"x"), ("dir/old", b"x"), ("kept", b"1"), ("changed", b"1")]);
    let above = tar(&[(".wh.gone", b""), ("dir/.wh..wh..opq", b""), ("dir/new", b"x"), ("changed", b"2")]);
    let file = archive(dir.path(), &["/busybox", "sleep", "1000"], &[&below, &above]);
    cluster.ok(&format!("image import --tag box {file}"));
    for node in ["m1", "w1"] {
        cluster.ok(&format!("service create --name {node} --stop-signal KILL --constraint node.hostname=={node} box"));
        let seen = cluster.ok(&format!("exec {node} -- /busybox ls / /dir"));
        assert!(
            seen.contains("kept") && seen.contains("new") && !seen.contains("gone") && !seen.contains("old"),
            "{seen}"
        );
        assert_eq!(cluster.ok(&format!("exec {node} -- /busybox cat /changed")), "2");
        // Each task has a layer of its own to write to.
        cluster.ok(&format!("exec {node} -- /busybox touch /mine"));
        cluster.ok(&format!("service scale {node}=2"));
        assert!(!cluster.ok(&format!("exec {node}.2 -- /busybox ls /")).contains("mine"));
        cluster.ok(&format!("service rm {node}"));
        // So are those of an image that a task mounts.
        let part = "--mount type=image,source=box,target=/part,image-subpath=dir";
        let place = format!("--stop-signal KILL --constraint node.hostname=={node}");
        let mounts = format!("--mount type=image,source=box,target=/all {part}");
        cluster.ok(&format!("service create --name {node} {place} {mounts} box"));
        assert_eq!(cluster.ok(&format!("exec {node} -- /busybox ls /part")), "new\n");
        assert_eq!(cluster.ok(&format!("exec {node} -- /busybox cat /all/changed")), "2");
        assert_eq!(cluster.ctl(&format!("exec {node} -- /busybox ls /all/gone")).code, 1);
        let written = cluster.ctl(&format!("exec {node} -- /busybox touch /all/mine"));
        assert!(written.stderr.contains("Read-only file system"), "{}", written.stderr);
        cluster.ok(&format!("service rm {node}"));
    }
    cluster
        .wait("nothing of the tasks is left", |it| it.find("w1", "/var/lib/flota/worker/tasks -mindepth 1").is_empty());
    cluster.sandbox_ok("kill w1");
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
    refused(&tar(&[(".wh.", b"")]), "hides no file");
    let whole = tar(&[("whoami", &program)]);
    refused(&whole[..whole.len() / 2], "it is cut off");
    assert_eq!(cluster.rows("image ls").len(), 1, "nothing of a refused image is there");
    let file = dir.path().join("junk");
    std::fs::write(&file, b"this is not an archive").unwrap();
    let junk = cluster.ctl(&format!("image import {}", file.display()));
    assert!(junk.code == 1 && junk.stderr.contains("the archive is refused"), "{}", junk.stderr);
    std::fs::copy("/bin/ls", &file).unwrap();
    let dynamic = cluster.ctl(&format!("image pack --tag ls {}", file.display()));
    assert!(dynamic.code == 1 && dynamic.stderr.contains("linked dynamically"), "{}", dynamic.stderr);
}

/// Whether a text is in a file somewhere below a folder.
fn holds(dir: &Path, text: &[u8]) -> bool {
    fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => holds(&entry.path(), text),
        Ok(kind) if kind.is_file() => {
            fs::read(entry.path()).is_ok_and(|bytes| bytes.windows(text.len()).any(|it| it == text))
        }
        _ => false,
    })
}

#[test]
fn an_image_of_a_private_registry_outlives_registry_and_credentials() {
    let cluster = Cluster::bare(1, 2);
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::new(dir.path(), "team/app");
    let digest = repository.tag("1", &repository.whoami());
    let registry = registry(&cluster, "w1", dir.path());
    let app = "service create --detach --name app --replicas 2 --restart-delay 50ms";
    // A tag means what the registry says when a node asks; a digest is the same image on every node.
    cluster.ok(&format!("{app} --constraint node.hostname==w1 localhost:5000/team/app:1@{digest}"));
    cluster.wait("the error says that the registry wants credentials", |it| {
        it.rows("service ps app").iter().any(|task| {
            let error = task["error"].as_str().unwrap_or_default().to_lowercase();
            task["state"] == "rejected" && error.contains("localhost:5000/team/app@sha256:") && error.contains("auth")
        })
    });
    let login = "registry login --username builder --password-stdin localhost:5000";
    let logged_in = cluster.ctl_with_input(login, "letmein\n");
    assert_eq!(logged_in.code, 0, "{}", logged_in.stderr);
    assert!(!cluster.ok("registry ls --format json").contains("letmein"), "a password is never shown");
    cluster.wait("it runs with the cluster's credentials", |it| it.running("app").len() == 2);
    assert!(!holds(&cluster.data("w1"), b"letmein"), "on no worker's disk");
    cluster.wait("the cluster keeps the image itself", |it| {
        it.rows("image ls").iter().any(|image| image["holders"].as_array().is_some_and(|all| all.len() == 2))
    });
    // The registry goes, and with it every credential: what runs moves and grows all the same.
    cluster.ok("registry logout localhost:5000");
    drop(registry);
    cluster.ok("service update --constraint-rm node.hostname==w1 app");
    cluster.ok("service scale app=6");
    let nodes: std::collections::BTreeSet<_> =
        cluster.running("app").iter().map(|task| task["node"].to_string()).collect();
    assert_eq!(nodes.len(), 3, "also on nodes that could not have pulled it");
    // An update to what can't be had stops nothing.
    let before: Vec<_> = cluster.running("app").iter().map(|task| task["id"].clone()).collect();
    let update = cluster.ctl("service update --image localhost:5000/team/app:2 app");
    assert_eq!(update.code, 1, "{}", update.stderr);
    assert!(update.stderr.contains("the update is paused"), "{}", update.stderr);
    let after: Vec<_> = cluster.running("app").iter().map(|task| task["id"].clone()).collect();
    assert_eq!(before, after, "the image is looked for before anything is stopped");
}

#[test]
fn images_are_pulled_by_users_with_the_clusters_or_their_own_credentials() {
    let cluster = Cluster::bare(1, 1);
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::new(dir.path(), "app");
    repository.tag("1", &repository.whoami());
    let _registry = registry(&cluster, "m1", dir.path());
    let refused = cluster.ctl("image pull localhost:5000/app:1");
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("failed to pull localhost:5000/app:1"), "{}", refused.stderr);
    let missing = "image pull --username builder --password-stdin localhost:5000/app:9";
    assert_eq!(cluster.ctl_with_input(missing, "letmein").code, 1);
    let own = cluster.ctl_with_input(&missing.replace(":9", ":1"), "letmein");
    assert_eq!(own.code, 0, "{}", own.stderr);
    let image = &cluster.rows("image ls")[0];
    assert_eq!(
        (image["reference"].as_str(), image["holders"].as_array().map(Vec::len)),
        (Some("localhost:5000/app:1"), Some(2))
    );
    cluster.ok("image rm localhost:5000/app:1");
    let login = "registry login --username builder --password-stdin localhost:5000";
    assert_eq!(cluster.ctl_with_input(login, "letmein").code, 0);
    cluster.ok("image pull localhost:5000/app:1");
    cluster.ok("service create --name app --replicas 2 localhost:5000/app:1");
}

#[test]
fn blobs_that_the_cluster_needs_no_more_leave_every_disk_and_no_others_do() {
    let cluster = Cluster::up(1, 2);
    let blobs = |node: &str| fs::read_dir(cluster.data(node).join("worker/images/blobs/sha256")).unwrap().count();
    let nodes = ["m1", "w1", "w2"];
    cluster.ok("service create --name web --replicas 3 whoami");
    cluster.wait("every node has it", |_| nodes.iter().all(|node| blobs(node) == 3));
    // Another image takes its name: what runs still needs the old one.
    let dir = tempfile::tempdir().unwrap();
    let program = fs::read(programs().join("whoami")).unwrap();
    let other = docker_archive(dir.path(), &tar(&[("whoami", &program), ("other", b"x")]));
    cluster.ok(&format!("image import --tag whoami {other}"));
    let named = cluster.rows("image ls --filter reference=docker.io/library/whoami:latest");
    assert_eq!(named[0]["holders"].as_array().map(Vec::len), Some(2), "it is the new one that was waited for");
    assert!(nodes.iter().all(|node| blobs(node) >= 3));
    cluster.ok("service scale web=4");
    assert_eq!(cluster.running("web").len(), 4);
    // While a service names it, it is not removed; then it is, with everything of it.
    let used = cluster.ctl("image rm whoami");
    assert!(used.code == 1 && used.stderr.contains("is used by service `web`"), "{}", used.stderr);
    cluster.ok("service rm web");
    cluster.wait("the old image has gone with its last task", |it| it.rows("image ls").len() == 1);
    cluster.ok("image rm whoami");
    cluster.wait("no blob is left anywhere", |_| nodes.iter().all(|node| blobs(node) == 0));
    // Also where a node was away when it went.
    cluster.ok(&format!("image import --tag whoami {other}"));
    cluster.sandbox_ok("kill w1 w2");
    cluster.ok("image rm whoami");
    cluster.sandbox_ok("start w1 w2");
    cluster.wait("they have heard of it", |_| nodes.iter().all(|node| blobs(node) == 0));
}

#[test]
fn a_layer_that_grows_without_end_is_refused_where_the_user_looks() {
    let cluster = Cluster::bare(1, 0);
    let dir = tempfile::tempdir().unwrap();
    // 10 GiB of zeros in some 10 MB, and that once more in a few kB: a layer may not unpack to that.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut header = tar_core::builder::EntryBuilder::new_gnu();
    header.path("zeros").size(10 << 30).unwrap();
    packed.write_all(&header.finish_bytes()).unwrap();
    for _ in 0..640 {
        packed.write_all(&vec![0; 1 << 20]).unwrap();
    }
    let bomb = docker_archive(dir.path(), &packed.finish().unwrap());
    let refused = cluster.ctl(&format!("image import --tag bomb {bomb}"));
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("far more than its size"), "{}", refused.stderr);
    let blobs = cluster.data("m1").join("worker/images/blobs/sha256");
    cluster.wait("nothing of it is left", |_| fs::read_dir(&blobs).unwrap().count() == 0);
    assert!(cluster.rows("image ls").is_empty());
}
