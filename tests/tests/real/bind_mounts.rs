//! Bind mounts and what is mounted below them on the node, before and while the task runs.

use std::fs;

use flota_tests::Cluster;

#[test]
fn a_mount_made_below_a_bound_folder_appears_in_a_task_with_rslave_and_not_with_rprivate() {
    let cluster = Cluster::bare(1, 0);
    cluster.pack_busybox();
    let allowed = tempfile::tempdir().unwrap();
    let folder = allowed.path().display().to_string();
    for name in ["before", "later"] {
        fs::create_dir(allowed.path().join(name)).unwrap();
    }
    cluster.set("m1", &format!("[allow]\nbind-mounts = [\"{folder}\"]\n"));
    let on_node = |words: &str| cluster.sandbox_ok(&format!("exec m1 -- busybox {words}"));
    // All mounts of a node of a sandbox are private, and one that is to tell others of what is mounted below is shared.
    on_node(&format!("mount --bind {folder} {folder}"));
    on_node(&format!("mount --make-rshared {folder}"));
    on_node(&format!("mount -t tmpfs none {folder}/before"));
    on_node(&format!("touch {folder}/before/file"));
    for (service, options) in [
        ("default", ""),
        ("private", ",bind-propagation=rprivate"),
        ("slave", ",bind-propagation=rslave"),
        ("alone", ",bind-propagation=rslave,bind-recursive=disabled"),
    ] {
        let mount = format!("--mount type=bind,source={folder},target=/bound{options}");
        let command = "--stop-signal KILL --entrypoint /busybox busybox sleep 1000000";
        cluster.ok(&format!("service create --name {service} {mount} {command}"));
    }
    let seen = |service: &str, folder: &str| cluster.ok(&format!("exec {service} -- /busybox ls /bound/{folder}"));
    for (service, files) in [("default", "file\n"), ("private", "file\n"), ("slave", "file\n"), ("alone", "")] {
        assert_eq!(seen(service, "before"), files, "{service}: what was mounted there when it started");
    }

    on_node(&format!("mount -t tmpfs none {folder}/later"));
    on_node(&format!("touch {folder}/later/file"));
    for (service, files) in [("default", ""), ("private", ""), ("slave", "file\n"), ("alone", "file\n")] {
        assert_eq!(seen(service, "later"), files, "{service}: what is mounted there later");
    }
    on_node(&format!("umount {folder}/later"));
    assert_eq!(seen("slave", "later"), "", "it is unmounted in the task, too");
    on_node(&format!("umount {folder}/before"));
    assert_eq!(seen("slave", "before"), "");
    assert_eq!(seen("private", "before"), "file\n", "a private one keeps what it had");
}
