//! Programs at points of a container's life (config.md, "POSIX-platform Hooks").

use std::fs;

use serde_json::{Value, json};

use crate::harness::{Bundle, read};

/// A hook of the machine that notes its name, and the state that it is given.
fn note(bundle: &Bundle, kind: &str) -> Value {
    let log = bundle.dir.join("hooks");
    let script = format!("echo {kind} $(cat) >>{}", log.display());
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]})
}

const ALL: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

#[test]
fn all_hooks_run_in_order_with_the_state_of_their_time() {
    let mut bundle = Bundle::new();
    for kind in ALL {
        let mut hook = note(&bundle, kind);
        if kind == "startContainer" {
            // It is a program of the container: its root is the image's.
            hook["args"][2] = json!("echo startContainer $(cat) >>/hooks");
            hook["env"] = json!(["PATH=/bin"]);
        }
        bundle.set(&format!("/hooks/{kind}/-"), hook);
    }
    let inside = bundle.rootfs().join("hooks");
    bundle.idle().make("create", &[]).ok();
    assert!(!inside.exists(), "startContainer waits for start");
    bundle.call(&["start", &bundle.id]).ok();
    bundle.call(&["delete", "-f", &bundle.id]).ok();
    let text = read(bundle.dir.join("hooks"));
    let lines: Vec<(&str, Value)> = text
        .lines()
        .map(|it| it.split_once(' ').unwrap())
        .map(|(kind, state)| (kind, serde_json::from_str(state).unwrap()))
        .collect();
    let found: Vec<(&str, &str)> = lines.iter().map(|it| (it.0, it.1["status"].as_str().unwrap())).collect();
    let expected = [
        ("prestart", "creating"),
        ("createRuntime", "creating"),
        ("createContainer", "creating"),
        ("poststart", "running"),
        ("poststop", "stopped"),
    ];
    assert_eq!(found, expected);
    assert!(lines.iter().all(|it| it.1["id"] == json!(bundle.id) && it.1["ociVersion"].is_string()));
    assert!(lines[0].1["pid"].as_i64().unwrap() > 0, "{text}");
    assert!(read(&inside).contains(r#""status":"created""#), "{}", read(&inside));
    let of_init = lines[2].1["pid"].as_i64();
    assert_eq!(of_init, Some(1), "as the container sees it: {text}");
    assert!(read(&inside).contains(r#""pid":1"#), "{}", read(&inside));
}

#[test]
fn create_runtime_hooks_are_outside_and_create_container_hooks_inside() {
    let mut bundle = Bundle::new();
    for kind in ["createRuntime", "createContainer"] {
        let mut hook = note(&bundle, kind);
        let script = format!("echo {kind} $(readlink /proc/self/ns/uts) >>{}", bundle.dir.join("hooks").display());
        hook["args"][2] = json!(script);
        bundle.set(&format!("/hooks/{kind}/-"), hook);
    }
    let inside = bundle.sh("readlink /proc/self/ns/uts").output();
    let ours = fs::read_link("/proc/self/ns/uts").unwrap();
    let expected = format!("createRuntime {}\ncreateContainer {}", ours.display(), inside.trim());
    assert_eq!(read(bundle.dir.join("hooks")), expected);
}

#[test]
fn a_failing_hook_before_the_start_ends_everything() {
    for kind in &ALL[..4] {
        let mut bundle = Bundle::new();
        let script = "echo broken >&2; exit 3";
        bundle.set(&format!("/hooks/{kind}/-"), json!({"path": "/bin/sh", "args": ["sh", "-c", script]}));
        let path = bundle.dir.join("ran");
        let printed = bundle.sh("touch /ran").run().fails(1);
        assert!(printed.contains(&format!("hooks.{kind}[0]")) && printed.contains("broken"), "{printed}");
        assert!(!path.exists());
        bundle.assert_gone();
    }
}

#[test]
fn failing_hook_of_a_container_that_was_created_before_is_reported_by_start() {
    let mut bundle = Bundle::new();
    let script = "echo broken >&2; exit 3";
    bundle.set("/hooks/startContainer/-", json!({"path": "/bin/sh", "args": ["sh", "-c", script]}));
    bundle.idle().make("create", &[]).ok();
    let printed = bundle.call(&["start", &bundle.id]).fails(1);
    assert!(printed.contains("hooks.startContainer[0]") && printed.contains("broken"), "{printed}");
}

#[test]
fn a_failing_hook_after_the_end_is_a_warning() {
    let mut bundle = Bundle::new();
    bundle.set("/hooks/poststop/-", json!({"path": "/bin/false"}));
    bundle.set("/hooks/poststop/-", note(&bundle, "poststop"));
    let ran = bundle.sh("exit 0").run();
    assert_eq!(ran.code, 0);
    assert!(ran.err.contains("warning: ") && ran.err.contains("hooks.poststop[0]"), "{ran:?}");
    assert!(read(bundle.dir.join("hooks")).starts_with("poststop"), "the others are run");
}

#[test]
fn a_failing_poststart_hook_takes_the_container_down() {
    let mut bundle = Bundle::new();
    bundle.set("/hooks/poststart/-", json!({"path": "/bin/false"})).idle();
    bundle.make("create", &[]).ok();
    assert!(bundle.call(&["start", &bundle.id]).fails(1).contains("hooks.poststart[0]"));
    bundle.assert_gone();
}

#[test]
fn a_hook_that_takes_too_long_is_killed_with_all_that_it_started() {
    let mut bundle = Bundle::new();
    let marker = format!("# {}\nsleep 1000 & sleep 1000; true", bundle.id);
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", marker], "timeout": 1});
    bundle.set("/hooks/createRuntime/-", hook);
    let printed = bundle.run().fails(1);
    assert!(printed.contains("hooks.createRuntime[0]") && printed.contains("in time"), "{printed}");
    bundle.assert_gone();
}

#[test]
fn a_hook_that_does_not_read_its_state_is_no_failure() {
    let mut bundle = Bundle::new();
    bundle.set("/hooks/createRuntime/-", json!({"path": "/bin/true"}));
    assert_eq!(bundle.sh("echo ran").output(), "ran\n");
}

#[test]
fn a_hook_that_reads_nothing_and_prints_much_delays_nothing() {
    let mut bundle = Bundle::new();
    // More than a pipe holds (pipe(7)), both ways.
    bundle.set("/annotations", json!({"long": "x".repeat(200_000)}));
    let script = "head -c 300000 /dev/zero >&2";
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"], "timeout": 20});
    bundle.set("/hooks/createRuntime/-", hook);
    assert_eq!(bundle.sh("echo ran").run().ok(), "ran\n");
}
