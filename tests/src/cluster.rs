//! A real cluster in a sandbox, and what tests do to it. Used by the tests in `tests/tests/real/`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::wait_for;

/// Returns the folder of `ctl` and the other programs: `FLOTA_PROGRAMS`, else the one beside the test programs.
///
/// # Panics
/// If the path of this program is unknown.
pub fn programs() -> PathBuf {
    let beside = || std::env::current_exe().ok()?.ancestors().nth(2).map(PathBuf::from);
    std::env::var_os("FLOTA_PROGRAMS").map(PathBuf::from).or_else(beside).expect("the programs' folder is known")
}

/// The result of a command.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; -1 if a signal killed the command.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A program that runs on a node until this value is dropped.
#[derive(Debug)]
pub struct Background {
    /// The `ctl sandbox exec` that waits for the program.
    child: Child,
    program: String,
    sandbox: String,
    node: String,
}

impl Drop for Background {
    fn drop(&mut self) {
        // The program is killed by name on its node, because the child here only waits for it.
        let (sandbox, node) = (&self.sandbox, &self.node);
        let words = ["sandbox", "exec", "--name", sandbox, node, "--", "busybox", "killall", "-KILL", &self.program];
        let _ = output(Command::new(programs().join("ctl")).args(words));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn output(command: &mut Command) -> Output {
    to_output(command.stdin(Stdio::null()).output().expect("ctl exists"))
}

fn to_output(output: std::process::Output) -> Output {
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A sandbox of its own, which is removed when this value is dropped.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    host: String,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Shows what explains most failures.
            for command in ["node ls", "task ls --no-trunc"] {
                let seen = self.ctl(command);
                eprintln!("$ ctl {command}\n{}{}", seen.stdout, seen.stderr);
            }
            for node in ["m1", "m2", "m3", "w1", "w2"] {
                let log = self.sandbox(&format!("logs {node}")).stdout;
                let last: Vec<&str> = log.lines().rev().take(15).collect();
                eprintln!("--- {node}\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
        let down = self.sandbox("down");
        if down.code != 0 {
            eprintln!("failed to remove the sandbox {}: {}", self.name, down.stderr);
        }
    }
}

impl Cluster {
    /// Starts a cluster with the image `whoami`, and waits until all nodes are ready.
    ///
    /// # Panics
    /// If it does not start. So do all methods below when a command that must succeed fails.
    pub fn up(managers: u32, workers: u32) -> Self {
        Self::up_with(managers, workers, "")
    }

    /// Starts a cluster as [`Cluster::up`] does, with these settings of every `flotad`.
    pub fn up_with(managers: u32, workers: u32, settings: &str) -> Self {
        let cluster = Self::start(&programs(), managers, workers, settings);
        let program = programs().join("whoami");
        cluster.ok(&format!("image pack --tag whoami {}", program.display()));
        cluster
    }

    /// Starts a cluster as [`Cluster::up`] does, whose nodes run the programs in this folder. `ctl` stays that of this build.
    pub fn up_from(programs: &Path, managers: u32, workers: u32) -> Self {
        let cluster = Self::start(programs, managers, workers, "");
        cluster.ok(&format!("image pack --tag whoami {}", programs.join("whoami").display()));
        cluster
    }

    /// Starts a cluster without images.
    pub fn bare(managers: u32, workers: u32) -> Self {
        Self::start(&programs(), managers, workers, "")
    }

    fn start(programs: &Path, managers: u32, workers: u32, settings: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mut config = tempfile::NamedTempFile::new().expect("a temporary file can be created");
        config.write_all(settings.as_bytes()).expect("it can be written");
        let name = format!("t{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst));
        let mut command = Command::new(programs.join("ctl"));
        let counts = [managers.to_string(), workers.to_string()];
        command.args(["sandbox", "up", "--name", &name, "--managers", &counts[0], "--workers", &counts[1]]);
        command.arg("--config").arg(config.path());
        // Before the sandbox starts, so that it is removed even if that fails.
        let mut cluster = Self { host: String::new(), name };
        let up = output(&mut command);
        assert_eq!(up.code, 0, "failed to start the sandbox: {}", up.stderr);
        let env = cluster.sandbox("env").stdout;
        env.trim().strip_prefix("export FLOTA_HOST=").expect("env prints the sockets").clone_into(&mut cluster.host);
        cluster
    }

    /// Returns the name of the sandbox.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ctl` with `words`, which are separated by white space, against all managers.
    pub fn ctl(&self, words: &str) -> Output {
        self.at(&self.host, words.split_whitespace())
    }

    /// Runs `ctl` with these arguments against all managers.
    pub fn ctl_args(&self, arguments: &[&str]) -> Output {
        self.at(&self.host, arguments.iter().copied())
    }

    /// Runs `ctl` with `words` against the socket of one node.
    pub fn ctl_on(&self, node: &str, words: &str) -> Output {
        let env = self.sandbox(&format!("env --node {node}")).stdout;
        let host = env.trim().strip_prefix("export FLOTA_HOST=").expect("env prints the socket").to_owned();
        self.at(&host, words.split_whitespace())
    }

    fn at<'a>(&self, host: &str, arguments: impl Iterator<Item = &'a str>) -> Output {
        output(Command::new(programs().join("ctl")).args(arguments).env("FLOTA_HOST", host))
    }

    /// Returns the command of [`Cluster::ctl`], for a test that chooses its standard descriptors.
    pub fn ctl_command(&self, words: &str) -> Command {
        let mut command = Command::new(programs().join("ctl"));
        command.args(words.split_whitespace()).env("FLOTA_HOST", &self.host);
        command
    }

    /// Runs [`Cluster::ctl`] with `input` as standard input.
    pub fn ctl_with_input(&self, words: &str, input: &str) -> Output {
        let mut command = self.ctl_command(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("ctl exists");
        child.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("ctl reads its input");
        to_output(child.wait_with_output().expect("ctl ends"))
    }

    /// Starts a program on a node. It runs until the returned value or the cluster is dropped.
    pub fn background(&self, node: &str, words: &[&str]) -> Background {
        let mut command = Command::new(programs().join("ctl"));
        command.args(["sandbox", "exec", "--name", &self.name, node, "--"]).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Background {
            child: command.spawn().expect("ctl exists"),
            program: words[0].to_owned(),
            sandbox: self.name.clone(),
            node: node.into(),
        }
    }

    /// Whether the process of a task's container exists on its node.
    pub fn alive(&self, node: &str, task: &str) -> bool {
        let state = self.sandbox(&format!("exec {node} -- cat /run/flota/tasks/{task}/state.json")).stdout;
        let state: Value = serde_json::from_str(&state).unwrap_or_default();
        let stat = self.sandbox(&format!("exec {node} -- cat /proc/{}/stat", state["pid"])).stdout;
        // Field 22 of /proc/PID/stat is the start time (proc_pid_stat(5)): process ids are reused.
        let started = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse::<u64>().ok());
        started.is_some() && started == state["start_time"].as_u64()
    }

    /// Number of running tasks, of all services.
    pub fn running_count(&self) -> usize {
        self.rows("task ls --filter state=running --filter desiredState=running").len()
    }

    /// Path of a node's local socket.
    pub fn socket(&self, node: &str) -> PathBuf {
        PathBuf::from("/run/flota-sandbox").join(&self.name).join(node).join("flota.sock")
    }

    /// Path of the folder that a node sees as `/var/lib/flota`.
    pub fn data(&self, node: &str) -> PathBuf {
        PathBuf::from("/var/lib/flota-sandbox").join(&self.name).join(node).join("data")
    }

    /// Gives a node these settings, restarts it, and waits until it is ready.
    pub fn set(&self, node: &str, settings: &str) {
        let file = self.data(node).with_file_name("flotad.toml");
        std::fs::write(file, settings).expect("the settings file can be written");
        self.sandbox_ok(&format!("restart {node}"));
        // Its socket may be the only one, and is missing for a moment.
        self.wait(&format!("flotad of {node} answers"), |it| it.ctl_on(node, "system info").code == 0);
        self.wait_state(node, "ready");
    }

    /// Makes an image `busybox` from the machine's static busybox.
    pub fn pack_busybox(&self) {
        let folder = tempfile::tempdir().expect("a temporary folder can be created");
        let program = folder.path().join("busybox");
        std::fs::copy("/bin/busybox", &program).expect("busybox-static is installed");
        self.ok(&format!("image pack --tag busybox {}", program.display()));
    }

    /// Changes the address of a node that does not run.
    pub fn move_to(&self, node: &str, address: &str) {
        let path = PathBuf::from("/var/lib/flota-sandbox").join(&self.name).join("state.json");
        let text = std::fs::read_to_string(&path).expect("the sandbox has a state");
        let mut state: Value = serde_json::from_str(&text).expect("the state is JSON");
        let nodes = state["nodes"].as_array_mut().expect("the state lists the nodes");
        let found = nodes.iter_mut().find(|it| it["name"] == node).expect("the node exists");
        found["address"] = address.into();
        std::fs::write(path, state.to_string()).expect("the state can be written");
    }

    /// Runs [`Cluster::ctl`], which must succeed, and returns its standard output.
    pub fn ok(&self, words: &str) -> String {
        let result = self.ctl(words);
        assert_eq!(result.code, 0, "ctl {words}: {}{}", result.stdout, result.stderr);
        result.stdout
    }

    /// Runs `ctl sandbox` with a verb and its arguments, separated by white space, for this sandbox.
    pub fn sandbox(&self, words: &str) -> Output {
        let mut words = words.split_whitespace();
        let verb = words.next().unwrap_or_default();
        output(Command::new(programs().join("ctl")).args(["sandbox", verb, "--name", &self.name]).args(words))
    }

    /// Runs [`Cluster::sandbox`], which must succeed, and returns its standard output.
    pub fn sandbox_ok(&self, words: &str) -> String {
        let result = self.sandbox(words);
        assert_eq!(result.code, 0, "ctl sandbox {words}: {}", result.stderr);
        result.stdout
    }

    /// Returns what `find` with these arguments finds on a node. Files that go away meanwhile are left out.
    pub fn find(&self, node: &str, arguments: &str) -> Vec<String> {
        let result = self.sandbox(&format!("exec {node} -- find {arguments}"));
        let gone = |line: &str| line.ends_with("No such file or directory");
        assert!(result.code == 0 || result.stderr.lines().all(gone), "find {arguments} on {node}: {}", result.stderr);
        result.stdout.lines().map(str::to_owned).collect()
    }

    /// Kills a node with everything on it, as if its machine had lost power.
    pub fn kill(&self, node: &str) {
        self.sandbox_ok(&format!("kill {node}"));
    }

    /// Runs a list command and returns its JSON rows.
    pub fn rows(&self, list: &str) -> Vec<Value> {
        let text = self.ok(&format!("{list} --format json"));
        serde_json::from_str::<Value>(&text)
            .expect("a list prints JSON")
            .as_array()
            .cloned()
            .expect("a list prints an array")
    }

    /// Returns the tasks of a service that are running, have the desired state `running`, and are on ready nodes.
    pub fn running(&self, service: &str) -> Vec<Value> {
        let ready: Vec<Value> =
            self.rows("node ls --filter state=ready").iter().map(|node| node["name"].clone()).collect();
        let mut tasks =
            self.rows(&format!("service ps {service} --filter state=running --filter desiredState=running"));
        tasks.retain(|task| ready.contains(&task["node"]));
        tasks
    }

    /// Returns the name of the leader.
    pub fn leader(&self) -> String {
        let nodes = self.rows("node ls --filter leader=true");
        nodes.first().and_then(|node| node["name"].as_str()).expect("the cluster has a leader").to_owned()
    }

    /// Waits until `condition` holds; see [`wait_for`].
    pub fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        wait_for(what, || match condition(self) {
            true => Ok(()),
            false => Err(self.ctl("task ls --no-trunc").stdout),
        });
    }

    /// Waits until a node is in a state.
    pub fn wait_state(&self, node: &str, state: &str) {
        let filter = format!("node ls --filter name={node} --filter state={state}");
        self.wait(&format!("{node} is {state}"), |it| !it.rows(&filter).is_empty());
    }
}
