//! `linux.cgroupsPath` (config-linux.md, "Cgroups Path"): computes the paths of a container's groups. Nothing is
//! created here.

use std::path::{Component, Path, PathBuf};

use super::{Folder, Groups, Hierarchy};
use crate::error::StepError;

impl Groups {
    /// Returns a container's groups in all hierarchies. Absolute and relative paths are both below each hierarchy's
    /// root, which is the part that this process may use. Without a path, the groups have the container's id as their
    /// name and are below the group of this process.
    ///
    /// # Errors
    /// The path leads outside, names no group, or is in systemd's form.
    pub fn new(hierarchies: &[Hierarchy], cgroups_path: Option<&str>, id: &str) -> Result<Self, StepError> {
        let path = match cgroups_path.filter(|path| !path.is_empty()) {
            Some(path) => Some(checked(path)?),
            None => None,
        };
        let id = match &path {
            Some(_) => PathBuf::new(),
            None => checked(id)?,
        };
        let place = |it: &Hierarchy| match &path {
            Some(path) => it.root.join(path),
            None => base(it).join(&id),
        };
        Ok(Self { folders: hierarchies.iter().map(|it| folder(it, place(it))).collect() })
    }

    /// Returns the groups called `name` in `parent` (relative to each hierarchy's root), or `parent` itself if there
    /// is no name.
    pub fn below(hierarchies: &[Hierarchy], parent: &Path, name: &str) -> Self {
        let place = |it: &Hierarchy| {
            let path = it.root.join(parent);
            if name.is_empty() { path } else { path.join(name) }
        };
        Self { folders: hierarchies.iter().map(|it| folder(it, place(it))).collect() }
    }
}

fn folder(hierarchy: &Hierarchy, path: PathBuf) -> Folder {
    let Hierarchy { root, controllers, v2, .. } = hierarchy.clone();
    Folder { path, root, controllers, v2, made: 0 }
}

/// Returns the parent of groups without a path. On v2 they are beside this process's group and not below it: a group
/// with a process delegates no controllers (cgroups(7), "no internal processes").
fn base(hierarchy: &Hierarchy) -> &Path {
    let base = if hierarchy.v2 { hierarchy.own.parent().unwrap_or(&hierarchy.own) } else { &hierarchy.own };
    if base.starts_with(&hierarchy.root) { base } else { &hierarchy.root }
}

/// Checks a path below a hierarchy's root and returns it relative to the root.
fn checked(path: &str) -> Result<PathBuf, StepError> {
    let refuse = |why: &str| Err(StepError::refuse(format!("use linux.cgroupsPath `{path}`"), why));
    if !path.contains('/') && path.matches(':').count() == 2 {
        return refuse(
            "it is in systemd's form slice:prefix:name, but this runtime makes its groups itself: give a path",
        );
    }
    let mut found = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(part) => found.push(part),
            Component::RootDir | Component::CurDir => (),
            Component::ParentDir | Component::Prefix(_) => return refuse("it leads upwards by `..`"),
        }
    }
    if found.as_os_str().is_empty() {
        return refuse("it names no group");
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(root: &str, own: &str, v2: bool) -> Hierarchy {
        let point = PathBuf::from("/cg");
        Hierarchy { root: root.into(), point, own: own.into(), controllers: vec!["memory".into()], v2 }
    }

    #[test]
    fn a_path_decides_where_the_groups_are() {
        let plain = hierarchy("/cg", "/cg/session", false);
        let unified = hierarchy("/cg", "/cg/user/session", true);
        let top = hierarchy("/cg", "/cg", true);
        let delegated = hierarchy("/cg/s/flotad.service", "/cg/s/flotad.service", true);
        let beside = hierarchy("/cg/s/flota-containers.service", "/cg/s/flotad.service", true);
        for (hierarchy, path, expected) in [
            (&plain, Some("/a/b"), "/cg/a/b"),
            (&plain, Some("a//b/."), "/cg/a/b"),
            (&plain, Some("/a:b:c"), "/cg/a:b:c"),
            (&plain, Some("a:b"), "/cg/a:b"),
            (&plain, None, "/cg/session/box"),
            (&plain, Some(""), "/cg/session/box"),
            (&unified, None, "/cg/user/box"),
            (&top, None, "/cg/box"),
            (&delegated, Some("/a"), "/cg/s/flotad.service/a"),
            (&delegated, None, "/cg/s/flotad.service/box"),
            (&beside, None, "/cg/s/flota-containers.service/box"),
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
                 but this runtime makes its groups itself: give a path",
            ),
            (None, "..", "failed to use linux.cgroupsPath `..`: it leads upwards by `..`"),
        ] {
            let error = Groups::new(&[hierarchy("/cg", "/cg", true)], path, id).expect_err("a bad path");
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn groups_have_no_empty_name() {
        let below = |name| Groups::below(&[hierarchy("/cg", "/cg", true)], Path::new("a/b"), name);
        assert_eq!(below("").folders()[0].path.as_os_str(), "/cg/a/b");
        assert_eq!(below("c").folders()[0].path.as_os_str(), "/cg/a/b/c");
    }
}
