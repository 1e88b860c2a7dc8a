//! What this node gives to tasks beyond CPU and memory: runtime classes, devices by id, and what its owner allows. From
//! the settings file, with the GPUs that were found; the leader hears of it when the node registers. Plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use flota_api::defaults::EMBEDDED_RUNTIME;
use flota_api::model::{Allowance, DeviceId, NodeDevice};

/// What a node gives to tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeOffers {
    /// Programs of the runtime classes by name; the embedded one is not among them.
    pub runtimes: BTreeMap<String, PathBuf>,
    /// What may be handed out, by id.
    pub devices: Vec<NodeDevice>,
    /// What tasks may ask for.
    pub allow: Allowance,
}

impl NodeOffers {
    /// Every runtime class, the embedded one first.
    pub fn runtime_names(&self) -> Vec<String> {
        [EMBEDDED_RUNTIME.to_owned()].into_iter().chain(self.runtimes.keys().cloned()).collect()
    }

    /// With devices that were found on this machine, but for those that its owner has described: the same hardware
    /// must not be handed out under two ids.
    #[must_use]
    pub fn with_devices(mut self, found: Vec<NodeDevice>) -> Self {
        let paths: BTreeSet<String> = self.devices.iter().flat_map(|device| device.paths.clone()).collect();
        // The first path is the device itself, the others are its driver's.
        let is_new = |device: &NodeDevice| {
            let described = device.paths.first().is_some_and(|path| paths.contains(path));
            !described && !self.devices.iter().any(|it| it.is(&device.device_id()))
        };
        let new: Vec<NodeDevice> = found.into_iter().filter(is_new).collect();
        self.devices.extend(new);
        self
    }

    /// The device with this id, with the paths that a task gets.
    pub fn device(&self, device: &DeviceId) -> Option<&NodeDevice> {
        self.devices.iter().find(|it| it.is(device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::describe::{describe, registration};

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
    }

    #[test]
    fn a_node_registers_with_all_that_it_gives() {
        assert_eq!(registration(&describe(), &NodeOffers::default()).runtimes, ["flota"]);
        let offers = NodeOffers {
            runtimes: BTreeMap::from([("runsc".into(), "/usr/bin/runsc".into())]),
            devices: vec![gpu("nvidia0", &["/dev/nvidia0"])],
            allow: Allowance { privileged: true, ..Allowance::default() },
        };
        let description = registration(&describe(), &offers);
        assert_eq!(description.runtimes, ["flota", "runsc"]);
        assert_eq!((description.devices, description.allow.privileged), (offers.devices, true));
        assert!(!description.hostname.is_empty());
    }
}
