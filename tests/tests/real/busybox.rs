//! Services of busybox, and commands in their tasks.

use flota_tests::{Cluster, Output};

/// A service of busybox that stays, with these flags.
pub(crate) fn create(cluster: &Cluster, name: &str, flags: &str) {
    let command = "--stop-signal KILL --entrypoint /busybox busybox sleep 1000000";
    cluster.ok(&format!("service create --name {name} --update-monitor 0s {flags} {command}"));
}

/// Runs a shell command in a task.
pub(crate) fn sh(cluster: &Cluster, task: &str, script: &str) -> Output {
    cluster.ctl_args(&["exec", task, "--", "/busybox", "sh", "-c", script])
}

/// Runs a shell command in a task, where it succeeds, and returns what it prints.
pub(crate) fn sh_ok(cluster: &Cluster, task: &str, script: &str) -> String {
    let result = sh(cluster, task, script);
    assert_eq!(result.code, 0, "{script}: {}{}", result.stdout, result.stderr);
    result.stdout.trim().to_owned()
}

/// What the tasks of a service say of why they do not run.
pub(crate) fn errors(cluster: &Cluster, service: &str) -> String {
    let rows = cluster.rows(&format!("service ps {service}"));
    rows.iter().map(|it| it["error"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>().join("; ")
}
