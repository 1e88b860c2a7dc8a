//! Images that a container mounts beside its root.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use flota_runtime::{ImageFiles, ImageMount};
use nix::sys::stat::{Mode, SFlag, mknod};
use serde_json::json;

use crate::supervised::Supervised;

/// Adds a mount of these files at a path in the container.
pub(crate) fn add(container: &mut Supervised, target: &str, files: ImageFiles, subpath: Option<&str>) {
    let options = json!(["rbind", "rprivate", "ro", "rro"]);
    container.bundle.mount(json!({"destination": target, "type": "bind", "source": "", "options": options}));
    container.order.images.push(ImageMount { target: target.into(), files, subpath: subpath.map(PathBuf::from) });
}

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// Two layers, of which the upper one replaces a file and removes another, and whose links lead to several places.
pub(crate) fn layers(container: &Supervised) -> ImageFiles {
    let [above, below] = ["above", "below"].map(|name| container.bundle.dir.join(name));
    write(&below, &[("both", "below"), ("gone", "x"), ("sub/below", "1"), ("real/file", "here")]);
    write(&above, &[("both", "above"), ("sub/above", "2")]);
    mknod(&above.join("gone"), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
    for (name, target) in [("inside", "real"), ("outside", "../../../etc"), ("absolute", "/real"), ("loop", "loop")] {
        symlink(target, above.join(name)).unwrap();
    }
    ImageFiles::Layers(vec![above, below])
}

#[test]
fn the_layers_of_an_image_are_seen_as_one_and_can_not_be_written() {
    let mut container = Supervised::new("until [ -e /end ]; do usleep 10000; done");
    let files = layers(&container);
    add(&mut container, "/image", files.clone(), None);
    add(&mut container, "/part", files.clone(), Some("sub"));
    add(&mut container, "/deep/file", files.clone(), Some("real/file"));
    add(&mut container, "/link", files, Some("inside/file"));
    container.bundle.privileged();
    let container = container.start();
    let see = |script: &str| container.exec(script).1;
    assert_eq!(see("cat /image/both /image/sub/below /image/sub/above"), "above12");
    assert_eq!(see("ls /image"), "absolute\nboth\ninside\nloop\noutside\nreal\nsub\n", "`gone` is not there");
    assert_eq!(see("ls /part; cat /deep/file /link"), "above\nbelow\nherehere");
    for path in ["/image/new", "/image/both", "/part/new", "/deep/file"] {
        let (code, _) = container.exec(&format!("echo x > {path}"));
        assert_ne!(code, 0, "{path}");
    }
    let (code, _) = container.exec("mount -o remount,rw /image; echo x > /image/new");
    assert_ne!(code, 0, "also for one that may mount");
    assert_eq!(fs::read_to_string(container.bundle.dir.join("above/both")).unwrap(), "above");
    container.exec("touch /end");
    container.wait();
    container.assert_gone();
}

#[test]
fn an_image_of_one_layer_of_none_and_of_a_folder_are_mounted_alike() {
    let mut container = Supervised::new("cat /one/file /folder/file; ls /none; echo x > /folder/new || exit 3");
    let folder = container.bundle.dir.join("one");
    write(&folder, &[("file", "text")]);
    add(&mut container, "/one", ImageFiles::Layers(vec![folder.clone()]), None);
    add(&mut container, "/folder", ImageFiles::Folder(folder.clone()), None);
    add(&mut container, "/none", ImageFiles::Layers(Vec::new()), None);
    let container = container.start();
    assert_eq!(container.wait().code, 3);
    assert!(container.lines().contains(&(1, "texttext".into())), "{:?}", container.lines());
    assert!(!folder.join("new").exists());
    container.assert_gone();
}

#[test]
fn an_image_of_many_layers_fits_into_the_options_of_a_mount() {
    let mut container = Supervised::new("cat /image/file-0 /image/file-59");
    // As deep as the folders of a node, and with names as long as those of layers.
    let folder = container.bundle.dir.join("a-folder-that-is-far-from-the-root-of-the-file-system/layers");
    let layer = |number: usize| {
        let layer = folder.join(format!("{number:0>60}"));
        write(&layer, &[(&format!("file-{number}"), "x")]);
        layer
    };
    let layers: Vec<PathBuf> = (0..60).map(layer).collect();
    let bytes: usize = layers.iter().map(|it| it.as_os_str().len()).sum();
    assert!(bytes > 4_096, "their whole paths do not fit into a page");
    add(&mut container, "/image", ImageFiles::Layers(layers), None);
    let container = container.start();
    assert_eq!(container.wait().code, 0);
    assert_eq!(container.lines()[0].1, "xx");
}

#[test]
fn a_part_that_is_missing_or_leads_out_of_the_image_is_refused_by_name() {
    for (subpath, expected) in [
        ("none", "failed to mount `none` of the image at `/image`: No such file or directory"),
        ("gone", "failed to mount `gone` of the image at `/image`: No such file or directory"),
        ("both/file", "failed to mount `both/file` of the image at `/image`: Not a directory"),
        ("outside", "failed to mount `outside` of the image at `/image`: it leads out of the image"),
        ("absolute", "failed to mount `absolute` of the image at `/image`: it leads out of the image"),
        ("../sub", "failed to mount `../sub` of the image at `/image`: it leads out of the image"),
        ("/sub", "failed to mount `/sub` of the image at `/image`: it leads out of the image"),
        ("loop", "failed to mount `loop` of the image at `/image`: Too many symbolic links encountered"),
    ] {
        let mut container = Supervised::new("exec sleep 1000");
        let files = layers(&container);
        add(&mut container, "/image", files, Some(subpath));
        let error = container.try_start().expect_err(subpath);
        assert_eq!(error.text, expected);
        container.assert_gone();
    }
}
