//! Wrong input: an error that names what is wrong where the user looks, the right exit code, and nothing half made.

use flota_tests::Cluster;

#[test]
fn wrong_input_is_refused_with_the_reason_and_the_exit_code() {
    let cluster = Cluster::up(1, 0);
    let cases = [
        ("service create --name=-x whoami", 1, "name: `-x`"),
        ("service create --name web Whoami", 1, "image: `Whoami` is no image reference"),
        ("service create --name web --publish 80:80 whoami", 2, "--network and --publish are not there yet"),
        ("service create --name web --limit-memory lots whoami", 2, "`lots` is no size"),
        ("service create --name web --constraint a==b whoami", 1, "constraints[0]"),
        ("service create --name web --env =x whoami", 1, "env[0]"),
        ("service inspect nothing", 3, "there is no service `nothing`"),
        ("service rm nothing", 3, "there is no service `nothing`"),
        ("node inspect nothing", 3, "there is no node `nothing`"),
        ("exec nothing -- true", 3, "there is no task `nothing`"),
        ("service scale web", 2, "SERVICE=REPLICAS"),
        ("image rm nothing", 3, "there is no image `nothing`"),
        ("--host tcp://198.18.0.1:2377 node ls", 2, "tcp:// needs a user's certificate"),
        ("--host unix:///nowhere/flota.sock node ls", 5, "/nowhere/flota.sock"),
        ("node update m1 --availability gone", 2, "it is active, pause or drain"),
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
fn what_can_not_start_is_rejected_and_says_why() {
    let cluster = Cluster::up(1, 0);
    let cases: [(&str, &[&str], &str); 4] = [
        ("command", &["--entrypoint", "/nope", "whoami"], "failed to run `/nope`: there is no such file in the image"),
        ("user", &["--user", "nobody", "whoami"], "failed to find the user `nobody`: the image's /etc/passwd has none"),
        ("template", &["--env", "A={{.Secret}}", "whoami"], "the template `{{.Secret}}` is not known"),
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
    assert_eq!(cluster.sandbox_ok("exec m1 -- find /run/flota/tasks -mindepth 1"), "", "nothing half made is left");
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
        ("listen = [", &[], "can't be understood"),
        ("", &["--listen", "here"], "listen: `here` is no IP:PORT"),
        ("log = \"loud\"", &[], "log: `loud` is none of"),
    ] {
        let (code, stderr) = run(text, flags);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains(why), "{stderr}");
    }
}
