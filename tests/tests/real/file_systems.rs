//! Volumes that are file systems: each task mounts them by itself, where the owner of its node allows that.

use std::fs;
use std::path::Path;
use std::process::Command;

use flota_tests::Cluster;

use super::busybox::{create, errors, sh, sh_ok};

/// A disk with an empty ext4, which goes with this value.
struct Disk {
    device: String,
    _dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk");
        fs::File::create(&image).and_then(|file| file.set_len(16 << 20)).unwrap();
        run("mkfs.ext4", &["-q".as_ref(), &image]);
        let device = run("losetup", &["--find".as_ref(), "--show".as_ref(), &image]);
        Self { device, _dir: dir }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run("losetup", &["--detach".as_ref(), self.device.as_ref()]);
    }
}

fn run(program: &str, arguments: &[&Path]) -> String {
    let done = Command::new(program).args(arguments).output().unwrap();
    assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

fn nodes(cluster: &Cluster, service: &str) -> Vec<String> {
    cluster.running(service).iter().map(|task| task["node"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn tasks_mount_a_disk_where_its_owner_allows_that_and_nothing_of_it_stays_on_the_node() {
    let disk = Disk::new();
    let device = &disk.device;
    let cluster = Cluster::bare(1, 1);
    cluster.pack_busybox();
    let volume = |o: &str| format!("volume-opt=type=ext4,volume-opt=device={device}{o}");
    let detached = "--detach --stop-signal KILL --entrypoint /busybox busybox sleep 1000000";
    cluster.ok(&format!(
        "service create --name db --replicas 2 --mount source=disk,target=/data,{} {detached}",
        volume("")
    ));
    cluster.wait("no node allows it", |it| errors(it, "db").contains("2 of 2 not allowing a file system"));
    cluster.set("m1", &format!("[allow]\nfile-systems = [\"ext4:{device}\"]\n"));
    cluster.wait("its tasks run", |it| it.running("db").len() == 2);
    assert_eq!(nodes(&cluster, "db"), ["m1", "m1"]);
    sh_ok(&cluster, "db.1", "/busybox mkdir /data/a && echo precious > /data/a/file");
    assert_eq!(sh_ok(&cluster, "db.2", "/busybox cat /data/a/file"), "precious", "both see one file system");
    let shown = sh_ok(&cluster, "db.1", "/busybox grep ' /data ' /proc/mounts");
    assert!(shown.starts_with(&format!("{device} /data ext4 rw,nosuid,nodev,")), "{shown}");

    // A part, for a task with ids of its own, and read-only by an option of the volume.
    let part = "--mount source=disk,target=/part,volume-subpath=a,ro --userns auto";
    create(&cluster, "part", part);
    assert_eq!(sh_ok(&cluster, "part", "/busybox cat /part/file; /busybox stat -c %u:%g /part/file"), "precious\n0:0");
    assert!(sh(&cluster, "part", "echo x > /part/file").stderr.contains("Read-only file system"));

    let table = cluster.sandbox_ok("exec m1 -- busybox cat /proc/self/mounts");
    assert!(!table.contains(device), "the node itself has not mounted it: {table}");
    let rows = cluster.rows("volume ls");
    assert_eq!(
        (rows[0]["fileSystem"]["type"].as_str(), rows[0]["nodes"].as_array().map(Vec::len)),
        (Some("ext4"), Some(0))
    );
    let before = cluster.running("db")[0]["id"].clone();
    cluster.sandbox_ok("kill --daemon-only m1");
    cluster.sandbox_ok("start m1");
    cluster.wait_state("m1", "ready");
    assert_eq!(sh_ok(&cluster, "db.1", "/busybox cat /data/a/file"), "precious", "the task goes on with its mount");
    assert_eq!(cluster.running("db")[0]["id"], before);

    cluster.ok("service rm db part");
    cluster.ok("volume rm disk");
    cluster.wait("the disk is free", |_| {
        // Whoever mounts it read-only where it is mounted to write is refused.
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("unshare").args(["--mount", "mount", "-o", "ro", device]).arg(dir.path()).status();
        mounted.unwrap().success()
    });
    cluster.ok(&format!("volume create --opt type=ext4 --opt device={device} --opt o=ro,noatime again"));
    create(&cluster, "reader", "--mount source=again,target=/data");
    assert_eq!(sh_ok(&cluster, "reader", "/busybox cat /data/a/file"), "precious", "data stays where it is");
    assert!(sh(&cluster, "reader", "echo x > /data/a/file").stderr.contains("Read-only file system"));
    cluster.ok("service rm reader");
}

#[test]
fn a_volume_that_can_not_be_mounted_says_why_and_one_that_is_a_folder_is_judged_as_a_bind_mount() {
    let cluster = Cluster::bare(1, 0);
    cluster.pack_busybox();
    let allowed = tempfile::tempdir().unwrap();
    let folder = allowed.path().canonicalize().unwrap();
    fs::create_dir(folder.join("in")).unwrap();
    fs::write(folder.join("in/file"), "precious").unwrap();
    std::os::unix::fs::symlink("/etc", folder.join("out")).unwrap();
    let folder = folder.display();
    cluster.set(
        "m1",
        &format!("[allow]\nfile-systems = [\"ext4\", \"nfs\", \"no-such\"]\nbind-mounts = [\"{folder}\"]\n"),
    );

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("stack.yaml");
    let text = format!(
        "services:\n  web:\n    image: busybox\n    entrypoint: /busybox sleep 1000000\n    stop_signal: KILL\n    \
         volumes: [data:/data, {{ type: volume, source: data, target: /in, volume: {{ subpath: in }} }}, mem:/mem]\n\
         volumes:\n  data: {{ driver: local, driver_opts: {{ type: none, o: bind, device: {folder} }} }}\n  \
         mem: {{ driver_opts: {{ type: tmpfs, device: tmpfs, o: 'size=1m,mode=750' }} }}\n"
    );
    fs::write(&file, text).unwrap();
    cluster.ok(&format!("stack deploy -c {} shop", file.display()));
    assert_eq!(sh_ok(&cluster, "shop_web", "/busybox cat /data/in/file /in/file"), "preciousprecious");
    let shown = sh_ok(&cluster, "shop_web", "/busybox df -k /mem | /busybox tail -1; /busybox stat -c %a /mem");
    assert!(shown.contains("1024") && shown.ends_with("750"), "{shown}");
    cluster.ok("stack rm --volumes shop");

    let missing = |name: &str, options: &str| {
        let options: String = options.split(' ').map(|it| format!(",\"volume-opt={it}\"")).collect();
        let mount = format!("source={name},target=/data{options}");
        let words = ["service", "create", "--detach", "--name", name, "--mount", &mount, "--restart-delay", "60s"];
        let command = ["--entrypoint", "/busybox", "busybox", "sleep", "1000000"];
        let created = cluster.ctl_args(&[&words[..], &command].concat());
        assert_eq!(created.code, 0, "{}", created.stderr);
    };
    for (name, options, expected) in [
        ("v1", "type=ext4 device=/dev/no-such", "failed to mount /dev/no-such of type ext4: "),
        (
            "v2",
            "type=no-such device=x",
            "failed to mount x of type no-such: use a file system of this type: No such device",
        ),
        ("v3", "type=tmpfs o=colour=red", "failed to mount tmpfs of type tmpfs: use the option `colour=red`: "),
        (
            "v4",
            "type=nfs device=no-such.invalid:/srv",
            "failed to look up `no-such.invalid`, the server of volume `v4`",
        ),
        (
            "v5",
            &format!("type=none o=bind device={folder}/out"),
            "leads elsewhere: this node does not allow bind mounts of /etc",
        ),
        ("v6", "type=none o=bind device=/etc", "1 of 1 not allowing a bind mount"),
    ] {
        missing(name, options);
        cluster.wait(&format!("{name} says why"), |it| errors(it, name).contains(expected));
        cluster.ok(&format!("service rm {name}"));
        cluster.ok(&format!("volume rm {name}"));
    }
    for (options, expected) in [
        ("type=ext4", "device: one is needed for the type ext4"),
        ("type=ext4,volume-opt=device=/dev/../sda", "device: `/dev/../sda` has the part `..`"),
    ] {
        let refused =
            cluster.ctl(&format!("service create --name x --mount source=x1,target=/x,volume-opt={options} busybox"));
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        assert!(refused.stderr.contains(expected), "{}", refused.stderr);
    }
}

#[test]
#[ignore = "needs a kernel with NFS, and the programs of a server (tests/guest/run.sh)"]
fn tasks_on_every_node_see_a_share_of_nfs_and_one_that_is_not_allowed_by_none() {
    let cluster = Cluster::bare(1, 1);
    cluster.pack_busybox();
    // The server is the kernel's, in the network of m1. The task of w1 has another network: its node mounts for it.
    let on_server = |words: &str| cluster.sandbox_ok(&format!("exec m1 -- {words}"));
    for words in [
        "busybox mkdir -p /srv/a /var/lib/nfs",
        "busybox touch /var/lib/nfs/etab /var/lib/nfs/rmtab",
        "busybox chmod 700 /srv",
        "busybox mount -t nfsd nfsd /proc/fs/nfsd",
        "/programs/rpc.mountd -N 3",
        "/programs/exportfs -i -o rw,insecure,no_subtree_check,fsid=0 *:/srv",
        "/programs/rpc.nfsd -N 3 -p 2049 1",
    ] {
        on_server(words);
    }
    on_server("busybox chown -R 1000:1000 /srv");
    let server = "198.18.0.10";
    cluster.set("w1", &format!("[allow]\nfile-systems = [\"nfs4:{server}:/*\"]\n"));
    let share = |device: &str| {
        format!("volume-opt=type=nfs4,volume-opt=device={device},\"volume-opt=o=addr={server},vers=4.2,soft\"")
    };
    let service = |name: &str, flags: &str, mount: &str| {
        let words = ["service", "create", "--detach", "--name", name, "--user", "1000", "--mount", mount];
        let command = ["--stop-signal", "KILL", "--entrypoint", "/busybox", "busybox", "sleep", "1000000"];
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let created = cluster.ctl_args(&[&words[..], &flags, &command].concat());
        assert_eq!(created.code, 0, "{}", created.stderr);
    };
    // Root may not look into the share, and the user of the tasks may.
    service("db", "--replicas 2", &format!("source=share,target=/share,{}", share(":/")));
    cluster.wait("both tasks run", |it| it.running("db").len() == 2);
    assert_eq!(nodes(&cluster, "db"), ["w1", "w1"]);
    sh_ok(&cluster, "db.1", "echo precious > /share/a/file");
    assert_eq!(sh_ok(&cluster, "db.2", "/busybox cat /share/a/file"), "precious");
    assert_eq!(on_server("busybox cat /srv/a/file").trim(), "precious");
    let shown = sh_ok(&cluster, "db.1", "/busybox grep ' /share ' /proc/mounts");
    assert!(shown.starts_with(&format!("{server}:/ /share nfs4 rw,nosuid,nodev,")), "{shown}");
    cluster.ok("service rm db");
    cluster.ok("volume rm share");
    assert_eq!(on_server("busybox cat /srv/a/file").trim(), "precious", "data stays where it is");
    service("wrong", "", &format!("source=wrong,target=/share,{}", share(":/none")));
    cluster.wait("the kernel says why", |it| errors(it, "wrong").contains("Couldn't follow remote path"));
    cluster.ok("service rm wrong");
    on_server("/programs/rpc.nfsd 0");
}
