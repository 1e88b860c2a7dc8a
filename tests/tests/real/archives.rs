//! Images in archives, made in memory.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use tar_core::EntryType;
use tar_core::HEADER_SIZE;
use tar_core::builder::EntryBuilder;

/// A tar in memory.
pub(crate) fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    tar_with_links(entries, &[])
}

/// A tar with symbolic links, each with where it leads.
pub(crate) fn tar_with_links(entries: &[(&str, &[u8])], links: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, target) in links {
        let mut entry = EntryBuilder::new_gnu();
        entry.path(name).link_name(target).entry_type(EntryType::Symlink).mode(0o777).unwrap();
        archive.extend(entry.finish_bytes());
    }
    for (name, bytes) in entries {
        let mut entry = EntryBuilder::new_gnu();
        entry.path(name).size(bytes.len() as u64).unwrap().mode(0o755).unwrap();
        archive.extend(entry.finish_bytes());
        archive.extend_from_slice(bytes);
        archive.resize(archive.len().next_multiple_of(HEADER_SIZE), 0);
    }
    archive.resize(archive.len() + 2 * HEADER_SIZE, 0);
    archive
}

/// Writes an archive of one layer that holds `whoami`, as `docker save` does. Returns its path.
pub(crate) fn docker_archive(dir: &Path, layer: &[u8]) -> String {
    archive(dir, &["/whoami"], &[layer])
}

/// Writes an archive of these layers, as `docker save` does. Returns its path.
pub(crate) fn archive(dir: &Path, entrypoint: &[&str], layers: &[&[u8]]) -> String {
    archive_of(dir, &json!({ "Entrypoint": entrypoint }), layers)
}

fn archive_of(dir: &Path, config: &Value, layers: &[&[u8]]) -> String {
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": [] },
    });
    let names: Vec<String> = (0..layers.len()).map(|number| format!("layer{number}.tar")).collect();
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["saved:1"], "Layers": names }]);
    let (config, manifest) = (config.to_string(), manifest.to_string());
    let mut entries: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(layers.iter().copied()).collect();
    entries.extend([("config.json", config.as_bytes()), ("manifest.json", manifest.as_bytes())]);
    let path = dir.join("image.tar");
    fs::File::create(&path).unwrap().write_all(&tar(&entries)).unwrap();
    path.display().to_string()
}

/// An image with busybox in `/app`, which sleeps.
pub(crate) fn busybox(dir: &Path) -> String {
    let program = fs::read("/bin/busybox").unwrap();
    let users = b"root:x:0:0:root:/:/bin/sh\nweb:x:33:33:web:/:/bin/sh\n";
    let layer = tar(&[("app/busybox", &program), ("etc/passwd", users)]);
    archive(dir, &["/app/busybox", "sleep", "1000"], &[&layer])
}

/// An image with busybox and a shell, which sleeps, and whose health check is whether `/well` exists.
pub(crate) fn checked_busybox(dir: &Path) -> String {
    let program = fs::read("/bin/busybox").unwrap();
    let layer = tar(&[("bin/busybox", &program), ("bin/sh", &program)]);
    let test = "test -e /well && echo all is well || { echo it is not well; exit 1; }";
    let check = json!({ "Test": ["CMD-SHELL", test], "Interval": 0 });
    archive_of(dir, &json!({ "Entrypoint": ["/bin/busybox", "sleep", "100000"], "Healthcheck": check }), &[&layer])
}

/// An image with busybox in `/bin`, which sleeps, and a `VOLUME` at `/srv/data`, where it has a file.
pub(crate) fn busybox_with_volume(dir: &Path) -> String {
    let program = fs::read("/bin/busybox").unwrap();
    let layer = tar(&[("bin/busybox", &program), ("srv/data/of-image", b"of the image")]);
    let config = json!({ "Entrypoint": ["/bin/busybox", "sleep", "100000"], "Volumes": { "/srv/data": {} } });
    archive_of(dir, &config, &[&layer])
}
