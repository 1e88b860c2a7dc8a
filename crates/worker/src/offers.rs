//! The offers of this node to tasks beyond CPU and memory: runtime classes, devices by id, and what its owner allows.
//! The settings file and the detected GPUs define it; the leader learns it when the node registers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flota_api::defaults::EMBEDDED_RUNTIME;
use flota_api::model::{Allowance, Balancer, DeviceId, NodeDevice};

/// The runtimes, devices and rights that a node offers to tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeOffers {
    /// Programs of the runtime classes by name, without the embedded class.
    pub runtimes: BTreeMap<String, PathBuf>,
    /// Devices that may be given to tasks by id.
    pub devices: Vec<NodeDevice>,
    /// Folders with the files of CDI devices. A later one has priority over an earlier one.
    pub cdi_folders: Vec<PathBuf>,
    /// The rights that the owner allows to tasks.
    pub allow: Allowance,
    /// The folders of which tasks may have bind mounts, as they were when the daemon started ([`bind_roots`]).
    pub bind_roots: Vec<PathBuf>,
    /// Whether tasks can't gain privileges unless their service says otherwise; the cluster's default if `None`.
    pub no_new_privileges: Option<bool>,
    /// Profile of AppArmor that its owner wants tasks to run with; that of Flota, if the kernel has loaded it, if `None`.
    pub app_armor: Option<String>,
    /// Address of its overlay traffic; that of its listener if `None`.
    pub data_address: Option<IpAddr>,
    /// The kind of balancer that spreads connections to virtual IPs; the best that the kernel supports if `None`.
    pub balancer: Option<Balancer>,
    /// Labels of the node, by which constraints can choose it.
    pub labels: BTreeMap<String, String>,
    /// How long a key for encrypted networks is used; 12 hours if `None`.
    pub tunnel_key_life: Option<Duration>,
}

/// Returns where the listed paths lead. This is asked once, when the daemon starts, and of no path below another one: a task
/// with a bind mount of a folder may put links into it, and so change where a path below it leads.
pub fn bind_roots(listed: &[String]) -> Vec<PathBuf> {
    let is_covered = |path: &&String| listed.iter().any(|other| other != *path && Path::new(path).starts_with(other));
    let listed = listed.iter().filter(|path| !is_covered(path));
    // A folder that is not there yet has no links.
    listed.map(|path| std::fs::canonicalize(path).unwrap_or_else(|_| path.into())).collect()
}

impl NodeOffers {
    /// Returns the names of all runtime classes, the embedded one first.
    pub fn runtime_names(&self) -> Vec<String> {
        [EMBEDDED_RUNTIME.to_owned()].into_iter().chain(self.runtimes.keys().cloned()).collect()
    }

    /// Adds detected devices, except those that the owner has already described: the same hardware must not be given
    /// out under two ids. If the owner has described devices of a kind as CDI devices, none of that kind is added, as their
    /// paths are not known here.
    #[must_use]
    pub fn with_devices(mut self, found: Vec<NodeDevice>) -> Self {
        let paths: BTreeSet<String> = self.devices.iter().flat_map(|device| device.paths.clone()).collect();
        // The first path is the device itself; the others belong to its driver.
        let is_new = |device: &NodeDevice| {
            let described = device.paths.first().is_some_and(|path| paths.contains(path));
            let is_cdi = self.devices.iter().any(|it| it.kind == device.kind && it.cdi_name().is_some());
            !described && !is_cdi && !self.devices.iter().any(|it| it.is(&device.device_id()))
        };
        let new: Vec<NodeDevice> = found.into_iter().filter(is_new).collect();
        self.devices.extend(new);
        self
    }

    /// Returns the device with this id.
    pub fn device(&self, device: &DeviceId) -> Option<&NodeDevice> {
        self.devices.iter().find(|it| it.is(device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_path_is_where_it_led_at_the_start_and_one_below_another_counts_for_nothing() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| dir.path().canonicalize().expect("it exists").join(name);
        std::fs::create_dir_all(path("srv")).expect("it is new");
        // A task that mounts `srv` has put it there.
        std::os::unix::fs::symlink("/", path("srv/app")).expect("a link");
        std::os::unix::fs::symlink("srv", path("data")).expect("a link");
        let listed = ["srv", "srv/app", "data", "later"].map(|name| path(name).display().to_string());
        assert_eq!(bind_roots(&listed), [path("srv"), path("srv"), path("later")]);
        assert_eq!(bind_roots(&["/".into(), "/srv".into()]), [Path::new("/")]);
    }

    fn gpu(id: &str, paths: &[&str]) -> NodeDevice {
        NodeDevice { kind: "gpu".into(), id: id.into(), paths: paths.iter().map(|it| (*it).to_owned()).collect() }
    }

    #[test]
    fn hardware_that_the_owner_has_described_is_not_handed_out_twice() {
        let described = vec![gpu("big", &["/dev/nvidia1", "/dev/nvidiactl"]), gpu("nvidia2", &["/dev/x"])];
        let offers = NodeOffers { devices: described, ..NodeOffers::default() };
        let found = [0, 1, 2].map(|it| gpu(&format!("nvidia{it}"), &[&format!("/dev/nvidia{it}"), "/dev/nvidiactl"]));
        let offers = offers.with_devices(found.into());
        assert_eq!(offers.devices.iter().map(|it| it.id.as_str()).collect::<Vec<_>>(), ["big", "nvidia2", "nvidia0"]);
        let id = |id: &str| DeviceId { kind: "gpu".into(), id: id.into() };
        assert_eq!(offers.device(&id("nvidia2")).expect("it is there").paths, ["/dev/x"]);
        assert_eq!(offers.device(&id("nvidia1")), None);
        let offers = NodeOffers { devices: vec![gpu("v.com/gpu=0", &[])], ..NodeOffers::default() };
        let fpga = NodeDevice { kind: "fpga".into(), ..gpu("f0", &["/dev/f0"]) };
        let offers = offers.with_devices(vec![gpu("nvidia0", &["/dev/nvidia0"]), fpga]);
        assert_eq!(offers.devices.iter().map(|it| it.id.as_str()).collect::<Vec<_>>(), ["v.com/gpu=0", "f0"]);
    }
}
