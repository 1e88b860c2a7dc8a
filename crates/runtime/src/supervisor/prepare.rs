//! What a supervisor writes before a runtime creates the container: the files with its names, and its configuration with
//! the settings of the image.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::mounts::{bundle, image_path, part_path, source_path};
use super::order::Order;
use super::user;
use crate::error::{Act, StepError};
use crate::ids::as_root_of;
use crate::oci::{self, Mount, Process, Spec};
use crate::rootfs::RootDir;
use crate::security::Filter;
use crate::state;

/// Returns the configuration, completed with the settings of the image.
pub(super) fn complete(dir: &Path, order: &Order, rootfs: &Path) -> Result<Spec, StepError> {
    let mut spec: Spec = oci::read_json(&bundle(dir).join("config.json"))?;
    let root = RootDir::open(rootfs)?;
    let files = network_files(order)?;
    as_root_of(order.ids, || write_network_files(&root, &files))?;
    if let Some(it) = &mut spec.root {
        it.path = rootfs.to_owned();
    }
    for mount in spec.mounts.iter_mut().filter(|mount| mount.kind == "bind") {
        let mut sources = order.pinned.iter().chain(&order.mapped);
        if let Some(index) = sources.position(|path| *path == Path::new(&mount.source)) {
            mount.source = source_path(dir, index).display().to_string();
        }
    }
    let images = order.images.iter().enumerate().map(|(index, image)| (&image.target, image_path(dir, index)));
    let parts = order.file_systems.iter().enumerate().flat_map(|(index, system)| {
        let parts = system.parts.iter().enumerate();
        parts.map(move |(part, it)| (&it.target, part_path(dir, index, part)))
    });
    let made: BTreeMap<&PathBuf, PathBuf> = images.chain(parts).collect();
    for mount in spec.mounts.iter_mut().filter(|mount| mount.kind == "bind" && mount.source.is_empty()) {
        if let Some(source) = made.get(&mount.destination) {
            mount.source = source.display().to_string();
        }
    }
    show_network_files(dir, &mut spec, &files)?;
    let user = user::find(&root, &order.user, &order.extra_groups)?;
    take_user(spec.process.get_or_insert_default(), &user);
    // A device for which no owner is given belongs to the container's user, as the Container Device Interface has it.
    for device in spec.linux.iter_mut().flat_map(|linux| &mut linux.devices) {
        device.uid = device.uid.or(Some(user.uid));
        device.gid = device.gid.or(Some(user.gid));
    }
    Ok(spec)
}

/// Writes the configuration for a runtime that reads it, and for processes that are started in the container later.
pub(super) fn write(dir: &Path, spec: &Spec) -> Result<(), StepError> {
    state::write_volatile(&bundle(dir).join("config.json"), spec).act(|| "write the configuration".into())
}

/// Loads the filter that was compiled for the container; its configuration no longer contains the rules.
pub(super) fn filter(dir: &Path) -> Result<Filter, StepError> {
    let path = bundle(dir).join("seccomp");
    Filter::load(&path)?.ok_or_else(|| StepError::refuse(format!("read {}", path.display()), "it is not there"))
}

/// Sets the process's user. Root gets all capabilities of the container and other users get none, as in Docker.
pub(super) fn take_user(process: &mut Process, user: &user::ContainerUser) {
    process.user.uid = user.uid;
    process.user.gid = user.gid;
    process.user.additional_gids.clone_from(&user.groups);
    if let Some(capabilities) = &mut process.capabilities {
        let held = if user.uid == 0 { capabilities.bounding.clone() } else { Vec::new() };
        capabilities.effective.clone_from(&held);
        capabilities.permitted = held;
        capabilities.ambient.clear();
    }
    if !process.env.iter().any(|it| it.starts_with("HOME=")) {
        process.env.push(format!("HOME={}", user.home));
    }
}

/// Where the machine's name servers are.
const RESOLVER: &str = "/etc/resolv.conf";

/// Largest resolv.conf in bytes; one of the machine that is longer is cut.
const RESOLVER_BOUND: u64 = 1 << 20;

/// Returns the machine's resolv.conf, or `None` if it has no name servers.
fn machines_resolver() -> Result<Option<Vec<u8>>, StepError> {
    let mut text = Vec::new();
    match fs::File::open(RESOLVER).and_then(|file| file.take(RESOLVER_BOUND).read_to_end(&mut text)) {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).act(|| format!("read {RESOLVER}")),
    }
}

/// A file in /etc: its name and its content.
type NetworkFile = (&'static str, Vec<u8>);

/// Returns the content of /etc/hostname, /etc/hosts and /etc/resolv.conf.
fn network_files(order: &Order) -> Result<Vec<NetworkFile>, StepError> {
    let hostname = format!("{}\n", order.hostname).into_bytes();
    let mut files = vec![("hostname", hostname), ("hosts", order.hosts.clone().into_bytes())];
    let resolver = match &order.resolver {
        Some(text) => Some(text.clone().into_bytes()),
        None => machines_resolver()?,
    };
    files.extend(resolver.map(|text| ("resolv.conf", text)));
    Ok(files)
}

/// Mounts the files over those of a mount that hides /etc, such as a volume, as Docker does. One that is read-only shows only
/// those for which it has a file.
fn show_network_files(dir: &Path, spec: &mut Spec, files: &[NetworkFile]) -> Result<(), StepError> {
    let is_at = |mount: &Mount, path: &str| mount.destination.components().eq(Path::new(path).components());
    let Some(etc) = spec.mounts.iter().rfind(|mount| is_at(mount, "/etc")).cloned() else { return Ok(()) };
    let is_read_only = etc.options.iter().any(|option| option == "ro");
    let own = dir.join("etc");
    fs::create_dir_all(&own).act(|| format!("make {}", own.display()))?;
    for (name, text) in files {
        let (source, destination) = (own.join(name), format!("/etc/{name}"));
        let is_given = spec.mounts.iter().any(|mount| is_at(mount, &destination));
        if is_given || is_read_only && !Path::new(&etc.source).join(name).exists() {
            continue;
        }
        let mode = fs::Permissions::from_mode(0o644);
        let written = fs::write(&source, text).and_then(|()| fs::set_permissions(&source, mode));
        written.act(|| format!("write {}", source.display()))?;
        // The file is in memory, which the container must not fill.
        let options = ["bind", "ro", "nosuid", "nodev", "noexec"].map(str::to_owned).to_vec();
        let (source, destination) = (source.display().to_string(), destination.into());
        spec.mounts.push(Mount { destination, kind: "bind".into(), source, options, ..Mount::default() });
    }
    Ok(())
}

/// Writes the files into the root. They replace the image's, as Docker's mounts hide them.
fn write_network_files(root: &RootDir, files: &[NetworkFile]) -> Result<(), StepError> {
    let etc = root.make_folder(Path::new("/etc")).act(|| "make /etc".into())?;
    for (name, text) in files {
        let act = || format!("write /etc/{name}");
        // The file is written beside it and renamed, because the image may have a pipe there, which would block the
        // open for ever.
        let new = format!(".{name}.flota");
        match unlinkat(&etc, new.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error).act(act),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&etc, new.as_str(), flags, Mode::from_bits_truncate(0o644)).act(act)?;
        nix::sys::stat::fchmod(&file, Mode::from_bits_truncate(0o644)).act(act)?;
        fs::File::from(file).write_all(text).act(act)?;
        renameat(&etc, new.as_str(), &etc, *name).act(act)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Capabilities;

    #[test]
    fn root_has_what_the_container_may_have_and_others_nothing() {
        let bounding = vec!["CAP_CHOWN".to_owned()];
        let capabilities = Capabilities { bounding: bounding.clone(), ..Capabilities::default() };
        let mut process = Process { capabilities: Some(capabilities), ..Process::default() };
        // The user changes back and forth: a process is started as root in a container of another user, and the other
        // way round.
        for (uid, held) in [(0, &bounding), (7, &Vec::new()), (0, &bounding)] {
            take_user(&mut process, &user::ContainerUser { uid, gid: 1, groups: vec![1], home: "/".into() });
            let has = process.capabilities.as_ref().expect("given");
            assert_eq!((&has.effective, &has.permitted, &has.bounding), (held, held, &bounding), "user {uid}");
        }
    }
}
