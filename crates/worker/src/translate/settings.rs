//! Puts the settings of a task that concern no other part of the node into its OCI configuration: the read-only root, the
//! terminal, `/dev/shm`, limits of processes, kernel parameters, labels. Called last, because a service's own kernel
//! parameters come before Docker's.

use std::num::NonZeroU64;
use std::path::Path;

use flota_api::model::{Bound, ServiceSpec, Ulimit};
use flota_runtime::oci::{Rlimit, Spec};

/// Path in a container of the memory that its programs share.
const SHARED_MEMORY: &str = "/dev/shm";

/// Beginning of the annotations that carry a container's labels. Without it a user could set annotations that change what
/// runtimes do, such as runc's `org.systemd.property.…` and crun's `run.oci.…`.
const LABEL: &str = "org.flota.label.";

/// Puts the settings of `spec` into the configuration.
pub(super) fn apply(result: &mut Spec, spec: &ServiceSpec) {
    if let Some(root) = &mut result.root {
        root.readonly = spec.read_only;
    }
    let process = result.process.get_or_insert_default();
    process.terminal = spec.tty;
    process.oom_score_adj = spec.oom_score_adj;
    process.rlimits = spec.ulimits.iter().map(limit).collect();
    for mount in result.mounts.iter_mut().filter(|it| it.destination == Path::new(SHARED_MEMORY)) {
        if let Some(size) = spec.shm_size.map(NonZeroU64::get) {
            mount.options.retain(|it| !it.starts_with("size="));
            mount.options.push(format!("size={size}"));
        }
    }
    if let Some(linux) = &mut result.linux {
        linux.sysctl.extend(spec.sysctls.clone());
    }
    let labels = spec.container_labels.iter();
    result.annotations.extend(labels.map(|(key, value)| (format!("{LABEL}{key}"), value.clone())));
}

fn limit(limit: &Ulimit) -> Rlimit {
    // The largest number is RLIM_INFINITY (getrlimit(2)).
    let number = |bound| match bound {
        Bound::At(amount) => amount,
        Bound::Unlimited => u64::MAX,
    };
    let kind = format!("RLIMIT_{}", limit.name.as_str().to_ascii_uppercase());
    Rlimit { kind, soft: number(limit.soft), hard: number(limit.hard) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use flota_api::model::UlimitName;
    use flota_runtime::oci;

    use super::*;

    fn applied(spec: &ServiceSpec) -> Spec {
        let mut result = oci::template();
        apply(&mut result, spec);
        result
    }

    fn shared_memory(spec: &Spec) -> Vec<&str> {
        let mount = spec.mounts.iter().find(|it| it.destination == Path::new(SHARED_MEMORY));
        mount.expect("every container has it").options.iter().map(String::as_str).collect()
    }

    #[test]
    fn without_settings_a_container_is_as_docker_makes_it() {
        let spec = applied(&ServiceSpec::default());
        let process = spec.process.clone().expect("every container has one");
        assert!(!process.terminal && process.rlimits.is_empty() && process.oom_score_adj.is_none());
        assert!(!spec.root.as_ref().expect("it has one").readonly && spec.annotations.is_empty());
        assert!(shared_memory(&spec).contains(&"size=65536k"));
    }

    #[test]
    fn each_setting_is_where_a_runtime_looks_for_it() {
        let map = |name: &str| BTreeMap::from([(name.to_owned(), "1".to_owned())]);
        let spec = applied(&ServiceSpec {
            read_only: true,
            tty: true,
            shm_size: NonZeroU64::new(1 << 20),
            ulimits: vec!["nofile=1:2".parse().expect("a limit"), "core=0:-1".parse().expect("a limit")],
            sysctls: map("net.core.somaxconn"),
            container_labels: map("org.systemd.property.Slice"),
            oom_score_adj: Some(-500),
            ..ServiceSpec::default()
        });
        let process = spec.process.clone().expect("every container has one");
        assert_eq!((process.terminal, process.oom_score_adj), (true, Some(-500)));
        let limits = process.rlimits.iter().map(|it| (it.kind.as_str(), it.soft, it.hard)).collect::<Vec<_>>();
        assert_eq!(limits, [("RLIMIT_NOFILE", 1, 2), ("RLIMIT_CORE", 0, u64::MAX)]);
        assert!(spec.root.as_ref().expect("it has one").readonly);
        let sizes = shared_memory(&spec).into_iter().filter(|it| it.starts_with("size=")).collect::<Vec<_>>();
        assert_eq!(sizes, ["size=1048576"]);
        assert_eq!(spec.linux().sysctl, map("net.core.somaxconn"));
        assert_eq!(spec.annotations, map("org.flota.label.org.systemd.property.Slice"), "no runtime obeys it");
    }

    #[test]
    fn the_runtime_knows_every_limit() {
        for name in UlimitName::ALL.iter().copied() {
            let ulimits = vec![Ulimit { name, soft: Bound::At(1), hard: Bound::Unlimited }];
            let process = applied(&ServiceSpec { ulimits, ..ServiceSpec::default() }).process;
            assert!(flota_runtime::check_process(&process.expect("every container has one")).is_ok(), "{name}");
        }
    }
}
