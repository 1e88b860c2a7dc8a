//! A containerd of the test's own, which ends with it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::corpus::Image;
use crate::run;
use crate::tree::Tree;

/// How long it may take to start.
const START_WAIT: Duration = Duration::from_secs(30);
/// The name under which an image is imported.
const NAME: &str = "docker.io/library/box:1";

pub(crate) struct Containerd {
    dir: TempDir,
    daemon: Child,
}

impl Containerd {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let settings = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("socket")
        );
        fs::write(path("config.toml"), settings).unwrap();
        let log = fs::File::create(path("log")).unwrap();
        let mut daemon = Command::new("containerd");
        daemon.args(["--config", &path("config.toml")]).stdout(Stdio::null()).stderr(log);
        let daemon =
            daemon.spawn().unwrap_or_else(|error| panic!("containerd is missing ({error}): run deploy/tools.sh"));
        let containerd = Self { dir, daemon };
        let until = Instant::now() + START_WAIT;
        while !containerd.ctr(&["version"]).output().unwrap().status.success() {
            let log = fs::read_to_string(containerd.dir.path().join("log")).unwrap();
            assert!(Instant::now() < until, "containerd does not start:\n{log}");
        }
        containerd
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.dir.path().join("socket")).args(arguments);
        ctr
    }

    fn import(&self, image: &Image, dir: &Path) {
        let archive = dir.join("archive").display().to_string();
        fs::write(&archive, image.archive()).unwrap();
        run(self.ctr(&["images", "import", "--snapshotter", "native", "--index-name", NAME, &archive]));
    }

    /// Writes the image as an archive.
    pub(crate) fn export(&self, image: &Image, dir: &Path, archive: &str) {
        self.import(image, dir);
        run(self.ctr(&["images", "export", archive, NAME]));
    }

    /// Returns what the image unpacks to. The snapshotter is the one that copies layers: that for overlayfs takes no hard
    /// link to a file of a lower layer.
    pub(crate) fn unpack(&self, image: &Image, dir: &Path) -> Tree {
        self.import(image, dir);
        let chain = image.chain();
        let snapshots = |arguments: &[&str]| self.ctr(&[&["snapshots", "--snapshotter", "native"], arguments].concat());
        run(snapshots(&["prepare", "copy", &chain]));
        // As in `mount -t bind /PATH / -o rbind,rw`.
        let mounts = snapshots(&["mounts", "/", "copy"]).output().unwrap();
        let mount = String::from_utf8(mounts.stdout).unwrap();
        let tree = Tree::read(Path::new(mount.split_whitespace().nth(3).unwrap()));
        run(snapshots(&["remove", "copy"]));
        run(self.ctr(&["images", "remove", "--sync", NAME]));
        tree
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
