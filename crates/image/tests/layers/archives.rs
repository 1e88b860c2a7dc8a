//! One image in the archives that real tools write of it.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::containerd::Containerd;
use crate::corpus::Image;
use crate::run;

const NAME: &str = "example.org/team/box:1";

/// Has each tool write the image into the folder. Returns the names of the archives, which say who wrote them and how.
pub(crate) fn write_all(image: &Image, dir: &Path) -> Vec<String> {
    image.write_layout(&dir.join("layout"));
    let path = |name: &str| dir.join(name).display().to_string();
    let layout = path("layout");
    tool("tar", &["-C", &layout, "-cf", &path("a layout by tar"), "."]);
    for format in ["docker-archive", "oci-archive"] {
        let target = format!("{format}:{}:{NAME}", path(&format!("{format} by skopeo")));
        tool("skopeo", &["copy", &format!("oci:{layout}:box"), &target]);
    }
    // Both keep images in the same folder, unpacked without a mount.
    let (root, state) = (path("storage"), path("storage-state"));
    let storage = ["--root", &root, "--runroot", &state, "--storage-driver", "vfs"];
    let with_storage = |program: &str, arguments: &[&str]| tool(program, &[&storage, arguments].concat());
    with_storage("podman", &["load", "--input", &path("docker-archive by skopeo")]);
    with_storage("buildah", &["from", "--pull-never", "--name", "working", NAME]);
    for (format, name) in [("docker-archive", "docker"), ("oci-archive", "oci")] {
        with_storage("podman", &["save", "--format", format, "--output", &path(&format!("{format} by podman")), NAME]);
        let target = format!("{format}:{}:{NAME}", path(&format!("{format} by buildah")));
        with_storage("buildah", &["commit", "--format", name, "working", &target]);
    }
    tool("gzip", &["--keep", &path("docker-archive by podman")]);
    for storage in [&root, &state] {
        fs::remove_dir_all(storage).unwrap();
    }
    Containerd::start().export(image, dir, &path("archive by containerd"));
    let names = fs::read_dir(dir).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(" by ")).collect()
}

fn tool(program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    command.args(arguments);
    run(command);
}
