//! The step that provides the volumes of a task: those that its spec names, and those that belong to it alone.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::BoxFuture;

use flota_api::id::TaskId;
use flota_api::model::{Assignment, FileSystem, Mount, MountSource, TaskVolume, VolumeMount};
use flota_runtime::{FileSystemMount, Part};

use super::ContainerError;
use crate::executor::{Cause, Draft, ExecutorError, PrepareStep, TaskPaths};
use crate::volumes::{Content, IMAGE_VOLUMES_BOUND, VolumeError, Volumes};

/// Longest time that the look-up of a server may take.
const LOOK_UP_PATIENCE: Duration = Duration::from_secs(10);

/// Makes the data of volumes at first use. The data of a volume with a name stays when the step is undone.
#[derive(Clone, Debug)]
pub(super) struct VolumeStep {
    pub(super) volumes: Volumes,
    pub(super) paths: TaskPaths,
}

/// A volume that a task needs.
#[derive(Debug, PartialEq, Eq)]
struct Needed<'a> {
    target: &'a str,
    /// `None`: it belongs to the task.
    name: Option<&'a str>,
    no_copy: bool,
    /// The part of it that is mounted; `None`: all of it.
    subpath: Option<&'a str>,
}

/// Returns the volumes that the spec asks for, and those of the image (`VOLUME`) at whose paths it has no mount.
fn needed<'a>(mounts: &'a [Mount], of_image: &'a [String]) -> Vec<Needed<'a>> {
    let of_spec = mounts.iter().filter_map(|mount| match &mount.source {
        MountSource::Volume(it) => Some(Needed {
            target: &mount.target,
            name: it.name.as_deref(),
            no_copy: it.no_copy,
            subpath: it.subpath.as_deref(),
        }),
        MountSource::Bind(_) | MountSource::Tmpfs(_) | MountSource::Image { .. } => None,
    });
    let is_free = |target: &&str| !mounts.iter().any(|mount| mount.target == *target);
    let of_image = of_image.iter().map(|path| path.trim_end_matches('/')).filter(is_free);
    let own = of_image.map(|target| Needed { target, name: None, no_copy: false, subpath: None });
    // What an image says is used as far as a spec could say it.
    let is_valid = |needed: &Needed| {
        let source = MountSource::Volume(VolumeMount::default());
        Mount { target: needed.target.to_owned(), read_only: false, source }.violations().is_empty()
    };
    let mut all: Vec<_> = of_spec.chain(own.filter(is_valid)).collect();
    // A new volume is filled for a mount of all of it. A part can be found then.
    all.sort_by_key(|volume| volume.subpath.is_some());
    all
}

impl VolumeStep {
    fn own_folder(&self, task: &TaskId) -> PathBuf {
        self.paths.data_folder(task).join("volumes")
    }

    async fn provide(&self, task: &Assignment, draft: &mut Draft) -> Result<(), VolumeError> {
        let of_image = draft.config.volumes().clone().unwrap_or_default();
        if of_image.len() > IMAGE_VOLUMES_BOUND {
            return Err(VolumeError::TooMany(of_image.len()));
        }
        draft.file_systems = file_systems(task).await?;
        let own = self.own_folder(&task.task_id);
        for (index, volume) in needed(&task.spec.mounts, &of_image).into_iter().enumerate() {
            let path = Path::new(volume.target).to_owned();
            let content = (!volume.no_copy).then(|| Content { layers: draft.layers.clone(), path });
            let folder = match volume.name {
                Some(name) => {
                    let known = task.volumes.iter().find(|it| it.name == name);
                    let known = known.ok_or_else(|| VolumeError::Unknown(name.to_owned()))?;
                    match volume.subpath {
                        // The supervisor mounts it.
                        _ if known.file_system.is_some() => continue,
                        None => self.volumes.provide(known, content).await?,
                        Some(part) => self.volumes.find_part(known, part).await?,
                    }
                }
                None => {
                    let folder = own.join(index.to_string());
                    self.volumes.provide_anonymous(&task.task_id, folder, content).await?
                }
            };
            draft.volumes.insert(volume.target.to_owned(), folder);
        }
        Ok(())
    }
}

/// Returns the mounts of the volumes that are file systems. Those that are a folder of the node are bind mounts.
async fn file_systems(task: &Assignment) -> Result<Vec<FileSystemMount>, VolumeError> {
    let mut mounts = Vec::new();
    for volume in &task.volumes {
        let Some(system) = volume.file_system.as_ref().filter(|it| it.bound_path().is_none()) else { continue };
        let part = |mount: &Mount| match &mount.source {
            MountSource::Volume(it) if it.name.as_ref() == Some(&volume.name) => {
                Some(Part { target: mount.target.clone().into(), subpath: it.subpath.as_ref().map(PathBuf::from) })
            }
            _ => None,
        };
        let options = system.options.iter().cloned().chain(address(volume, system).await?).collect();
        let parts = task.spec.mounts.iter().filter_map(part).collect();
        mounts.push(FileSystemMount { kind: system.kind.clone(), device: system.device.clone(), options, parts });
    }
    Ok(mounts)
}

/// Returns the option with the address of a network file system's server: the kernel looks no name up (nfs(5), `addr`).
async fn address(volume: &TaskVolume, system: &FileSystem) -> Result<Option<String>, VolumeError> {
    let Some(server) = system.server() else { return Ok(None) };
    let found = match server.parse::<IpAddr>() {
        Ok(address) => Ok(address),
        Err(_) => look_up(server).await,
    };
    let failed = |source| VolumeError::LookUp { volume: volume.name.clone(), server: server.to_owned(), source };
    Ok(Some(format!("addr={}", found.map_err(failed)?)))
}

async fn look_up(server: &str) -> io::Result<IpAddr> {
    let found = tokio::time::timeout(LOOK_UP_PATIENCE, tokio::net::lookup_host((server, 0))).await;
    let found = found.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??.map(|it| it.ip());
    preferred(found).ok_or_else(|| io::Error::other("it has no address"))
}

/// The first IPv4 address, as in Docker, or else the first one: many file servers answer at no other.
fn preferred(mut found: impl Iterator<Item = IpAddr>) -> Option<IpAddr> {
    let first = found.next()?;
    if first.is_ipv4() { Some(first) } else { found.find(IpAddr::is_ipv4).or(Some(first)) }
}

impl PrepareStep for VolumeStep {
    fn name(&self) -> &'static str {
        "volumes"
    }

    fn prepare<'a>(&'a self, task: &'a Assignment, draft: &'a mut Draft) -> BoxFuture<'a, Result<(), ExecutorError>> {
        Box::pin(async move { Ok(self.provide(task, draft).await.map_err(ContainerError::Volume)?) })
    }

    fn undo<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move { Ok(self.volumes.remove_anonymous(task, self.own_folder(task)).await?) })
    }
}

#[cfg(test)]
mod tests {
    use flota_api::model::{ServiceSpec, TmpfsMount};

    use super::*;

    #[tokio::test]
    async fn a_volume_is_mounted_once_with_all_its_parts_and_the_address_of_its_server() {
        let mount = |target: &str, name: &str, subpath: Option<&str>| {
            let (name, subpath) = (Some(name.to_owned()), subpath.map(str::to_owned));
            let source = MountSource::Volume(VolumeMount { name, subpath, ..VolumeMount::default() });
            Mount { target: target.into(), read_only: false, source }
        };
        let mounts = vec![
            mount("/a", "share", None),
            mount("/b", "share", Some("x/y")),
            mount("/c", "bound", Some("z")),
            mount("/d", "folder", None),
        ];
        let volume = |name: &str, file_system: Option<FileSystem>| TaskVolume {
            name: name.into(),
            file_system,
            ..TaskVolume::default()
        };
        let of = |kind: &str, device: &str, o: &str| FileSystem::of(kind, device, o).ok();
        let mut task = Assignment {
            spec: ServiceSpec { mounts, ..ServiceSpec::default() }.into(),
            volumes: vec![
                volume("share", of("nfs", ":/srv", "addr=198.18.0.1,rw")),
                volume("bound", of("none", "/data", "rbind,ro")),
                volume("folder", None),
            ],
            ..Assignment::default()
        };
        let part =
            |target: &str, subpath: Option<&str>| Part { target: target.into(), subpath: subpath.map(Into::into) };
        let made = file_systems(&task).await.expect("an address");
        let options = ["rw", "addr=198.18.0.1"].map(str::to_owned).into();
        let (kind, device) = ("nfs".to_owned(), "198.18.0.1:/srv".to_owned());
        let parts = vec![part("/a", None), part("/b", Some("x/y"))];
        assert_eq!(made, [FileSystemMount { kind, device, options, parts }]);
        let bound = task.mounts().remove(2);
        assert_eq!((bound.bind_source(), bound.read_only), (Some("/data/z"), true), "{bound:?}");
        task.volumes[0].file_system = of("nfs", "localhost:/srv", "");
        let options = file_systems(&task).await.expect("it has an address").remove(0).options;
        assert_eq!(options, ["addr=127.0.0.1"]);
        let addresses = ["fd00::1", "198.18.0.1", "198.18.0.2"].map(|it| it.parse::<IpAddr>().expect("an address"));
        assert_eq!(preferred(addresses.into_iter()), Some(addresses[1]));
        assert_eq!(preferred(addresses.into_iter().take(1)), Some(addresses[0]));
        assert_eq!(preferred([].into_iter()), None);
    }

    #[test]
    fn a_volume_of_the_image_gives_way_to_a_mount_of_the_spec_and_parts_come_last() {
        let mount = |target: &str, source| Mount { target: target.into(), read_only: false, source };
        let volume = |name: &str, subpath: Option<&str>| {
            let (name, subpath) = (Some(name.to_owned()), subpath.map(str::to_owned));
            MountSource::Volume(VolumeMount { name, no_copy: true, subpath, ..VolumeMount::default() })
        };
        let tmpfs = MountSource::Tmpfs(TmpfsMount::default());
        let mounts =
            [mount("/part", volume("db", Some("a"))), mount("/data", volume("db", None)), mount("/cache", tmpfs)];
        let of_image = ["/data/", "/cache", "/logs", "relative", "/", "/a/../b", "/proc"].map(str::to_owned);
        let expected = [
            Needed { target: "/data", name: Some("db"), no_copy: true, subpath: None },
            Needed { target: "/logs", name: None, no_copy: false, subpath: None },
            Needed { target: "/part", name: Some("db"), no_copy: true, subpath: Some("a") },
        ];
        assert_eq!(needed(&mounts, &of_image), expected);
    }
}
