//! Users, who talk to the managers of a cluster over its network, with contexts.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flota_tests::{Cluster, Output, programs};

/// A machine of a user, which is that of a node, with a folder of its own for contexts.
struct Laptop<'a> {
    cluster: &'a Cluster,
    folder: tempfile::TempDir,
}

impl<'a> Laptop<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `ctl` on the node `w1`, whose network is that of the managers.
    fn command(&self, context: &str, words: &str) -> Command {
        let mut command = Command::new(programs().join("ctl"));
        let home = format!("XDG_CONFIG_HOME={}", self.folder.path().display());
        let (ctl, context) = (programs().join("ctl").display().to_string(), format!("FLOTA_CONTEXT={context}"));
        command.args(["sandbox", "exec", "--name", self.cluster.name(), "w1", "--"]);
        command.args(["busybox", "env", "FLOTA_HOST=", &home, &context, &ctl]).args(words.split_whitespace());
        command
    }

    fn ctl(&self, context: &str, words: &str) -> Output {
        let output = self.command(context, words).stdin(Stdio::null()).output().unwrap();
        Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn ok(&self, context: &str, words: &str) -> String {
        let output = self.ctl(context, words);
        assert_eq!(output.code, 0, "ctl {words}: {}", output.stderr);
        output.stdout
    }

    /// Adds a user as root on a manager does, and a context of the same name.
    fn add(&self, name: &str, flags: &str) {
        let file = self.file(&format!("{name}.json"));
        self.cluster.ok(&format!("swarm user add {name} {flags} --out {}", file.display()));
        self.ok("", &format!("context create {name} --from {}", file.display()));
    }

    fn follow(&self, context: &str, words: &str) -> Follower {
        let mut command = self.command(context, words);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Follower(child)
    }

    /// Opens a connection from the machine, says a line and leaves it open. Returns also the file with what comes back.
    fn say(&self, address: &str, line: &str) -> (Follower, PathBuf) {
        let heard = self.file("heard");
        let mut command = Command::new(programs().join("ctl"));
        command.args(["sandbox", "exec", "--name", self.cluster.name(), "w1", "--", "busybox", "nc"]);
        command.args(address.split_whitespace()).stdout(std::fs::File::create(&heard).unwrap());
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "{line}").unwrap();
        child.stdin = Some(input);
        (Follower(child), heard)
    }
}

/// A command that goes on until something ends it.
struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Follower {
    /// Waits for the end, and returns what went to standard error.
    fn end(mut self, within: Duration) -> String {
        let begun = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < within, "it goes on");
            std::thread::yield_now();
        }
        let mut text = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

fn mode(path: &Path) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o777
}

#[test]
fn users_work_over_the_network_with_contexts_and_only_as_far_as_they_may() {
    let cluster = Cluster::up(3, 1);
    let laptop = Laptop::new(&cluster);
    let none = laptop.ctl("", "--host tcp://198.18.0.1:2377 service ls");
    assert!(none.code == 2 && none.stderr.contains("tcp:// needs a user's credentials"), "{}", none.stderr);
    laptop.add("ada", "--role operator");
    laptop.add("vera", "--role viewer");
    laptop.add("lim", "--role operator --prefix a-");
    assert_eq!((mode(&laptop.file("ada.json")), mode(&laptop.file("flota/contexts/ada.json"))), (0o600, 0o600));

    // Create with its wait, list, logs, exec, a stack and events, through whichever manager answers.
    laptop.ok("", "context use ada");
    laptop.ok("", "service create --name web --replicas 2 whoami");
    laptop.ok("", "service create --name a-web whoami");
    let listed = laptop.ok("vera", "service ls");
    assert!(listed.contains("a-web") && listed.contains("web"), "{listed}");
    cluster.wait("it has logged", |_| !laptop.ok("vera", "service logs web").is_empty());
    let ran = laptop.ctl("ada", "exec web -- /whoami fail 42");
    assert_eq!(ran.code, 42, "the program's own: {}", ran.stderr);
    let both = laptop.ctl("ada", "--host unix:///run/none service ls");
    assert!(both.code == 2 && both.stderr.contains("context ada is asked for"), "{}", both.stderr);
    let file = laptop.file("stack.yml");
    std::fs::write(&file, "services: { web: { image: whoami } }\n").unwrap();
    laptop.ok("lim", &format!("stack deploy -c {} a-shop", file.display()));
    let events = laptop.ok("ada", "events --since 0 --until now --type service");
    assert!(events.contains("a-shop_web"), "{events}");

    // What users may not do, with words that say why.
    for (context, words, text) in [
        ("vera", "service rm web", "user `vera` has the role viewer, and this needs the role operator"),
        ("vera", "exec web -- /whoami", "this needs the role operator"),
        ("vera", "secret ls", "this needs the role operator"),
        ("ada", "swarm user ls", "user `ada` has the role operator, and this needs the role admin"),
        ("ada", "swarm join-token worker", "only an admin sees the join tokens"),
        ("ada", "swarm join-token worker --rotate", "this needs the role admin"),
        ("lim", "service inspect web", "there is no service `web`"),
        ("lim", "service rm web", "there is no service `web`"),
        ("lim", "service create --name b-web whoami", "begins with none of your prefixes: a-"),
        ("lim", "service create --name a-root --privileged whoami", "limited to prefixes"),
        ("lim", "image ls", "limited to names that begin with a-"),
        ("ada", "image pull whoami", "needs the socket of its flotad"),
        ("ada", "swarm backup /tmp/none", "needs the socket of its flotad"),
    ] {
        let refused = laptop.ctl(context, words);
        assert!(refused.code != 0 && refused.stderr.contains(text), "{context}: {words}: {}", refused.stderr);
    }
    assert_eq!(laptop.ok("lim", "service ls -q").lines().count(), 2, "a-web and a-shop_web");

    let audit = cluster.ok("events --type audit --since 0 --until now");
    // The first service that uses an image changes it, so that nobody removes it meanwhile.
    let created =
        "actor=ada, request=CreateService, objects=update image docker.io/library/whoami:latest, create service web";
    for line in [created, "actor=lim, request=DeployStack"] {
        assert!(audit.contains(line), "{line}: {audit}");
    }
    assert!(audit.contains("actor=root@m"), "{audit}");

    // The next manager answers when one is gone.
    cluster.kill(&cluster.leader());
    cluster.wait("another manager answers", |_| laptop.ctl("ada", "service ls").code == 0);
}

#[test]
fn what_a_removed_user_has_open_ends_within_a_moment() {
    let cluster = Cluster::up(1, 1);
    cluster.pack_busybox();
    let laptop = Laptop::new(&cluster);
    laptop.add("ada", "--role operator");
    laptop.ok("ada", "service create --name web whoami");
    laptop.ok("ada", "service create --name box --stop-grace-period 1s busybox busybox nc -ll -p 80 -e /busybox cat");
    laptop.ok("ada", "swarm user renew");
    laptop.ok("ada", "service ls");
    // Once the CA was replaced, ctl says what to do.
    cluster.ok("swarm ca --rotate");
    cluster.wait("the former CA has gone", |_| {
        let refused = laptop.ctl("ada", "service ls");
        refused.code == 5 && refused.stderr.contains("an admin makes another context with `ctl swarm user renew")
    });
    let file = laptop.file("again.json");
    cluster.ok(&format!("swarm user renew ada --out {}", file.display()));
    laptop.ok("", "context rm ada");
    laptop.ok("", &format!("context create ada --from {}", file.display()));
    let logs = laptop.follow("ada", "service logs -f web");
    let events = laptop.follow("ada", "events");
    let exec = laptop.follow("ada", "exec box -- /busybox sleep 1000");
    let _forward = laptop.follow("ada", "port-forward box 8000:80");
    cluster.wait("all are open", |_| {
        let sockets = cluster.sandbox_ok("exec m1 -- busybox netstat -tn");
        sockets.lines().filter(|line| line.contains(":2377") && line.contains("ESTABLISHED")).count() >= 4
    });
    cluster.wait("the program runs", |it| it.ok("exec box -- /busybox ps").contains("sleep 1000"));
    cluster.wait("it listens", |it| it.sandbox_ok("exec w1 -- busybox netstat -tln").contains(":8000 "));
    let (connection, echoed) = laptop.say("127.0.0.1 8000", "hello");
    cluster.wait("the task answers", |_| std::fs::read_to_string(&echoed).unwrap().trim_end() == "hello");
    cluster.ok("swarm user rm ada");
    let begun = Instant::now();
    // A command that reads tries again with the next connection; a program is not started twice.
    let refused = "the cluster has no user `ada`";
    for (follower, why) in [(logs, refused), (events, refused), (exec, "the connection broke")] {
        let text = follower.end(Duration::from_secs(10));
        assert!(text.contains(why), "{text}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    connection.end(Duration::from_secs(10));
    cluster.wait("the program has ended", |it| !it.ok("exec box -- /busybox ps").contains("sleep 1000"));
    let refused = laptop.ctl("ada", "service ls");
    assert!(refused.code == 1 && refused.stderr.contains("the cluster has no user `ada`"), "{}", refused.stderr);
}
