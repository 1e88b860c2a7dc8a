//! `mounts`, the root, and paths that are hidden or protected.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::json;

use crate::harness::{Bundle, read};

/// A folder of the machine with one file.
fn folder(bundle: &Bundle) -> std::path::PathBuf {
    let path = bundle.dir.join("source");
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("file"), "content\n").unwrap();
    path
}

#[test]
fn a_bind_mount_shows_the_machines_files_and_ro_protects_them() {
    let mut bundle = Bundle::new();
    let source = folder(&bundle);
    bundle.mount(json!({"destination": "/rw", "source": source, "options": ["bind"]}));
    bundle.mount(json!({"destination": "/ro", "source": source, "options": ["bind", "ro"]}));
    bundle.mount(json!({"destination": "/one/file", "source": source.join("file"), "options": ["bind", "ro"]}));
    let ran = bundle.sh("cat /ro/file /one/file; echo more >>/rw/file; echo no >/ro/file; echo no >/one/file").run();
    assert_eq!(ran.out, "content\ncontent\n");
    assert_eq!(ran.err.matches("Read-only").count(), 2, "{ran:?}");
    assert_eq!(read(source.join("file")), "content\nmore");
}

#[test]
fn proc_of_the_template_has_neither_programs_nor_devices() {
    let printed = Bundle::new().sh("grep ' /proc proc ' /proc/mounts").output();
    assert!(printed.starts_with("proc /proc proc rw,nosuid,nodev,noexec"), "{printed}");
}

#[test]
fn a_source_is_relative_to_the_bundle() {
    let mut bundle = Bundle::new();
    fs::write(bundle.dir.join("bundle/note"), "from the bundle\n").unwrap();
    bundle.mount(json!({"destination": "/note", "source": "note", "options": ["bind"]}));
    assert_eq!(bundle.sh("cat /note").output(), "from the bundle\n");
}

/// How many of the mounts of the machine's /sys, which has its control groups below, can be written to in the container.
fn writable(option: &str) -> usize {
    let mut bundle = Bundle::new();
    bundle.mount(json!({"destination": "/m", "source": "/sys", "options": ["rbind", option]}));
    bundle.sh("grep -cE ' /m(/[^ ]*)? rw' /proc/self/mountinfo; true").output().trim().parse().unwrap()
}

#[test]
fn rro_reaches_the_mounts_below_and_ro_does_not() {
    assert_eq!(writable("rro"), 0);
    assert!(writable("ro") > 0);
    assert_eq!(writable("rw"), writable("ro") + 1);
}

#[test]
fn a_tmpfs_has_its_size_mode_and_flags() {
    let mut bundle = Bundle::new();
    let options = ["size=64k", "mode=1750", "uid=7", "gid=8", "nosuid", "nodev", "noexec", "noatime"];
    bundle.mount(json!({"destination": "/t", "type": "tmpfs", "source": "here", "options": options}));
    bundle.privileged();
    let ran = bundle
        .sh("stat -c '%a %u:%g' /t; grep ' /t ' /proc/self/mountinfo; head -c 100000 /dev/zero >/t/x; wc -c </t/x");
    let ran = ran.run();
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines[0], "1750 7:8");
    assert!(lines[1].contains(" /t rw,nosuid,nodev,noexec,noatime ") && lines[1].contains("size=64k"), "{lines:?}");
    assert_eq!(lines[2], "65536", "no more than its size goes into it");
}

#[test]
fn a_tmpfs_takes_over_what_the_image_has_there() {
    let mut bundle = Bundle::new();
    let data = bundle.rootfs().join("data/deep");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("file"), "of the image\n").unwrap();
    std::os::unix::fs::symlink("deep/file", bundle.rootfs().join("data/link")).unwrap();
    bundle.mount(json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}));
    assert_eq!(bundle.sh("cat /data/link; echo changed >/data/deep/file").output(), "of the image\n");
    assert_eq!(read(data.join("file")), "of the image");
}

#[test]
fn mounts_propagate_as_they_are_asked_to() {
    for (option, expected) in
        [("rshared", "shared:"), ("rslave", "master:"), ("rprivate", "-"), ("runbindable", "unbindable")]
    {
        let mut bundle = Bundle::new();
        let source = folder(&bundle);
        // A slave needs a master: the machine's own mount, which is shared with no other.
        let shared = bundle.dir.join("shared");
        fs::create_dir(&shared).unwrap();
        nix::mount::mount(Some(&source), &shared, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>).unwrap();
        let flags = nix::mount::MsFlags::MS_SHARED;
        nix::mount::mount(None::<&str>, &shared, None::<&str>, flags, None::<&str>).unwrap();
        bundle.mount(json!({"destination": "/m", "source": shared, "options": ["rbind", option]}));
        let printed = bundle.sh("grep ' /m ' /proc/self/mountinfo").output();
        let field = printed.split(' ').nth(6).unwrap();
        assert!(field.starts_with(expected), "{option}: {printed}");
    }
}

#[test]
fn an_id_mapped_bind_mount_shows_other_owners() {
    let mut bundle = Bundle::new();
    let source = folder(&bundle);
    let file = source.join("file");
    nix::unistd::chown(&file, Some(1000.into()), Some(1000.into())).unwrap();
    let map = json!([{"containerID": 1000, "hostID": 3000, "size": 10}]);
    bundle.mount(json!({
        "destination": "/m", "source": source, "options": ["bind"], "uidMappings": map, "gidMappings": map,
    }));
    assert_eq!(bundle.sh("stat -c %u:%g /m/file").output(), "3000:3000\n");
    assert_eq!(fs::metadata(&file).unwrap().uid(), 1000);
}

#[test]
fn a_read_only_root_keeps_its_mounts_writable() {
    let mut bundle = Bundle::new();
    bundle.set("/root/readonly", json!(true));
    bundle.mount(json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs"}));
    let ran = bundle.sh("touch /x; touch /t/x && echo t; touch /dev/shm/x && echo shm").run();
    assert_eq!((ran.out.as_str(), ran.err.contains("Read-only")), ("t\nshm\n", true));
    assert!(!bundle.rootfs().join("x").exists());
}

#[test]
fn masked_paths_are_empty_and_read_only_ones_can_not_be_written() {
    let mut bundle = Bundle::new();
    for name in ["hidden/folder", "kept"] {
        fs::create_dir_all(bundle.rootfs().join(name)).unwrap();
        fs::write(bundle.rootfs().join(name).join("file"), "secret\n").unwrap();
    }
    fs::write(bundle.rootfs().join("hidden/alone"), "secret\n").unwrap();
    bundle.set("/linux/maskedPaths", json!(["/hidden/folder", "/hidden/alone", "/not/there"]));
    bundle.set("/linux/readonlyPaths", json!(["/kept", "/proc/sys", "/not/there"]));
    bundle.privileged().sh("ls -A /hidden/folder; cat /hidden/alone; stat -c %t:%T /hidden/alone; cat /kept/file; \
         echo x >/kept/file; echo 1 >/proc/sys/net/ipv4/ip_forward; touch /hidden/folder/x");
    let ran = bundle.run();
    assert_eq!(ran.out, "1:3\nsecret\n");
    assert_eq!(ran.err.matches("Read-only").count(), 3, "{ran:?}");
}

#[test]
fn the_roots_propagation_is_as_asked_for_and_the_machine_sees_nothing() {
    for (kind, expected) in
        [("private", "-"), ("shared", "shared:"), ("slave", "master:"), ("unbindable", "unbindable")]
    {
        let mut bundle = Bundle::new();
        bundle.set("/linux/rootfsPropagation", json!(kind));
        bundle.mount(json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs"}));
        let ran = bundle.sh("grep ' / / ' /proc/self/mountinfo || grep -m1 ' / ' /proc/self/mountinfo").run();
        let root = ran.out.lines().next().unwrap_or_default().split(' ').nth(6).unwrap_or_default().to_owned();
        // A slave without a master is private.
        assert!(root.starts_with(expected) || kind == "slave", "{kind}: {ran:?}");
        bundle.assert_gone();
    }
}

#[test]
fn mounts_are_gone_with_the_container_and_never_on_the_machine() {
    let mut bundle = Bundle::new();
    let source = folder(&bundle);
    bundle.mount(json!({"destination": "/m", "source": source, "options": ["rbind", "rshared"]}));
    bundle.idle().start();
    assert_eq!(bundle.census().mounts, Vec::<String>::new());
    bundle.call(&["delete", "-f", &bundle.id]).ok();
    assert_eq!(read(source.join("file")), "content", "what was bound is still there");
}

#[test]
fn a_destination_that_is_a_link_to_nowhere_is_made_where_it_leads() {
    let mut bundle = Bundle::new();
    let root = bundle.rootfs();
    fs::create_dir(root.join("etc")).unwrap();
    for (link, to) in [("file", "../deep/not/here"), ("escape", "../../../../../up"), ("loop", "loop")] {
        std::os::unix::fs::symlink(to, root.join("etc").join(link)).unwrap();
    }
    fs::write(bundle.dir.join("bundle/note"), "note\n").unwrap();
    for link in ["file", "escape"] {
        bundle.mount(json!({"destination": format!("/etc/{link}"), "source": "note", "options": ["bind"]}));
    }
    assert_eq!(bundle.sh("cat /deep/not/here /up; readlink /etc/file").output(), "note\nnote\n../deep/not/here\n");
    assert!(root.join("up").exists() && root.join("deep/not/here").exists());
    bundle.mount(json!({"destination": "/etc/loop", "source": "note", "options": ["bind"]}));
    let printed = bundle.run().fails(1);
    assert!(printed.contains("/etc/loop"), "{printed}");
    bundle.assert_gone();
}
