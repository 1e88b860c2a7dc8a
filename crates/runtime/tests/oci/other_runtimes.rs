//! The same container by the embedded runtime, crun and runc, under our supervisor: none differs to who asks for it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use flota_runtime::ExecSpec;
use serde_json::json;

use crate::census::entries;
use crate::harness::wait_for;
use crate::image_mounts;
use crate::supervised::Supervised;

const ALL: [&str; 3] = ["embedded", "crun", "runc"];

/// crun takes a machine with both kinds of control groups for one that it can't use: it is not shown the second.
const CRUN: &str = "#!/bin/sh
exec unshare -m /bin/sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec crun \"$@\"' crun \"$@\"
";

fn supervised(runtime: &str, script: &str) -> Supervised {
    prepared(runtime, script).start()
}

fn prepared(runtime: &str, script: &str) -> Supervised {
    let mut container = Supervised::new(script);
    // runc 1.1 knows none of these defaults of 2025.
    container.bundle.set("/ociVersion", json!("1.0.2"));
    container.order.runtime = match runtime {
        "embedded" => None,
        "crun" => {
            let path = container.bundle.dir.join("crun");
            fs::write(&path, CRUN).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            Some(path)
        }
        other => Some(PathBuf::from("/usr/sbin").join(other)),
    };
    container
}

#[test]
fn a_container_runs_to_its_code_under_each() {
    for runtime in ALL {
        let container = supervised(runtime, "exit 5");
        assert_eq!(container.wait().code, 5, "{runtime}");
        container.assert_gone();
    }
}

#[test]
fn a_process_whose_client_has_gone_is_killed_under_each() {
    for runtime in ALL {
        let container = supervised(runtime, "exec sleep 1000");
        let count = || container.bundle.census().processes.len();
        let before = count();
        let null = || fs::File::options().read(true).write(true).open("/dev/null").unwrap().into();
        // It ignores the polite signals.
        let script = "trap '' TERM HUP; echo >/begun; while :; do sleep 1000; done";
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let (env, cwd, user) = Default::default();
        let spec = ExecSpec { argv, env, cwd, user, tty: false, contained: false };
        let process = container.client().exec(&spec, vec![null(), null(), null()]).unwrap();
        wait_for("it has begun", || container.bundle.rootfs().join("begun").exists().then_some(()));
        drop(process);
        // What it has started outlives it, as with any shell that is killed.
        wait_for(&format!("it is gone: {runtime}"), || (count() <= before + 1).then_some(()));
        wait_for(&format!("its files are gone: {runtime}"), || {
            entries(&container.dir).iter().all(|it| !it.to_string_lossy().contains("exec-")).then_some(())
        });
    }
}

#[test]
fn an_image_is_mounted_under_each() {
    for runtime in ALL {
        let mut container = prepared(runtime, "cat /image/above /image/below; echo x > /image/new || exit 3");
        let files = image_mounts::layers(&container);
        image_mounts::add(&mut container, "/image", files, Some("sub"));
        let container = container.start();
        assert_eq!(container.wait().code, 3, "{runtime}");
        assert!(container.lines().contains(&(1, "21".into())), "{runtime}: {:?}", container.lines());
        container.assert_gone();
    }
}

#[test]
fn output_is_kept_under_each() {
    for runtime in ALL {
        let container = supervised(runtime, "echo out; echo err >&2");
        container.wait();
        let mut lines = container.lines();
        lines.sort();
        assert_eq!(lines, [(1, "out".into()), (2, "err".into())], "{runtime}");
    }
}

#[test]
fn a_process_is_run_in_it_under_each() {
    for runtime in ALL {
        let container = supervised(runtime, "exec sleep 1000");
        assert_eq!(container.exec("hostname; exit 6"), (6, "flota\n".into()), "{runtime}");
        assert_eq!(container.exec("grep CapEff /proc/self/status").1, "CapEff:\t0000000020000420\n", "{runtime}");
        let files = || crate::census::entries(&container.dir).into_iter().map(|it| it.display().to_string());
        wait_for("the processes' files are gone", || files().all(|it| !it.contains("/exec-")).then_some(()));
    }
}

#[test]
fn a_signal_reaches_it_under_each() {
    for runtime in ALL {
        let container = supervised(runtime, "trap 'exit 8' TERM; echo ready; while :; do usleep 1000; done");
        container.wait_line("ready");
        container.client().kill(libc::SIGTERM).unwrap();
        assert_eq!(container.wait().code, 8, "{runtime}");
        container.assert_gone();
    }
}

#[test]
fn it_is_paused_by_its_groups_under_each() {
    for runtime in ALL {
        let container = supervised(runtime, "while :; do echo x >>/n; usleep 1000; done");
        let count = || fs::read(container.bundle.rootfs().join("n")).unwrap_or_default().len();
        wait_for("it writes", || (count() > 2).then_some(()));
        container.order.groups.freeze().unwrap();
        let before = count();
        assert!(container.order.groups.is_frozen(), "{runtime}");
        assert_eq!(count(), before, "{runtime}");
        container.order.groups.thaw().unwrap();
        wait_for("it writes again", || (count() > before).then_some(()));
    }
}
