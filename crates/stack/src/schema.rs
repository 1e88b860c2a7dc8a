//! The keys of the Compose specification that are understood. Any other key is an error.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_yaml_ng::Value;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    #[serde(default)]
    pub(crate) services: BTreeMap<String, Service>,
    /// Obsolete in the specification, and ignored.
    #[serde(default, rename = "version")]
    _version: Option<Value>,
    #[serde(default, rename = "name")]
    _name: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Service {
    pub(crate) image: String,
    #[serde(default)]
    pub(crate) command: Words,
    #[serde(default)]
    pub(crate) entrypoint: Words,
    #[serde(default)]
    pub(crate) environment: Pairs,
    #[serde(default)]
    pub(crate) working_dir: String,
    #[serde(default)]
    pub(crate) user: String,
    #[serde(default)]
    pub(crate) hostname: String,
    #[serde(default)]
    pub(crate) labels: Pairs,
    #[serde(default)]
    pub(crate) stop_grace_period: Option<String>,
    #[serde(default)]
    pub(crate) stop_signal: String,
    #[serde(default)]
    pub(crate) runtime: String,
    #[serde(default)]
    pub(crate) init: bool,
    #[serde(default)]
    pub(crate) privileged: bool,
    #[serde(default)]
    pub(crate) security_opt: Vec<String>,
    #[serde(default)]
    pub(crate) cap_add: Vec<String>,
    #[serde(default)]
    pub(crate) cap_drop: Vec<String>,
    #[serde(default)]
    pub(crate) devices: Vec<Device>,
    #[serde(default)]
    pub(crate) deploy: Deploy,
}

/// A list of words, or one text that is split into words at white space, except within quotes.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
pub(crate) enum Words {
    #[default]
    Absent,
    List(Vec<String>),
    Text(String),
}

/// Names and values: a list of `NAME=value`, or a map.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
pub(crate) enum Pairs {
    #[default]
    Absent,
    List(Vec<String>),
    Map(BTreeMap<String, Value>),
}

/// A device: `SOURCE[:TARGET[:PERMISSIONS]]`, or the same as fields.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Device {
    Text(String),
    Fields(DeviceFields),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeviceFields {
    pub(crate) source: String,
    #[serde(default)]
    pub(crate) target: String,
    #[serde(default)]
    pub(crate) permissions: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Deploy {
    #[serde(default)]
    pub(crate) replicas: Option<u64>,
    #[serde(default)]
    pub(crate) resources: Resources,
    #[serde(default)]
    pub(crate) restart_policy: RestartPolicy,
    #[serde(default)]
    pub(crate) placement: Placement,
    #[serde(default)]
    pub(crate) labels: Pairs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resources {
    #[serde(default)]
    pub(crate) limits: Amounts,
    #[serde(default)]
    pub(crate) reservations: Reservations,
}

/// Reserved amounts, and devices that nodes hand out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reservations {
    #[serde(default)]
    pub(crate) cpus: Option<Value>,
    #[serde(default)]
    pub(crate) memory: Option<Value>,
    #[serde(default)]
    pub(crate) pids: Option<u64>,
    #[serde(default)]
    pub(crate) generic_resources: Vec<GenericResource>,
    #[serde(default)]
    pub(crate) devices: Vec<ReservedDevices>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GenericResource {
    pub(crate) discrete_resource_spec: DiscreteResource,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiscreteResource {
    pub(crate) kind: String,
    pub(crate) value: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReservedDevices {
    pub(crate) capabilities: Vec<String>,
    #[serde(default)]
    pub(crate) driver: String,
    #[serde(default)]
    pub(crate) count: Option<Value>,
    #[serde(default)]
    pub(crate) device_ids: Option<Value>,
    #[serde(default)]
    pub(crate) options: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Amounts {
    #[serde(default)]
    pub(crate) cpus: Option<Value>,
    #[serde(default)]
    pub(crate) memory: Option<Value>,
    #[serde(default)]
    pub(crate) pids: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RestartPolicy {
    #[serde(default)]
    pub(crate) condition: Option<String>,
    #[serde(default)]
    pub(crate) delay: Option<String>,
    #[serde(default)]
    pub(crate) max_attempts: Option<u64>,
    #[serde(default)]
    pub(crate) window: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Placement {
    #[serde(default)]
    pub(crate) constraints: Vec<String>,
}
