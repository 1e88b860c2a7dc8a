//! Unpacks generated images, and compares the result with those of umoci and containerd, file by file: content, owner,
//! mode, extended attributes, link count, device, time.
#![allow(clippy::unwrap_used, reason = "tests say why they fail")]

mod corpus;
mod tree;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flota_image::{ImageStore, copy_layer, import};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use corpus::Image;
use tree::{Tree, differences};

const SEEDS: u64 = 40;

/// Returns what a container sees of the image, mounted or copied.
fn seen(image: &Image, dir: &Path, overlay: bool) -> Tree {
    let dir = dir.join(if overlay { "mounted" } else { "copied" });
    let root = dir.join("root");
    fs::create_dir_all(&root).unwrap();
    let store = ImageStore::open(&dir.join("store"), overlay).unwrap();
    let (imported, _) = import(&store, image.archive().as_slice()).unwrap();
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

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is missing ({error}): run deploy/tools.sh"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Compares both ways in which layers are used with what another tool has unpacked.
fn compare(image: &Image, dir: &Path, tool: &str, theirs: &Tree) {
    for overlay in [true, false] {
        let found = differences(&seen(image, dir, overlay), theirs);
        assert!(found.is_empty(), "{image}; overlay: {overlay}; here and in {tool}:\n{}", found.join("\n"));
    }
}

#[test]
#[ignore = "make test-long runs it, with the other comparison"]
fn umoci_unpacks_every_image_to_the_same() {
    for seed in 0..SEEDS {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::generate(seed);
        let (layout, bundle) = (dir.path().join("layout"), dir.path().join("bundle"));
        image.write_layout(&layout);
        run("umoci", &["unpack", "--image", &format!("{}:box", layout.display()), &bundle.display().to_string()]);
        compare(&image, dir.path(), "umoci", &Tree::read(&bundle.join("rootfs")));
    }
}

/// A containerd of this test's own.
struct Containerd(Child, tempfile::TempDir);

impl Containerd {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let plugins = r#"disabled_plugins = ["io.containerd.grpc.v1.cri"]"#;
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n{plugins}\n[grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("sock"),
            path("ttrpc"),
        );
        fs::write(path("config.toml"), config).unwrap();
        let log = fs::File::create(path("log")).unwrap();
        let mut command = Command::new("containerd");
        command.args(["--config", &path("config.toml")]).stdout(Stdio::null()).stderr(log);
        let daemon = Self(command.spawn().expect("containerd is installed"), dir);
        let begun = Instant::now();
        while !daemon.try_ctr(&["version"]) {
            assert!(begun.elapsed() < Duration::from_secs(60), "containerd does not answer");
        }
        daemon
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.1.path().join("sock")).args(arguments);
        command
    }

    fn try_ctr(&self, arguments: &[&str]) -> bool {
        self.command(arguments).output().unwrap().status.success()
    }

    fn ctr(&self, arguments: &[&str]) {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "ctr {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn unpacked(&self, image: &Image, dir: &Path) -> Tree {
        let (archive, root) = (dir.join("image.tar"), dir.join("root").display().to_string());
        fs::File::create(&archive).unwrap().write_all(&image.archive()).unwrap();
        fs::create_dir(&root).unwrap();
        self.ctr(&[
            "images",
            "import",
            "--snapshotter",
            "overlayfs",
            "--index-name",
            "box",
            &archive.display().to_string(),
        ]);
        self.ctr(&["images", "mount", "--snapshotter", "overlayfs", "box", &root]);
        let tree = std::panic::catch_unwind(|| Tree::read(Path::new(&root)));
        self.ctr(&["images", "unmount", "--snapshotter", "overlayfs", "--rm", &root]);
        self.ctr(&["images", "rm", "--sync", "box"]);
        tree.unwrap()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs containerd, a package of 120 MB: make test-long"]
fn containerd_unpacks_every_image_to_the_same() {
    let containerd = Containerd::start();
    for seed in 0..SEEDS {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::generate(seed);
        compare(&image, dir.path(), "containerd", &containerd.unpacked(&image, dir.path()));
    }
}
