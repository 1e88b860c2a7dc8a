//! Containers with user and group ids of their own, and the files and namespaces that belong to these.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flota_runtime::{IdRange, ImageFiles, Program, RootSource, owned_namespaces};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

use crate::harness::program;
use crate::image_mounts;
use crate::supervised::Supervised;

const IDS: IdRange = IdRange { first: 1_200_000_000, count: 65_536 };

/// The files of two namespaces, which are gone with this value.
struct Namespaces {
    folder: PathBuf,
}

impl Namespaces {
    fn make(folder: PathBuf) -> Self {
        fs::create_dir(&folder).unwrap();
        // As in a daemon: what is unmounted here is gone from the mounts of every supervisor.
        mount(Some(&folder), &folder, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        mount(None::<&str>, &folder, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
        let namespaces = Self { folder };
        Program::open(program()).make_namespaces(IDS, &namespaces.path("user"), &namespaces.path("net")).unwrap();
        namespaces
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in ["user", "net"] {
            let _ = owned_namespaces::remove(&self.path(name));
        }
        let _ = umount2(&self.folder, MntFlags::MNT_DETACH);
    }
}

/// Gives the container ids of its own.
fn map_ids(container: &mut Supervised) {
    container.order.ids = Some(IDS);
    let map = json!([{"containerID": 0, "hostID": IDS.first, "size": IDS.count}]);
    container.bundle.set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map);
}

/// Does so in a new user namespace.
fn give_new_ids(container: &mut Supervised) {
    container.bundle.namespace(json!({"type": "user"}));
    map_ids(container);
}

/// Does so in namespaces that exist already.
fn give_ids(container: &mut Supervised, namespaces: &Namespaces) {
    map_ids(container);
    let all = container.bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    all.retain(|it| it["type"] != "network");
    all.push(json!({"type": "user", "path": namespaces.path("user")}));
    all.push(json!({"type": "network", "path": namespaces.path("net")}));
    // Only whoever owns the network may set it.
    container.bundle.set("/linux/sysctl", json!({"net.ipv4.ip_unprivileged_port_start": "0"}));
}

/// Moves the files of the container's root into a layer below a writable one.
fn make_layers(container: &mut Supervised) -> PathBuf {
    let data = container.bundle.dir.join("data");
    for name in ["upper", "work"] {
        fs::create_dir_all(data.join(name)).unwrap();
    }
    let (upper, work) = (data.join("upper"), data.join("work"));
    container.order.root = RootSource::Overlay { lower: vec![container.bundle.rootfs()], upper: upper.clone(), work };
    upper
}

fn bind(container: &mut Supervised, source: &Path, target: &str) {
    let options = json!(["rbind", "rprivate"]);
    container.bundle.mount(json!({"destination": target, "type": "bind", "source": source, "options": options}));
}

fn owner(path: &Path) -> (u32, u32) {
    let found = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (found.uid(), found.gid())
}

#[test]
fn the_root_of_a_container_with_its_own_ids_is_nobody_outside_and_owns_what_is_roots_on_disk() {
    let mut container = Supervised::new("until [ -e /end ]; do usleep 10000; done");
    let dir = container.bundle.dir.clone();
    let folder = tempfile::tempdir().unwrap();
    let namespaces = Namespaces::make(folder.path().join("namespaces"));
    let upper = make_layers(&mut container);
    give_ids(&mut container, &namespaces);
    for (name, user) in [("volume", 0), ("pinned", 7)] {
        fs::create_dir(dir.join(name)).unwrap();
        chown(dir.join(name), Some(user), Some(user)).unwrap();
        bind(&mut container, &dir.join(name), &format!("/{name}"));
    }
    container.order.mapped = vec![dir.join("volume")];
    container.order.pinned = vec![dir.join("pinned")];
    // A file of the image, which is copied into the writable layer when it is changed.
    fs::write(container.bundle.rootfs().join("lower"), "a").unwrap();
    chown(container.bundle.rootfs().join("lower"), Some(9), Some(9)).unwrap();
    fs::write(container.bundle.rootfs().join("gone"), "").unwrap();
    container.bundle.privileged();
    let files = image_mounts::layers(&container);
    image_mounts::add(&mut container, "/image", files, None);
    image_mounts::add(&mut container, "/folder", ImageFiles::Folder(dir.join("volume")), None);
    let container = container.start();
    let see = |script: &str| container.exec(&format!("{{ {script}; }} 2>&1")).1;
    assert_eq!(see("cat /proc/self/uid_map /proc/1/gid_map").split_whitespace().collect::<Vec<_>>().join(" "), {
        let line = format!("0 {} {}", IDS.first, IDS.count);
        format!("{line} {line}")
    });
    let owners = "stat -c %u:%g / /bin/sh /etc/hosts /volume /pinned /image/both /folder";
    assert_eq!(see(owners), "0:0\n0:0\n0:0\n0:0\n7:7\n0:0\n0:0\n");
    assert_eq!(see("echo again > /dev/stdout"), "again\n", "the pipe is the container's own");
    assert_eq!(see("cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ls /sys/class/net"), "0\nlo\n");
    assert_eq!(see("for it in /file /volume/file; do echo x > $it && chown 7:8 $it; done; mkdir /volume/root"), "");
    let volume = dir.join("volume");
    assert_eq!([owner(&upper.join("file")), owner(&volume.join("file"))], [(7, 8); 2]);
    assert_eq!(see("echo b >> /lower; cat /lower; rm /gone; ls / | grep gone"), "ab\n");
    assert_eq!(owner(&upper.join("lower")), (9, 9));
    assert_eq!([owner(&volume.join("root")), owner(&upper.join("etc/hosts"))], [(0, 0); 2]);
    assert!(see("chown 65536 /volume/file").contains("Invalid argument"), "the container does not have this id");
    let init = flota_runtime::state::ContainerState::load(&container.dir).unwrap().unwrap().pid;
    assert_eq!(owner(Path::new(&format!("/proc/{init}"))), (IDS.first, IDS.first));
    container.exec("touch /end");
    container.wait();
    container.assert_gone();
}

#[test]
fn a_container_with_its_own_ids_runs_from_a_folder_and_makes_its_own_namespaces() {
    let mut container = Supervised::new("stat -c %u /bin/sh; echo x > /file; cat /proc/self/uid_map | wc -l");
    give_new_ids(&mut container);
    let container = container.start();
    assert_eq!(container.wait().code, 0);
    let lines: Vec<String> = container.lines().into_iter().map(|it| it.1).collect();
    assert_eq!(lines, ["0", "1"]);
    assert_eq!(owner(&container.bundle.rootfs().join("file")), (0, 0));
    container.assert_gone();
}

#[test]
fn a_source_whose_file_system_can_not_show_other_ids_is_refused_by_name() {
    let mut container = Supervised::new("true");
    give_new_ids(&mut container);
    let proc = PathBuf::from("/proc/self/fdinfo");
    bind(&mut container, &proc, "/source");
    container.order.mapped = vec![proc];
    let error = container.try_start().unwrap_err().text;
    assert!(error.contains("show the ids in `/proc/self/fdinfo` as the container's"), "{error}");
    container.assert_gone();
}

#[test]
fn namespaces_are_made_beside_each_other_by_the_program() {
    let (folder, daemon) = (tempfile::tempdir().unwrap(), Arc::new(Program::open(program())));
    let paths = |number: u32| ["user", "net"].map(|kind| folder.path().join(format!("{kind}{number}")));
    let (sender, receiver) = std::sync::mpsc::channel();
    for number in 0..8u32 {
        let (daemon, sender, [user, network]) = (Arc::clone(&daemon), sender.clone(), paths(number));
        std::thread::spawn(move || {
            let ids = IdRange { first: IDS.first + number * IDS.count, count: IDS.count };
            let made = (0..5).try_for_each(|_| daemon.make_namespaces(ids, &user, &network));
            sender.send(made.map_err(|error| error.text)).unwrap();
        });
    }
    for _ in 0..8 {
        assert_eq!(receiver.recv_timeout(Duration::from_secs(60)).expect("one waits for another"), Ok(()));
    }
    let all: Vec<PathBuf> = (0..8).flat_map(paths).collect();
    let inodes: BTreeSet<u64> = all.iter().map(|path| fs::metadata(path).unwrap().ino()).collect();
    assert_eq!(inodes.len(), 16, "each is another");
    all.iter().for_each(|path| owned_namespaces::remove(path).unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn the_program_says_whether_a_folder_can_have_files_of_other_ids() {
    let (folder, daemon) = (tempfile::tempdir().unwrap(), Program::open(program()));
    for overlay in [true, false] {
        assert_eq!(daemon.try_ids(&folder.path().join("probe"), overlay), Ok(None));
        fs::remove_dir_all(folder.path().join("probe")).unwrap();
    }
    let lacks = daemon.try_ids(Path::new("/proc/self"), false).unwrap_err().text;
    assert!(lacks.contains("make /proc/self/lower"), "it could not be tried: {lacks}");
    let ramfs = folder.path().join("ramfs");
    fs::create_dir(&ramfs).unwrap();
    mount(None::<&str>, &ramfs, Some("ramfs"), MsFlags::empty(), None::<&str>).unwrap();
    let why = daemon.try_ids(&ramfs, false);
    umount2(&ramfs, MntFlags::MNT_DETACH).unwrap();
    assert!(why.unwrap().is_some_and(|why| why.contains("show the ids in")), "this file system can't");
}
