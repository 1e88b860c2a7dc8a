//! Translates a task into a container: an OCI configuration and an order to a supervisor. This is the only file that
//! knows both sides. The container executor calls it after every preparation step is done.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use flota_api::capability;
use flota_api::defaults::EMBEDDED_RUNTIME;
use flota_api::model::{Assignment, Bound, Refusal, ServiceSpec, VALUE_BOUND};
use flota_api::naming::{task_full_name, task_name};
use flota_api::signal;
use flota_api::template::{self, Field, FileTemplateError, TemplateError};
use flota_image::ImageConfig;
use flota_network::dns::Host;
use flota_runtime::cgroup::Groups;
use flota_runtime::oci::{self, Capabilities, Cpu, Memory, Mount, NamespaceKind, Pids, Resources, Spec};
use flota_runtime::security::{capabilities, default_profile};
use flota_runtime::{FileSystemMount, ImageFiles, Order, RootSource};

use crate::cdi::Injection;
use crate::devices::{self, DeviceError};
use crate::mounts::{self, BindSources};
use crate::networks::TaskNetwork;
use crate::offers::NodeOffers;
use crate::task_ids::OwnIds;
use crate::variables::SecretVariables;

mod settings;

/// Period of the CPU controller in µs, as Docker sets it.
const PERIOD: u64 = 100_000;
/// Path in a container of the program that `--init` runs as PID 1.
const INIT: &str = "/dev/init";
/// Kernel parameters of a container's own network, as Docker sets them: programs that are not root may listen at any
/// port, and send pings.
const SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];
/// Value of the second one for a task with ids of its own, which has only these groups.
const OWN_GROUPS: &str = "0 65535";
/// Programs at a terminal need the variable, and images rarely set it.
const TERMINAL: &str = "TERM=xterm";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The values that templates can use about this node.
#[derive(Clone, Debug)]
pub(crate) struct NodeNames {
    pub(crate) id: String,
    pub(crate) hostname: String,
}

/// The paths of a task's parts on this node.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) root: RootSource,
    pub(crate) groups: Groups,
    pub(crate) log: PathBuf,
    /// Path of the program `flota-runtime`.
    pub(crate) runtime: PathBuf,
    /// Folders of its volumes, by their paths in the container.
    pub(crate) volumes: BTreeMap<String, PathBuf>,
    /// Its volumes that are file systems.
    pub(crate) file_systems: Vec<FileSystemMount>,
    /// The files of the images that it mounts, by their references.
    pub(crate) images: BTreeMap<String, ImageFiles>,
    /// Files and folders with its secrets and configs, by their paths in the container.
    pub(crate) values: BTreeMap<String, PathBuf>,
    /// Variables that are secrets or configs.
    pub(crate) variables: SecretVariables,
    /// The sources of its bind mounts.
    pub(crate) binds: BindSources,
    /// The edits for its CDI devices.
    pub(crate) cdi: Injection,
    /// The ids that it has of its own.
    pub(crate) ids: Option<OwnIds>,
    /// Profile of AppArmor that it runs with unless it is privileged.
    pub(crate) app_armor: Option<String>,
}

/// The input of a supervisor and a runtime.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Container {
    pub(crate) order: Order,
    pub(crate) spec: Spec,
}

/// Why a task can't run on this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TranslateError {
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The node's owner does not allow it. The scheduler checks this too, but only the node can be sure.
    #[error("this node refuses the task: {0}")]
    Refused(Refusal),
    #[error("this node has no runtime `{0}`")]
    Runtime(String),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Translates a task.
pub(crate) fn container(
    assignment: &Assignment,
    config: &ImageConfig,
    network: &TaskNetwork,
    node: &NodeNames,
    offers: &NodeOffers,
    places: Places,
) -> Result<Container, TranslateError> {
    let spec = &assignment.spec;
    let mut of_volumes =
        assignment.volumes.iter().filter_map(|it| offers.allow.refusal_of_volume(it.file_system.as_ref()?));
    if let Some(refusal) = offers.allow.refusal(spec).or_else(|| of_volumes.next()) {
        return Err(TranslateError::Refused(refusal));
    }
    let given_mounts = assignment.mounts();
    let runtime = match spec.runtime.as_deref() {
        None | Some(EMBEDDED_RUNTIME) => None,
        Some(name) => Some(offers.runtimes.get(name).cloned().ok_or_else(|| TranslateError::Runtime(name.to_owned()))?),
    };
    let fill = |text: &str| template::fill(text, |field| value(field, assignment, node));
    let hostname = match &spec.hostname {
        None => task_name(&assignment.service_name, assignment.slot),
        Some(given) => fill(given)?,
    };
    // The kernel accepts no longer one (gethostname(2)).
    let hostname: String = hostname.chars().take(64).collect();
    let env = spec.env.iter().map(|it| fill(it)).collect::<Result<Vec<_>, _>>()?;
    let or =
        |given: &Option<String>, image: &Option<String>| given.as_ref().or(image.as_ref()).cloned().unwrap_or_default();
    let mut result = oci::template();
    // This is the oldest version with everything that is used here; older runtimes refuse a newer one.
    result.oci_version = "1.0.2".into();
    let process = result.process.get_or_insert_default();
    process.args = arguments(spec, config);
    let given = config.env().iter().flatten().cloned().chain(env).chain(places.variables.0.iter().cloned());
    process.env = environment(&hostname, spec.tty, given);
    process.cwd = Path::new("/").join(or(&spec.working_dir, config.working_dir()));
    result.hostname = Some(hostname.clone());
    set_rights(&mut result, spec, places.app_armor);
    mounts::add(&mut result, mounts::of_task(&given_mounts, &places.volumes, &places.binds), &given_mounts);
    mounts::add(&mut result, mounts::of_values(&places.values), &given_mounts);
    let no_new_privileges = spec.no_new_privileges.or(offers.no_new_privileges);
    result.process.get_or_insert_default().no_new_privileges =
        no_new_privileges.unwrap_or(assignment.no_new_privileges);
    let given = devices::of_task(assignment, offers)?;
    if let Some(linux) = &mut result.linux {
        linux.cgroups_path = places.groups.cgroups_path();
        linux.resources = Some(resources(spec, &given));
        linux.devices = given.iter().map(|it| it.device.clone()).collect();
    }
    let groups = spec.groups.iter().cloned().chain(places.cdi.groups()).collect();
    places.cdi.apply(&mut result);
    if spec.init {
        add_init(&mut result, &places.runtime);
    }
    join_network(&mut result, network, places.ids.as_ref());
    if let Some(ids) = &places.ids {
        take_ids(&mut result, ids);
    }
    settings::apply(&mut result, spec);
    let resolver = match network {
        TaskNetwork::Joined { resolver, .. } => Some(resolver.clone()),
        TaskNetwork::Loopback | TaskNetwork::Host => None,
    };
    let pinned = mounts::pinned(&given_mounts, &places.volumes, &places.binds);
    let is_mapped = |folder: &&PathBuf| places.ids.is_some() && !pinned.contains(folder);
    let mapped = places.volumes.values().filter(is_mapped).cloned().collect();
    let order = Order {
        id: assignment.task_id.to_string(),
        root: places.root,
        user: or(&spec.user, config.user()),
        extra_groups: groups,
        hosts: hosts(&hostname, network, spec),
        resolver,
        hostname,
        groups: places.groups,
        log: places.log,
        log_bytes: spec.log.bytes(),
        terminal: spec.tty,
        runtime,
        pinned,
        ids: places.ids.map(|it| it.range),
        mapped,
        images: mounts::images(&given_mounts, &places.images),
        file_systems: places.file_systems,
    };
    Ok(Container { order, spec: result })
}

/// Returns the program and its arguments. A service's own entrypoint replaces the image's arguments too, as in Docker.
fn arguments(spec: &ServiceSpec, config: &ImageConfig) -> Vec<String> {
    let image = |words: &Option<Vec<String>>| words.clone().unwrap_or_default();
    if !spec.entrypoint.is_empty() {
        return [spec.entrypoint.clone(), spec.command.clone()].concat();
    }
    let command = if spec.command.is_empty() { image(config.cmd()) } else { spec.command.clone() };
    [image(config.entrypoint()), command].concat()
}

/// Returns the given variables, of which the last with each name applies, and those that every program expects. One
/// without a value is removed.
fn environment(hostname: &str, is_at_terminal: bool, given: impl Iterator<Item = String>) -> Vec<String> {
    let mut result: Vec<String> = Vec::new();
    let terminal = is_at_terminal.then(|| TERMINAL.to_owned());
    for variable in [PATH.to_owned(), format!("HOSTNAME={hostname}")].into_iter().chain(terminal).chain(given) {
        let name = variable.split('=').next().unwrap_or_default();
        result.retain(|it| it.split('=').next() != Some(name));
        if variable.contains('=') {
            result.push(variable);
        }
    }
    result
}

/// Sets capabilities, the profiles of seccomp and AppArmor, and masked paths to Docker's defaults. A privileged task has all
/// capabilities, no profile and no masked paths.
fn set_rights(result: &mut Spec, spec: &ServiceSpec, app_armor: Option<String>) {
    let kept: Vec<String> = if spec.privileged {
        capabilities::names()
    } else {
        capability::effective(&spec.cap_add, &spec.cap_drop).iter().map(|it| format!("CAP_{it}")).collect()
    };
    if let Some(linux) = &mut result.linux {
        if spec.privileged {
            linux.masked_paths.clear();
            linux.readonly_paths.clear();
        } else {
            linux.seccomp = Some(default_profile(&kept));
        }
    }
    if spec.privileged {
        for mount in &mut result.mounts {
            mount.options.retain(|it| it != "ro");
        }
    }
    let process = result.process.get_or_insert_default();
    process.apparmor_profile = app_armor.filter(|_| !spec.privileged).unwrap_or_default();
    process.capabilities = Some(Capabilities {
        bounding: kept.clone(),
        effective: kept.clone(),
        permitted: kept,
        ..Capabilities::default()
    });
}

fn resources(spec: &ServiceSpec, given: &[devices::Given]) -> Resources {
    let limits = &spec.limits;
    let signed = |it: u64| i64::try_from(it).unwrap_or(i64::MAX);
    // Memory and swap together. By default that is the memory limit, so that a task over its limit can't go on in swap.
    let both = |limit: u64| spec.memory_swap.map_or(signed(limit), Bound::number);
    let memory = |it: u64| Memory { limit: Some(signed(it)), swap: Some(both(it)), ..Memory::default() };
    // The kernel accepts no less than 1 ms per period.
    let quota = |it: u64| (u128::from(it) * u128::from(PERIOD) / 1_000_000_000).max(1_000);
    let cpu = |it: u64| Cpu {
        period: Some(PERIOD),
        quota: Some(i64::try_from(quota(it)).unwrap_or(i64::MAX)),
        ..Cpu::default()
    };
    let mut rules = vec![oci::DeviceRule { allow: spec.privileged, access: "rwm".into(), ..Default::default() }];
    if !spec.privileged {
        rules.extend(given.iter().map(|it| it.rule.clone()));
    }
    Resources {
        devices: rules,
        memory: limits.memory_bytes.map(NonZeroU64::get).map(memory),
        cpu: limits.nano_cpus.map(NonZeroU64::get).map(cpu),
        pids: limits.pids.map(|it| Pids { limit: signed(it.get()) }),
        ..Resources::default()
    }
}

/// Puts the container into its network, and sets the parameters of a network of its own as Docker does.
fn join_network(result: &mut Spec, network: &TaskNetwork, ids: Option<&OwnIds>) {
    let Some(linux) = &mut result.linux else { return };
    let is_network = |it: &oci::Namespace| it.kind == NamespaceKind::Network;
    let path = match network {
        TaskNetwork::Loopback => ids.map(|it| &it.network),
        // A namespace that is not named is the caller's.
        TaskNetwork::Host => return linux.namespaces.retain(|it| !is_network(it)),
        TaskNetwork::Joined { namespace, .. } => Some(namespace),
    };
    if let Some(path) = path {
        linux.namespaces.iter_mut().filter(|it| is_network(it)).for_each(|it| it.path.clone_from(path));
    }
    for (name, value) in SYSCTLS {
        linux.sysctl.insert(name.into(), value.into());
    }
    if ids.is_some() {
        linux.sysctl.insert(SYSCTLS[1].0.into(), OWN_GROUPS.into());
    }
}

/// Gives the container ids of its own. The namespace exists already, as the container's network belongs to it.
fn take_ids(result: &mut Spec, ids: &OwnIds) {
    let Some(linux) = &mut result.linux else { return };
    linux.namespaces.push(oci::Namespace { kind: NamespaceKind::User, path: ids.user.clone() });
    linux.uid_mappings = vec![ids.range.mapping()];
    linux.gid_mappings = vec![ids.range.mapping()];
}

/// Returns the content of /etc/hosts.
fn hosts(hostname: &str, network: &TaskNetwork, spec: &ServiceSpec) -> String {
    let own = match network {
        TaskNetwork::Joined { addresses, .. } if !addresses.is_empty() => addresses.as_slice(),
        _ => &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
    };
    let extra: Vec<Host> = spec.hosts.iter().map(|it| Host { name: it.name.clone(), address: it.address }).collect();
    flota_network::dns::hosts(hostname, own, &extra)
}

/// Makes the runtime's own program PID 1, where it reaps orphaned processes.
fn add_init(result: &mut Spec, runtime: &Path) {
    result.mounts.push(Mount {
        destination: INIT.into(),
        kind: "bind".into(),
        source: runtime.display().to_string(),
        options: ["bind", "ro", "nosuid", "nodev"].map(str::to_owned).to_vec(),
        ..Mount::default()
    });
    if let Some(process) = &mut result.process {
        process.args.splice(0..0, [INIT, "init", "--"].map(str::to_owned));
    }
}

/// Returns the signal that asks the program to stop: the service's, else the image's, else SIGTERM. An image may name one
/// that does not exist; then it is SIGTERM too.
pub(crate) fn stop_signal(spec: &ServiceSpec, config: &ImageConfig) -> i32 {
    let given = spec.stop_signal.as_ref().or(config.stop_signal().as_ref()).filter(|it| !it.is_empty());
    given.and_then(|name| signal::number(name)).unwrap_or(nix::libc::SIGTERM)
}

/// Fills in the templates in the text of a secret or config of a task.
///
/// # Errors
/// They can't be filled in.
pub(crate) fn fill_file(text: &str, assignment: &Assignment, node: &NodeNames) -> Result<String, FileTemplateError> {
    let variable = |name: &str| {
        let mut values = assignment.spec.env.iter().filter_map(|it| it.split_once('='));
        let given = values.rfind(|(given, _)| *given == name)?.1;
        // The manager has checked it.
        template::fill(given, |field| value(field, assignment, node)).ok()
    };
    template::fill_file(text, VALUE_BOUND, |field| value(field, assignment, node), variable)
}

/// Returns what a template stands for.
fn value(field: Field, assignment: &Assignment, node: &NodeNames) -> String {
    match field {
        Field::NodeId => node.id.clone(),
        Field::NodeHostname => node.hostname.clone(),
        Field::ServiceId => assignment.service_id.to_string(),
        Field::ServiceName => assignment.service_name.clone(),
        Field::TaskId => assignment.task_id.to_string(),
        Field::TaskName => task_full_name(&assignment.service_name, assignment.slot, &assignment.task_id),
        Field::TaskSlot => assignment.slot.to_string(),
    }
}

#[cfg(test)]
mod tests;
