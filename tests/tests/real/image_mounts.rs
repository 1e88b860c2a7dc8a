//! Images that tasks mount beside their own.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use flota_tests::Cluster;

use super::archives::{archive, tar, tar_with_links};
use super::busybox::{create, errors, sh, sh_ok};

/// Imports an image of two layers by this name. It has a folder `dir` with a file of each layer, and links in and out of it.
fn import(cluster: &Cluster, dir: &Path, name: &str) {
    let below = tar(&[("both", b"below"), ("dir/below", b"1"), ("gone", b"x")]);
    let files: [(&str, &[u8]); 4] =
        [("both", b"above"), ("dir/above", b"2"), (".wh.gone", b""), ("name", name.as_bytes())];
    let above = tar_with_links(&files, &[("inside", "dir"), ("outside", "../../etc"), ("absolute", "/dir")]);
    cluster.ok(&format!("image import --tag {name} {}", archive(dir, &["/none"], &[&below, &above])));
}

fn ids(cluster: &Cluster, service: &str) -> BTreeSet<String> {
    cluster.running(service).iter().map(|task| task["id"].to_string()).collect()
}

#[test]
fn the_tasks_of_a_service_see_an_image_on_every_node_and_an_update_changes_it() {
    let cluster = Cluster::bare(1, 2);
    cluster.pack_busybox();
    let dir = tempfile::tempdir().unwrap();
    import(&cluster, dir.path(), "data:1");
    import(&cluster, dir.path(), "data:2");
    let holders = |name: &str| {
        let rows = cluster.rows(&format!("image ls --filter reference=docker.io/library/{name}"));
        rows.first().map_or(0, |image| image["holders"].as_array().map_or(0, Vec::len))
    };
    assert_eq!(holders("data:1"), 2, "one node has to fetch it from another");
    let mounts = "--mount type=image,source=data:1,target=/data \
                  --mount type=image,source=data:1,target=/part,image-subpath=inside \
                  --mount type=image,source=data:1,target=/file,image-subpath=dir/below";
    create(&cluster, "web", &format!("--replicas 3 {mounts}"));
    let tasks = cluster.running("web");
    let nodes: BTreeSet<_> = tasks.iter().map(|task| task["node"].to_string()).collect();
    assert_eq!(nodes.len(), 3);
    for task in ["web.1", "web.2", "web.3"] {
        let see = "/busybox cat /data/both /data/dir/below /data/name /file; /busybox ls /data /part";
        let expected = "above1data:11/data:\nabsolute\nboth\ndir\ninside\nname\noutside\n\n/part:\nabove\nbelow";
        assert_eq!(sh_ok(&cluster, task, see), expected, "{task}");
        for path in ["/data/new", "/data/both", "/part/new", "/file"] {
            let written = sh(&cluster, task, &format!("/busybox echo x > {path}"));
            assert!(written.code != 0 && written.stderr.contains("Read-only file system"), "{}", written.stderr);
        }
    }

    let refused = cluster.ctl("image rm data:1");
    assert!(refused.code == 1 && refused.stderr.contains("is used by service `web`"), "{}", refused.stderr);
    // Another image replaces the tasks; what changes no task does not.
    let first = ids(&cluster, "web");
    cluster.ok("service update --label-add a=b web");
    assert_eq!(ids(&cluster, "web"), first);
    cluster.ok("service update --mount-add type=image,source=data:2,target=/data web");
    assert!(ids(&cluster, "web").is_disjoint(&first) && ids(&cluster, "web").len() == 3);
    assert_eq!(sh_ok(&cluster, "web.1", "/busybox cat /data/name"), "data:2");
    cluster.ok("service rollback web");
    assert_eq!(sh_ok(&cluster, "web.1", "/busybox cat /data/name"), "data:1");
    let refused = cluster.ctl("image rm data:2");
    assert!(refused.code == 1 && refused.stderr.contains("is used by service `web`"), "of the spec that is kept");

    cluster.ok("service rm web");
    cluster.ok("image rm data:1 data:2");
    let blobs = |node: &str| fs::read_dir(cluster.data(node).join("worker/images/blobs/sha256")).unwrap().count();
    cluster.ok("image rm busybox");
    cluster.wait("no blob is left anywhere", |_| ["m1", "w1", "w2"].iter().all(|node| blobs(node) == 0));
    let layers = |node: &str| fs::read_dir(cluster.data(node).join("worker/images/layers")).unwrap().count();
    cluster.wait("nor any layer", |_| ["m1", "w1", "w2"].iter().all(|node| layers(node) == 0));
}

#[test]
fn what_can_not_be_mounted_is_named_and_a_stack_mounts_what_can() {
    let cluster = Cluster::bare(1, 0);
    cluster.pack_busybox();
    let dir = tempfile::tempdir().unwrap();
    import(&cluster, dir.path(), "data:1");
    let part = |subpath: &str| format!("type=image,source=data:1,target=/data,image-subpath={subpath}");
    for (name, mount, why) in [
        ("missing", part("none"), "failed to mount `none` of the image at `/data`: No such file or directory"),
        ("whited-out", part("gone"), "failed to mount `gone` of the image at `/data`: No such file or directory"),
        ("outside", part("outside"), "failed to mount `outside` of the image at `/data`: it leads out of the image"),
        ("absolute", part("absolute"), "failed to mount `absolute` of the image at `/data`: it leads out of the image"),
        (
            "unknown",
            "type=image,source=127.0.0.1:9/none:1,target=/data".to_owned(),
            "failed to provide the image `127.0.0.1:9/none:1`, which the task mounts: failed to pull 127.0.0.1:9/none:1",
        ),
    ] {
        create(&cluster, name, &format!("--detach --mount {mount}"));
        cluster.wait(&format!("{name}: the reason is shown"), |it| errors(it, name).contains(why));
        let refused = cluster.ctl(&format!("service update --mount-add {},readonly=false {name}", part("dir")));
        assert!(refused.code == 2 && refused.stderr.contains("always mounted read-only"), "{}", refused.stderr);
        cluster.ok(&format!("service update --mount-add {} {name}", part("dir")));
        assert_eq!(sh_ok(&cluster, name, "/busybox ls /data"), "above\nbelow");
        cluster.ok(&format!("service rm {name}"));
    }

    let file = dir.path().join("stack.yml");
    let text = "services:
  web:
    image: busybox
    entrypoint: [/busybox, sleep, '1000000']
    stop_signal: KILL
    volumes:
      - { type: image, source: 'data:1', target: /data, image: { subpath: dir } }
      - { type: image, source: 'data:1', target: /all }
";
    fs::write(&file, text).unwrap();
    cluster.ok(&format!("stack deploy -c {} shop", file.display()));
    assert_eq!(sh_ok(&cluster, "shop_web", "/busybox ls /data; /busybox cat /all/both"), "above\nbelow\nabove");
    // The daemon finds the container again, with what it mounts.
    let task = ids(&cluster, "shop_web");
    cluster.sandbox_ok("kill --daemon-only m1");
    cluster.sandbox_ok("start m1");
    cluster.wait_state("m1", "ready");
    assert_eq!(ids(&cluster, "shop_web"), task);
    assert_eq!(sh_ok(&cluster, "shop_web", "/busybox cat /all/both"), "above");
    cluster.ok("stack rm shop");
    let gone = cluster.ctl("image rm data:1");
    assert_eq!(gone.code, 0, "{}", gone.stderr);
}
