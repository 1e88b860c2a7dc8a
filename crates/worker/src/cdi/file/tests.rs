use super::*;

/// Every field of the interface.
const WHOLE: &str = r#"{
  "cdiVersion": "1.0.0",
  "kind": "vendor.com/gpu",
  "annotations": {"a": "b"},
  "devices": [
    {
      "name": "0",
      "annotations": {"c": "d"},
      "containerEdits": {
        "env": ["GPU=0"],
        "deviceNodes": [
          {"path": "/dev/gpu0"},
          {"path": "/dev/gpu1", "hostPath": "/dev/x", "type": "c", "major": 195, "minor": 1, "fileMode": 438,
           "permissions": "rw", "uid": 1, "gid": 2}
        ],
        "mounts": [{"hostPath": "/lib/a", "containerPath": "/lib/b", "type": "bind", "options": ["ro", "rbind"]}],
        "hooks": [{"hookName": "createContainer", "path": "/bin/hook", "args": ["hook", "x"], "env": ["A=1"], "timeout": 3}],
        "additionalGids": [44],
        "intelRdt": {"closID": "x", "enableCMT": true}
      }
    },
    {"name": "all", "containerEdits": {"env": ["GPU=all"], "mounts": null}}
  ],
  "containerEdits": {"env": ["DRIVER=1"], "additionalGIDs": [7]}
}"#;

fn error(text: &str) -> String {
    CdiFile::parse(text, Encoding::Json).map(|_| String::new()).unwrap_or_else(|why| why)
}

/// Returns a file with one device that has these edits.
fn file(version: &str, edits: &str) -> String {
    format!(
        r#"{{"cdiVersion": "{version}", "kind": "v.com/c", "devices": [{{"name": "n", "containerEdits": {edits}}}]}}"#
    )
}

#[test]
fn every_field_is_read_from_both_encodings() {
    // JSON is YAML.
    for encoding in [Encoding::Json, Encoding::Yaml] {
        let file = CdiFile::parse(WHOLE, encoding).expect("a good file");
        assert_eq!(
            file.devices.keys().map(CdiName::text).collect::<Vec<_>>(),
            ["vendor.com/gpu=0", "vendor.com/gpu=all"]
        );
        assert_eq!(
            (file.edits.env.as_slice(), file.edits.additional_gids.as_slice()),
            (&["DRIVER=1".to_owned()][..], &[7][..])
        );
        let edits = file.devices.values().next().expect("there are two");
        let node = &edits.device_nodes[1];
        assert_eq!((node.path.as_str(), node.host_path.as_str(), node.kind.as_str()), ("/dev/gpu1", "/dev/x", "c"));
        assert_eq!((node.major, node.minor, node.file_mode, node.access()), (195, 1, Some(0o666), "rw"));
        assert_eq!((node.uid, node.gid, edits.device_nodes[0].access()), (Some(1), Some(2), "rwm"));
        let mount = &edits.mounts[0];
        assert_eq!(
            (mount.host_path.as_str(), mount.container_path.as_str(), mount.kind.as_str()),
            ("/lib/a", "/lib/b", "bind")
        );
        assert_eq!(mount.options, ["ro", "rbind"]);
        let hook = &edits.hooks[0];
        assert_eq!(
            (hook.hook_name.as_str(), hook.path.as_str(), hook.timeout),
            ("createContainer", "/bin/hook", Some(3))
        );
        assert_eq!((hook.args.join(" "), hook.env.join(" ")), ("hook x".into(), "A=1".into()));
        assert!(edits.intel_rdt.is_some());
    }
}

#[test]
fn a_file_as_vendors_write_it_in_yaml_is_read() {
    let text = "---\ncdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: 0\n  containerEdits:\n    deviceNodes:\n    - path: \
                /dev/nvidia0\n      major: 195\n      fileMode: 0666\ncontainerEdits:\n  env:\n  - NVIDIA_VISIBLE_DEVICES=void\n  \
                hooks:\n  - hookName: createContainer\n    path: /usr/bin/nvidia-ctk\n    args: [nvidia-ctk, hook]\n";
    let file = CdiFile::parse(text, Encoding::Yaml).expect("a good file");
    let (name, edits) = file.devices.iter().next().expect("one device");
    assert_eq!((name.text().as_str(), edits.device_nodes[0].file_mode), ("nvidia.com/gpu=0", Some(0o666)));
    assert_eq!(file.edits.hooks[0].args, ["nvidia-ctk", "hook"]);
}

#[test]
fn a_version_must_know_every_part_of_its_file() {
    let env = r#"{"env": ["A=1"]}"#;
    for version in ["0.3.0", "v0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0"] {
        assert_eq!(error(&file(version, env)), "", "{version}");
    }
    for version in ["", "0.2.0", "0.3", "1.1.0", "2.0.0", "vv1.0.0"] {
        assert!(error(&file(version, env)).starts_with("cdiVersion: `"), "{version}");
    }
    let mount = r#"{"mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "bind"}]}"#;
    let host_path = r#"{"deviceNodes": [{"path": "/dev/a", "hostPath": "/dev/b"}]}"#;
    let dotted = |text: String| text.replace("v.com/c", "v.com/c.d");
    let annotated = |text: String| text.replace(r#""devices""#, r#""annotations": {"a": "b"}, "devices""#);
    let numbered = |text: String| text.replace(r#""name": "n""#, r#""name": "0n""#);
    for (before, needed, part, text) in [
        ("0.3.0", "0.4.0", "type of a mount", &|version: &str| file(version, mount) as String),
        ("0.4.0", "0.5.0", "hostPath of a device node", &|version: &str| file(version, host_path)),
        ("0.4.0", "0.5.0", "a name that begins with a digit", &|version: &str| numbered(file(version, env))),
        ("0.5.0", "0.6.0", "a dot in the class", &|version: &str| dotted(file(version, env))),
        ("0.5.0", "0.6.0", "annotations", &|version: &str| annotated(file(version, env))),
        ("0.6.0", "0.7.0", "additionalGids", &|version: &str| file(version, r#"{"additionalGids": [1]}"#)),
        ("0.6.0", "0.7.0", "intelRdt", &|version: &str| file(version, r#"{"intelRdt": {}}"#)),
    ] as [(&str, &str, &str, &dyn Fn(&str) -> String); 7]
    {
        let expected = format!("cdiVersion: it is {before}, and {part} needs at least {needed}");
        assert_eq!((error(&text(before)), error(&text(needed))), (expected, String::new()));
    }
}

#[test]
fn a_broken_rule_is_named_with_its_place() {
    let of = |edits: &str| error(&file("1.0.0", edits));
    let in_device = |rest: &str| format!("devices[0].containerEdits{rest}");
    for (edits, expected) in [
        ("{}", ": there are none"),
        ("null", ": there are none"),
        (r#"{"env": ["A"]}"#, ".env[0]: `A` is not NAME=VALUE"),
        (r#"{"env": ["A=1", "=1"]}"#, ".env[1]: `=1` is not NAME=VALUE"),
        (r#"{"deviceNodes": [{}]}"#, ".deviceNodes[0].path: it is missing"),
        (r#"{"deviceNodes": [{"path": "dev/x"}]}"#, ".deviceNodes[0].path: `dev/x` is not an absolute path"),
        (r#"{"deviceNodes": [{"path": "/x", "type": "char"}]}"#, ".deviceNodes[0].type: `char` is none of"),
        (r#"{"deviceNodes": [{"path": "/x", "permissions": "rx"}]}"#, ".deviceNodes[0].permissions: `rx` has others"),
        (r#"{"mounts": [{"containerPath": "/x"}]}"#, ".mounts[0].hostPath: it is missing"),
        (r#"{"mounts": [{"hostPath": "/x"}]}"#, ".mounts[0].containerPath: it is missing"),
        (r#"{"hooks": [{"hookName": "start", "path": "/x"}]}"#, ".hooks[0].hookName: `start` is none of prestart"),
        (r#"{"hooks": [{"hookName": "poststop"}]}"#, ".hooks[0].path: it is missing"),
        (r#"{"hooks": [{"hookName": "poststop", "path": "/x", "timeout": 0}]}"#, ".hooks[0].timeout: it is not above"),
        (r#"{"hooks": [{"hookName": "poststop", "path": "/x", "env": ["A"]}]}"#, ".hooks[0].env[0]: `A`"),
        (r#"{"additionalGids": [-1]}"#, ".additionalGids[0]: invalid value"),
        (r#"{"netDevices": []}"#, ".netDevices: unknown field `netDevices`"),
    ] {
        let found = of(edits);
        assert!(found.starts_with(&in_device(expected)), "{edits}: {found}");
    }
    let good = file("1.0.0", r#"{"env": ["A=1"]}"#);
    for (text, expected) in [
        ("".to_owned(), "EOF while parsing"),
        (good.replace("v.com/c", "vendor"), "kind: `vendor`: a CDI device has the form"),
        (good.replace("v.com/c", "v.com/c/d"), "kind: `v.com/c/d`: the vendor and the class"),
        (good.replace(r#""n""#, r#""-n""#), "devices[0].name: `v.com/c=-n`: the name"),
        (good.replace(r#""devices""#, r#""colour": 1, "devices""#), "colour: unknown field `colour`"),
        (good.replace("cdiVersion", "version"), "version: unknown field"),
        (format!("{good} x"), "trailing characters"),
        (r#"{"cdiVersion": "1.0.0", "kind": "v.com/c", "devices": []}"#.to_owned(), "devices: there are none"),
        (
            r#"{"cdiVersion": "1.0.0", "kind": "v.com/c", "devices": [{"name": "n", "containerEdits": {"env": ["A=1"]}},
               {"name": "n", "containerEdits": {"env": ["A=1"]}}]}"#
                .to_owned(),
            "devices: `v.com/c=n` is there twice",
        ),
    ] {
        let found = error(&text);
        assert!(found.starts_with(expected), "{text}: {found}");
    }
}
