//! Groups that systemd creates: a transient scope for each container, which its manager starts over D-Bus
//! (org.freedesktop.systemd1(5)). systemd knows the scope's limits too, because it writes its own values again when it
//! is reloaded.
//!
//! `linux.cgroupsPath` has the form `slice:prefix:name` then, as for runc: the scope is `prefix-name.scope` in the
//! slice. When its last process has ended, systemd removes it.

mod dbus;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::limits::cpu_weight;
use super::{Groups, Hierarchy};
use crate::error::{Act, StepError};
use crate::oci::Resources;
use dbus::{Bus, CallArguments, Object, Value};

const MANAGER: Object = Object {
    name: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};

/// The signals that tell how a job has ended. systemd sends them to the client that has caused the job.
const JOBS: &str = "type='signal',sender='org.freedesktop.systemd1',interface='org.freedesktop.systemd1.Manager',\
    member='JobRemoved'";

/// A transient scope of systemd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    slice: String,
    unit: String,
}

impl Scope {
    /// Returns the scope of a container. Without a path it is `flota-ID.scope` in `system.slice`.
    ///
    /// # Errors
    /// The path has another form, or names no slice.
    pub fn new(cgroups_path: Option<&str>, id: &str) -> Result<Self, StepError> {
        let path = cgroups_path.filter(|it| !it.is_empty());
        let default = format!("system.slice:flota:{id}");
        let given = path.unwrap_or(&default);
        let refuse =
            |why: &str| StepError::refuse(format!("use linux.cgroupsPath `{given}` with --systemd-cgroup"), why);
        let parts: Vec<&str> = given.split(':').collect();
        let [slice, prefix, name] = parts[..] else { return Err(refuse("it has not the form slice:prefix:name")) };
        if name.is_empty() || name.contains('/') || prefix.contains('/') {
            return Err(refuse("its name is empty, or a path"));
        }
        let slice = if slice.is_empty() { "system.slice" } else { slice };
        if expand(slice).is_none() {
            return Err(refuse("its first part is not the name of a slice, such as `system.slice`"));
        }
        let unit = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        Ok(Self { slice: slice.to_owned(), unit })
    }

    /// Returns its groups, which do not exist before [`Scope::start`].
    pub fn groups(&self, hierarchies: &[Hierarchy]) -> Groups {
        Groups::below(hierarchies, &expand(&self.slice).unwrap_or_default(), &self.unit)
    }

    /// Starts it with this process in it. `v2` is whether all hierarchies are v2.
    ///
    /// # Errors
    /// There is no systemd, or it refuses.
    pub(crate) fn start(&self, pid: i32, resources: &Resources, v2: bool) -> Result<(), StepError> {
        let act = || format!("start the scope {} with systemd, as --systemd-cgroup says", self.unit);
        let mut bus = Bus::system().act(act)?;
        bus.call(&dbus::BUS, "AddMatch", &CallArguments::default().text(JOBS)).act(act)?;
        let properties = [self.properties(pid), limits(resources, v2)].concat();
        let arguments = CallArguments::default().text(&self.unit).text("replace").properties(&properties).no_units();
        let started = bus.call(&MANAGER, "StartTransientUnit", &arguments).act(act)?;
        loop {
            let signal = bus.next_signal().act(act)?;
            let [job, _, result] = &signal.texts[..] else { continue };
            if signal.member != "JobRemoved" || started.texts.first() != Some(job) {
                continue;
            }
            return if result == "done" {
                Ok(())
            } else {
                Err(StepError::refuse(act(), format!("its job ended with `{result}`")))
            };
        }
    }

    /// Tells systemd changed limits.
    ///
    /// # Errors
    /// There is no systemd, or it refuses.
    pub(crate) fn update(&self, resources: &Resources, v2: bool) -> Result<(), StepError> {
        let act = || format!("change the limits of {} with systemd", self.unit);
        let changed = limits(resources, v2);
        if changed.is_empty() {
            return Ok(());
        }
        let arguments = CallArguments::default().text(&self.unit).flag(true).properties(&changed);
        Bus::system().and_then(|mut bus| bus.call(&MANAGER, "SetUnitProperties", &arguments)).act(act).map(drop)
    }

    fn properties(&self, pid: i32) -> Vec<(&'static str, Value)> {
        let pid = u32::try_from(pid).unwrap_or_default();
        let accounting = ["MemoryAccounting", "CPUAccounting", "IOAccounting", "BlockIOAccounting", "TasksAccounting"];
        let mut properties = vec![
            ("Description", Value::Text(format!("container {}", self.unit))),
            ("Slice", Value::Text(self.slice.clone())),
            ("PIDs", Value::Numbers(vec![pid])),
            // The container's own groups are below.
            ("Delegate", Value::Flag(true)),
            // The container's caller decides when it stops.
            ("DefaultDependencies", Value::Flag(false)),
            // Otherwise a scope whose process was killed stays, and its name can't be used again.
            ("CollectMode", Value::Text("inactive-or-failed".into())),
        ];
        properties.extend(accounting.map(|it| (it, Value::Flag(true))));
        properties
    }
}

/// Returns the path of a slice's group: `a-b.slice` is in `a.slice`, and `-.slice` is the root.
fn expand(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice").filter(|it| !it.is_empty() && !it.contains('/'))?;
    let (mut path, mut whole) = (PathBuf::new(), String::new());
    if name == "-" {
        return Some(path);
    }
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        whole = if whole.is_empty() { part.to_owned() } else { format!("{whole}-{part}") };
        path.push(format!("{whole}.slice"));
    }
    Some(path)
}

/// Returns the limits that systemd would otherwise set to its own defaults.
fn limits(resources: &Resources, v2: bool) -> Vec<(&'static str, Value)> {
    // Negative is "unlimited", which is the largest number for systemd.
    let amount = |it: i64| Value::Number(u64::try_from(it).unwrap_or(u64::MAX));
    let mut limits = Vec::new();
    let memory = resources.memory.clone().unwrap_or_default();
    if let Some(limit) = memory.limit.filter(|it| *it != 0) {
        limits.push((if v2 { "MemoryMax" } else { "MemoryLimit" }, amount(limit)));
        let swap = memory.swap.filter(|it| *it != 0 && v2);
        limits.extend(swap.map(|it| ("MemorySwapMax", amount(if it < 0 || limit < 0 { -1 } else { it - limit }))));
    }
    let cpu = resources.cpu.clone().unwrap_or_default();
    if let Some(shares) = cpu.shares.filter(|it| *it != 0) {
        let (name, value) = if v2 { ("CPUWeight", cpu_weight(shares)) } else { ("CPUShares", shares) };
        limits.push((name, Value::Number(value)));
    }
    if let Some(quota) = cpu.quota.filter(|it| *it != 0) {
        let period = cpu.period.filter(|it| *it != 0).unwrap_or(100_000);
        // systemd rounds to 10 ms (systemd.resource-control(5)).
        let each_second = u64::try_from(quota)
            .map(|it| it.saturating_mul(1_000_000).div_ceil(period).div_ceil(10_000).saturating_mul(10_000));
        limits.push(("CPUQuotaPerSecUSec", Value::Number(each_second.unwrap_or(u64::MAX))));
    }
    limits.extend(resources.pids.iter().map(|it| ("TasksMax", amount(if it.limit == 0 { -1 } else { it.limit }))));
    limits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Cpu, Memory, Pids};

    #[test]
    fn path_names_slice_prefix_and_name() {
        let place = |path: Option<&str>| {
            let scope = Scope::new(path, "box").map_err(|error| error.to_string())?;
            Ok(expand(&scope.slice).expect("checked").join(scope.unit).display().to_string())
        };
        for (path, expected) in [
            (None, "system.slice/flota-box.scope"),
            (Some(""), "system.slice/flota-box.scope"),
            (Some("machine.slice:libpod:1f"), "machine.slice/libpod-1f.scope"),
            (Some("kube-pods-a.slice:cri:1f"), "kube.slice/kube-pods.slice/kube-pods-a.slice/cri-1f.scope"),
            (Some("-.slice::one"), "one.scope"),
            (Some(":x:y"), "system.slice/x-y.scope"),
        ] {
            assert_eq!(place(path), Ok(expected.to_owned()), "{path:?}");
        }
        for (path, why) in [
            ("/a/b", "it has not the form slice:prefix:name"),
            ("a:b", "it has not the form"),
            ("system.slice:x:", "its name is empty"),
            ("system:x:y", "its first part is not the name of a slice"),
            ("a--b.slice:x:y", "its first part is not"),
            ("../x.slice:x:y", "its first part is not"),
        ] {
            assert!(place(Some(path)).is_err_and(|error: String| error.contains(why)), "{path}");
        }
    }

    #[test]
    fn limits_have_systemds_names_and_units() {
        let resources = Resources {
            memory: Some(Memory { limit: Some(64 << 20), swap: Some(96 << 20), ..Memory::default() }),
            cpu: Some(Cpu { shares: Some(1024), quota: Some(50_000), period: Some(100_000), ..Cpu::default() }),
            pids: Some(Pids { limit: -1 }),
            ..Resources::default()
        };
        let number = |name, value| (name, Value::Number(value));
        let both = [number("CPUQuotaPerSecUSec", 500_000), number("TasksMax", u64::MAX)];
        let v2 = [number("MemoryMax", 64 << 20), number("MemorySwapMax", 32 << 20), number("CPUWeight", 100)];
        assert_eq!(limits(&resources, true), [&v2[..], &both].concat());
        let v1 = [number("MemoryLimit", 64 << 20), number("CPUShares", 1024)];
        assert_eq!(limits(&resources, false), [&v1[..], &both].concat());
        assert_eq!(limits(&Resources::default(), true), []);
    }
}
