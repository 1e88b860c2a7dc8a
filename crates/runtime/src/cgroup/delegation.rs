//! The group that systemd has delegated to a service, below which a daemon may create groups. Only a daemon looks for it:
//! a command line creates groups where its caller says.

use std::path::{Path, PathBuf};

use super::Hierarchy;
use super::table::offered;

/// Name of the service whose group only holds containers. A v2 group that delegates controllers accepts no process, so
/// a service that kept containers in its own group could not be restarted while they run.
const CONTAINERS: &str = "flota-containers.service";

/// Limits hierarchies to the group that systemd has delegated to this process's service (`Delegate=yes`), and returns
/// its path below the mount points, the same for all: that of [`CONTAINERS`] if it exists, else that of the service.
/// A process that is in no service may use the whole machine, and the path is empty.
pub fn delegate(hierarchies: &mut [Hierarchy]) -> PathBuf {
    let path = delegated(hierarchies, |path| path.is_dir());
    // On v1, systemd does not create a service's groups in every hierarchy. Missing ones are created.
    for hierarchy in
        hierarchies.iter_mut().filter(|it| it.v2 && !path.as_os_str().is_empty() && it.point.join(&path).is_dir())
    {
        hierarchy.root.push(&path);
        hierarchy.controllers = offered(&hierarchy.root);
    }
    path
}

fn delegated(hierarchies: &[Hierarchy], exists: impl Fn(&Path) -> bool) -> PathBuf {
    let own = |it: &Hierarchy| it.own.strip_prefix(&it.point).map(Path::to_owned).unwrap_or_default();
    let service =
        |path: &Path| path.ancestors().find(|it| it.extension().is_some_and(|it| it == "service")).map(Path::to_owned);
    // The service itself may have moved to a group below its own.
    let Some(service) = hierarchies.iter().map(own).find_map(|path| service(&path)) else { return PathBuf::new() };
    let beside = service.with_file_name(CONTAINERS);
    if hierarchies.iter().any(|it| exists(&it.point.join(&beside))) { beside } else { service }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(point: &str, own: &str, v2: bool) -> Hierarchy {
        let point = PathBuf::from(point);
        Hierarchy { own: point.join(own), root: point.clone(), point, controllers: Vec::new(), v2 }
    }

    #[test]
    fn every_unit_layout_has_one_path_in_all_hierarchies() {
        let nowhere = |_: &Path| false;
        let containers = |path: &Path| path == Path::new("/cg/system.slice/flota-containers.service");
        let v2 = |own| vec![hierarchy("/cg", own, true)];
        let path = |list: &[Hierarchy], exists: &dyn Fn(&Path) -> bool| delegated(list, exists).display().to_string();
        assert_eq!(path(&v2("system.slice/flotad.service"), &nowhere), "system.slice/flotad.service");
        assert_eq!(path(&v2("system.slice/flotad.service"), &containers), "system.slice/flota-containers.service");
        // After the daemon has moved to a leaf, it and its supervisors find the same group.
        assert_eq!(path(&v2("system.slice/flotad.service/flota-daemon"), &nowhere), "system.slice/flotad.service");
        assert_eq!(path(&v2("user.slice/session-1.scope"), &nowhere), "");
        assert_eq!(path(&v2(""), &nowhere), "");
        // On v1, systemd leaves a service at the root of hierarchies that it does not manage.
        let v1 = [hierarchy("/cg/freezer", "", false), hierarchy("/cg/memory", "system.slice/flotad.service", false)];
        assert_eq!(path(&v1, &nowhere), "system.slice/flotad.service");
    }

    #[test]
    fn only_a_v2_hierarchy_is_limited_to_what_is_delegated() {
        let dir = std::env::temp_dir().join(format!("flota-delegation-{}", std::process::id()));
        let own = "system.slice/flotad.service";
        let made = ["memory", "unified"].map(|name| dir.join(name));
        made.iter().for_each(|it| std::fs::create_dir_all(it.join(own)).expect("in a temporary folder"));
        let [memory, unified] = made.each_ref().map(|it| it.to_str().expect("plain names"));
        let mut both = [hierarchy(memory, own, false), hierarchy(unified, own, true)];
        assert_eq!(delegate(&mut both), Path::new(own));
        assert_eq!(both.map(|it| it.root), [made[0].clone(), made[1].join(own)]);
        let mut none = [hierarchy(unified, "", true)];
        assert_eq!((delegate(&mut none).as_os_str(), none[0].root.as_path()), ("".as_ref(), made[1].as_path()));
        std::fs::remove_dir_all(dir).expect("its own folder");
    }
}
