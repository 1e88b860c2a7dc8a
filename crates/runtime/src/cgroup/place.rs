//! `linux.cgroupsPath` (config-linux.md, "Cgroups Path"): computes the paths of a container's groups. Nothing is
//! created here.

use std::path::{Component, Path, PathBuf};

use super::{Folder, Groups, Hierarchy};
use crate::error::StepError;

impl Groups {
    /// Returns a container's groups in all hierarchies. An absolute path starts at the mount points. As in runc, a
    /// relative one starts at the group of this process, and without a path it is the container's id.
    ///
    /// # Errors
    /// The path leads outside, names no group, or is in systemd's form.
    pub fn new(hierarchies: &[Hierarchy], cgroups_path: Option<&str>, id: &str) -> Result<Self, StepError> {
        let given = cgroups_path.filter(|path| !path.is_empty()).unwrap_or(id);
        let path = checked(given)?;
        let place = |it: &Hierarchy| if given.starts_with('/') { it.point.join(&path) } else { base(it).join(&path) };
        Ok(Self { folders: hierarchies.iter().map(|it| folder(it, place(it))).collect() })
    }

    /// Returns the groups called `name` in `parent` (relative to the mount points), or `parent` itself if there is no
    /// name.
    pub fn below(hierarchies: &[Hierarchy], parent: &Path, name: &str) -> Self {
        let place = |it: &Hierarchy| {
            let path = it.point.join(parent);
            if name.is_empty() { path } else { path.join(name) }
        };
        Self { folders: hierarchies.iter().map(|it| folder(it, place(it))).collect() }
    }

    /// Returns the `linux.cgroupsPath` of these groups. It exists if they have the same path in every hierarchy.
    pub fn cgroups_path(&self) -> Option<String> {
        let path = |it: &Folder| Some(format!("/{}", it.path.strip_prefix(&it.point).ok()?.display()));
        let first = path(self.folders.first()?)?;
        self.folders.iter().all(|it| path(it).as_ref() == Some(&first)).then_some(first)
    }

    /// Returns existing groups below these, as `runc exec --cgroup` names them: a path for all hierarchies, or one for
    /// the hierarchies of the controllers before the colon. Returns `None` if nothing is named.
    ///
    /// # Errors
    /// A path leads outside or does not exist, or a controller is unknown or named twice.
    pub(crate) fn subgroups(&self, named: &[String]) -> Result<Option<Self>, StepError> {
        let mut found = self.clone();
        let mut taken = vec![false; self.folders.len()];
        for name in named {
            let refuse = |why: String| StepError::refuse(format!("use the subgroup `{name}`"), why);
            let (controllers, path) = name.split_once(':').map_or((None, name.as_str()), |it| (Some(it.0), it.1));
            if controllers.is_none() && named.len() > 1 {
                return Err(refuse("of several, each needs its controllers, as in `memory:PATH`".into()));
            }
            let path = relative(path).ok_or_else(|| refuse("it leads upwards by `..`".into()))?;
            let wanted: Vec<usize> = match controllers {
                None => (0..self.folders.len()).collect(),
                Some(names) => names
                    .split(',')
                    .map(|it| self.hierarchy_of(it).ok_or(it))
                    .collect::<Result<_, _>>()
                    // These two texts are runc's, which callers rely on.
                    .map_err(|it| refuse(format!("unknown controller {it}")))?,
            };
            for index in wanted {
                if std::mem::replace(&mut taken[index], true) {
                    return Err(refuse("its hierarchy is named twice".into()));
                }
                let folder = &mut found.folders[index];
                folder.path.push(&path);
                if !folder.path.is_dir() {
                    return Err(refuse(format!("{} does not exist", folder.path.display())));
                }
            }
        }
        Ok((!named.is_empty()).then_some(found))
    }

    /// Returns the index of the hierarchy that has a controller.
    fn hierarchy_of(&self, controller: &str) -> Option<usize> {
        self.folders.iter().position(|it| it.has(controller))
    }
}

fn folder(hierarchy: &Hierarchy, path: PathBuf) -> Folder {
    let Hierarchy { point, root, controllers, v2, .. } = hierarchy.clone();
    Folder { path, point, root, controllers, v2, made: 0 }
}

/// Returns where relative paths start. On v2 they are beside this process's group and not below it: a group
/// with a process delegates no controllers (cgroups(7), "no internal processes").
fn base(hierarchy: &Hierarchy) -> &Path {
    let base = if hierarchy.v2 { hierarchy.own.parent().unwrap_or(&hierarchy.own) } else { &hierarchy.own };
    if base.starts_with(&hierarchy.point) { base } else { &hierarchy.point }
}

/// Checks a path and returns it without its leading slash.
fn checked(path: &str) -> Result<PathBuf, StepError> {
    let refuse = |why: &str| Err(StepError::refuse(format!("use linux.cgroupsPath `{path}`"), why));
    if !path.contains('/') && path.matches(':').count() == 2 {
        return refuse("it is in systemd's form slice:prefix:name, which needs --systemd-cgroup");
    }
    match relative(path) {
        None => refuse("it leads upwards by `..`"),
        Some(found) if found.as_os_str().is_empty() => refuse("it names no group"),
        Some(found) => Ok(found),
    }
}

/// Returns the path without its leading slash; `None` if it leads upwards.
fn relative(path: &str) -> Option<PathBuf> {
    let mut found = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(part) => found.push(part),
            Component::RootDir | Component::CurDir => (),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(own: &str, v2: bool) -> Hierarchy {
        let point = PathBuf::from("/cg");
        Hierarchy { root: point.clone(), point, own: own.into(), controllers: vec!["memory".into()], v2 }
    }

    #[test]
    fn a_path_decides_where_the_groups_are() {
        let plain = hierarchy("/cg/session", false);
        let unified = hierarchy("/cg/user/session", true);
        let top = hierarchy("/cg", true);
        // The caller, such as containerd, stays where it is, and its service's group takes no container.
        let service = hierarchy("/cg/system.slice/containerd.service", true);
        for (hierarchy, path, expected) in [
            (&plain, Some("/a/b"), "/cg/a/b"),
            (&plain, Some("/a//b/."), "/cg/a/b"),
            (&plain, Some("a/b"), "/cg/session/a/b"),
            (&plain, Some("/a:b:c"), "/cg/a:b:c"),
            (&plain, Some("a:b"), "/cg/session/a:b"),
            (&plain, None, "/cg/session/box"),
            (&plain, Some(""), "/cg/session/box"),
            (&unified, None, "/cg/user/box"),
            (&top, None, "/cg/box"),
            (&unified, Some("a"), "/cg/user/a"),
            (&service, Some("/k8s.io/pod"), "/cg/k8s.io/pod"),
            (&service, None, "/cg/system.slice/box"),
        ] {
            let groups = Groups::new(std::slice::from_ref(hierarchy), path, "box").expect("a good path");
            assert_eq!(groups.folders()[0].path, Path::new(expected), "{path:?}");
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for (path, id, expected) in [
            (Some("/a/../../b"), "box", "failed to use linux.cgroupsPath `/a/../../b`: it leads upwards by `..`"),
            (Some(".."), "box", "failed to use linux.cgroupsPath `..`: it leads upwards by `..`"),
            (Some("/"), "box", "failed to use linux.cgroupsPath `/`: it names no group"),
            (Some("./"), "box", "failed to use linux.cgroupsPath `./`: it names no group"),
            (
                Some("system.slice:flota:box"),
                "box",
                "failed to use linux.cgroupsPath `system.slice:flota:box`: it is in systemd's form slice:prefix:name, \
                 which needs --systemd-cgroup",
            ),
            (None, "..", "failed to use linux.cgroupsPath `..`: it leads upwards by `..`"),
        ] {
            let error = Groups::new(&[hierarchy("/cg", true)], path, id).expect_err("a bad path");
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn subgroups_are_named_for_all_hierarchies_or_by_controller() {
        let dir = std::env::temp_dir().join(format!("flota-subgroups-{}", std::process::id()));
        let hierarchy = |name: &str| {
            let root = dir.join(name);
            std::fs::create_dir_all(root.join("box/both")).expect("in a temporary folder");
            Hierarchy { root: root.clone(), point: root.clone(), own: root, controllers: vec![name.into()], v2: false }
        };
        let both = [hierarchy("cpu"), hierarchy("memory")];
        std::fs::create_dir_all(dir.join("memory/box/one")).expect("in a temporary folder");
        let groups = Groups::below(&both, Path::new(""), "box");
        let paths = |named: &[&str]| {
            let named: Vec<String> = named.iter().map(|&it| it.to_owned()).collect();
            let found = groups.subgroups(&named).map_err(|error| error.to_string())?;
            let path = |it: &Folder| it.path.strip_prefix(&dir).expect("below it").display().to_string();
            Ok(found.map(|it| it.folders.iter().map(path).collect::<Vec<_>>()))
        };
        let some = |cpu: &str, memory: &str| Ok(Some(vec![cpu.to_owned(), memory.to_owned()]));
        assert_eq!(paths(&[]), Ok(None));
        assert_eq!(paths(&["both"]), some("cpu/box/both", "memory/box/both"));
        assert_eq!(paths(&["memory:/one"]), some("cpu/box", "memory/box/one"));
        assert_eq!(paths(&["cpu:both", "memory:one"]), some("cpu/box/both", "memory/box/one"));
        assert_eq!(paths(&["cpu,memory:both"]), some("cpu/box/both", "memory/box/both"));
        for (named, why) in [
            (&["one"][..], "does not exist"),
            (&["whaaat:/"], "unknown controller whaaat"),
            (&["../other"], "it leads upwards by `..`"),
            (&["both", "memory:one"], "each needs its controllers"),
            (&["cpu:both", "cpu:/"], "its hierarchy is named twice"),
        ] {
            assert!(paths(named).is_err_and(|it: String| it.contains(why)), "{named:?}");
        }
        std::fs::remove_dir_all(dir).expect("its own folder");
    }

    #[test]
    fn groups_have_no_empty_name() {
        let below = |name| Groups::below(&[hierarchy("/cg", true)], Path::new("a/b"), name);
        assert_eq!(below("").cgroups_path().as_deref(), Some("/a/b"));
        assert_eq!(below("c").cgroups_path().as_deref(), Some("/a/b/c"));
        let differs = Groups::new(&[hierarchy("/cg/x", false), hierarchy("/cg/y", false)], None, "box");
        assert_eq!(differs.expect("a good path").cgroups_path(), None);
    }
}
