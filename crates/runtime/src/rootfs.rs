//! The container's root: mounted, filled with what the OCI specification asks for, and entered for good.

mod devices;
mod masks;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use crate::error::{Act, StepError};
use crate::spec::Root;

/// Nothing below may be a set-user-id program or a device.
const PLAIN: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Type, target, flags, options: OCI runtime specification, "Default Filesystems". In this order.
fn file_systems() -> [(&'static str, &'static str, MsFlags, &'static str); 6] {
    let dev = MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME;
    let pts = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    [
        ("proc", "proc", PLAIN, ""),
        ("tmpfs", "dev", dev, "mode=755,size=65536k"),
        ("devpts", "dev/pts", pts, "newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ("tmpfs", "dev/shm", PLAIN, "mode=1777,size=65536k"),
        ("mqueue", "dev/mqueue", PLAIN, ""),
        ("sysfs", "sys", PLAIN.union(MsFlags::MS_RDONLY), ""),
    ]
}

/// Makes `root` this process's root, in a mount namespace that is its own.
pub(crate) fn enter(root: &Root, hostname: &str) -> Result<(), StepError> {
    // Nothing that is mounted from here on may reach the machine.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).act(|| "make mounts private".into())?;
    let root = mount_root(root)?;
    for (kind, target, flags, options) in file_systems() {
        let path = target_below(&root, target)?;
        mount(Some(kind), &path, Some(kind), flags, Some(options)).act(|| format!("mount {kind} at /{target}"))?;
    }
    devices::make(&root)?;
    name_files(&root, hostname)?;
    pivot(&root)?;
    masks::apply()
}

fn mount_root(root: &Root) -> Result<PathBuf, StepError> {
    match root {
        Root::Folder(path) => {
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(path), path, None::<&str>, bind, None::<&str>).act(|| format!("bind {}", path.display()))?;
            Ok(path.clone())
        }
        Root::Overlay { lower, upper, work } => {
            let merged = upper.with_file_name("merged");
            fs::create_dir_all(&merged).act(|| format!("make {}", merged.display()))?;
            // Relative paths keep the options within a page, however many layers there are (overlayfs documentation).
            let common = common_parent(lower);
            chdir(&common).act(|| format!("enter {}", common.display()))?;
            let names: Vec<String> =
                lower.iter().map(|it| it.strip_prefix(&common).unwrap_or(it).display().to_string()).collect();
            let options =
                format!("lowerdir={},upperdir={},workdir={}", names.join(":"), upper.display(), work.display());
            mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
                .act(|| "mount the layers".into())?;
            Ok(merged)
        }
    }
}

fn common_parent(paths: &[PathBuf]) -> PathBuf {
    let parent = paths.first().and_then(|path| path.parent()).unwrap_or(Path::new("/"));
    let shared = parent.ancestors().find(|ancestor| paths.iter().all(|path| path.starts_with(ancestor)));
    shared.unwrap_or(Path::new("/")).to_owned()
}

/// A folder below the root to mount on. An image that has a link there would lead the mount out of the root: refused.
fn target_below(root: &Path, target: &str) -> Result<PathBuf, StepError> {
    let mut path = root.to_owned();
    for part in target.split('/') {
        path.push(part);
        match fs::symlink_metadata(&path) {
            Ok(about) if about.is_dir() => {}
            Ok(_) => {
                return Err(StepError::refuse(format!("mount at /{target}"), "the image has something else there"));
            }
            Err(_) => fs::create_dir(&path).act(|| format!("make /{target}"))?,
        }
    }
    Ok(path)
}

/// /etc/hostname and /etc/hosts, where the image leaves room for them.
fn name_files(root: &Path, hostname: &str) -> Result<(), StepError> {
    let etc = target_below(root, "etc")?;
    let hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n127.0.0.1\t{hostname}\n");
    for (name, text) in [("hostname", format!("{hostname}\n")), ("hosts", hosts)] {
        let path = etc.join(name);
        if fs::symlink_metadata(&path).is_ok_and(|about| about.is_symlink()) {
            continue;
        }
        // Beside it and renamed: what the image has there may be a pipe, and opening that would never end.
        let new = etc.join(format!(".{name}.flota"));
        let _ = fs::remove_file(&new);
        let written = fs::File::create_new(&new).and_then(|mut file| file.write_all(text.as_bytes()));
        written.and_then(|()| fs::rename(&new, &path)).act(|| format!("write /etc/{name}"))?;
    }
    Ok(())
}

/// pivot_root(2), "pivot_root(".", ".")": the old root lies on top of the new one and is taken off.
fn pivot(root: &Path) -> Result<(), StepError> {
    chdir(root).act(|| "enter the root".into())?;
    pivot_root(".", ".").act(|| "change the root".into())?;
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, ".", None::<&str>, slave, None::<&str>).act(|| "cut off the old root".into())?;
    umount2(".", MntFlags::MNT_DETACH).act(|| "take off the old root".into())?;
    chdir("/").act(|| "enter the new root".into())
}
