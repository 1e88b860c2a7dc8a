//! Wrong input: an error that names what is wrong where the user looks, the right exit code, and nothing half made.

use std::fs::File;
use std::process::Stdio;

use flota_tests::Cluster;
use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};

#[test]
fn wrong_input_is_refused_with_the_reason_and_the_exit_code() {
    let cluster = Cluster::up(1, 0);
    let cases = [
        ("service create --name=-x whoami", 1, "name: `-x`"),
        ("service create --name web Whoami", 1, "image: `Whoami` is not an image reference"),
        ("service create --name web --publish 0:80 whoami", 2, "`0` is not a port"),
        ("service create --name web --publish 8000-8002:80-81 whoami", 2, "3 published ports can't stand for 2 ports"),
        ("service create --name web --network nope whoami", 3, "there is no network `nope`"),
        ("network create overlay", 1, "name: `overlay` means a driver"),
        ("network create front --subnet 10.1.0.1/24", 1, "the subnet is 10.1.0.0/24"),
        ("network create front --subnet 10.1.0.0/31", 1, "is too small"),
        ("network create front --driver bridge --opt encrypted", 1, "encrypted: only an overlay can be encrypted"),
        ("network rm ingress", 1, "`ingress` belongs to every cluster"),
        ("service create --name web --limit-memory lots whoami", 2, "`lots` is not a size"),
        ("service create --name web --constraint a==b whoami", 1, "constraints[0]"),
        ("service create --name web --env =x whoami", 1, "env[0]"),
        ("service create --name web --env A={{.Secret}} whoami", 1, "env[0]: `{{.Secret}}` is not a template"),
        ("service inspect nothing", 3, "there is no service `nothing`"),
        ("service rm nothing", 3, "there is no service `nothing`"),
        ("node inspect nothing", 3, "there is no node `nothing`"),
        ("exec nothing -- true", 3, "there is no task `nothing`"),
        ("service scale web", 2, "SERVICE=REPLICAS"),
        ("image rm nothing", 3, "there is no image `nothing`"),
        ("--host tcp://198.18.0.1:2377 node ls", 2, "tcp:// needs a user's credentials"),
        ("--host unix:///nowhere/flota.sock node ls", 5, "/nowhere/flota.sock"),
        ("node update m1 --availability gone", 2, "it must be active, pause or drain"),
    ];
    for (words, code, text) in cases {
        let result = cluster.ctl(words);
        assert_eq!(result.code, code, "{words}: {}", result.stderr);
        assert!(result.stderr.contains(text), "{words}: {}", result.stderr);
        assert!(result.stderr.starts_with("error: "), "{words}: {}", result.stderr);
    }
    assert!(cluster.rows("service ls").is_empty(), "nothing was made");
    cluster.ok("service create --name web whoami");
    let twice = cluster.ctl("service create --name web whoami");
    assert!(twice.code == 4 && twice.stderr.contains("service `web` exists already"), "{}", twice.stderr);
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let cluster = Cluster::up(1, 0);
    let words = [
        "--mode",
        "cron",
        "--schedule",
        "now and then",
        "--constraint",
        "a==b",
        "--constraint",
        "c",
        "--entrypoint",
        "'",
        "--restart-condition",
        "often",
        "--name",
        "web",
    ];
    let all = cluster.ctl_args(&[&["service", "create"], &words[..], &["whoami"]].concat());
    assert_eq!(all.code, 2, "{}", all.stderr);
    for text in ["--schedule: `now and then`", "constraints[0]: `a==b`", "constraints[1]: `c`", "--entrypoint", "often"]
    {
        assert!(all.stderr.contains(text), "all that is wrong is said at once: {text}: {}", all.stderr);
    }
    // What ctl can't read, what is wrong by itself, and what is wrong beside other objects.
    let values =
        cluster.ctl("service create --name web --replicas x --limit-memory 1q --priority 5000 --env =x whoami");
    assert_eq!(values.code, 2, "{}", values.stderr);
    for text in ["'x' for '--replicas", "'1q' for '--limit-memory", "priority: 5000", "env[0]"] {
        assert!(values.stderr.contains(text), "{text}: {}", values.stderr);
    }
    let kept = cluster.ctl("service create --name web --priority 5000 --network nope --secret none --config no whoami");
    assert_eq!(kept.code, 1, "{}", kept.stderr);
    for text in ["priority: 5000", "there is no network `nope`", "no secret `none`", "no config `no`"] {
        assert!(kept.stderr.contains(text), "{text}: {}", kept.stderr);
    }
    let stack = "services:\n  a: { image: whoami, depends_on: [b], networks: [gone] }\n  \
                 b: { image: whoami, depends_on: [a], cap_add: [NONSENSE] }\nnetworks: { gone: { external: true } }\n";
    let stack = cluster.ctl_with_input("stack deploy -c - all", stack);
    assert_eq!(stack.code, 1, "{}", stack.stderr);
    for text in ["circle", "there is no network `gone`", "services.all_b.cap_add[0]"] {
        assert!(stack.stderr.contains(text), "{text}: {}", stack.stderr);
    }
    assert!(cluster.rows("service ls").is_empty(), "nothing was made");
    cluster.ok("service create --name web whoami");
    let update = cluster.ctl("service update --replicas x --priority 5000 --stop-grace-period 1y web");
    assert_eq!(update.code, 2, "{}", update.stderr);
    for text in ["'x' for '--replicas", "priority: 5000", "'1y' for '--stop-grace-period"] {
        assert!(update.stderr.contains(text), "{text}: {}", update.stderr);
    }
}

#[test]
fn output_that_can_not_be_written_ends_the_command_and_leaves_the_terminal_as_it_was() {
    let cluster = Cluster::up(1, 0);
    cluster.pack_busybox();
    cluster.ok("service create --name box --entrypoint /busybox busybox sleep 1000000");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = cluster.ctl_command("node ls").stdout(full).stderr(Stdio::piped()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), stderr.contains("failed to write the output")), (Some(1), true), "{stderr}");
    // Nobody reads any more, as behind `head`: that is no failure.
    let closed = || Stdio::from(std::io::pipe().unwrap().1);
    let output = cluster.ctl_command("node ls").stdout(closed()).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
    let terminal = openpty(None, None).unwrap();
    let mut command = cluster.ctl_command("exec -it box -- /busybox yes");
    let stdin = Stdio::from(terminal.slave.try_clone().unwrap());
    let output = command.stdin(stdin).stdout(closed()).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
    let modes = tcgetattr(&terminal.slave).unwrap().local_flags;
    assert!(modes.contains(LocalFlags::ICANON | LocalFlags::ECHO), "what is typed is shown again: {modes:?}");
    cluster.wait("the program has ended with its reader", |it| {
        it.ok("exec box -- /busybox ps").matches(" yes").count() == 0
    });
}

#[test]
fn what_can_not_start_is_rejected_and_says_why() {
    let cluster = Cluster::up(1, 0);
    let cases: [(&str, &[&str], &str); 3] = [
        ("command", &["--entrypoint", "/nope", "whoami"], "failed to run `/nope`: No such file or directory"),
        ("user", &["--user", "nobody", "whoami"], "failed to find the user `nobody`: the image's /etc/passwd has none"),
        ("registry", &["127.0.0.1:9/none:1"], "failed to pull 127.0.0.1:9/none:1"),
    ];
    for (name, arguments, why) in cases {
        let mut words = vec!["service", "create", "--detach", "--name", name];
        words.extend(arguments);
        assert_eq!(cluster.ctl_args(&words).code, 0);
        cluster.wait(&format!("{name}: the reason is shown"), |it| {
            it.rows(&format!("service ps {name}")).iter().any(|task| {
                task["state"] == "rejected" && task["error"].as_str().is_some_and(|error| error.contains(why))
            })
        });
        cluster.ok(&format!("service rm {name}"));
    }
    cluster.wait("nothing half made is left", |it| it.find("m1", "/run/flota/tasks -mindepth 1").is_empty());
}

#[test]
fn a_daemon_with_wrong_settings_says_so_and_touches_nothing() {
    let flotad = flota_tests::programs().join("flotad");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flotad.toml");
    let run = |text: &str, flags: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let data = dir.path().join("data");
        let mut command = std::process::Command::new(&flotad);
        command.arg("--config").arg(&file).arg("--data-dir").arg(&data).args(flags);
        let output = command.output().unwrap();
        assert!(!data.exists(), "nothing is made before the settings are right");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (text, flags, why) in [
        ("colour = 1", &[][..], "unknown field `colour`"),
        ("listen = [", &[], "failed to parse the settings file"),
        ("", &["--listen", "here"], "listen: `here` is not IP:PORT"),
        ("log = \"loud\"", &[], "log: `loud` is not one of"),
    ] {
        let (code, stderr) = run(text, flags);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains(why), "{stderr}");
    }
}

#[test]
fn what_stands_in_a_nodes_way_is_said_and_nothing_half_made_stays() {
    let cluster = Cluster::bare(1, 1);
    let token = cluster.ok("swarm join-token -q worker").trim().to_owned();
    let left = cluster.ctl_on("w1", "swarm leave");
    assert_eq!(left.code, 0, "{}", left.stderr);
    // Another program has the port.
    let taken = cluster.background("w1", &["python3", "-m", "http.server", "2377", "--bind", "198.18.0.11"]);
    cluster.wait("it listens", |it| it.sandbox("exec w1 -- busybox netstat -ltn").stdout.contains("198.18.0.11:2377"));
    for words in ["swarm init".to_owned(), format!("swarm join --token {token} 198.18.0.10")] {
        let refused = cluster.ctl_on("w1", &words);
        assert_eq!(refused.code, 1, "{}", refused.stderr);
        assert!(refused.stderr.contains("failed to listen at 0.0.0.0:2377"), "{}", refused.stderr);
        assert!(cluster.ctl_on("w1", "system info").stdout.contains("cluster: none"));
    }
    drop(taken);
    cluster.wait("the port is free", |it| {
        it.sandbox("exec w1 -- curl -s -o /dev/null http://198.18.0.11:2377/").code != 0
    });
    // No machine has this address.
    let refused = cluster.ctl_on("w1", &format!("swarm join --token {token} 198.18.0.99"));
    assert_eq!(refused.code, 5, "{}", refused.stderr);
    assert_eq!(cluster.rows("node ls --filter state=ready").len(), 1, "a refused join adds no node");
    // A data folder of another cluster is that cluster's: it does not become this one's by being asked to.
    let own = cluster.ctl_on("w1", "swarm init");
    assert_eq!(own.code, 0, "{}", own.stderr);
    let second = cluster.ctl_on("w1", &format!("swarm join --token {token} 198.18.0.10"));
    assert!(second.code == 1 && second.stderr.contains("belongs to the cluster"), "{}", second.stderr);
    cluster.sandbox_ok("kill --daemon-only w1");
    let again = cluster.sandbox(
        "exec m1 -- DATA/flotad --data-dir /var/lib/flota --run-dir /tmp/flota-second --listen 127.0.0.1:2399"
            .replace("DATA", &flota_tests::programs().display().to_string())
            .as_str(),
    );
    assert!(again.code == 1 && again.stderr.contains("another flotad uses the data folder"), "{}", again.stderr);
}

#[test]
fn a_message_over_its_bound_is_refused_and_the_manager_goes_on() {
    use flota_api::proto::control::CreateServiceRequest;
    use flota_api::proto::specs::ServiceSpec;
    let cluster = Cluster::bare(1, 0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refused = |bytes: usize| {
        let env = vec!["A=".to_owned() + &"x".repeat(bytes)];
        let spec = ServiceSpec { name: "big".into(), image: "a".into(), env, ..ServiceSpec::default() };
        let spec = ServiceSpec { restart: Some(Default::default()), ..spec };
        runtime.block_on(async {
            let mut control = flota_tests::connect(&cluster.socket("m1")).await.unwrap();
            let request =
                CreateServiceRequest { request_id: String::new(), spec: Some(spec), ..CreateServiceRequest::default() };
            control.create_service(request).await.unwrap_err().message().to_owned()
        })
    };
    assert!(refused(300 << 10).contains("bytes are over the bound of 262144"), "a spec names its own bound");
    let message = refused(17 << 20);
    assert!(message.contains("16777216"), "the bound is named: {message}");
    assert!(cluster.rows("service ls").is_empty());
}
