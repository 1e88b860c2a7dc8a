//! Devices of a service: those that it maps by path, and those that nodes hand out.

use flota_api::model::{CdiName, DeviceMapping, GenericResource, NamedDevice, ServiceSpec};

use crate::fields::Fields;
use crate::tree::{Fault, Node, Value};

/// The capability of reserved devices that is understood, and the kind of device that it stands for.
const GPU: &str = "gpu";

/// The driver of reserved devices that are named one by one.
const CDI: &str = "cdi";

/// Reads `devices` into the spec: each is `SOURCE[:TARGET[:PERMISSIONS]]`, or the same as fields, or the name of a CDI
/// device.
pub(super) fn read(node: &Node, spec: &mut ServiceSpec) -> Result<(), Fault> {
    for item in node.list()? {
        match named(item)? {
            NamedDevice::Path(mapping) => spec.devices.push(mapping),
            NamedDevice::Cdi(name) => add_cdi(spec, name, item)?,
        }
    }
    Ok(())
}

fn add_cdi(spec: &mut ServiceSpec, name: CdiName, node: &Node) -> Result<(), Fault> {
    if spec.cdi_devices.contains(&name) {
        return Err(node.fault(format!("`{name}` is there twice")));
    }
    spec.cdi_devices.push(name);
    Ok(())
}

fn named(node: &Node) -> Result<NamedDevice, Fault> {
    match &node.value {
        Value::Map(_) => {
            let mut keys = node.fields()?;
            let source = keys.required("source")?.text()?;
            let target = keys.text("target")?.unwrap_or_default();
            let permissions = keys.text("permissions")?.unwrap_or_default();
            let mapping = DeviceMapping { source, target, permissions };
            keys.finish()?;
            let mapping = mapping.complete();
            let checked = mapping.check().map(|()| mapping).map_err(|error| node.fault(error.to_string()));
            checked.map(NamedDevice::Path)
        }
        _ => node.parsed(str::parse),
    }
}

/// Reads `generic_resources` and `devices` of the reservations into the spec.
pub(super) fn reserved(keys: &mut Fields<'_>, spec: &mut ServiceSpec) -> Result<(), Fault> {
    let discrete = keys.read("generic_resources", Node::list)?.unwrap_or_default();
    for node in discrete {
        add_counted(spec, counted(node)?, node)?;
    }
    for node in keys.read("devices", Node::list)?.unwrap_or_default() {
        if is_cdi(node)? {
            cdi(node, spec)?;
        } else {
            add_counted(spec, gpus(node)?, node)?;
        }
    }
    Ok(())
}

fn add_counted(spec: &mut ServiceSpec, resource: GenericResource, node: &Node) -> Result<(), Fault> {
    if spec.generic_resources.iter().any(|it| it.kind == resource.kind) {
        return Err(node.fault(format!("`{}` is reserved twice", resource.kind)));
    }
    spec.generic_resources.push(resource);
    Ok(())
}

/// Returns whether an entry of the reserved `devices` names CDI devices.
fn is_cdi(node: &Node) -> Result<bool, Fault> {
    let mut keys = node.fields()?;
    Ok(keys.get("driver").is_some_and(|driver| driver.text().is_ok_and(|it| it == CDI)))
}

/// Reads an entry of the reserved `devices` that names CDI devices.
fn cdi(node: &Node, spec: &mut ServiceSpec) -> Result<(), Fault> {
    let mut keys = node.fields()?;
    keys.get("driver");
    // Compose demands the key, and it has no meaning for these devices.
    keys.get("capabilities");
    for id in keys.required("device_ids")?.list()? {
        let name = id.parsed(str::parse)?;
        add_cdi(spec, name, id)?;
    }
    keys.finish()
}

/// Reads an entry of `generic_resources`.
fn counted(node: &Node) -> Result<GenericResource, Fault> {
    let mut keys = node.fields()?;
    let resource = keys.required("discrete_resource_spec")?;
    keys.finish()?;
    let mut keys = resource.fields()?;
    let (kind, count) = (keys.required("kind")?.text()?, keys.required("value")?.number()?);
    keys.finish()?;
    let found = GenericResource { kind, count };
    found.check().map(|()| found).map_err(|error| resource.fault(error.to_string()))
}

/// Reads an entry of the reserved `devices`: a number of GPUs.
fn gpus(node: &Node) -> Result<GenericResource, Fault> {
    let mut keys = node.fields()?;
    let capabilities = keys.required("capabilities")?;
    if capabilities.texts()? != [GPU] {
        return Err(capabilities.fault(format!("it must be [{GPU}]; no other capability is supported yet")));
    }
    // Flota does not distinguish vendors. Most stack files name this driver.
    if let Some(driver) =
        keys.get("driver").filter(|it| it.text().is_ok_and(|it| !["", "nvidia"].contains(&it.as_str())))
    {
        return Err(driver.fault("only the drivers `nvidia` and `cdi` are supported"));
    }
    if let Some(ids) = keys.get("device_ids") {
        return Err(ids.fault("the cluster chooses node and devices; give their number with count"));
    }
    let count = |text: &str| match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(format!("`{text}` is not a number of devices above 0")),
    };
    let missing = || node.fault("the key `count` is missing; a task cannot reserve all devices of a node");
    let count = keys.read("count", |it| it.parsed(count))?.ok_or_else(missing)?;
    keys.finish()?;
    Ok(GenericResource { kind: GPU.to_owned(), count })
}

#[cfg(test)]
mod tests {
    use crate::load::parse;

    fn service(keys: &str) -> Result<flota_api::model::ServiceSpec, String> {
        let text = format!("services:\n  web:\n    image: a\n{keys}");
        let stack = parse(&text, "s", &|_| None).map_err(|fault| format!("{}: {}", fault.key, fault.why))?;
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
    fn cdi_devices_are_named_where_compose_has_them() {
        let keys = "
    devices: [\"v.com/gpu=0\", /dev/fuse]
    deploy:
      resources:
        reservations:
          devices:
            - { driver: cdi, device_ids: [\"v.com/nic=a\", \"v.com/nic=b\"], capabilities: [nic] }
            - { capabilities: [gpu], count: 1 }
";
        let spec = service(keys).expect("a good file");
        let names: Vec<&str> = spec.cdi_devices.iter().map(|it| it.text().as_str()).collect();
        assert_eq!(names, ["v.com/gpu=0", "v.com/nic=a", "v.com/nic=b"]);
        assert_eq!((spec.devices.len(), spec.generic_resources.len()), (1, 1));
    }

    #[test]
    fn unsupported_devices_are_refused_with_their_key() {
        assert_eq!(reserving("{ devices: [{ capabilities: [gpu], count: 2 }] }"), Ok(vec!["gpu=2".into()]));
        for (text, expected) in [
            ("devices: [{ capabilities: [gpu] }]", "devices[0]: the key `count` is missing"),
            ("devices: [{ capabilities: [gpu], count: all }]", "devices[0].count: `all` is not a number of devices"),
            ("devices: [{ capabilities: [gpu], count: 0 }]", "devices[0].count: `0` is not a number of devices"),
            ("devices: [{ capabilities: [gpu], count: -1 }]", "devices[0].count: `-1` is not a number of devices"),
            ("devices: [{ capabilities: [gpu], device_ids: ['0'] }]", "devices[0].device_ids: the cluster chooses"),
            ("devices: [{ capabilities: [tpu], count: 1 }]", "devices[0].capabilities: it must be [gpu]"),
            ("devices: [{ capabilities: [], count: 1 }]", "devices[0].capabilities: it must be [gpu]"),
            (
                "devices: [{ capabilities: [gpu], driver: x, count: 1 }]",
                "devices[0].driver: only the drivers `nvidia` and",
            ),
            (
                "devices: [{ capabilities: [gpu], count: 1, options: {} }]",
                "devices[0].options: this key is not supported; the keys that are supported here: capabilities, count",
            ),
            (
                "generic_resources: [{ discrete_resource_spec: { kind: gpu, value: 0 } }]",
                "generic_resources[0].discrete_resource_spec: the count of `gpu` is 0",
            ),
            (
                "generic_resources: [{ discrete_resource_spec: { kind: gpu, value: 1 } }], devices: [{ capabilities: \
                 [gpu], count: 1 }]",
                "devices[0]: `gpu` is reserved twice",
            ),
        ] {
            let error = reserving(&format!("{{ {text} }}")).expect_err(text);
            let expected = format!("services.web.deploy.resources.reservations.{expected}");
            assert!(error.starts_with(&expected), "{text}: {error}");
        }
        for (text, expected) in [
            ("devices: [{ driver: cdi }]", "devices[0]: the key `device_ids`"),
            ("devices: [{ driver: cdi, device_ids: [gpu] }]", "devices[0].device_ids[0]: `gpu`: a CDI device has"),
            ("devices: [{ driver: cdi, count: 1, device_ids: [] }]", "devices[0].count: this key is not supported"),
        ] {
            let error = reserving(&format!("{{ {text} }}")).expect_err(text);
            let expected = format!("services.web.deploy.resources.reservations.{expected}");
            assert!(error.starts_with(&expected), "{text}: {error}");
        }
        let twice = "    devices: [v.com/gpu=0]\n    deploy: { resources: { reservations: { devices: [{ driver: cdi, \
                     device_ids: [v.com/gpu=0] }] } } }";
        let error = service(twice).expect_err("it is there twice");
        assert!(error.ends_with("device_ids[0]: `v.com/gpu=0` is there twice"), "{error}");
        let error = service("    devices: [fuse]").expect_err("relative");
        assert_eq!(error, "services.web.devices[0]: `fuse` is not an absolute path");
        let error = service("    deploy: { resources: { limits: { devices: [] } } }").expect_err("no limit");
        assert!(
            error.starts_with("services.web.deploy.resources.limits.devices: this key is not supported"),
            "{error}"
        );
    }
}
