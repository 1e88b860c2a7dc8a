use flota_api::model::Allowance;
use flota_runtime::IdRange;

use super::*;

fn translate(spec: &ServiceSpec, config: &ImageConfig) -> Result<oci::Process, TranslateError> {
    Ok(translate_on(&NodeOffers::default(), spec, config)?.process.expect("every container has one"))
}

fn assigned(spec: &ServiceSpec) -> Assignment {
    let (task_id, service_name) = ("id".into(), "web".into());
    Assignment { task_id, service_name, slot: 2, spec: spec.clone().into(), ..Assignment::default() }
}

fn translate_on(node_offers: &NodeOffers, spec: &ServiceSpec, config: &ImageConfig) -> Result<Spec, TranslateError> {
    translate_assigned(node_offers, &assigned(spec), config)
}

fn translate_assigned(
    node_offers: &NodeOffers,
    assignment: &Assignment,
    config: &ImageConfig,
) -> Result<Spec, TranslateError> {
    translate_in(&TaskNetwork::default(), node_offers, assignment, config).map(|it| it.spec)
}

fn translate_in(
    network: &TaskNetwork,
    node_offers: &NodeOffers,
    assignment: &Assignment,
    config: &ImageConfig,
) -> Result<Container, TranslateError> {
    let node = NodeNames { id: "n".into(), hostname: "w1".into() };
    let groups = Groups::default();
    let has_secrets = !assignment.spec.secrets.is_empty();
    let places = Places {
        root: RootSource::Folder("/".into()),
        groups,
        log: "log".into(),
        runtime: "r".into(),
        volumes: [("/data".to_owned(), "/v/data".into())].into(),
        file_systems: Vec::new(),
        images: BTreeMap::new(),
        values: if has_secrets { [("/run/secrets".to_owned(), "/v/secrets".into())].into() } else { BTreeMap::new() },
        variables: SecretVariables(has_secrets.then(|| "PASSWORD=hunter2".to_owned()).into_iter().collect()),
        binds: BindSources::default(),
        app_armor: Some("flota-default".into()),
        ids: assignment.spec.user_namespace.then(|| OwnIds {
            range: IdRange { first: 1_000_000, count: 65_536 },
            user: "/n/users/id".into(),
            network: "/n/tasks/id".into(),
        }),
        cdi: crate::cdi::of_task(assignment, &node_offers.cdi_folders).expect("the devices are there"),
    };
    container(assignment, config, network, &node, node_offers, places)
}

#[test]
fn arguments_combine_as_docker_does() {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut config = ImageConfig::default();
    config.set_entrypoint(Some(words("e"))).set_cmd(Some(words("c")));
    let argv = |entrypoint: &str, command: &str| {
        let spec = ServiceSpec { entrypoint: words(entrypoint), command: words(command), ..ServiceSpec::default() };
        translate(&spec, &config).expect("no template").args.join(" ")
    };
    assert_eq!(argv("", ""), "e c");
    assert_eq!(argv("", "x"), "e x");
    assert_eq!(argv("y", ""), "y");
    assert_eq!(argv("y", "x"), "y x");
}

#[test]
fn templates_are_filled_in_and_unknown_ones_refused() {
    let env = |text: &str| ServiceSpec { env: vec![text.into()], ..ServiceSpec::default() };
    let spec = translate(&env("A={{.Task.Name}} on {{ .Node.Hostname }}"), &ImageConfig::default());
    assert_eq!(spec.map(|it| it.env.last().cloned()), Ok(Some("A=web.2.id on w1".to_owned())));
    let spec = translate(&env(r#"A={{"{{"}}.Task.Name}}"#), &ImageConfig::default());
    assert_eq!(spec.map(|it| it.env.last().cloned()), Ok(Some("A={{.Task.Name}}".to_owned())));
    let unknown = translate(&env("A={{.Secret}}"), &ImageConfig::default());
    assert!(matches!(unknown, Err(TranslateError::Template(_))));
}

#[test]
fn the_last_variable_of_a_name_applies_and_one_without_a_value_removes_it() {
    let mut config = ImageConfig::default();
    config.set_env(Some(["A=image", "B=image", "C=image"].map(str::to_owned).to_vec()));
    let environment = |env: &[&str], tty| {
        let spec = ServiceSpec { env: env.iter().map(|it| (*it).to_owned()).collect(), tty, ..ServiceSpec::default() };
        translate(&spec, &config).expect("no template").env[1..].join(" ")
    };
    assert_eq!(environment(&["A=mine", "B", "D", "C="], false), "HOSTNAME=web.2 A=mine C=");
    assert_eq!(environment(&["A", "B", "C"], true), "HOSTNAME=web.2 TERM=xterm");
    assert_eq!(environment(&["A", "B", "C", "TERM=vt100", "HOSTNAME"], true), "TERM=vt100");
}

#[test]
fn rights_are_dockers_unless_the_node_allows_more() {
    let rights = |spec: &ServiceSpec| translate(spec, &ImageConfig::default()).map(|it| it.capabilities);
    let kept = rights(&ServiceSpec::default()).expect("allowed").expect("some").bounding;
    assert_eq!(kept.len(), 14);
    let fewer = ServiceSpec { cap_drop: vec!["ALL".into()], cap_add: vec!["CHOWN".into()], ..Default::default() };
    assert_eq!(rights(&fewer).expect("allowed").expect("some").bounding, ["CAP_CHOWN"]);
    for more in [
        ServiceSpec { cap_add: vec!["SYS_ADMIN".into()], ..Default::default() },
        ServiceSpec { privileged: true, ..Default::default() },
    ] {
        assert!(matches!(rights(&more), Err(TranslateError::Refused(_))));
    }
    let runtime = ServiceSpec { runtime: Some("crun".into()), ..Default::default() };
    assert_eq!(rights(&runtime), Err(TranslateError::Runtime("crun".into())));
}

#[test]
fn a_task_runs_with_the_profile_of_its_node_unless_it_is_privileged() {
    let node = NodeOffers { allow: Allowance { privileged: true, ..Allowance::default() }, ..NodeOffers::default() };
    for (privileged, expected) in [(false, "flota-default"), (true, "")] {
        let spec = ServiceSpec { privileged, ..ServiceSpec::default() };
        let process = translate_on(&node, &spec, &ImageConfig::default()).expect("it is allowed").process;
        assert_eq!(process.expect("every container has one").apparmor_profile, expected);
    }
}

#[test]
fn new_privileges_are_allowed_unless_service_node_or_cluster_forbid_them_in_this_order() {
    for (cluster, node, service, expected) in [
        (false, None, None, false),
        (true, None, None, true),
        (true, Some(false), None, false),
        (false, Some(true), None, true),
        (true, Some(true), Some(false), false),
        (false, Some(false), Some(true), true),
    ] {
        let offers = NodeOffers { no_new_privileges: node, ..NodeOffers::default() };
        let spec = ServiceSpec { no_new_privileges: service, ..ServiceSpec::default() };
        let assignment = Assignment { no_new_privileges: cluster, ..assigned(&spec) };
        let process = translate_assigned(&offers, &assignment, &ImageConfig::default()).expect("allowed").process;
        assert_eq!(process.map(|it| it.no_new_privileges), Some(expected), "{cluster} {node:?} {service:?}");
    }
}

#[test]
fn privileged_task_has_the_nodes_devices_and_may_use_all() {
    let allow = flota_api::model::Allowance { privileged: true, ..Default::default() };
    let offers = NodeOffers { allow, ..NodeOffers::default() };
    let spec = ServiceSpec { privileged: true, ..ServiceSpec::default() };
    let spec = translate_on(&offers, &spec, &ImageConfig::default()).expect("allowed");
    assert!(spec.linux().devices.iter().any(|it| it.path == Path::new("/dev/urandom")));
    let rules = spec.linux().resources.clone().unwrap_or_default().devices;
    assert!(matches!(rules.as_slice(), [all] if all.allow && all.major.is_none()));
}

#[test]
fn a_cdi_device_changes_the_configuration_and_adds_groups_if_the_node_allows_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = "cdiVersion: 0.7.0\nkind: v.com/gpu\ndevices:\n- name: n\n  containerEdits:\n    env: [GPU=n]\n    \
                deviceNodes:\n    - path: /dev/null\n    additionalGids: [44]\n";
    std::fs::write(dir.path().join("gpu.yaml"), file).expect("a file");
    let mut offers = NodeOffers { cdi_folders: vec![dir.path().to_owned()], ..NodeOffers::default() };
    let spec = ServiceSpec {
        cdi_devices: vec!["v.com/gpu=n".parse().expect("a name")],
        groups: vec!["audio".into()],
        env: vec!["GPU=all".into()],
        ..ServiceSpec::default()
    };
    let translate =
        |offers: &NodeOffers| translate_in(&TaskNetwork::default(), offers, &assigned(&spec), &ImageConfig::default());
    assert!(matches!(translate(&offers), Err(TranslateError::Refused(Refusal::Device(name))) if name == "v.com/gpu=n"));
    offers.allow.devices = vec!["v.com/gpu=*".into()];
    let container = translate(&offers).expect("allowed");
    assert_eq!(container.order.extra_groups, ["audio", "44"]);
    assert_eq!(container.spec.process.as_ref().and_then(|it| it.env.last().cloned()), Some("GPU=n".into()));
    let rules = container.spec.linux().resources.clone().unwrap_or_default().devices;
    assert!(matches!(rules.as_slice(), [all, own] if !all.allow && own.allow && own.minor == Some(3)));
}

#[test]
fn a_container_is_in_the_network_of_its_task() {
    let spec = ServiceSpec {
        hosts: vec![flota_api::model::HostEntry { name: "db".into(), address: [192, 0, 2, 7].into() }],
        ..ServiceSpec::default()
    };
    let translate = |network: TaskNetwork| {
        let assignment = assigned(&spec);
        translate_in(&network, &NodeOffers::default(), &assignment, &ImageConfig::default()).expect("allowed")
    };
    let namespace = |container: &Container| {
        let all = &container.spec.linux().namespaces;
        all.iter().find(|it| it.kind == NamespaceKind::Network).map(|it| it.path.clone())
    };
    let last_hosts = |container: &Container| {
        let lines = container.order.hosts.lines().rev().take(2).map(str::to_owned);
        lines.collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>()
    };
    let loopback = translate(TaskNetwork::Loopback);
    assert_eq!((namespace(&loopback), &loopback.order.resolver), (Some(PathBuf::new()), &None));
    assert_eq!(last_hosts(&loopback), ["192.0.2.7\tdb", "127.0.0.1\tweb.2"]);
    assert_eq!(loopback.spec.linux().sysctl.get("net.ipv4.ip_unprivileged_port_start"), Some(&"0".to_owned()));
    let host = translate(TaskNetwork::Host);
    assert_eq!((namespace(&host), host.spec.linux().sysctl.len()), (None, 0), "the node's parameters stay");
    let joined = translate(TaskNetwork::Joined {
        namespace: "/run/n".into(),
        addresses: vec![[10, 0, 1, 2].into(), [10, 0, 2, 2].into()],
        resolver: "nameserver 127.0.0.11\n".into(),
    });
    assert_eq!(namespace(&joined), Some("/run/n".into()));
    assert_eq!(joined.order.resolver.as_deref(), Some("nameserver 127.0.0.11\n"));
    assert_eq!(last_hosts(&joined), ["10.0.1.2\tweb.2", "10.0.2.2\tweb.2"]);
    assert_eq!(joined.spec.linux().sysctl.len(), 2);
}

#[test]
fn a_limit_of_memory_allows_as_much_swap_as_is_asked_for() {
    let swap = |memory_swap| {
        let mut spec = ServiceSpec { memory_swap, ..ServiceSpec::default() };
        spec.limits.memory_bytes = NonZeroU64::new(100);
        let spec = translate_on(&NodeOffers::default(), &spec, &ImageConfig::default()).expect("allowed");
        let memory = spec.linux().resources.clone().unwrap_or_default().memory.expect("it has a limit");
        (memory.limit, memory.swap)
    };
    assert_eq!(swap(None), (Some(100), Some(100)), "none");
    assert_eq!(swap(Some(Bound::At(300))), (Some(100), Some(300)));
    assert_eq!(swap(Some(Bound::Unlimited)), (Some(100), Some(-1)));
}

#[test]
fn init_is_the_runtime_itself_before_the_program() {
    let spec = ServiceSpec { init: true, command: vec!["sleep".into(), "1".into()], ..Default::default() };
    let process = translate(&spec, &ImageConfig::default()).expect("allowed");
    assert_eq!(process.args, ["/dev/init", "init", "--", "sleep", "1"]);
}

#[test]
fn stop_signals_are_read_in_all_spellings() {
    let of = |text: Option<&str>| {
        let spec = ServiceSpec { stop_signal: text.map(str::to_owned), ..ServiceSpec::default() };
        stop_signal(&spec, &ImageConfig::default())
    };
    assert_eq!([of(None), of(Some("SIGQUIT")), of(Some("INT")), of(Some("9")), of(Some("RTMIN+3"))], [15, 3, 2, 9, 37]);
    let mut config = ImageConfig::default();
    config.set_stop_signal(Some("SIGNONE".into()));
    assert_eq!(stop_signal(&ServiceSpec::default(), &config), 15, "of a careless image");
}

#[test]
fn secrets_are_mounted_read_only_and_are_variables_only_where_that_was_asked_for() {
    let secrets = vec![flota_api::model::ValueUse::of("db")];
    let spec = ServiceSpec { secrets, env: vec!["PASSWORD=other".into()], ..ServiceSpec::default() };
    let result = translate_on(&NodeOffers::default(), &spec, &ImageConfig::default()).expect("it can run here");
    let mount = result.mounts.iter().find(|it| it.source == "/v/secrets").expect("it is there");
    assert_eq!(mount.destination, Path::new("/run/secrets"));
    for option in ["rbind", "ro", "nosuid", "nodev", "noexec"] {
        assert!(mount.options.iter().any(|it| it == option), "{option}");
    }
    let env = result.process.expect("every container has one").env;
    assert!(env.contains(&"PASSWORD=hunter2".to_owned()) && !env.contains(&"PASSWORD=other".to_owned()), "{env:?}");
}

#[test]
fn a_task_with_ids_of_its_own_joins_the_namespaces_that_belong_to_them() {
    let spec = ServiceSpec { user_namespace: true, ..ServiceSpec::default() };
    let translated = |network: &TaskNetwork| {
        translate_in(network, &NodeOffers::default(), &assigned(&spec), &ImageConfig::default()).expect("it is allowed")
    };
    let joined =
        TaskNetwork::Joined { namespace: "/n/tasks/id".into(), addresses: Vec::new(), resolver: String::new() };
    for network in [TaskNetwork::Loopback, joined] {
        let Container { order, spec } = translated(&network);
        let linux = spec.linux.expect("every container has one");
        let path = |kind| linux.namespaces.iter().find(|it| it.kind == kind).map(|it| it.path.display().to_string());
        assert_eq!(path(NamespaceKind::User).as_deref(), Some("/n/users/id"));
        assert_eq!(path(NamespaceKind::Network).as_deref(), Some("/n/tasks/id"));
        assert_eq!(path(NamespaceKind::Pid).as_deref(), Some(""), "the others are new");
        let mapping = [oci::IdMapping { container_id: 0, host_id: 1_000_000, size: 65_536 }];
        assert_eq!((linux.uid_mappings.as_slice(), linux.gid_mappings.as_slice()), (&mapping[..], &mapping[..]));
        // The kernel takes no group that the namespace does not have.
        assert_eq!(linux.sysctl["net.ipv4.ping_group_range"], "0 65535");
        assert_eq!(order.ids, Some(IdRange { first: 1_000_000, count: 65_536 }));
        assert_eq!(order.mapped, [PathBuf::from("/v/data")]);
    }
    let Container { order, spec } = translate_in(
        &TaskNetwork::Loopback,
        &NodeOffers::default(),
        &assigned(&ServiceSpec::default()),
        &ImageConfig::default(),
    )
    .expect("it is allowed");
    assert_eq!((order.ids, order.mapped), (None, Vec::new()));
    assert!(spec.linux.expect("every container has one").uid_mappings.is_empty());
}
