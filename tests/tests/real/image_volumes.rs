//! The `VOLUME` of an image: each task has a folder of its own there, unless its service mounts something else.

use flota_tests::{Cluster, Output};

use super::archives;

/// Runs a shell command in the task of a service.
fn sh(cluster: &Cluster, service: &str, script: &str) -> Output {
    cluster.ctl_args(&["exec", service, "--", "/bin/busybox", "sh", "-c", script])
}

fn sh_ok(cluster: &Cluster, service: &str, script: &str) -> String {
    let result = sh(cluster, service, script);
    assert_eq!(result.code, 0, "{script}: {}{}", result.stdout, result.stderr);
    result.stdout.trim().to_owned()
}

/// The files called `mine` in the folders of tasks and volumes on the node.
fn files(cluster: &Cluster) -> Vec<String> {
    cluster.find("m1", "/var/lib/flota/worker -name mine")
}

#[test]
fn a_task_has_a_folder_of_its_own_at_a_volume_of_its_image_and_it_goes_with_the_task() {
    let cluster = Cluster::bare(1, 0);
    let dir = tempfile::tempdir().unwrap();
    cluster.ok(&format!("image import --tag db {}", archives::busybox_with_volume(dir.path())));
    cluster.ok("service create --name db --replicas 2 --read-only --stop-signal KILL --update-monitor 0s db");
    // The root can't be written, so what is written is in the folder.
    assert!(sh(&cluster, "db.1", "/bin/busybox touch /srv/file").stderr.contains("Read-only file system"));
    for task in ["db.1", "db.2"] {
        assert_eq!(sh_ok(&cluster, task, "/bin/busybox cat /srv/data/of-image"), "of the image");
        assert_eq!(sh_ok(&cluster, task, "/bin/busybox ls /srv/data"), "of-image", "nobody else's files");
        sh_ok(&cluster, task, "/bin/busybox touch /srv/data/mine");
    }
    let found = files(&cluster);
    assert_eq!(found.len(), 2, "each has one: {found:?}");
    assert!(cluster.rows("volume ls").is_empty(), "and they are no volumes of the cluster");

    cluster.ok("service update --force db");
    assert_eq!(sh_ok(&cluster, "db.1", "/bin/busybox ls /srv/data"), "of-image", "the next task has its own");
    cluster.wait("the folders of the tasks that have ended are gone", |it| files(it).is_empty());

    // A mount of the service takes its place.
    let mount = "--mount source=data,target=/srv/data";
    cluster.ok(&format!("service create --name kept {mount} --stop-signal KILL --update-monitor 0s db"));
    sh_ok(&cluster, "kept", "/bin/busybox touch /srv/data/mine");
    cluster.ok("service update --force kept");
    assert_eq!(sh_ok(&cluster, "kept", "/bin/busybox ls /srv/data"), "mine\nof-image");

    cluster.ok("service rm db kept");
    cluster.ok("volume rm data");
    cluster.wait("nothing is left on the node", |it| files(it).is_empty());
}
