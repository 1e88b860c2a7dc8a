//! Devices of a service: those that it maps by path, and those that nodes hand out.

use flota_api::model::{DeviceMapping, GenericResource};
use serde_yaml_ng::Value;

use super::{dollars, text};
use crate::schema;

/// The capability of reserved devices that is understood, and the kind of device that it stands for.
const GPU: &str = "gpu";

/// Converts `devices`.
pub(super) fn mapped(devices: Vec<schema::Device>) -> Result<Vec<DeviceMapping>, String> {
    let mapping = |device| match device {
        schema::Device::Text(text) => dollars(&text)?.parse().map_err(|error| format!("{error}")),
        schema::Device::Fields(it) => {
            let (source, target) = (dollars(&it.source)?, dollars(&it.target)?);
            let mapping = DeviceMapping { source, target, permissions: it.permissions }.complete();
            mapping.check().map(|()| mapping).map_err(|error| error.to_string())
        }
    };
    devices.into_iter().map(mapping).collect()
}

/// Converts `generic_resources` and `devices` of the reservations.
pub(super) fn generic(
    discrete: Vec<schema::GenericResource>,
    reserved: Vec<schema::ReservedDevices>,
) -> Result<Vec<GenericResource>, String> {
    let discrete = discrete.into_iter().map(|it| it.discrete_resource_spec);
    let mut resources: Vec<GenericResource> =
        discrete.map(|it| GenericResource { kind: it.kind, count: it.value }).collect();
    for resource in &resources {
        resource.check().map_err(|error| format!("generic_resources: {error}"))?;
    }
    for devices in reserved {
        let count = gpus(devices).map_err(|why| format!("devices: {why}"))?;
        resources.push(GenericResource { kind: GPU.to_owned(), count });
    }
    for (index, resource) in resources.iter().enumerate() {
        if resources[..index].iter().any(|it| it.kind == resource.kind) {
            return Err(format!("generic_resources: `{}` is reserved twice", resource.kind));
        }
    }
    Ok(resources)
}

/// The number of GPUs that an entry of `devices` reserves.
fn gpus(devices: schema::ReservedDevices) -> Result<u64, String> {
    if let Some(other) = devices.capabilities.iter().find(|it| *it != GPU) {
        return Err(format!("capabilities: `{other}` is not supported yet, only `{GPU}`"));
    }
    if devices.capabilities.is_empty() {
        return Err(format!("capabilities: must be [{GPU}]"));
    }
    // Flota does not distinguish vendors. Most stack files name this driver.
    if !["", "nvidia"].contains(&devices.driver.as_str()) {
        return Err(format!("driver: `{}` is not supported yet", devices.driver));
    }
    if devices.options.is_some() {
        return Err("the key `options` is not supported yet".into());
    }
    if devices.device_ids.is_some() {
        return Err("device_ids: the cluster chooses node and devices; give their number with count".into());
    }
    match devices.count {
        Some(Value::Number(count)) if count.as_u64().is_some_and(|it| it > 0) => Ok(count.as_u64().unwrap_or(1)),
        Some(count) => Err(format!("count: `{}` is not a number of devices above 0", text(&count))),
        None => Err("count: missing; a task cannot reserve all devices of a node".into()),
    }
}

#[cfg(test)]
mod tests {
    use crate::load::parse;

    fn service(keys: &str) -> Result<flota_api::model::ServiceSpec, String> {
        let stack = parse(&format!("services:\n  web:\n    image: a\n{keys}"), "s")?;
        Ok(stack.services.into_iter().next().expect("one service"))
    }

    fn reserving(reservations: &str) -> Result<Vec<String>, String> {
        let spec = service(&format!("    deploy: {{ resources: {{ reservations: {reservations} }} }}"))?;
        Ok(spec.generic_resources.iter().map(|it| format!("{}={}", it.kind, it.count)).collect())
    }

    #[test]
    fn a_service_names_its_devices_and_privileges() {
        let keys = "
    runtime: runsc
    init: true
    privileged: true
    cap_add: [net_admin, CAP_BPF, NET_ADMIN]
    cap_drop: [all]
    devices:
      - /dev/fuse
      - \"/dev/snd/seq:/dev/x:r\"
      - { source: /dev/null, target: /dev/y, permissions: rw }
      - source: /dev/zero
    deploy:
      resources:
        reservations:
          memory: 64M
          generic_resources: [{ discrete_resource_spec: { kind: fpga, value: 2 } }]
          devices: [{ driver: nvidia, count: 1, capabilities: [gpu] }]
";
        let spec = service(keys).expect("a good file");
        assert_eq!((spec.runtime.as_deref(), spec.init, spec.privileged), (Some("runsc"), true, true));
        assert_eq!((spec.cap_add.join(" "), spec.cap_drop.join(" ")), ("BPF NET_ADMIN".into(), "ALL".into()));
        let devices: Vec<String> =
            spec.devices.iter().map(|it| format!("{} {} {}", it.source, it.target, it.permissions)).collect();
        assert_eq!(
            devices,
            ["/dev/fuse /dev/fuse rwm", "/dev/snd/seq /dev/x r", "/dev/null /dev/y rw", "/dev/zero /dev/zero rwm",]
        );
        let resources: Vec<String> =
            spec.generic_resources.iter().map(|it| format!("{}={}", it.kind, it.count)).collect();
        assert_eq!((resources.join(" "), spec.reservations.memory_bytes), ("fpga=2 gpu=1".into(), 64 << 20));
        let plain = service("").expect("a good file");
        assert!(!plain.init && !plain.privileged && plain.devices.is_empty() && plain.runtime.is_none());
    }

    #[test]
    fn unsupported_devices_are_refused_with_their_key() {
        assert_eq!(reserving("{ devices: [{ capabilities: [gpu], count: 2 }] }"), Ok(vec!["gpu=2".into()]));
        for (text, expected) in [
            ("devices: [{ capabilities: [gpu] }]", "devices: count: missing"),
            ("devices: [{ capabilities: [gpu], count: all }]", "devices: count: `all` is not a number of devices"),
            ("devices: [{ capabilities: [gpu], count: 0 }]", "devices: count: `0` is not a number of devices"),
            ("devices: [{ capabilities: [gpu], count: -1 }]", "devices: count: `-1` is not a number of devices"),
            ("devices: [{ capabilities: [gpu], device_ids: ['0'] }]", "devices: device_ids: the cluster chooses"),
            ("devices: [{ capabilities: [tpu], count: 1 }]", "devices: capabilities: `tpu` is not supported yet"),
            ("devices: [{ capabilities: [], count: 1 }]", "devices: capabilities: must be [gpu]"),
            ("devices: [{ capabilities: [gpu], driver: x, count: 1 }]", "devices: driver: `x` is not supported yet"),
            (
                "devices: [{ capabilities: [gpu], count: 1, options: {} }]",
                "devices: the key `options` is not supported yet",
            ),
            (
                "generic_resources: [{ discrete_resource_spec: { kind: gpu, value: 0 } }]",
                "generic_resources: the count of `gpu` is 0",
            ),
            (
                "generic_resources: [{ discrete_resource_spec: { kind: gpu, value: 1 } }], devices: [{ capabilities: \
                 [gpu], count: 1 }]",
                "generic_resources: `gpu` is reserved twice",
            ),
        ] {
            let error = reserving(&format!("{{ {text} }}")).expect_err(text);
            let expected = format!("services.web.deploy.resources.reservations.{expected}");
            assert!(error.starts_with(&expected), "{text}: {error}");
        }
        let error = service("    devices: [fuse]").expect_err("relative");
        assert_eq!(error, "services.web.devices: `fuse` is no absolute path");
        let error = service("    deploy: { resources: { limits: { devices: [] } } }").expect_err("no limit");
        assert!(error.contains("unknown field `devices`"), "{error}");
    }
}
