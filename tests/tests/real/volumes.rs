//! Mounts and volumes on real kernels and disks.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use flota_tests::Cluster;

use super::archives;

/// A service of busybox that stays. With `--detach`: it may have to wait.
fn create(cluster: &Cluster, name: &str, flags: &str) {
    let command = "--stop-signal KILL --entrypoint /busybox busybox sleep 1000000";
    cluster.ok(&format!("service create --detach --name {name} {flags} {command}"));
    if !flags.contains("--constraint node.hostname==none") {
        cluster.wait(&format!("{name} runs"), |it| it.running(name).len() == 1);
    }
}

fn node_of(cluster: &Cluster, service: &str) -> String {
    cluster.running(service)[0]["node"].as_str().unwrap().to_owned()
}

fn reason(cluster: &Cluster, service: &str) -> String {
    let rows = cluster.rows(&format!("service ps {service}"));
    rows.iter().map(|it| it["error"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>().join("; ")
}

/// Runs a shell command in the task of a service.
fn sh(cluster: &Cluster, service: &str, script: &str) -> flota_tests::Output {
    cluster.ctl_args(&["exec", service, "--", "/busybox", "sh", "-c", script])
}

fn sh_ok(cluster: &Cluster, service: &str, script: &str) -> String {
    let result = sh(cluster, service, script);
    assert_eq!(result.code, 0, "{script}: {}{}", result.stdout, result.stderr);
    result.stdout.trim().to_owned()
}

/// The folders with data of volumes on a node.
fn data(cluster: &Cluster, node: &str) -> Vec<PathBuf> {
    let folder = cluster.data(node).join("worker/volumes");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.flat_map(|entry| fs::read_dir(entry.path()).into_iter().flatten().flatten()).map(|it| it.path()).collect()
}

#[test]
fn data_outlives_its_tasks_its_service_and_a_restart_of_its_node() {
    let cluster = Cluster::bare(1, 2);
    cluster.pack_busybox();
    create(&cluster, "db", "--constraint node.role==worker --mount source=data,target=/data");
    let home = node_of(&cluster, "db");
    sh_ok(&cluster, "db", "/busybox echo precious > /data/file");
    let first = cluster.running("db")[0]["id"].clone();
    cluster.ok("service update --force db");
    assert_ne!(cluster.running("db")[0]["id"], first, "another task");
    assert_eq!(sh_ok(&cluster, "db", "/busybox cat /data/file"), "precious");
    cluster.sandbox_ok(&format!("restart {home}"));
    cluster.wait_state(&home, "ready");
    cluster.wait("it runs again", |it| it.running("db").len() == 1);
    assert_eq!(sh_ok(&cluster, "db", "/busybox cat /data/file"), "precious");
    let refused = cluster.ctl("volume rm data");
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("volume `data` is used by db"), "{}", refused.stderr);
    cluster.ok("service rm db");
    assert_eq!(data(&cluster, &home).len(), 1, "nobody has asked to remove it");
    let rows = cluster.rows("volume ls");
    assert_eq!((rows[0]["name"].as_str(), rows[0]["nodes"][0].as_str()), (Some("data"), Some(home.as_str())));

    create(&cluster, "again", "--mount source=data,target=/elsewhere,readonly");
    assert_eq!(node_of(&cluster, "again"), home);
    assert_eq!(sh_ok(&cluster, "again", "/busybox cat /elsewhere/file"), "precious");
    let written = sh(&cluster, "again", "/busybox echo x > /elsewhere/file");
    assert!(written.stderr.contains("Read-only file system"), "{}", written.stderr);

    cluster.ok("service rm again");
    let kept = cluster.ctl("volume prune");
    assert_eq!(kept.code, 2, "it asks, and nobody can answer: {}", kept.stderr);
    cluster.ok("volume prune --force");
    assert_eq!(cluster.rows("volume ls").len(), 1, "a volume with data is not pruned by the way");
    cluster.ok("volume rm data");
    assert!(cluster.rows("volume ls").is_empty());
    cluster.wait("the data is gone", |it| data(it, &home).is_empty());
}

#[test]
fn each_slot_has_its_own_data_on_its_own_node_however_its_service_changes() {
    let cluster = Cluster::bare(1, 2);
    cluster.pack_busybox();
    let policy = "--replicas 2 --update-monitor 0s --stop-signal KILL";
    let command = "--mount source=data,target=/data,volume-per-slot --entrypoint /busybox busybox sleep 1000000";
    cluster.ok(&format!("service create --name db {policy} {command}"));
    let home = |slot: u64| {
        let tasks = cluster.running("db");
        let task = tasks.iter().find(|task| task["slot"] == slot).expect("the slot has a task");
        task["node"].as_str().unwrap().to_owned()
    };
    let homes = [home(1), home(2)];
    for slot in ["db.1", "db.2"] {
        sh_ok(&cluster, slot, &format!("/busybox echo {slot} > /data/file"));
    }
    // The third node has the fewest tasks from now on, and would get a task that may choose.
    let there = format!("node.hostname in ({},{})", homes[0], homes[1]);
    let filler = ["service", "create", "--name", "filler", "--replicas", "4", "--constraint", &there];
    let sleeps = ["--stop-signal", "KILL", "--entrypoint", "/busybox", "busybox", "sleep", "1000000"];
    let created = cluster.ctl_args(&[&filler[..], &sleeps].concat());
    assert_eq!(created.code, 0, "{}", created.stderr);
    for commands in [
        &["service scale db=1", "service scale db=2"][..],
        &["service scale db=0", "service scale db=2"],
        &["service restart db"],
        &["service update --env-add NEW=1 db"],
        &["service stop db", "service start db"],
    ] {
        commands.iter().for_each(|words| drop(cluster.ok(words)));
        for (index, slot) in [(0, "db.1"), (1, "db.2")] {
            assert_eq!(home(index as u64 + 1), homes[index], "{slot} after {commands:?}");
            assert_eq!(sh_ok(&cluster, slot, "/busybox cat /data/file"), slot, "after {commands:?}");
        }
    }
    cluster.ok("service rm db");
    assert_eq!(homes.map(|node| data(&cluster, &node).len()), [1, 1], "nobody has asked to remove it");
}

#[test]
fn a_new_volume_has_what_the_image_has_there() {
    let cluster = Cluster::bare(1, 0);
    let folder = tempfile::tempdir().unwrap();
    let program = fs::read("/bin/busybox").unwrap();
    let layer = archives::tar(&[("busybox", &program), ("srv/data/sub/file", b"of the image"), ("srv/data/top", b"1")]);
    let upper = archives::tar(&[("srv/data/.wh.top", b""), ("srv/data/new", b"2")]);
    let archive = archives::archive(folder.path(), &["/busybox"], &[&layer, &upper]);
    cluster.ok(&format!("image import --tag busybox {archive}"));
    create(&cluster, "filled", "--mount source=filled,target=/srv/data");
    assert_eq!(sh_ok(&cluster, "filled", "/busybox cat /srv/data/sub/file"), "of the image");
    assert_eq!(sh_ok(&cluster, "filled", "/busybox ls /srv/data"), "new\nsub");
    sh_ok(&cluster, "filled", "/busybox rm /srv/data/new");
    cluster.ok("service update --force filled");
    assert_eq!(sh_ok(&cluster, "filled", "/busybox ls /srv/data"), "sub", "it is filled once");
    create(&cluster, "empty", "--mount source=empty,target=/srv/data,volume-nocopy");
    assert_eq!(sh_ok(&cluster, "empty", "/busybox ls /srv/data"), "");
    // A volume without a name belongs to one start of one task.
    create(&cluster, "own", "--mount target=/srv/data");
    sh_ok(&cluster, "own", "/busybox touch /srv/data/mine");
    cluster.ok("service update --force own");
    assert_eq!(sh_ok(&cluster, "own", "/busybox ls /srv/data"), "new\nsub");
    assert_eq!(data(&cluster, "m1").len(), 2, "and is no volume of the cluster");
}

#[test]
fn a_tmpfs_has_the_size_the_mode_the_owner_and_the_use_that_it_is_given() {
    let cluster = Cluster::bare(1, 0);
    cluster.pack_busybox();
    let mounts = "--tmpfs /small:size=64k,mode=700 --mount type=tmpfs,target=/fixed,readonly";
    create(&cluster, "web", mounts);
    let full = sh(&cluster, "web", "/busybox dd if=/dev/zero of=/small/file bs=1k count=100");
    assert!(full.stderr.contains("No space left on device"), "{}", full.stderr);
    assert_eq!(sh_ok(&cluster, "web", "/busybox stat -c %a /small /fixed"), "700\n1777");
    assert!(sh(&cluster, "web", "/busybox touch /fixed/file").stderr.contains("Read-only file system"));
    let refused = cluster.ctl("service update --mount source=db,target=/ --mount-rm /small web");
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    for (name, own_ids) in [("plain", ""), ("mapped", "--userns auto ")] {
        let mounts = "--tmpfs /run:uid=12,gid=13,mode=750,exec --tmpfs /tmp";
        create(&cluster, name, &format!("{own_ids}--user 12:13 {mounts}"));
        assert_eq!(sh_ok(&cluster, name, "/busybox stat -c '%u %g %a' /run /tmp"), "12 13 750\n0 0 1777", "{name}");
        assert_eq!(sh_ok(&cluster, name, "/busybox cp /busybox /run/echo && /run/echo works"), "works", "{name}");
        let denied = sh(&cluster, name, "/busybox cp /busybox /tmp/echo && /tmp/echo works").stderr;
        assert!(denied.contains("Permission denied"), "{name}: {denied}");
    }
}

#[test]
fn bind_mounts_show_what_the_nodes_owner_allows_and_no_more() {
    let cluster = Cluster::bare(1, 1);
    cluster.pack_busybox();
    let bind = |source: &str| format!("--mount type=bind,source={source},target=/bound");
    let allowed = tempfile::tempdir().unwrap();
    let path = |name: &str| allowed.path().join(name).display().to_string();
    fs::create_dir(path("in")).unwrap();
    fs::write(path("in/file"), "of the node").unwrap();
    std::os::unix::fs::symlink("/etc", path("out")).unwrap();
    let detached = |name: &str, source: &str| {
        let command = "--stop-signal KILL --entrypoint /busybox busybox sleep 1000000";
        cluster.ok(&format!("service create --detach --name {name} {} {command}", bind(source)));
    };
    detached("waits", &path("in"));
    cluster.wait("it says why it waits", |it| reason(it, "waits").contains("2 of 2 not allowing a bind mount"));
    cluster.set("w1", &format!("[allow]\nbind-mounts = [\"{}\"]\n", allowed.path().display()));
    cluster.wait("it runs", |it| it.running("waits").len() == 1);
    assert_eq!(node_of(&cluster, "waits"), "w1");
    assert_eq!(sh_ok(&cluster, "waits", "/busybox cat /bound/file"), "of the node");
    sh_ok(&cluster, "waits", "/busybox echo changed > /bound/file");
    assert_eq!(fs::read_to_string(path("in/file")).unwrap(), "changed\n");
    assert_eq!(fs::metadata(path("in/file")).unwrap().uid(), 0);
    detached("leads-out", &path("out"));
    cluster.wait("a link that leads out is refused", |it| {
        reason(it, "leads-out").contains("leads elsewhere: this node does not allow bind mounts of /etc")
    });
    // What is missing is made where the owner allows it, if the mount says so.
    let made = |name: &str, source: &str| {
        let mount = format!("--mount type=bind,source={source},target=/bound,bind-create-src");
        let command = "--stop-signal KILL --entrypoint /busybox busybox sleep 1000000";
        cluster.ok(&format!("service create --detach --name {name} {mount} {command}"));
    };
    made("maker", &path("made/here"));
    cluster.wait("it runs", |it| it.running("maker").len() == 1);
    sh_ok(&cluster, "maker", "/busybox echo mine > /bound/file");
    assert_eq!(fs::read_to_string(path("made/here/file")).unwrap(), "mine\n");
    made("outside", &path("out/made"));
    cluster.wait("nothing is made elsewhere", |it| {
        reason(it, "outside").contains("leads elsewhere: this node does not allow bind mounts of /etc/made")
    });
    detached("missing", &path("none"));
    cluster.wait("a source that is missing is named", |it| {
        reason(it, "missing").contains("none`, the source of the mount at `/bound`")
    });
}

#[test]
fn a_part_of_a_volume_is_mounted_and_nothing_outside_of_it() {
    let cluster = Cluster::bare(1, 0);
    cluster.pack_busybox();
    create(&cluster, "all", "--mount source=data,target=/data,volume-label=tier=web");
    let volume: serde_json::Value = serde_json::from_str(&cluster.ok("volume inspect data")).unwrap();
    assert_eq!(volume[0]["spec"]["labels"], serde_json::json!({ "tier": "web" }));
    sh_ok(&cluster, "all", "cd /data; busybox=/busybox; $busybox mkdir -p a/b; $busybox echo part > a/b/file");
    sh_ok(&cluster, "all", "/busybox ln -s a/b /data/in; /busybox ln -s /etc /data/out");
    let part = |name: &str, subpath: &str| {
        let mount = format!("--mount source=data,target=/part,volume-subpath={subpath}");
        let command = "--stop-signal KILL --entrypoint /busybox busybox sleep 1000000";
        cluster.ok(&format!("service create --detach --name {name} {mount} {command}"));
    };
    for (name, subpath) in [("folder", "a/b"), ("link", "in")] {
        part(name, subpath);
        cluster.wait("it runs", |it| it.running(name).len() == 1);
        assert_eq!(sh_ok(&cluster, name, "/busybox ls -a /part"), ".\n..\nfile");
        assert_eq!(sh_ok(&cluster, name, "/busybox cat /part/file"), "part");
    }
    sh_ok(&cluster, "folder", "/busybox echo changed > /part/file");
    assert_eq!(sh_ok(&cluster, "all", "/busybox cat /data/a/b/file"), "changed");
    part("outside", "out");
    cluster
        .wait("it is refused", |it| reason(it, "outside").contains("`out` of volume `data` leads out of the volume"));
    part("early", "later");
    cluster
        .wait("it says what is missing", |it| reason(it, "early").contains("failed to find `later` in volume `data`"));
    sh_ok(&cluster, "all", "/busybox mkdir /data/later");
    cluster.wait("it runs once the folder is there", |it| it.running("early").len() == 1);
}

/// A file that nobody can remove until this goes out of scope (chattr(1)), at whichever of these paths it is.
struct Immutable([PathBuf; 2]);

impl Immutable {
    fn of(paths: [PathBuf; 2]) -> Self {
        chattr("+i", &paths[0]);
        Self(paths)
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        self.0.iter().filter(|path| path.exists()).for_each(|path| chattr("-i", path));
    }
}

fn chattr(flag: &str, path: &Path) {
    assert!(Command::new("chattr").arg(flag).arg(path).status().unwrap().success(), "{flag} {}", path.display());
}

#[test]
fn a_removal_of_data_that_is_cut_off_goes_on_when_its_daemon_is_back() {
    let cluster = Cluster::bare(1, 1);
    cluster.pack_busybox();
    for name in ["gone", "kept"] {
        create(&cluster, name, &format!("--constraint node.hostname==w1 --mount source={name},target=/data"));
        sh_ok(&cluster, name, "/busybox mkdir /data/a; /busybox touch /data/a/file; /busybox touch /data/file");
    }
    let ids: serde_json::Value = serde_json::from_str(&cluster.ok("volume inspect gone")).unwrap();
    let folder = cluster.data("w1").join("worker/volumes").join(ids[0]["id"].as_str().unwrap());
    let removed = folder.with_extension("removed");
    // The removal gets as far as this file.
    let stuck = Immutable::of([&folder, &removed].map(|it| it.join("shared/data/a/file")));
    cluster.ok("service rm gone");
    cluster.ok("volume rm gone");
    cluster.wait("the removal has begun", |_| removed.exists() && !folder.exists());
    cluster.sandbox_ok("kill --daemon-only w1");
    drop(stuck);
    assert!(removed.exists(), "it was cut off");
    cluster.sandbox_ok("start w1");
    cluster.wait_state("w1", "ready");
    cluster.wait("the rest is gone", |_| !removed.exists());
    cluster.wait("it is forgotten", |it| it.rows("volume ls").len() == 1);
    cluster.wait("the other runs", |it| it.running("kept").len() == 1);
    assert_eq!(sh_ok(&cluster, "kept", "/busybox ls /data /data/a"), "/data:\na\nfile\n\n/data/a:\nfile");
}

#[test]
fn a_node_that_was_away_drops_a_removed_volume_when_it_is_back() {
    let cluster = Cluster::bare(1, 1);
    cluster.pack_busybox();
    create(&cluster, "db", "--constraint node.hostname==w1 --mount source=data,target=/data");
    cluster.kill("w1");
    cluster.wait_state("w1", "down");
    cluster.ok("service rm --detach db");
    // The task counts until it was told to go.
    cluster.wait("nothing uses the volume", |it| it.ctl("volume rm data").code == 0);
    assert_eq!(data(&cluster, "w1").len(), 1);
    cluster.sandbox_ok("start w1");
    cluster.wait_state("w1", "ready");
    cluster.wait("the data is gone", |it| data(it, "w1").is_empty());
}
