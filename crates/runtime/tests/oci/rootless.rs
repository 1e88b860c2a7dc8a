//! Containers of a user without any rights, in a user namespace.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::{Bundle, Ran, wait_for};

/// Ids that no user of this machine has.
const USER: u32 = 54_321;

/// A bundle as `spec --rootless` makes it for that user, which everything in it belongs to.
struct Rootless(Bundle);

impl Rootless {
    #[track_caller]
    fn new(script: &str) -> Self {
        let mut bundle = Bundle::new();
        let (root, dir) = (bundle.rootfs(), bundle.dir.join("bundle"));
        for path in [&dir, &root, &bundle.states()] {
            std::os::unix::fs::chown(path, Some(USER), Some(USER)).unwrap();
        }
        let of_root = bundle.config.clone();
        let it = Self(bundle);
        it.call(it.0.command(&["spec", "--rootless"]).current_dir(&dir)).ok();
        bundle = it.0;
        bundle.config = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
        bundle.set("/process", of_root["process"].clone()).set("/root/readonly", json!(false));
        bundle.sh(script);
        Self(bundle)
    }

    #[track_caller]
    fn call(&self, command: &mut Command) -> Ran {
        self.0.spawn(command.uid(USER).gid(USER).env_remove("XDG_RUNTIME_DIR")).wait()
    }

    #[track_caller]
    fn make(&self, verb: &str) -> Ran {
        self.call(&mut self.0.make_command(verb, &[]))
    }

    #[track_caller]
    fn verb(&self, verb: &str, rest: &[&str]) -> Ran {
        self.call(self.0.command(&[verb]).arg(&self.0.id).args(rest))
    }
}

#[test]
fn a_user_without_rights_is_root_in_its_container() {
    let script = "id -u; id -g; cat /proc/self/uid_map; hostname; echo $$; touch /made; mkdir /tmp; mount -t tmpfs t /tmp \
        || echo no mount; cat /proc/self/setgroups";
    let container = Rootless::new(script);
    let printed = container.make("run").ok();
    let words: Vec<&str> = printed.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "0", "54321", "1", "flota", "1", "no", "mount", "deny"], "{printed}");
    let made = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(container.0.rootfs().join("made")).unwrap());
    assert_eq!(made, USER, "what it writes is its own outside, too");
    container.0.assert_gone();
}

#[test]
fn a_user_without_rights_has_all_verbs() {
    let container = Rootless::new("trap 'exit 7' TERM; echo ready >/ready; while :; do sleep 0.01; done");
    container.make("create").ok();
    assert_eq!(container.verb("state", &[]).json()["status"], "created");
    container.verb("start", &[]).ok();
    wait_for("its program runs", || container.0.rootfs().join("ready").exists().then_some(()));
    let printed = container.verb("exec", &["/bin/sh", "-c", "id -u; readlink /proc/self/ns/user; exit 0"]).ok();
    let own = std::fs::read_link("/proc/self/ns/user").unwrap();
    let (uid, namespace) = printed.split_once('\n').unwrap();
    assert!(uid == "0" && Path::new(namespace.trim()) != own, "{printed}");
    assert_eq!(container.verb("exec", &["/bin/sh", "-c", "exit 9"]).code, 9);
    // Also the machine's root, whose own limits it has no say over.
    let printed = container.0.call(&["exec", &container.0.id, "/bin/sh", "-c", "id -u; ulimit -n"]).ok();
    assert_eq!(printed, "0\n1024\n");
    container.verb("kill", &["TERM"]).ok();
    wait_for("it has ended", || (container.verb("state", &[]).json()["status"] == "stopped").then_some(()));
    container.verb("delete", &[]).ok();
    container.0.assert_gone();
}

#[test]
fn what_a_user_without_rights_may_not_is_refused_by_its_name() {
    let mut container = Rootless::new("true");
    container.0.set("/linux/resources/memory/limit", json!(64 << 20)).set("/linux/cgroupsPath", json!("/oci-rootless"));
    let ran = container.make("run");
    assert!(
        ran.code == 1 && ran.err.contains("failed to make the cgroup /sys/fs/cgroup/"),
        "{}: {}",
        ran.code,
        ran.err
    );
    container.0.assert_gone();

    let mut container = Rootless::new("true");
    container.0.set("/linux/uidMappings/0/size", json!(2));
    let ran = container.make("run");
    assert!(
        ran.code == 1 && ran.err.contains("failed to map linux.uidMappings with newuidmap: "),
        "{}: {}",
        ran.code,
        ran.err
    );
    container.0.assert_gone();
}
