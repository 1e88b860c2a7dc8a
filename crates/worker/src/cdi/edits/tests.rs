use super::*;
use crate::cdi::file::{CdiFile, Encoding};

use flota_runtime::oci;

/// Returns the edits of a device, as a file has them.
fn edits(text: &str) -> ContainerEdits {
    let devices = format!(r#"[{{"name": "n", "containerEdits": {text}}}]"#);
    let file = format!(r#"{{"cdiVersion": "1.0.0", "kind": "v.com/c", "devices": {devices}}}"#);
    let file = CdiFile::parse(&file, Encoding::Json).unwrap_or_else(|why| panic!("{text}: {why}"));
    file.devices.into_values().next().expect("one device")
}

fn injected(texts: &[&str]) -> Result<Injection, String> {
    let mut injection = Injection::default();
    texts.iter().try_for_each(|text| injection.add(&edits(text))).map(|()| injection)
}

/// Makes the edits in a configuration.
fn applied(spec: Spec, texts: &[&str]) -> Spec {
    let mut spec = spec;
    injected(texts).expect("all of it is there").apply(&mut spec);
    spec
}

#[test]
fn variables_take_the_place_of_those_with_their_names() {
    let mut spec = oci::template();
    spec.process.get_or_insert_default().env = ["A=1", "AB=2", "C"].map(str::to_owned).into();
    let spec = applied(spec, &[r#"{"env": ["D=3", "A=x=y"]}"#, r#"{"env": ["C=", "D=4"]}"#]);
    assert_eq!(spec.process.expect("it has one").env, ["A=x=y", "AB=2", "C=", "D=4"]);
}

#[test]
fn device_nodes_are_completed_by_those_of_the_node() {
    let spec = applied(
        oci::template(),
        &[
            r#"{"deviceNodes": [{"path": "/dev/null"}, {"path": "/dev/x", "hostPath": "/dev/full", "permissions": "r",
                "fileMode": 384, "uid": 5, "gid": 6}]}"#,
            r#"{"deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/zero", "type": "u"},
                {"path": "/dev/gone", "type": "b", "major": 240, "minor": 3, "permissions": "none"}]}"#,
        ],
    );
    let linux = spec.linux();
    let shown: Vec<_> = linux
        .devices
        .iter()
        .map(|it| {
            format!("{} {} {}:{} {:?} {:?}", it.path.display(), it.kind, it.major, it.minor, it.file_mode, it.uid)
        })
        .collect();
    assert_eq!(
        shown,
        [
            "/dev/null c 1:3 Some(438) None",
            // A later node takes the place of an earlier one at its path.
            "/dev/x u 1:5 Some(438) None",
            "/dev/gone b 240:3 None None",
        ]
    );
    let rules = linux.resources.clone().unwrap_or_default().devices;
    let rules: Vec<_> =
        rules.iter().map(|it| (it.allow, it.kind.as_str(), it.major, it.minor, it.access.as_str())).collect();
    assert_eq!(
        rules[1..],
        [
            (true, "c", Some(1), Some(3), "rwm"),
            (true, "c", Some(1), Some(7), "r"),
            (true, "c", Some(1), Some(5), "rwm"),
        ]
    );
    let whole = injected(&[
        r#"{"deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/full", "fileMode": 384, "uid": 5, "gid": 6}]}"#,
    ]);
    let device = &whole.expect("it is there").devices[0];
    assert_eq!((device.file_mode, device.uid, device.gid), (Some(0o600), Some(5), Some(6)));
}

#[test]
fn what_the_node_does_not_have_is_refused() {
    for (text, expected) in [
        (r#"{"deviceNodes": [{"path": "/dev/none"}]}"#, "failed to find the device `/dev/none`: "),
        (r#"{"deviceNodes": [{"path": "/dev/x", "hostPath": "/etc/passwd"}]}"#, "`/etc/passwd` is not a device"),
        (r#"{"deviceNodes": [{"path": "/dev/null", "type": "b"}]}"#, "`/dev/null` is a device of another type"),
        (
            r#"{"mounts": [{"hostPath": "/none", "containerPath": "/x"}]}"#,
            "failed to find `/none`, the source of a mount",
        ),
        (
            r#"{"mounts": [{"hostPath": "lib", "containerPath": "/x"}]}"#,
            "`lib`, the source of a mount, is not an absolute",
        ),
        (r#"{"intelRdt": {"closID": "x"}}"#, "it sets `intelRdt`, which is not supported"),
    ] {
        let why = injected(&[text]).expect_err(text);
        assert!(why.starts_with(expected), "{text}: {why}");
    }
}

#[test]
fn mounts_are_binds_unless_they_say_otherwise() {
    let mounts = |text: &str| {
        let injection = injected(&[text]).expect("all of it is there");
        injection
            .mounts
            .into_iter()
            .map(|it| format!("{} {} {}", it.source, it.kind, it.options.join(",")))
            .collect::<Vec<_>>()
    };
    let mount = |source: &str, rest: &str| {
        mounts(&format!(r#"{{"mounts": [{{"hostPath": "{source}", "containerPath": "/x"{rest}}}]}}"#))
    };
    assert_eq!(mount("/etc", ""), ["/etc bind rbind"]);
    assert_eq!(mount("/etc", r#", "options": ["ro", "bind"]"#), ["/etc bind ro,bind"]);
    assert_eq!(mount("/etc", r#", "type": "bind", "options": ["ro"]"#), ["/etc bind ro,rbind"]);
    assert_eq!(mount("/etc", r#", "type": "none", "options": ["rbind"]"#), ["/etc bind rbind"]);
    assert_eq!(mount("tmpfs", r#", "type": "tmpfs", "options": ["size=1m"]"#), ["tmpfs tmpfs size=1m"]);
}

#[test]
fn a_mount_comes_after_those_above_it_and_before_those_below_it() {
    let at = |path: &str| Mount { destination: path.into(), source: "old".into(), ..Mount::default() };
    let mount = |path: &str| format!(r#"{{"hostPath": "/etc", "containerPath": "{path}"}}"#);
    let places = |own: &[&str], new: &[&str]| {
        let spec = Spec { mounts: own.iter().map(|path| at(path)).collect(), ..Spec::default() };
        let new: Vec<String> = new.iter().map(|path| mount(path)).collect();
        let spec = applied(spec, &[&format!(r#"{{"mounts": [{}]}}"#, new.join(","))]);
        let shown = |it: &Mount| format!("{}{}", it.destination.display(), if it.source == "old" { "" } else { "*" });
        spec.mounts.iter().map(shown).collect::<Vec<_>>().join(" ")
    };
    for (own, new, expected) in [
        (&["/dev", "/usr"][..], &["/usr/lib/a", "/b"][..], "/dev /usr /b* /usr/lib/a*"),
        (&["/dev", "/usr/lib/a", "/x"], &["/usr"], "/dev /usr* /usr/lib/a /x"),
        (&["/usr/lib/a", "/usr"], &["/usr/lib"], "/usr/lib/a /usr /usr/lib*"),
        (&["/usr", "/usr/lib"], &["/usr"], "/usr* /usr/lib"),
        (&["/usr/libs"], &["/usr/lib/a/b", "/usr/lib/a"], "/usr/libs /usr/lib/a* /usr/lib/a/b*"),
    ] {
        assert_eq!(places(own, new), expected, "{own:?} {new:?}");
    }
}

#[test]
fn hooks_run_where_they_are_wanted_and_groups_are_added() {
    let hook = |name: &str| format!(r#"{{"hookName": "{name}", "path": "/{name}", "args": ["x"], "timeout": 2}}"#);
    let names = ["poststop", "prestart", "createRuntime", "createContainer", "startContainer", "poststart"];
    let hooks = format!(r#"{{"hooks": [{}], "additionalGids": [44, 0, 7]}}"#, names.map(hook).join(","));
    let spec = applied(oci::template(), &[&hooks]);
    let hooks = spec.hooks.expect("it has some");
    for (name, list) in [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("createContainer", &hooks.create_container),
        ("startContainer", &hooks.start_container),
        ("poststart", &hooks.poststart),
        ("poststop", &hooks.poststop),
    ] {
        let [hook] = list.as_slice() else { panic!("{name}: {list:?}") };
        assert_eq!(
            (hook.path.to_str(), hook.args.as_slice(), hook.timeout),
            (Some(&*format!("/{name}")), &["x".to_owned()][..], Some(2))
        );
    }
    let groups = injected(&[r#"{"additionalGids": [44, 0, 7]}"#]).expect("nothing is needed");
    assert_eq!(groups.groups().collect::<Vec<_>>(), ["44", "7"]);
    // Without edits a configuration stays as it is.
    let mut same = oci::template();
    Injection::default().apply(&mut same);
    assert_eq!(same, oci::template());
}
