//! Devices of a service: those that it maps by path, and those that nodes hand out.

use flota_api::model::{DeviceMapping, GenericResource};

use crate::fields::Fields;
use crate::tree::{Fault, Node, Value};

/// The capability of reserved devices that is understood, and the kind of device that it stands for.
const GPU: &str = "gpu";

/// Reads `devices`: each is `SOURCE[:TARGET[:PERMISSIONS]]`, or the same as fields.
pub(super) fn mapped(node: &Node) -> Result<Vec<DeviceMapping>, Fault> {
    let mapping = |node: &Node| match &node.value {
        Value::Map(_) => {
            let mut keys = node.fields()?;
            let source = keys.required("source")?.text()?;
            let target = keys.text("target")?.unwrap_or_default();
            let permissions = keys.text("permissions")?.unwrap_or_default();
            let mapping = DeviceMapping { source, target, permissions };
            keys.finish()?;
            let mapping = mapping.complete();
            mapping.check().map(|()| mapping).map_err(|error| node.fault(error.to_string()))
        }
        _ => node.parsed(str::parse),
    };
    node.list()?.iter().map(mapping).collect()
}

/// Reads `generic_resources` and `devices` of the reservations.
pub(super) fn generic(keys: &mut Fields<'_>) -> Result<Vec<GenericResource>, Fault> {
    let discrete = keys.read("generic_resources", Node::list)?.unwrap_or_default();
    let reserved = keys.read("devices", Node::list)?.unwrap_or_default();
    let mut resources: Vec<GenericResource> = Vec::new();
    let all = discrete.iter().map(|it| (it, counted(it))).chain(reserved.iter().map(|it| (it, gpus(it))));
    for (node, resource) in all {
        let resource = resource?;
        if resources.iter().any(|it| it.kind == resource.kind) {
            return Err(node.fault(format!("`{}` is reserved twice", resource.kind)));
        }
        resources.push(resource);
    }
    Ok(resources)
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
        return Err(driver.fault("only the driver `nvidia` is supported"));
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
            ("devices: [{ capabilities: [gpu], driver: x, count: 1 }]", "devices[0].driver: only the driver `nvidia`"),
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
        let error = service("    devices: [fuse]").expect_err("relative");
        assert_eq!(error, "services.web.devices[0]: `fuse` is not an absolute path");
        let error = service("    deploy: { resources: { limits: { devices: [] } } }").expect_err("no limit");
        assert!(
            error.starts_with("services.web.deploy.resources.limits.devices: this key is not supported"),
            "{error}"
        );
    }
}
