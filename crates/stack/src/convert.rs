//! Converts the tree of a stack file to specs. The keys that are understood are those that are read here; any other key
//! is an error.

mod dependencies;
mod devices;
mod health;
mod networks;
mod privileges;
mod restart;
mod scale;
mod schedule;
mod settings;
mod update;
mod values;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::path::Path;

use flota_api::capability;
use flota_api::constraint::{Constraint, NodeProperty};
use flota_api::model::{EndpointMode, Platform, ServiceSpec, StackSpec, StackValue};
use flota_api::resources::{Limits, Resources};

use crate::fields::Fields;
use crate::parse;
use crate::tree::{Fault, Node, Value};
use crate::words;
use dependencies::Dependencies;
use networks::Declared;
use values::DeclaredValues;
use volumes::{DeclaredVolumes, ServiceMounts};

/// What a file refers to outside of itself.
pub(crate) struct Context<'a> {
    /// Returns the value of a variable of the environment.
    pub(crate) environment: &'a dyn Fn(&str) -> Option<String>,
    /// The folder at which paths begin.
    pub(crate) folder: &'a Path,
}

/// Converts a whole file. Returns the stack, and the secrets and configs that it declares.
pub(crate) fn stack(name: &str, document: &Node, context: &Context<'_>) -> Result<(StackSpec, Vec<StackValue>), Fault> {
    let none = || document.fault("the file has no services");
    if matches!(document.value, Value::Null) {
        return Err(none());
    }
    let mut keys = document.fields()?;
    // Both are obsolete or replaced by the name on the command line, and have no effect.
    let _ = (keys.get("version"), keys.get("name"));
    let services = keys.get("services").map(Node::map).transpose()?.filter(|map| !map.is_empty()).ok_or_else(none)?;
    let mut networks = Declared::read(name, keys.get("networks"))?;
    let mut volumes = DeclaredVolumes::read(name, keys.get("volumes"))?;
    let values = DeclaredValues::read(name, keys.get("secrets"), keys.get("configs"), context)?;
    keys.finish()?;
    let known = Dependencies { stack: name, services };
    let service = |(key, node): (&String, _)| -> Result<ServiceSpec, Fault> {
        let mut spec = service((name, key), node, (&mut networks, &mut volumes, &values), context)?;
        spec.depends_on = known.of(node)?;
        Ok(spec)
    };
    let mut services: Vec<ServiceSpec> = services.iter().map(service).collect::<Result<_, _>>()?;
    // Services of the file are named as there, others by their full names.
    let own: BTreeSet<String> = services.iter().map(|it| it.name.clone()).collect();
    for other in services.iter_mut().flat_map(|it| it.affinity.iter_mut().chain(&mut it.anti_affinity)) {
        let full = format!("{name}_{other}");
        if own.contains(&full) {
            *other = full;
        }
    }
    let (networks, volumes) = (networks.finish(), volumes.finish()?);
    Ok((StackSpec { name: name.to_owned(), services, networks, volumes }, values.finish()))
}

fn service<'a>(
    (stack, key): (&str, &str),
    node: &'a Node,
    (networks, volumes, values): (&mut Declared, &mut DeclaredVolumes<'a>, &DeclaredValues),
    context: &Context<'_>,
) -> Result<ServiceSpec, Fault> {
    let mut keys = node.fields()?;
    let name = format!("{stack}_{key}");
    let mut spec = ServiceSpec { name, image: keys.required("image")?.text()?, ..ServiceSpec::default() };
    spec.command = keys.read("command", command)?.unwrap_or_default();
    spec.entrypoint = keys.read("entrypoint", command)?.unwrap_or_default();
    let mut variables = keys.read("env_file", |node| settings::variables(node, context))?.unwrap_or_default();
    variables.extend(keys.read("environment", |node| self::variables(node, context))?.unwrap_or_default());
    spec.env = variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    spec.container_labels = keys.read("labels", labels)?.unwrap_or_default();
    spec.working_dir = keys.text("working_dir")?;
    spec.user = keys.text("user")?;
    spec.hostname = keys.text("hostname")?;
    spec.stop_signal = keys.text("stop_signal")?;
    spec.stop_grace = keys.read("stop_grace_period", |it| it.parsed(parse::duration))?.unwrap_or(spec.stop_grace);
    spec.healthcheck = keys.read("healthcheck", health::check)?.unwrap_or_default();
    spec.runtime = keys.text("runtime")?;
    spec.init = keys.read("init", Node::flag)?.unwrap_or_default();
    spec.privileged = keys.read("privileged", Node::flag)?.unwrap_or_default();
    spec.user_namespace = keys.read("userns_mode", privileges::has_user_namespace)?.unwrap_or_default();
    spec.no_new_privileges = keys.read("security_opt", privileges::forbidden)?.flatten();
    let add = keys.read("cap_add", Node::texts)?.unwrap_or_default();
    let drop = keys.read("cap_drop", Node::texts)?.unwrap_or_default();
    capability::amend(&mut spec.cap_add, &mut spec.cap_drop, &add, &drop);
    keys.read("devices", |node| devices::read(node, &mut spec))?;
    settings::read(&mut keys, &mut spec)?;
    values.service(&mut keys, &mut spec)?;
    networks.service(key, &mut keys, &mut spec)?;
    let mut mounts = ServiceMounts::of(&mut keys);
    let declared = keys.get("deploy");
    if let Some(node) = declared {
        deploy(node, &mut spec)?;
    }
    keys.read("restart", |node| restart::restart(node, declared, &mut spec.restart))?;
    spec.constraints.extend(keys.read("platform", platform)?.into_iter().flatten());
    volumes.service(&mut mounts, &mut spec)?;
    // What it depends on is read once all services are known.
    let _ = keys.get("depends_on");
    keys.finish()?;
    Ok(spec)
}

fn deploy(node: &Node, spec: &mut ServiceSpec) -> Result<(), Fault> {
    let mut keys = node.fields()?;
    spec.mode = schedule::mode(&mut keys)?;
    let mode = spec.mode.clone();
    let replicas = |it: &Node| mode.with_replicas(it.number()?).map_err(|why| it.fault(why));
    spec.mode = keys.read("replicas", replicas)?.unwrap_or(mode);
    let mode = spec.mode.clone();
    let most = |it: &Node| mode.with_max_concurrent(NonZeroU64::new(it.number()?)).map_err(|why| it.fault(why));
    spec.mode = keys.read("x-flota-max-concurrent", most)?.unwrap_or(mode);
    spec.scale = keys.read("x-flota-scale", scale::policy)?;
    spec.labels = keys.read("labels", labels)?.unwrap_or_default();
    if let Some(node) = keys.get("resources") {
        resources(node, spec)?;
    }
    let default = ServiceSpec::of_mode(spec.mode.clone()).restart;
    spec.restart = keys.read("restart_policy", |it| restart::policy(it, default.clone()))?.unwrap_or(default);
    spec.on_partition =
        keys.read("x-flota-on-partition", |it| it.parsed(parse::on_partition))?.unwrap_or(spec.on_partition);
    spec.keep_on_node_loss =
        keys.read("x-flota-on-node-loss", |it| it.parsed(parse::on_node_loss))?.unwrap_or_default();
    spec.update = keys.read("update_config", update::update)?.unwrap_or_default();
    spec.rollback = keys.read("rollback_config", update::rollback)?.unwrap_or_default();
    let priority = |text: &str| text.parse().map_err(|_| format!("`{text}` is not a whole number"));
    spec.priority = keys.read("x-flota-priority", |it| it.parsed(priority))?.unwrap_or(spec.priority);
    if let Some(node) = keys.get("placement") {
        placement(node, spec)?;
    }
    let mode = |text: &str| {
        let found = EndpointMode::ALL.iter().copied().find(|it| it.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is neither vip nor dnsrr"))
    };
    spec.endpoint_mode = keys.read("endpoint_mode", |it| it.parsed(mode))?.unwrap_or(spec.endpoint_mode);
    keys.finish()
}

fn resources(node: &Node, spec: &mut ServiceSpec) -> Result<(), Fault> {
    let mut keys = node.fields()?;
    if let Some(node) = keys.get("limits") {
        let mut keys = node.fields()?;
        let Resources { nano_cpus, memory_bytes } = amounts(&mut keys)?;
        spec.limits = Limits {
            nano_cpus: NonZeroU64::new(nano_cpus),
            memory_bytes: NonZeroU64::new(memory_bytes),
            pids: keys.read("pids", Node::number)?.and_then(NonZeroU64::new),
        };
        keys.finish()?;
    }
    if let Some(node) = keys.get("reservations") {
        let mut keys = node.fields()?;
        spec.reservations = amounts(&mut keys)?;
        devices::reserved(&mut keys, spec)?;
        keys.finish()?;
    }
    keys.finish()
}

fn amounts(keys: &mut Fields<'_>) -> Result<Resources, Fault> {
    Ok(Resources {
        nano_cpus: keys.read("cpus", |it| it.parsed(parse::cpus))?.unwrap_or_default(),
        memory_bytes: keys.read("memory", |it| it.parsed(parse::bytes))?.unwrap_or_default(),
    })
}

fn placement(node: &Node, spec: &mut ServiceSpec) -> Result<(), Fault> {
    let mut keys = node.fields()?;
    let constraints = |list: &Node| list.list()?.iter().map(|it| it.parsed(Constraint::parse)).collect();
    spec.constraints = keys.read("constraints", constraints)?.unwrap_or_default();
    let preferences = |list: &Node| list.list()?.iter().map(preference).collect();
    spec.spread_over = keys.read("preferences", preferences)?.unwrap_or_default();
    spec.max_replicas_per_node = keys.read("max_replicas_per_node", Node::number)?.and_then(NonZeroU64::new);
    spec.affinity = keys.read("x-flota-affinity", Node::texts)?.unwrap_or_default();
    spec.anti_affinity = keys.read("x-flota-anti-affinity", Node::texts)?.unwrap_or_default();
    spec.strategy = keys.read("x-flota-strategy", |it| it.parsed(str::parse))?.unwrap_or(spec.strategy);
    keys.finish()
}

/// Reads the platform on which a service is to run, as constraints. Of the images of an index, each node takes its own
/// anyway.
fn platform(node: &Node) -> Result<Vec<Constraint>, Fault> {
    let text = node.text()?;
    let parts: Vec<&str> = text.split('/').collect();
    let platform = match parts.as_slice() {
        [os, architecture] => Platform::new(os, architecture, None),
        [os, architecture, variant] => Platform::new(os, architecture, Some(variant)),
        _ => None,
    };
    let platform = platform.ok_or_else(|| node.fault(format!("`{text}` is not a platform such as linux/arm64")))?;
    if let Some(variant) = platform.variant {
        return Err(node.fault(format!("nodes can't be chosen by a variant, such as {variant}; leave it out")));
    }
    let constraints = [("os", platform.os), ("arch", platform.architecture)];
    let parsed = constraints.map(|(key, value)| Constraint::parse(&format!("node.platform.{key}=={value}")));
    parsed.into_iter().map(|it| it.map_err(|error| node.fault(error.to_string()))).collect()
}

fn preference(node: &Node) -> Result<NodeProperty, Fault> {
    let mut keys = node.fields()?;
    let key = keys.required("spread")?.parsed(NodeProperty::parse)?;
    keys.finish()?;
    Ok(key)
}

/// Reads a list of words, or one text that is split into words.
fn command(node: &Node) -> Result<Vec<String>, Fault> {
    match &node.value {
        Value::List(_) => node.texts(),
        Value::Scalar(_) => node.parsed(words::split),
        _ => Err(node.unexpected("a text or a list")),
    }
}

/// Reads variables. One without a value has that of the environment.
fn variables(node: &Node, context: &Context<'_>) -> Result<BTreeMap<String, String>, Fault> {
    pairs(node, |name, node| {
        let unset = || node.fault(format!("`{name}` has no value, and the environment of ctl has none either"));
        (context.environment)(name).ok_or_else(unset)
    })
}

/// Reads labels. One without a value has an empty one.
fn labels(node: &Node) -> Result<BTreeMap<String, String>, Fault> {
    pairs(node, |_, _| Ok(String::new()))
}

/// Reads names and values: a list of `NAME=value`, or a map. `absent` returns the value of a name without one.
fn pairs(
    node: &Node,
    absent: impl Fn(&str, &Node) -> Result<String, Fault>,
) -> Result<BTreeMap<String, String>, Fault> {
    let entry = |(name, node): (&String, &Node)| {
        let value = if matches!(node.value, Value::Null) { absent(name, node)? } else { node.text()? };
        Ok((name.clone(), value))
    };
    let item = |node: &Node| {
        let text = node.text()?;
        match text.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => absent(&text, node).map(|value| (text, value)),
        }
    };
    match &node.value {
        Value::Map(map) => map.iter().map(entry).collect(),
        Value::List(list) => list.iter().map(item).collect(),
        _ => Err(node.unexpected("a map or a list")),
    }
}
