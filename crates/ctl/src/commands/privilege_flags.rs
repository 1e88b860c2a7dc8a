//! The flags of `ctl service create` and `update` for what a task needs from its node beyond CPU and memory.

use clap::{Args, ValueEnum};

use flota_api::capability;
use flota_api::model::{GenericResource, NamedDevice, ServiceSpec};

use crate::error::Usage;

/// The flags that `create` and `update` share.
#[derive(Debug, Default, Args)]
pub(crate) struct PrivilegeFlags {
    /// Runtime class to use, as `ctl node inspect` lists them (default: the embedded one)
    #[arg(long, value_name = "NAME")]
    runtime: Option<String>,
    /// Run a reaper of zombies as PID 1
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    init: Option<bool>,
    /// Give all capabilities and all devices, where the node allows it
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    privileged: Option<bool>,
    /// Forbid programs to gain privileges, as by setuid; `default` leaves it to node and cluster
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "CHOICE")]
    no_new_privileges: Option<NoNewPrivileges>,
    /// User and group ids of the tasks: `auto` gives each some of its own, so that its root has no rights on the node; `host`
    /// is the default
    #[arg(long, value_name = "CHOICE")]
    userns: Option<UserNamespace>,
    /// Add a capability, such as NET_ADMIN, or ALL; may be repeated; RESET forgets those added so far
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Drop a capability, or ALL; may be repeated; RESET forgets those dropped so far
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// Device of the node to give, SOURCE[:TARGET[:rwm]] or the CDI device VENDOR/CLASS=NAME; may be repeated
    #[arg(long, visible_alias = "device-add", value_name = "DEVICE")]
    device: Vec<NamedDevice>,
    /// Number of devices of a kind that nodes hand out, KIND=COUNT, such as gpu=1; may be repeated
    #[arg(long, visible_alias = "generic-resource-add", value_name = "KIND=COUNT")]
    generic_resource: Vec<GenericResource>,
}

/// The value of `--no-new-privileges`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum NoNewPrivileges {
    True,
    False,
    Default,
}

/// The value of `--userns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum UserNamespace {
    Auto,
    Host,
}

/// The flags that only `update` has.
#[derive(Debug, Default, Args)]
pub(crate) struct PrivilegeRemovals {
    /// Device to remove, by its path in the container or its name as a CDI device
    #[arg(long, value_name = "TARGET")]
    device_rm: Vec<String>,
    /// Kind of devices to remove
    #[arg(long, value_name = "KIND")]
    generic_resource_rm: Vec<String>,
}

impl PrivilegeFlags {
    /// Sets the given flags in the spec and leaves the rest as it is.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) {
        if let Some(runtime) = &self.runtime {
            spec.runtime = Some(runtime.clone()).filter(|it| !it.is_empty());
        }
        spec.init = self.init.unwrap_or(spec.init);
        spec.privileged = self.privileged.unwrap_or(spec.privileged);
        if let Some(choice) = self.no_new_privileges {
            let choices = [NoNewPrivileges::True, NoNewPrivileges::False];
            spec.no_new_privileges = choices.contains(&choice).then_some(choice == NoNewPrivileges::True);
        }
        spec.user_namespace = self.userns.map_or(spec.user_namespace, |choice| choice == UserNamespace::Auto);
        if !self.cap_add.is_empty() || !self.cap_drop.is_empty() {
            capability::amend(&mut spec.cap_add, &mut spec.cap_drop, &self.cap_add, &self.cap_drop);
        }
        // A newer device replaces the one with the same name, as with mounts and variables.
        for device in &self.device {
            match device {
                NamedDevice::Path(device) => {
                    spec.devices.retain(|it| it.target != device.target);
                    spec.devices.push(device.clone());
                }
                NamedDevice::Cdi(name) => {
                    spec.cdi_devices.retain(|it| it != name);
                    spec.cdi_devices.push(name.clone());
                }
            }
        }
        for resource in &self.generic_resource {
            spec.generic_resources.retain(|it| it.kind != resource.kind);
            spec.generic_resources.push(resource.clone());
        }
    }
}

impl PrivilegeRemovals {
    /// Removes the named items from the spec.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), Usage> {
        for target in &self.device_rm {
            let is_named = spec.cdi_devices.iter().any(|it| it.text() == target);
            if !is_named && !spec.devices.iter().any(|it| it.target == *target) {
                return Err(Usage(format!("--device-rm {target}: the service has no such device")));
            }
        }
        for kind in &self.generic_resource_rm {
            if !spec.generic_resources.iter().any(|it| it.kind == *kind) {
                return Err(Usage(format!("--generic-resource-rm {kind}: the service asks for none of these")));
            }
        }
        spec.devices.retain(|it| !self.device_rm.contains(&it.target));
        spec.cdi_devices.retain(|it| !self.device_rm.contains(it.text()));
        spec.generic_resources.retain(|it| !self.generic_resource_rm.contains(&it.kind));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Update {
        #[command(flatten)]
        flags: PrivilegeFlags,
        #[command(flatten)]
        removals: PrivilegeRemovals,
        rest: Vec<String>,
    }

    fn updated(spec: &ServiceSpec, flags: &str) -> Result<ServiceSpec, String> {
        let words = ["ctl"].into_iter().chain(flags.split_whitespace());
        let update = Update::try_parse_from(words).map_err(|error| error.to_string())?;
        let mut spec = spec.clone();
        update.removals.apply(&mut spec).map_err(|error| error.to_string())?;
        update.flags.apply(&mut spec);
        Ok(spec)
    }

    fn shown(spec: &ServiceSpec) -> String {
        let devices: Vec<String> =
            spec.devices.iter().map(|it| format!("{}:{}:{}", it.source, it.target, it.permissions)).collect();
        let resources: Vec<String> =
            spec.generic_resources.iter().map(|it| format!("{}={}", it.kind, it.count)).collect();
        let lists = [&spec.cap_add, &spec.cap_drop, &devices, &resources].map(|it| it.join(" "));
        format!("{}|{}|{}|{}", spec.runtime.as_deref().unwrap_or_default(), spec.init, spec.privileged, lists.join("|"))
    }

    #[test]
    fn flags_make_of_a_spec_what_docker_would() {
        let created = updated(
            &ServiceSpec::default(),
            "--runtime runsc --init --privileged --cap-add cap_bpf --cap-add NET_ADMIN --cap-drop CHOWN --device \
             /dev/fuse --device /dev/snd/seq:/dev/x:r --generic-resource gpu=2 --generic-resource fpga=1",
        )
        .expect("good flags");
        assert_eq!(
            shown(&created),
            "runsc|true|true|BPF NET_ADMIN|CHOWN|/dev/fuse:/dev/fuse:rwm /dev/snd/seq:/dev/x:r|gpu=2 fpga=1"
        );
        for (flags, expected) in [
            ("", shown(&created)),
            (
                "--runtime= --init=false --privileged=false --cap-add RESET --cap-drop RESET --device-rm /dev/fuse \
                 --device-rm /dev/x --generic-resource-rm gpu --generic-resource-rm fpga",
                "|false|false||||".into(),
            ),
            (
                "--cap-add CHOWN --cap-drop BPF --device-add /dev/null:/dev/x --generic-resource-add gpu=4",
                "runsc|true|true|NET_ADMIN||/dev/fuse:/dev/fuse:rwm /dev/null:/dev/x:rwm|fpga=1 gpu=4".into(),
            ),
            (
                "--generic-resource-rm gpu --generic-resource-add gpu=1 --init no-value",
                "runsc|true|true|BPF NET_ADMIN|CHOWN|/dev/fuse:/dev/fuse:rwm /dev/snd/seq:/dev/x:r|fpga=1 gpu=1".into(),
            ),
        ] {
            assert_eq!(shown(&updated(&created, flags).unwrap_or_else(|error| panic!("{error}"))), expected, "{flags}");
        }
    }

    #[test]
    fn cdi_devices_are_given_and_taken_back_by_name() {
        let names = |spec: &ServiceSpec| spec.cdi_devices.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let two = "--device v.com/gpu=0 --device /dev/fuse --device v.com/gpu=1 --device v.com/gpu=0";
        let created = updated(&ServiceSpec::default(), two).expect("good flags");
        assert_eq!((names(&created).as_str(), created.devices.len()), ("v.com/gpu=1 v.com/gpu=0", 1));
        let changed = updated(&created, "--device-rm v.com/gpu=1 --device-add v.com/gpu=all").expect("good flags");
        assert_eq!((names(&changed).as_str(), changed.devices.len()), ("v.com/gpu=0 v.com/gpu=all", 1));
        let error = updated(&created, "--device-rm v.com/gpu=2").expect_err("it has none");
        assert_eq!(error, "--device-rm v.com/gpu=2: the service has no such device");
        let error = updated(&created, "--device v.com/gpu=").expect_err("no name");
        assert!(error.contains("the name of a CDI device has letters"), "{error}");
    }

    #[test]
    fn tasks_have_ids_of_their_own_until_they_have_the_nodes_again() {
        let mut spec = ServiceSpec::default();
        for (flags, expected) in [("", false), ("--userns auto", true), ("", true), ("--userns host", false)] {
            spec = updated(&spec, flags).expect("good flags");
            assert_eq!(spec.user_namespace, expected, "{flags}");
        }
        assert!(updated(&spec, "--userns private").expect_err("Podman's").contains("possible values: auto, host"));
    }

    #[test]
    fn new_privileges_are_forbidden_allowed_or_left_to_the_node() {
        let mut spec = ServiceSpec::default();
        for (flags, expected) in [
            ("", None),
            ("--no-new-privileges", Some(true)),
            ("", Some(true)),
            ("--no-new-privileges=false", Some(false)),
            ("--no-new-privileges=default", None),
        ] {
            spec = updated(&spec, flags).expect("good flags");
            assert_eq!(spec.no_new_privileges, expected, "{flags}");
        }
    }

    #[test]
    fn what_is_no_device_and_what_is_not_there_is_refused() {
        for (flags, expected) in [
            ("--device fuse", "`fuse` is not an absolute path"),
            ("--device /dev/fuse:/dev/x:rx", "permissions are some of the letters"),
            ("--generic-resource gpu", "a generic resource has the form KIND=COUNT"),
            ("--generic-resource gpu=0", "the count of `gpu` is 0"),
            ("--init=maybe", "invalid value 'maybe'"),
            ("--device-rm /dev/x", "--device-rm /dev/x: the service has no such device"),
            ("--generic-resource-rm gpu", "--generic-resource-rm gpu: the service asks for none of these"),
        ] {
            let error = updated(&ServiceSpec::default(), flags).expect_err(flags);
            assert!(error.contains(expected), "{flags}: {error}");
        }
    }
}
