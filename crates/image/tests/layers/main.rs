//! Unpacks generated images, and compares the result with those of umoci and containerd, file by file: content, owner,
//! mode, extended attributes, link count, device, time. Imports them from the archives that other tools write.
#![allow(clippy::unwrap_used, reason = "tests say why they fail")]

mod archives;
mod containerd;
mod corpus;
mod tree;

use std::fs;
use std::path::Path;
use std::process::Command;

use flota_image::{ImageStore, copy_layer, import};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use containerd::Containerd;
use corpus::Image;
use tree::{Tree, differences};

const SEEDS: u64 = 40;

/// Returns what a container sees of the image in an archive, mounted or copied.
fn seen(archive: &[u8], dir: &Path, overlay: bool) -> Tree {
    let dir = dir.join(if overlay { "mounted" } else { "copied" });
    let root = dir.join("root");
    fs::create_dir_all(&root).unwrap();
    let store = ImageStore::open(&dir.join("store"), overlay).unwrap();
    let (imported, _) = import(&store, archive).unwrap();
    let layers = store.unpack(&imported).unwrap();
    if !overlay {
        layers.iter().rev().for_each(|layer| copy_layer(layer, &root).unwrap());
        return Tree::read(&root);
    }
    // Overlayfs wants two folders.
    let empty = dir.join("empty");
    fs::create_dir(&empty).unwrap();
    let lower: Vec<String> = layers.iter().chain([&empty]).map(|it| it.display().to_string()).collect();
    let options = format!("lowerdir={}", lower.join(":"));
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
    let tree = std::panic::catch_unwind(|| Tree::read(&root));
    umount2(&root, MntFlags::MNT_DETACH).unwrap();
    tree.unwrap()
}

fn run(mut command: Command) {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?} is missing ({error}): run deploy/tools.sh"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Compares both ways in which layers are used with what another tool has unpacked.
fn compare(image: &Image, dir: &Path, tool: &str, theirs: &Tree) {
    for overlay in [true, false] {
        let found = differences(&seen(&image.archive(), dir, overlay), theirs);
        assert!(found.is_empty(), "{image}; overlay: {overlay}; here and in {tool}:\n{}", found.join("\n"));
    }
}

#[test]
#[ignore = "it needs umoci and takes half a minute: make test-long"]
fn umoci_unpacks_every_image_to_the_same() {
    for seed in 0..SEEDS {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::generate(seed);

        let (layout, bundle) = (dir.path().join("layout"), dir.path().join("bundle"));
        image.write_layout(&layout);
        let mut umoci = Command::new("umoci");
        umoci.args(["unpack", "--image", &format!("{}:box", layout.display())]).arg(&bundle);
        run(umoci);
        compare(&image, dir.path(), "umoci", &Tree::read(&bundle.join("rootfs")));
    }
}

#[test]
#[ignore = "it needs containerd and takes a minute: make test-long"]
fn containerd_unpacks_every_image_to_the_same() {
    let containerd = Containerd::start();
    for seed in 0..SEEDS {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::generate(seed);

        compare(&image, dir.path(), "containerd", &containerd.unpack(&image, dir.path()));
    }
}

#[test]
#[ignore = "it needs skopeo, podman, buildah and containerd: make test-long"]
fn archives_of_every_tool_have_the_image_that_went_into_them() {
    // Podman loads sparse files, and fails to save them.
    let images = (0..).map(Image::generate).filter(|image| !image.to_string().contains("\nsparse"));
    for image in images.take(3) {
        let dir = tempfile::tempdir().unwrap();
        let expected = seen(&image.archive(), &dir.path().join("own"), true);
        let names = archives::write_all(&image, dir.path());
        assert_eq!(names.len(), 9, "{names:?}");
        for name in names {
            let archive = fs::read(dir.path().join(&name)).unwrap();
            let found = differences(&seen(&archive, &dir.path().join("theirs").join(&name), true), &expected);
            assert!(found.is_empty(), "{image}; {name}; here and in the image:\n{}", found.join("\n"));
        }
    }
}
