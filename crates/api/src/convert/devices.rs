//! Conversion of devices and of what a node allows.

use super::Malformed;
use crate::capability::normalise;
use crate::model::{Allowance, CdiName, DeviceId, DeviceMapping, GenericResource, NodeDevice};
use crate::proto::{specs as ps, types as pt};

impl From<&DeviceMapping> for ps::DeviceMapping {
    fn from(it: &DeviceMapping) -> Self {
        Self { source: it.source.clone(), target: it.target.clone(), permissions: it.permissions.clone() }
    }
}

impl From<ps::DeviceMapping> for DeviceMapping {
    fn from(it: ps::DeviceMapping) -> Self {
        Self { source: it.source, target: it.target, permissions: it.permissions }.complete()
    }
}

/// Parses the names of CDI devices, of a spec or of a node.
pub(super) fn cdi_names(texts: &[String]) -> Result<Vec<CdiName>, Malformed> {
    let parse = |(index, text): (usize, &String)| {
        let malformed = |error| Malformed::new(format!("cdi_devices[{index}]"), format!("can't be used: {error}"));
        text.parse().map_err(malformed)
    };
    texts.iter().enumerate().map(parse).collect()
}

impl From<&GenericResource> for ps::GenericResource {
    fn from(it: &GenericResource) -> Self {
        Self { kind: it.kind.clone(), count: it.count }
    }
}

impl From<ps::GenericResource> for GenericResource {
    fn from(it: ps::GenericResource) -> Self {
        Self { kind: it.kind, count: it.count }
    }
}

impl From<&NodeDevice> for pt::NodeDevice {
    fn from(it: &NodeDevice) -> Self {
        Self { kind: it.kind.clone(), id: it.id.clone(), paths: it.paths.clone() }
    }
}

impl From<pt::NodeDevice> for NodeDevice {
    fn from(it: pt::NodeDevice) -> Self {
        Self { kind: it.kind, id: it.id, paths: it.paths }
    }
}

impl From<&DeviceId> for pt::DeviceId {
    fn from(it: &DeviceId) -> Self {
        Self { kind: it.kind.clone(), id: it.id.clone() }
    }
}

impl From<pt::DeviceId> for DeviceId {
    fn from(it: pt::DeviceId) -> Self {
        Self { kind: it.kind, id: it.id }
    }
}

impl From<&Allowance> for pt::Allowance {
    fn from(it: &Allowance) -> Self {
        Self {
            privileged: it.privileged,
            devices: it.devices.clone(),
            capabilities: it.capabilities.clone(),
            bind_mounts: it.bind_mounts.clone(),
            file_systems: it.file_systems.clone(),
        }
    }
}

impl From<Option<pt::Allowance>> for Allowance {
    fn from(it: Option<pt::Allowance>) -> Self {
        let it = it.unwrap_or_default();
        let capabilities = it.capabilities.iter().map(|name| normalise(name)).collect();
        let pt::Allowance { privileged, devices, bind_mounts, file_systems, .. } = it;
        Self { privileged, devices, capabilities, bind_mounts, file_systems }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NodeDescription, ServiceSpec};

    #[test]
    fn what_a_spec_and_a_node_say_of_devices_survives_the_wire() {
        let spec = ServiceSpec {
            runtime: Some("runsc".into()),
            init: true,
            privileged: true,
            no_new_privileges: Some(false),
            cap_add: vec!["NET_ADMIN".into()],
            cap_drop: vec!["ALL".into()],
            devices: vec!["/dev/fuse:/dev/x:r".parse().expect("a device")],
            cdi_devices: vec!["v.com/gpu=all".parse().expect("a name")],
            generic_resources: vec![GenericResource { kind: "gpu".into(), count: 2 }],
            ..ServiceSpec::default()
        };
        assert_eq!(ServiceSpec::try_from(ps::ServiceSpec::from(&spec)), Ok(spec));
        let description = NodeDescription {
            runtimes: vec!["flota".into()],
            devices: vec![NodeDevice { kind: "gpu".into(), id: "nvidia0".into(), paths: vec!["/dev/nvidia0".into()] }],
            cdi_devices: vec!["v.com/gpu=0".parse().expect("a name"), "v.com/gpu=1".parse().expect("a name")],
            allow: Allowance {
                privileged: true,
                devices: vec!["/dev/*".into()],
                capabilities: vec!["ALL".into()],
                bind_mounts: vec!["/srv".into()],
                file_systems: vec!["nfs:nas:/srv/*".into()],
            },
            ..NodeDescription::default()
        };
        assert_eq!(NodeDescription::try_from(Some(pt::NodeDescription::from(&description))), Ok(description));
        let older = NodeDescription::try_from(None).expect("an older node says less");
        assert_eq!(older.allow, Allowance::default(), "it allows nothing");
    }

    #[test]
    fn a_name_that_is_none_is_refused_with_its_place() {
        let spec = ps::ServiceSpec {
            restart: Some(pt::RestartPolicy::default()),
            cdi_devices: vec!["v.com/gpu=0".into(), "gpu".into()],
            ..ps::ServiceSpec::default()
        };
        let error = ServiceSpec::try_from(spec).expect_err("no name").to_string();
        let expected = "the field `cdi_devices[1]` can't be used: `gpu`: a CDI device has the form";
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn what_a_client_left_out_is_filled_in_and_capabilities_have_one_spelling() {
        let spec = ps::ServiceSpec {
            restart: Some(pt::RestartPolicy::default()),
            cap_add: vec!["cap_net_admin".into()],
            devices: vec![ps::DeviceMapping { source: "/dev/fuse".into(), ..ps::DeviceMapping::default() }],
            ..ps::ServiceSpec::default()
        };
        let spec = ServiceSpec::try_from(spec).expect("a good spec");
        assert_eq!(spec.cap_add, ["NET_ADMIN"]);
        assert_eq!(spec.devices, ["/dev/fuse:/dev/fuse:rwm".parse().expect("a device")]);
    }
}
