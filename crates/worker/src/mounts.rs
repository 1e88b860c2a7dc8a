//! The mounts of a task as its container's configuration has them, and the sources of its bind mounts.
//!
//! A bind mount may only show what the node's owner has listed, wherever the links in its path lead. The place where they
//! lead is therefore judged here, and the supervisor refuses a path in which there is a link then
//! ([`flota_runtime::Order::pinned`]): a task that replaces a part of the path by a link in the meantime gains nothing.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};

use flota_api::model::{Mount, MountSource, Propagation, Refusal};
use flota_runtime::{ImageFiles, ImageMount, oci};

/// Why the source of a bind mount can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// There is none, or a part of its path can't be looked at.
    #[error("failed to find `{path}`, the source of the mount at `{target}`")]
    Find {
        /// The source.
        path: String,
        /// Path in the container.
        target: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is missing and can't be made.
    #[error("failed to make `{path}`, the source of the mount at `{target}`")]
    Make {
        /// The source.
        path: String,
        /// Path in the container.
        target: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It leads to a place that the node's owner does not allow.
    #[error("`{path}` leads elsewhere: {refusal}")]
    Refused {
        /// The source.
        path: String,
        /// What is not allowed.
        refusal: Refusal,
    },
}

/// The sources of a task's bind mounts, by target: absolute paths without links.
#[derive(Debug, Default)]
pub(crate) struct BindSources(BTreeMap<String, PathBuf>);

impl BindSources {
    /// Finds out where the source of each bind mount is, and makes those that are missing if their mount says so; `roots` are
    /// those of [`crate::NodeOffers`].
    ///
    /// # Errors
    /// A source does not exist, or is not below a path that is allowed.
    pub(crate) fn find(mounts: &[Mount], roots: &[PathBuf]) -> Result<Self, BindError> {
        let mut sources = BTreeMap::new();
        for mount in mounts {
            let MountSource::Bind(bind) = &mount.source else { continue };
            let (path, target) = (&bind.source, &mount.target);
            let failed = |source| BindError::Find { path: path.clone(), target: target.clone(), source };
            let allowed = |place: PathBuf| match roots.iter().any(|root| place.starts_with(root)) {
                true => Ok(place),
                false => {
                    let refusal = Refusal::BindMount(place.display().to_string());
                    Err(BindError::Refused { path: path.clone(), refusal })
                }
            };
            let place = match std::fs::canonicalize(path) {
                Err(error) if bind.create_source && error.kind() == io::ErrorKind::NotFound => {
                    let place = allowed(missing(Path::new(path)).map_err(failed)?)?;
                    let failed = |source| BindError::Make { path: path.clone(), target: target.clone(), source };
                    make_folder(&place).map_err(failed)?;
                    place
                }
                found => allowed(found.map_err(failed)?)?,
            };
            sources.insert(target.clone(), place);
        }
        Ok(Self(sources))
    }

    fn path(&self, target: &str) -> Option<String> {
        self.0.get(target).map(|path| path.display().to_string())
    }
}

/// Returns the place of a path of which the end is missing: links in the part that is there are followed.
fn missing(path: &Path) -> io::Result<PathBuf> {
    let there = path.ancestors().skip(1).find_map(|above| Some((above, std::fs::canonicalize(above).ok()?)));
    let (above, place) = there.ok_or(io::ErrorKind::NotFound)?;
    Ok(place.join(path.strip_prefix(above).map_err(io::Error::other)?))
}

/// Makes a folder and those above it that are missing. No link is followed, as a task that may write there could put one into
/// the path at any time.
fn make_folder(path: &Path) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut folder = open("/", flags, Mode::empty())?;
    for name in path.strip_prefix("/").map_err(io::Error::other)? {
        match mkdirat(&folder, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        folder = openat(&folder, name, flags, Mode::empty())?;
    }
    Ok(())
}

/// Returns the sources of mounts in which the supervisor must find no link: those of bind mounts, and parts of volumes.
pub(crate) fn pinned(mounts: &[Mount], volumes: &BTreeMap<String, PathBuf>, binds: &BindSources) -> Vec<PathBuf> {
    let part = |mount: &Mount| match &mount.source {
        MountSource::Volume(it) if it.subpath.is_some() => volumes.get(&mount.target).cloned(),
        _ => None,
    };
    binds.0.values().cloned().chain(mounts.iter().filter_map(part)).collect()
}

/// Returns the mounts for the container's configuration: those of the image, then those of the spec, each with outer folders
/// first. `volumes` are the folders of its volumes, by target; one that is a file system has none.
pub(crate) fn of_task(mounts: &[Mount], volumes: &BTreeMap<String, PathBuf>, binds: &BindSources) -> Vec<oci::Mount> {
    let of_spec = mounts.iter().filter_map(|mount| mount_of(mount, volumes, binds));
    let is_own = |target: &&String| !mounts.iter().any(|mount| mount.target == **target);
    let of_image = volumes.iter().filter(|(target, _)| is_own(target));
    let of_image = of_image.map(|(target, folder)| bound(target, folder.display().to_string(), &["rprivate"], false));
    // What the image asks for comes first, so that nothing of it hides what the user has mounted, by whatever path.
    let by_depth = |mut mounts: Vec<oci::Mount>| {
        mounts.sort_by_key(|mount| mount.destination.components().count());
        mounts
    };
    [by_depth(of_image.collect()), by_depth(of_spec.collect())].concat()
}

/// Returns the images that the supervisor mounts; `files` are those of each image, by its reference.
pub(crate) fn images(mounts: &[Mount], files: &BTreeMap<String, ImageFiles>) -> Vec<ImageMount> {
    let mount = |mount: &Mount| match &mount.source {
        MountSource::Image { reference, subpath } => Some(ImageMount {
            target: mount.target.clone().into(),
            files: files.get(reference)?.clone(),
            subpath: subpath.as_ref().map(PathBuf::from),
        }),
        MountSource::Bind(_) | MountSource::Volume(_) | MountSource::Tmpfs(_) => None,
    };
    mounts.iter().filter_map(mount).collect()
}

/// Returns the mounts of the files and folders with a task's secrets and configs. They come after those of its spec, so that
/// nothing hides them.
pub(crate) fn of_values(values: &BTreeMap<String, PathBuf>) -> Vec<oci::Mount> {
    let mount = |(target, source): (&String, &PathBuf)| {
        let mut made = bound(target, source.display().to_string(), &["rprivate"], true);
        made.options.extend(["nosuid", "nodev", "noexec"].map(str::to_owned));
        made
    };
    values.iter().map(mount).collect()
}

fn mount_of(mount: &Mount, volumes: &BTreeMap<String, PathBuf>, binds: &BindSources) -> Option<oci::Mount> {
    let target = mount.target.as_str();
    Some(match &mount.source {
        MountSource::Volume(_) => {
            // The supervisor fills in the source of a file system, as it mounts that.
            let folder = volumes.get(target).map(|folder| folder.display().to_string()).unwrap_or_default();
            bound(target, folder, &["rprivate"], mount.read_only)
        }
        MountSource::Bind(it) => {
            let mut made = bound(target, binds.path(target)?, &[it.propagation.as_str()], mount.read_only);
            if it.non_recursive {
                made.options.retain(|option| option != "rro");
                made.options.iter_mut().filter(|option| *option == "rbind").for_each(|option| *option = "bind".into());
            }
            made
        }
        // The supervisor fills in the source, as it mounts the image.
        MountSource::Image { .. } => bound(target, String::new(), &["rprivate"], true),
        MountSource::Tmpfs(it) => {
            // These are Docker's.
            let fixed = ["nosuid", "nodev"].map(str::to_owned);
            let chosen = [
                (!it.exec).then(|| "noexec".to_owned()),
                it.size.map(|size| format!("size={size}")),
                Some(format!("mode={:o}", it.mode.unwrap_or(0o1777))),
                it.uid.map(|uid| format!("uid={uid}")),
                it.gid.map(|gid| format!("gid={gid}")),
                mount.read_only.then(|| "ro".to_owned()),
            ];
            oci::Mount {
                destination: target.into(),
                kind: "tmpfs".into(),
                source: "tmpfs".into(),
                options: fixed.into_iter().chain(chosen.into_iter().flatten()).collect(),
                ..oci::Mount::default()
            }
        }
    })
}

fn bound(target: &str, source: String, propagation: &[&str], read_only: bool) -> oci::Mount {
    // `rro` also makes what is mounted below the source read-only.
    let read_only: &[&str] = if read_only { &["ro", "rro"] } else { &[] };
    let options = ["rbind"].iter().chain(propagation).chain(read_only);
    oci::Mount {
        destination: target.into(),
        kind: "bind".into(),
        source,
        options: options.map(|&option| option.to_owned()).collect(),
        ..oci::Mount::default()
    }
}

/// Puts the mounts into a configuration. A mount at the target of one of the runtime's own takes its place.
/// `given` are those of the task from which they were made.
pub(crate) fn add(result: &mut oci::Spec, mounts: Vec<oci::Mount>, given: &[Mount]) {
    let is_replaced = |own: &oci::Mount| mounts.iter().any(|mount| mount.destination == own.destination);
    result.mounts.retain(|own| !is_replaced(own));
    result.mounts.extend(mounts);
    // Mounts of the machine reach the container only through a root that takes part in them, as in Docker.
    let is_any = |wanted: [Propagation; 2]| {
        given.iter().any(|mount| match &mount.source {
            MountSource::Bind(it) => wanted.contains(&it.propagation),
            MountSource::Volume(_) | MountSource::Tmpfs(_) | MountSource::Image { .. } => false,
        })
    };
    if let Some(linux) = &mut result.linux {
        if is_any([Propagation::Shared, Propagation::Rshared]) {
            linux.rootfs_propagation = Some("shared".into());
        } else if is_any([Propagation::Slave, Propagation::Rslave]) {
            linux.rootfs_propagation = Some("rslave".into());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use flota_api::model::{BindMount, TmpfsMount, VolumeMount};

    use super::*;
    use crate::offers::bind_roots;

    fn bind(source: &Path, propagation: Propagation, non_recursive: bool) -> MountSource {
        let source = source.display().to_string();
        MountSource::Bind(BindMount { source, propagation, non_recursive, create_source: false })
    }

    fn mounts(mounts: Vec<(&str, MountSource, bool)>) -> Vec<Mount> {
        let mount = |(target, source, read_only): (&str, _, _)| Mount { target: target.into(), read_only, source };
        mounts.into_iter().map(mount).collect()
    }

    #[test]
    fn a_bind_mount_shows_what_is_listed_wherever_its_links_lead() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let dir = dir.path().canonicalize().expect("it exists");
        let path = |name: &str| dir.join(name);
        std::fs::create_dir_all(path("real/in")).expect("it is new");
        std::fs::create_dir(path("outside")).expect("it is new");
        std::fs::write(path("real/file"), "").expect("it is new");
        // What is listed is a link, and has links inside and outside.
        symlink("real", path("listed")).expect("a link");
        symlink("in", path("real/inside")).expect("a link");
        symlink(path("real/in"), path("real/absolute")).expect("a link");
        symlink("../outside", path("real/out")).expect("a link");
        symlink("/", path("real/root")).expect("a link");
        let roots = bind_roots(&[path("listed").display().to_string()]);
        let found = |name: &str| {
            let source = bind(&path(name), Propagation::Rprivate, false);
            BindSources::find(&mounts(vec![("/x", source, false)]), &roots)
        };
        for (name, place) in [
            ("listed", "real"),
            ("listed/in", "real/in"),
            ("listed/file", "real/file"),
            ("listed/inside", "real/in"),
            ("listed/absolute", "real/in"),
        ] {
            let found = found(name).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(found.0["/x"], path(place), "{name}");
        }
        for (name, expected) in [
            ("listed/out", format!("this node does not allow bind mounts of {}", path("outside").display())),
            ("listed/root/etc", "this node does not allow bind mounts of /etc".to_owned()),
            ("outside", "this node does not allow".to_owned()),
            ("listed/none", "listed/none`, the source of the mount at `/x`".to_owned()),
        ] {
            let error = found(name).expect_err(name).to_string();
            assert!(error.contains(&expected), "{name}: {error}");
        }
    }

    #[test]
    fn a_source_that_is_missing_is_made_only_below_what_is_listed() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let dir = dir.path().canonicalize().expect("it exists");
        let path = |name: &str| dir.join(name);
        std::fs::create_dir_all(path("listed/in")).expect("it is new");
        std::fs::create_dir(path("outside")).expect("it is new");
        symlink("in", path("listed/inside")).expect("a link");
        symlink("../outside", path("listed/out")).expect("a link");
        symlink("../outside/new", path("listed/dangling")).expect("a link");
        let roots = bind_roots(&[path("listed").display().to_string(), path("later/on").display().to_string()]);
        let found = |name: &str, create_source| {
            let source = path(name).display().to_string();
            let source = MountSource::Bind(BindMount { source, create_source, ..BindMount::default() });
            BindSources::find(&mounts(vec![("/x", source, false)]), &roots)
        };
        found("listed/new", false).expect_err("nobody has asked to make it");
        for (name, place) in [
            ("listed/new", "listed/new"),
            ("listed/inside/a/b", "listed/in/a/b"),
            // It was listed before it existed.
            ("later/on/a", "later/on/a"),
        ] {
            let found = found(name, true).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(found.0["/x"], path(place), "{name}");
            assert!(path(place).is_dir(), "{name}");
        }
        std::fs::write(path("listed/file"), "").expect("it is new");
        found("listed/file", true).expect("what is there is used as it is");
        for (name, expected) in [
            ("listed/out/new", format!("this node does not allow bind mounts of {}", path("outside/new").display())),
            ("outside/new", "this node does not allow bind mounts".to_owned()),
            ("listed/dangling", "failed to make".to_owned()),
        ] {
            let error = found(name, true).expect_err(name).to_string();
            assert!(error.contains(&expected), "{name}: {error}");
        }
        assert_eq!(std::fs::read_dir(path("outside")).expect("it exists").count(), 0, "nothing is made outside");
    }

    #[test]
    fn a_part_of_a_volume_is_pinned_and_a_whole_one_is_not() {
        let volume = |subpath: Option<&str>| {
            let subpath = subpath.map(str::to_owned);
            MountSource::Volume(VolumeMount { name: Some("db".into()), subpath, ..VolumeMount::default() })
        };
        let given = mounts(vec![("/a", volume(None), false), ("/b", volume(Some("c")), false)]);
        let folders = [("/a", "/v/data"), ("/b", "/v/data/c")].map(|(at, path)| (at.to_owned(), path.into())).into();
        assert_eq!(pinned(&given, &folders, &BindSources::default()), [Path::new("/v/data/c")]);
    }

    #[test]
    fn an_image_is_mounted_read_only_from_where_the_supervisor_puts_it() {
        let image = |reference: &str, subpath: Option<&str>| MountSource::Image {
            reference: reference.into(),
            subpath: subpath.map(str::to_owned),
        };
        // The manager accepts no other than read-only ones.
        let given = mounts(vec![("/a", image("data", Some("models")), false), ("/b", image("data", None), true)]);
        let layers = ImageFiles::Layers(vec!["/l/1".into(), "/l/2".into()]);
        let files = BTreeMap::from([("data".to_owned(), layers.clone())]);
        let made = of_task(&given, &BTreeMap::new(), &BindSources::default());
        let shown: Vec<_> = made.iter().map(|it| (it.source.as_str(), it.options.join(","))).collect();
        assert_eq!(shown, [("", "rbind,rprivate,ro,rro".to_owned()), ("", "rbind,rprivate,ro,rro".to_owned())]);
        let mount = |target: &str, subpath: Option<&str>| ImageMount {
            target: target.into(),
            files: layers.clone(),
            subpath: subpath.map(PathBuf::from),
        };
        assert_eq!(images(&given, &files), [mount("/a", Some("models")), mount("/b", None)]);
    }

    #[test]
    fn mounts_become_those_of_a_configuration_the_outer_ones_first() {
        let volume =
            |name: &str| MountSource::Volume(VolumeMount { name: Some(name.into()), ..VolumeMount::default() });
        let tmpfs = MountSource::Tmpfs(TmpfsMount {
            size: std::num::NonZeroU64::new(64),
            mode: Some(0o700),
            ..TmpfsMount::default()
        });
        let owned = TmpfsMount { uid: Some(7), gid: Some(8), exec: true, ..TmpfsMount::default() };
        let given = mounts(vec![
            ("/data/cache", tmpfs, true),
            ("/z", MountSource::Tmpfs(owned), false),
            ("/data", volume("db"), true),
            ("/srv/x", bind(Path::new("/tmp"), Propagation::Rslave, true), true),
            ("/y", bind(Path::new("/tmp"), Propagation::Rprivate, false), false),
        ]);
        let folders = [("/data", "/v/1"), ("/image", "/v/2")].map(|(at, path)| (at.to_owned(), path.into())).into();
        let binds = BindSources::find(&given, &["/".into()]).expect("/tmp exists");
        let shown: Vec<String> = of_task(&given, &folders, &binds)
            .iter()
            .map(|it| format!("{} {} {}", it.destination.display(), it.kind, it.options.join(",")))
            .collect();
        assert_eq!(
            shown,
            [
                "/image bind rbind,rprivate",
                "/z tmpfs nosuid,nodev,mode=1777,uid=7,gid=8",
                "/data bind rbind,rprivate,ro,rro",
                "/y bind rbind,rprivate",
                "/data/cache tmpfs nosuid,nodev,noexec,size=64,mode=700,ro",
                "/srv/x bind bind,rslave,ro",
            ]
        );
        let mut result = oci::template();
        let before = result.mounts.len();
        add(&mut result, of_task(&given, &folders, &binds), &given);
        assert_eq!(result.mounts.len(), before + 6);
        assert_eq!(result.linux().rootfs_propagation.as_deref(), Some("rslave"));
        let shm = MountSource::Tmpfs(TmpfsMount::default());
        let shm = self::mounts(vec![("/dev/shm", shm, false)]);
        let mut result = oci::template();
        add(&mut result, of_task(&shm, &BTreeMap::new(), &BindSources::default()), &shm);
        let at_shm: Vec<_> = result.mounts.iter().filter(|it| it.destination == Path::new("/dev/shm")).collect();
        assert_eq!(at_shm.len(), 1, "it takes the place of the runtime's own");
        assert_eq!(at_shm[0].options, ["nosuid", "nodev", "noexec", "mode=1777"]);
    }
}
