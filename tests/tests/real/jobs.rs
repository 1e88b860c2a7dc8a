//! Jobs and schedules while the leader dies, and the events that tell of them.

use std::fs::File;
use std::process::{Child, Command, Stdio};

use flota_tests::{Cluster, programs, wait_for};
use serde_json::Value;

use super::timeline;

const MANAGERS: [&str; 3] = ["m1", "m2", "m3"];
/// A program that works until it is told that its work is done.
const WORKS: &str = "until [ -e /end ]; do /busybox sleep 0.1; done";

/// Creates a service of busybox that runs a script, and does not wait for it.
fn create(cluster: &Cluster, name: &str, flags: &str, script: &str) {
    let words = format!("service create --detach --name {name} --stop-signal KILL {flags}");
    let rest = ["--entrypoint", "/busybox sh -c", "busybox", script];
    let created = cluster.ctl_args(&words.split_whitespace().chain(rest).collect::<Vec<_>>());
    assert_eq!(created.code, 0, "{}", created.stderr);
}

/// What `service inspect` shows of the runs of a service.
fn cron(cluster: &Cluster, service: &str) -> Value {
    let shown: Value = serde_json::from_str(&cluster.ok(&format!("service inspect {service}"))).unwrap();
    shown[0]["cron"].clone()
}

/// The states of the runs of a service, the oldest first.
fn runs(cluster: &Cluster, service: &str) -> Vec<String> {
    let shown = cron(cluster, service);
    let runs = shown["runs"].as_array().cloned().unwrap_or_default();
    runs.iter().map(|run| format!("{} {}", run["number"], run["state"].as_str().unwrap())).collect()
}

fn running_names(cluster: &Cluster, service: &str) -> Vec<String> {
    cluster.running(service).iter().map(|task| task["name"].as_str().unwrap().to_owned()).collect()
}

/// A `ctl events` that goes on until this value is dropped.
struct Watch {
    child: Child,
    file: tempfile::NamedTempFile,
}

impl Watch {
    /// Prints the events of tasks since the cluster began into a file.
    fn start(cluster: &Cluster) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        let sockets = MANAGERS.map(|manager| format!("unix://{}", cluster.socket(manager).display()));
        let mut command = Command::new(programs().join("ctl"));
        command.args(["events", "--since", "0", "--filter", "type=task", "--format", "json"]);
        command.env("FLOTA_HOST", sockets.join(",")).stdin(Stdio::null());
        command.stdout(File::create(file.path()).unwrap()).stderr(Stdio::null());
        Self { child: command.spawn().unwrap(), file }
    }

    fn versions(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.file.path()).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| version(&serde_json::from_str(line).unwrap())).collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn version(event: &Value) -> String {
    event["version"].as_str().unwrap().to_owned()
}

#[test]
fn a_leader_that_dies_makes_no_job_run_again_and_no_event_get_lost() {
    let cluster = Cluster::up(3, 0);
    cluster.pack_busybox();
    let watch = Watch::start(&cluster);
    let leader = cluster.leader();
    cluster.ok("service create --name done --mode replicated-job --replicas 4 whoami env");
    let tasks = |it: &Cluster| {
        it.rows("service ps done")
            .iter()
            .map(|task| [&task["id"], &task["state"]].map(Value::to_string))
            .collect::<Vec<_>>()
    };
    let done = tasks(&cluster);
    assert!(done.len() == 4 && done.iter().all(|[_, state]| state == "\"complete\""), "{done:?}");
    let flags = format!("--mode replicated-job --replicas 2 --max-concurrent 1 --constraint node.hostname!={leader}");
    create(&cluster, "work", &flags, WORKS);
    cluster.wait("a task works", |it| running_names(it, "work").len() == 1);

    cluster.kill(&leader);
    cluster.wait("another one leads", |it| {
        let leaders = it.ctl("node ls --filter leader=true -q").stdout;
        leaders.lines().count() == 1
            && it.rows(&format!("node ls --filter name={leader} --filter state=down")).len() == 1
    });
    for _ in 0..2 {
        cluster.wait("a task works", |it| running_names(it, "work").len() == 1);
        let name = running_names(&cluster, "work").remove(0);
        cluster.ok(&format!("exec {name} -- /busybox touch /end"));
        cluster.wait("it has done its work", |it| !running_names(it, "work").contains(&name));
    }
    cluster.wait("all have", |it| it.rows("service ps work --filter state=complete").len() == 2);
    assert_eq!(tasks(&cluster), done, "what is done stays done");
    let events = timeline::tasks(&cluster);
    for (service, starts) in [("done", 4), ("work", 2)] {
        let count = |action: &str| timeline::count(&timeline::of(&cluster, service), action);
        assert_eq!((count("create"), count("start")), (starts, starts), "{service}: {events:#?}");
    }

    // Who watches has seen everything once and in order, though the manager that told it died, and can go on at any place.
    let all: Vec<String> = events.iter().map(version).collect();
    wait_for("the watch has seen all of them", || match watch.versions() {
        seen if seen.len() >= all.len() => Ok(()),
        seen => Err(format!("{} of {}", seen.len(), all.len())),
    });
    assert_eq!(watch.versions(), all);
    // A change for which several words hold is several events with the same version.
    let middle = all.iter().rposition(|it| *it == all[all.len() / 2]).unwrap();
    let (before, after) = all.split_at(middle + 1);
    let last = &before[before.len() - 1];
    let part = |range: &str| -> Vec<String> {
        let text = cluster.ok(&format!("events {range} --filter type=task --format json"));
        text.lines().map(|line| version(&serde_json::from_str(line).unwrap())).collect()
    };
    assert_eq!(part(&format!("--since 0 --until {last}")), before);
    assert_eq!(part(&format!("--since {last} --until now")), after);
}

#[test]
fn a_schedule_runs_in_its_time_zone_keeps_its_history_and_lets_runs_overlap_as_its_rule_says() {
    let cluster = Cluster::bare(1, 0);
    cluster.pack_busybox();
    // Nothing but the next minute shows that a schedule is followed, so it begins first and is looked at last.
    let each_minute = ["service", "create", "--name", "tick", "--mode", "cron", "--schedule", "* * * * *"];
    let says = ["--entrypoint", "/busybox echo", "busybox", "tock"];
    let created = cluster.ctl_args(&[&each_minute[..], &says].concat());
    assert_eq!(created.code, 0, "{}", created.stderr);

    let daily = ["service", "create", "--name", "backup", "--mode", "cron", "--schedule", "30 2 * * *"];
    let zone = ["--time-zone", "Asia/Kolkata", "--stop-signal", "KILL"];
    let works = ["--entrypoint", "/busybox sh -c", "busybox", WORKS];
    let created = cluster.ctl_args(&[&daily[..], &zone, &works].concat());
    assert_eq!(created.code, 0, "{}", created.stderr);
    let next = cron(&cluster, "backup")["nextRunAt"].as_str().unwrap().to_owned();
    assert!(next.ends_with("T21:00:00.000Z"), "half past two in India: {next}");

    cluster.ok("service run backup");
    cluster.wait("a run works", |it| running_names(it, "backup").len() == 1);
    let refused = cluster.ctl("service run backup");
    let why = "a run of `backup` is under way, and its rule is `forbid`";
    assert!(refused.code != 0 && refused.stderr.contains(why), "{}", refused.stderr);
    cluster.ok("service update --concurrency allow backup");
    cluster.ok("service run backup");
    cluster.wait("both work", |it| running_names(it, "backup").len() == 2);
    cluster.ok("service update --concurrency replace backup");
    cluster.ok("service run backup");
    let third = |it: &Cluster| it.rows("service ps backup --filter run=3 --filter state=running");
    cluster.wait("the third has taken their place", |it| !third(it).is_empty());
    let id = third(&cluster)[0]["id"].as_str().unwrap().to_owned();
    cluster.ok(&format!("exec {id} -- /busybox touch /end"));
    cluster.wait("it is over", |it| runs(it, "backup") == ["1 replaced", "2 replaced", "3 complete"]);
    assert_eq!(running_names(&cluster, "backup"), [""; 0]);

    cluster.wait("the minute has come", |it| runs(it, "tick").first().is_some_and(|run| run == "1 complete"));
    let run = cron(&cluster, "tick")["runs"][0].clone();
    assert!(run["scheduledAt"].as_str().unwrap().ends_with(":00.000Z"), "{run}");
    let logs = cluster.ok("service logs tick");
    assert!(logs.contains("tick.1#1@m1 | tock"), "{logs}");
}
