//! Tests that the kernel enforces device rules: on v1 by its own list, on v2 by our program.

use super::*;
use crate::oci::DeviceRule;

fn allow(minor: i64, access: &str) -> DeviceRule {
    DeviceRule { allow: true, kind: "c".into(), major: Some(1), minor: Some(minor), access: access.into() }
}

fn rules(rules: &[DeviceRule]) -> Resources {
    let none = DeviceRule { access: "rwm".into(), ..DeviceRule::default() };
    Resources { devices: [none].into_iter().chain(rules.iter().cloned()).collect(), ..Resources::default() }
}

const FULL: i64 = 7;
const ZERO: i64 = 5;

/// Returns what a process in the groups can do: open /dev/full, read and write /dev/zero, create each of both.
fn can(real: &Real) -> [bool; 5] {
    let dir = std::env::temp_dir().join(&real.name);
    std::fs::create_dir_all(&dir).expect("in a temporary folder");
    let make = |minor: i64| format!("mknod {}/{minor} c 1 {minor}", dir.display());
    let acts = [": < /dev/full", ": < /dev/zero", ": > /dev/zero", &make(FULL), &make(ZERO)];
    let script = acts.map(|act| format!("({act}) && echo yes || echo no")).join("; ");
    let mut process = real.run(&script);
    let can = acts.map(|_| process.line() == "yes");
    std::fs::remove_dir_all(dir).expect("its own folder");
    can
}

#[test]
fn devices_are_what_the_rules_say_on_both_versions() {
    for which in [Which::V1, Which::V2, Which::All] {
        let real = Real::create(&format!("devices-{}", which as u8), which, &rules(&[allow(FULL, "rwm")]));
        assert!(real.groups.guards_devices());
        assert_eq!(can(&real), [true, false, false, true, false]);
        real.groups.apply(&rules(&[allow(ZERO, "r"), allow(ZERO, "m")])).expect("an update");
        assert_eq!(can(&real), [false, true, false, false, true]);
        real.groups.apply(&Resources::default()).expect("nothing is asked");
        assert_eq!(can(&real), [false, true, false, false, true], "as it was");
        real.groups.apply(&rules(&default_device_rules())).expect("an update");
        assert_eq!(can(&real), [true; 5]);
        let all = DeviceRule { allow: true, ..DeviceRule::default() };
        let but = DeviceRule { allow: false, ..allow(ZERO, "w") };
        real.groups.apply(&rules(&[all, but])).expect("an update");
        assert_eq!(can(&real), [true, true, false, true, true]);
    }
}

#[test]
fn an_update_leaves_one_program() {
    let real = Real::create("program", Which::V2, &rules(&[allow(FULL, "rwm")]));
    let count = || super::super::devices::programs(&real.groups.folders()[0].path).expect("it can be asked");
    assert_eq!(count(), 1);
    real.groups.apply(&rules(&default_device_rules())).expect("an update");
    assert_eq!(count(), 1);
    // Two other programs, as an older runtime may have left them, are replaced.
    let folder = &real.groups.folders()[0];
    let plan =
        || super::super::devices::plan(&real.groups, &default_device_rules()).expect("good rules").expect("some");
    plan().run(true).expect("a second");
    assert_eq!(count(), 2, "{}", folder.path.display());
    plan().run(false).expect("an update");
    assert_eq!(count(), 1);
}

#[test]
fn a_group_in_one_with_the_same_devices_needs_no_writes() {
    let real = Real::create("same", Which::V1, &rules(&default_device_rules()));
    let list = real.text("devices", "devices.list");
    let inner = Folder { path: real.folder("devices").path.join("inner"), ..real.folder("devices").clone() };
    let mut inner = Groups { folders: vec![inner] };
    inner.create(&rules(&default_device_rules())).expect("the same");
    assert_eq!(inner.folders[0].read("devices.list").expect("readable").trim(), list);
    let all = DeviceRule { allow: true, ..DeviceRule::default() };
    let error = inner.apply(&rules(&[all])).expect_err("more than the parent has");
    assert!(error.to_string().starts_with("failed to set linux.resources.devices (`a` to "), "{error}");
    inner.remove().expect("empty");
}
