//! Secrets and configs in running tasks.

use std::fs;
use std::path::Path;

use flota_tests::Cluster;

/// A value that is found wherever it is written.
const FIRST: &str = "first-hunter2-7f3a";
const SECOND: &str = "second-hunter2-9c1e";

/// Returns the files below a folder that hold the text.
fn files_with(folder: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            found.extend(files_with(&path, text));
        } else if kind.is_file()
            && fs::read(&path).is_ok_and(|bytes| bytes.windows(text.len()).any(|it| it == text.as_bytes()))
        {
            found.push(path.display().to_string());
        }
    }
    found
}

fn update(cluster: &Cluster, words: &str, value: &str) {
    let done = cluster.ctl_with_input(words, value);
    assert_eq!(done.code, 0, "{words}: {}", done.stderr);
}

fn create(cluster: &Cluster, name: &str, flags: &str, script: &str) {
    let service = ["service", "create", "--detach", "--name", name, "--constraint", "node.role==worker"];
    let program = ["--entrypoint", "/busybox", "busybox", "sh", "-c", script];
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let created = cluster.ctl_args(&[&service, flags.as_slice(), &program].concat());
    assert_eq!(created.code, 0, "{}", created.stderr);
    cluster.wait(&format!("{name} runs"), |it| it.running(name).len() == 1);
}

/// Runs a shell command in the task of a service; `None` if it fails, as while the task is replaced.
fn sh(cluster: &Cluster, service: &str, script: &str) -> Option<String> {
    let done = cluster.ctl_args(&["exec", service, "--", "/busybox", "sh", "-c", script]);
    (done.code == 0).then(|| done.stdout.trim().to_owned())
}

fn id(cluster: &Cluster, service: &str) -> String {
    cluster.running(service)[0]["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_secret_is_in_its_tasks_and_nowhere_else_and_follows_its_updates() {
    let cluster = Cluster::bare(1, 1);
    cluster.pack_busybox();
    update(&cluster, "secret create db", FIRST);
    let wait = "while true; do /busybox sleep 1; done";
    create(&cluster, "web", "--secret db,mode=0400 --stop-signal KILL", wait);
    create(&cluster, "env", "--secret source=db,env=PASSWORD --stop-signal KILL", wait);
    let count = "trap '/busybox echo again >> /tmp/signals' HUP; while true; do /busybox sleep 0.2; done";
    create(&cluster, "live", "--secret db,on-update=signal:HUP --tmpfs /tmp --stop-signal KILL", count);

    assert_eq!(sh(&cluster, "web", "/busybox cat /run/secrets/db").as_deref(), Some(FIRST));
    assert_eq!(sh(&cluster, "web", "/busybox stat -c %a:%u /run/secrets/db").as_deref(), Some("400:0"));
    assert_eq!(sh(&cluster, "web", "/busybox touch /run/secrets/db"), None, "it is read-only");
    assert_eq!(sh(&cluster, "env", "/busybox echo $PASSWORD").as_deref(), Some(FIRST));
    for node in ["m1", "w1"] {
        assert_eq!(files_with(&cluster.data(node), FIRST), [] as [String; 0], "on the disk of {node}");
    }
    let shown = [cluster.ok("secret inspect db"), cluster.ok("secret ls"), cluster.ok("service inspect web")];
    assert!(!shown.concat().contains("hunter2"), "{shown:?}");
    let refused = cluster.ctl("secret rm db");
    assert!(refused.code != 0 && refused.stderr.contains("env, live, web"), "{}", refused.stderr);

    let (web, live) = (id(&cluster, "web"), id(&cluster, "live"));
    update(&cluster, "secret update db", SECOND);
    cluster
        .wait("the service has rolled", |it| sh(it, "web", "/busybox cat /run/secrets/db").as_deref() == Some(SECOND));
    assert_ne!(id(&cluster, "web"), web, "another task");
    cluster
        .wait("the file is replaced", |it| sh(it, "live", "/busybox cat /run/secrets/db").as_deref() == Some(SECOND));
    cluster
        .wait("the program is signalled", |it| sh(it, "live", "/busybox cat /tmp/signals").as_deref() == Some("again"));
    assert_eq!(id(&cluster, "live"), live, "the same task");
    update(&cluster, "secret update --no-roll db", FIRST);
    assert_eq!(sh(&cluster, "web", "/busybox cat /run/secrets/db").as_deref(), Some(SECOND));

    // A daemon that starts again gets the values from its session, and the containers run on.
    cluster.sandbox_ok("kill --daemon-only w1");
    cluster.sandbox_ok("start w1");
    cluster.wait_state("w1", "ready");
    assert_eq!(id(&cluster, "live"), live);

    for service in ["web", "env", "live"] {
        cluster.ok(&format!("service rm {service}"));
    }
    cluster.wait("nothing is left in the memory of the node", |it| {
        files_with(&it.data("w1"), "hunter2").is_empty() && it.rows("task ls").is_empty()
    });
    cluster.ok("secret rm db");
}

#[test]
fn templates_in_a_config_are_filled_in_for_each_task_and_bad_ones_are_refused_where_the_user_looks() {
    let cluster = Cluster::bare(1, 1);
    cluster.pack_busybox();
    let refused = cluster.ctl_with_input("config create --template-driver golang site", "listen {{.Task.Port}};");
    assert!(refused.code == 1 && refused.stderr.contains("`{{.Task.Port}}` is not a template"), "{}", refused.stderr);
    let text = r#"{{.Service.Name}}.{{.Task.Slot}} on {{.Node.Hostname}}:{{env "PORT"}} {{"{{"}}"#;
    update(&cluster, "config create --template-driver golang site", text);
    let wait = "while true; do /busybox sleep 1; done";
    create(&cluster, "web", "--config site --env PORT=8{{.Task.Slot}} --stop-signal KILL", wait);
    assert_eq!(sh(&cluster, "web", "/busybox cat /site").as_deref(), Some("web.1 on w1:81 {{"));
    update(&cluster, "config update site", "newer {{.Task.Slot}}");
    cluster
        .wait("the newer one is filled in too", |it| sh(it, "web", "/busybox cat /site").as_deref() == Some("newer 1"));
    // A variable that the service does not have.
    update(&cluster, "config create --template-driver golang lacking", r#"{{env "NONE"}}"#);
    cluster.ok("service create --detach --name lacks --config lacking --restart-condition none busybox");
    cluster.wait("the reason is shown", |it| it.ok("service ps lacks").contains("the service sets no variable `NONE`"));
}
