//! The free devices of a node, and which of them a task gets: the lowest ids, so that every leader chooses the same. A
//! task holds a device from its assignment until it has ended.

use std::collections::BTreeMap;

use flota_api::model::{DeviceId, GenericResource, NodeDevice};

/// Free ids by kind, lowest first.
#[derive(Clone, Debug, Default)]
pub(super) struct FreeDevices(BTreeMap<String, Vec<String>>);

impl FreeDevices {
    /// All of these devices are free.
    pub(super) fn new(devices: &[NodeDevice]) -> Self {
        let mut free: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for device in devices {
            free.entry(device.kind.clone()).or_default().push(device.id.clone());
        }
        for ids in free.values_mut() {
            ids.sort_by(|left, right| rank(left).cmp(&rank(right)));
            // Two tasks must not get the same device because its node reported it twice.
            ids.dedup();
        }
        Self(free)
    }

    /// Takes out the devices of a task; ids that the node does not have are ignored.
    pub(super) fn hold(&mut self, device_ids: &[DeviceId]) {
        for device in device_ids {
            if let Some(ids) = self.0.get_mut(&device.kind) {
                ids.retain(|id| *id != device.id);
            }
        }
    }

    /// Takes out as many devices of each kind as tasks wait for, as far as there are so many.
    pub(super) fn claim(&mut self, wanted: &[GenericResource]) {
        for resource in wanted {
            if let Some(ids) = self.0.get_mut(&resource.kind) {
                ids.truncate(ids.len().saturating_sub(usize::try_from(resource.count).unwrap_or(usize::MAX)));
            }
        }
    }

    /// Number of devices of this kind.
    pub(super) fn count(&self, kind: &str) -> u64 {
        self.0.get(kind).map_or(0, |ids| ids.len() as u64)
    }

    /// The devices for a task that asks for these; `None` if too few are free.
    pub(super) fn choose(&self, wanted: &[GenericResource]) -> Option<Vec<DeviceId>> {
        let mut chosen = Vec::new();
        for resource in wanted {
            let count = usize::try_from(resource.count).ok()?;
            let ids = self.0.get(&resource.kind).map(Vec::as_slice).unwrap_or_default().get(..count)?;
            chosen.extend(ids.iter().map(|id| DeviceId { kind: resource.kind.clone(), id: id.clone() }));
        }
        Some(chosen)
    }
}

/// The order of ids: `nvidia2` comes before `nvidia10`.
fn rank(id: &str) -> (&str, u64, &str) {
    let name = id.trim_end_matches(|it: char| it.is_ascii_digit());
    // 0 if there is no number, or one that does not fit.
    let number = id.strip_prefix(name).and_then(|digits| digits.parse().ok()).unwrap_or(0);
    (name, number, id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(ids: &[&str]) -> Vec<NodeDevice> {
        let device = |it: &&str| {
            let (kind, id) = it.split_once('=').expect("kind=id");
            NodeDevice { kind: kind.into(), id: id.into(), paths: vec!["/dev/x".into()] }
        };
        ids.iter().map(device).collect()
    }

    fn chosen(free: &FreeDevices, wanted: &[&str]) -> Option<Vec<String>> {
        let wanted: Vec<GenericResource> = wanted.iter().map(|it| it.parse().expect(it)).collect();
        free.choose(&wanted).map(|ids| ids.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_lowest_free_ids_of_each_kind_are_chosen() {
        let mut free =
            FreeDevices::new(&devices(&["gpu=nvidia10", "gpu=nvidia2", "fpga=a", "gpu=nvidia1", "gpu=nvidia2"]));
        for (wanted, expected) in [
            (&[][..], Some(&[][..])),
            (&["gpu=1"], Some(&["gpu=nvidia1"])),
            (&["gpu=3"], Some(&["gpu=nvidia1", "gpu=nvidia2", "gpu=nvidia10"])),
            (&["fpga=1", "gpu=1"], Some(&["fpga=a", "gpu=nvidia1"])),
            (&["gpu=4"], None),
            (&["fpga=2", "gpu=1"], None),
            (&["tpu=1"], None),
            (&["gpu=18446744073709551615"], None),
        ] {
            let expected = expected.map(|ids| ids.iter().map(|it| (*it).to_owned()).collect());
            assert_eq!(chosen(&free, wanted), expected, "{wanted:?}");
        }
        let held = [("gpu", "nvidia1"), ("gpu", "gone"), ("tpu", "x")];
        free.hold(&held.map(|(kind, id)| DeviceId { kind: kind.into(), id: id.into() }));
        assert_eq!(chosen(&free, &["gpu=1"]), Some(vec!["gpu=nvidia2".into()]));
        assert_eq!(chosen(&free, &["gpu=3"]), None);
        free.claim(&["gpu=1".parse().expect("it is good")]);
        assert_eq!((chosen(&free, &["gpu=1"]), free.count("gpu")), (Some(vec!["gpu=nvidia2".into()]), 1));
        free.claim(&["gpu=5".parse().expect("it is good")]);
        assert_eq!((chosen(&free, &["gpu=1"]), free.count("gpu"), free.count("tpu")), (None, 0, 0));
    }
}
