//! Autoscaling by what real containers use and count.

use flota_tests::Cluster;
use serde_json::Value;

use crate::archives;

/// A program that counts a hundred requests a second for `httpd` to show, and uses little CPU.
const COUNTS: &str = "/bin/busybox httpd -p 8080 -h /; i=0; while :; do i=$((i+100)); \
                      echo \"r_total{code=\\\"200\\\"} $i\" > /m; /bin/busybox sleep 1; done";

fn status(cluster: &Cluster, service: &str) -> Value {
    let shown: Value = serde_json::from_str(&cluster.ok(&format!("service inspect {service}"))).unwrap();
    shown[0]["scaleStatus"].clone()
}

fn reason(cluster: &Cluster, service: &str) -> String {
    status(cluster, service)["decisions"][0]["reason"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn the_number_of_tasks_follows_cpu_memory_and_requests() {
    let cluster = Cluster::bare(1, 1);
    let folder = tempfile::tempdir().unwrap();
    cluster.ok(&format!("image import {}", archives::checked_busybox(folder.path())));
    let create = |name: &str, flags: &[&str], program: &str| {
        let base = ["service", "create", "--detach", "--name", name, "--no-healthcheck", "--scale-max", "3"];
        let words = [&base[..], flags, &["--entrypoint", "/bin/sh -c", "saved:1", program]].concat();
        let created = cluster.ctl_args(&words);
        assert_eq!(created.code, 0, "{}", created.stderr);
    };
    create("busy", &["--limit-cpu", "0.2", "--scale-cpu", "0.05"], "while :; do :; done");
    let from = "http://:8080/m#r_total";
    create("asked", &["--scale-requests", "40", "--scale-requests-from", from], COUNTS);
    create("idle", &["--scale-cpu", "0.5", "--scale-memory", "200m"], "exec /bin/busybox sleep 100000");
    for service in ["busy", "asked"] {
        cluster.wait(&format!("{service} has three tasks"), |it| it.running(service).len() == 3);
    }
    let why = reason(&cluster, "busy");
    assert!(why.starts_with("CPU 0.") && why.ends_with(" of 0.05 a task"), "{why}");
    let why = reason(&cluster, "asked");
    assert!(why.starts_with("requests ") && why.ends_with(" of 40.0/s a task"), "{why}");
    assert_eq!(cluster.running("idle").len(), 1);
    assert!(status(&cluster, "idle").is_null(), "nothing was decided");
    cluster.ok("service update --no-scale busy");
    assert_eq!(cluster.running("busy").len(), 1, "it has the number of its spec");
    let refused = cluster.ctl("service scale asked=4");
    assert!(
        refused.code == 1 && refused.stderr.contains("4 is outside of the bounds of autoscaling, 1 to 3"),
        "{}",
        refused.stderr
    );
}
