//! A cluster in a sandbox.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::wait_for;

/// Where `ctl` and the other programs are: FLOTA_PROGRAMS, else beside the tests.
pub fn programs() -> PathBuf {
    let beside = || std::env::current_exe().ok()?.ancestors().nth(2).map(PathBuf::from);
    std::env::var_os("FLOTA_PROGRAMS").map(PathBuf::from).or_else(beside).expect("the programs' folder is known")
}

/// What a command came to.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A program on a node.
#[derive(Debug)]
pub struct Background(Child, String, String, String);

impl Drop for Background {
    fn drop(&mut self) {
        // In the node, by name: the child here only waits for it.
        let words = ["sandbox", "exec", "--name", &self.2, &self.3, "--", "busybox", "killall", "-KILL", &self.1];
        let _ = output(Command::new(programs().join("ctl")).args(words));
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn output(command: &mut Command) -> Output {
    finished(command.stdin(Stdio::null()).output().expect("the program is there"))
}

fn finished(output: std::process::Output) -> Output {
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A sandbox of its own; removed when dropped.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    host: String,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What an operator would look at first.
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
            eprintln!("the sandbox {} could not be removed: {}", self.name, down.stderr);
        }
    }
}

impl Cluster {
    /// Starts one, with the image `whoami` in it.
    pub fn up(managers: u32, workers: u32) -> Self {
        let cluster = Self::bare(managers, workers);
        let program = programs().join("whoami");
        cluster.ok(&format!("image pack --tag whoami {}", program.display()));
        cluster
    }

    /// Starts one without any image.
    pub fn bare(managers: u32, workers: u32) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst));
        let mut command = Command::new(programs().join("ctl"));
        let counts = [managers.to_string(), workers.to_string()];
        command.args(["sandbox", "up", "--name", &name, "--managers", &counts[0], "--workers", &counts[1]]);
        // From here on it is removed, whatever fails.
        let mut cluster = Self { host: String::new(), name };
        let up = output(&mut command);
        assert_eq!(up.code, 0, "the sandbox did not start: {}", up.stderr);
        let env = cluster.sandbox("env").stdout;
        env.trim().strip_prefix("export FLOTA_HOST=").expect("env prints the hosts").clone_into(&mut cluster.host);
        cluster
    }

    /// `ctl` with these words (parted by blanks) at all managers.
    pub fn ctl(&self, words: &str) -> Output {
        self.at(&self.host, words.split_whitespace())
    }

    /// `ctl` with these arguments at all managers.
    pub fn ctl_args(&self, arguments: &[&str]) -> Output {
        self.at(&self.host, arguments.iter().copied())
    }

    /// `ctl` with these words at one node's socket alone.
    pub fn ctl_on(&self, node: &str, words: &str) -> Output {
        let env = self.sandbox(&format!("env --node {node}")).stdout;
        let host = env.trim().strip_prefix("export FLOTA_HOST=").expect("env prints the host").to_owned();
        self.at(&host, words.split_whitespace())
    }

    fn at<'a>(&self, host: &str, arguments: impl Iterator<Item = &'a str>) -> Output {
        output(Command::new(programs().join("ctl")).args(arguments).env("FLOTA_HOST", host))
    }

    /// As [`Cluster::ctl`], with this as standard input.
    pub fn ctl_with_input(&self, words: &str, input: &str) -> Output {
        let mut command = Command::new(programs().join("ctl"));
        command.args(words.split_whitespace()).env("FLOTA_HOST", &self.host);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program is there");
        child.stdin.take().expect("it was piped").write_all(input.as_bytes()).expect("it reads");
        finished(child.wait_with_output().expect("it ends"))
    }

    /// A program that runs on a node, until it is dropped or the cluster is.
    pub fn background(&self, node: &str, words: &[&str]) -> Background {
        let mut command = Command::new(programs().join("ctl"));
        command.args(["sandbox", "exec", "--name", &self.name, node, "--"]).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Background(command.spawn().expect("the program is there"), words[0].to_owned(), self.name.clone(), node.into())
    }

    /// Whether the process of a task's container is there, as its node sees it.
    pub fn alive(&self, node: &str, task: &str) -> bool {
        let state = self.sandbox(&format!("exec {node} -- cat /run/flota/tasks/{task}/state.json")).stdout;
        let state: Value = serde_json::from_str(&state).unwrap_or_default();
        let stat = self.sandbox(&format!("exec {node} -- cat /proc/{}/stat", state["pid"])).stdout;
        // Field 22 of /proc/PID/stat (proc_pid_stat(5)): the same id with another start time is another process.
        let started = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse::<u64>().ok());
        started.is_some() && started == state["start_time"].as_u64()
    }

    /// Tasks that run, of all services.
    pub fn running_count(&self) -> usize {
        self.rows("task ls --filter state=running --filter desiredState=running").len()
    }

    /// The control socket of a node.
    pub fn socket(&self, node: &str) -> PathBuf {
        PathBuf::from("/run/flota-sandbox").join(&self.name).join(node).join("flota.sock")
    }

    /// The folder that a node sees as /var/lib/flota.
    pub fn data(&self, node: &str) -> PathBuf {
        PathBuf::from("/var/lib/flota-sandbox").join(&self.name).join(node).join("data")
    }

    /// Gives a node these settings and starts it anew.
    pub fn set(&self, node: &str, settings: &str) {
        let file = self.data(node).with_file_name("flotad.toml");
        std::fs::write(file, settings).expect("written");
        self.sandbox_ok(&format!("restart {node}"));
        self.wait_state(node, "ready");
    }

    /// Makes an image `busybox` of the machine's static one.
    pub fn pack_busybox(&self) {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("busybox");
        std::fs::copy("/bin/busybox", &program).expect("busybox-static is installed");
        self.ok(&format!("image pack --tag busybox {}", program.display()));
    }

    /// Gives a node that does not run another address.
    pub fn move_to(&self, node: &str, address: &str) {
        let path = PathBuf::from("/var/lib/flota-sandbox").join(&self.name).join("state.json");
        let text = std::fs::read_to_string(&path).expect("the sandbox's state");
        let mut state: Value = serde_json::from_str(&text).expect("it is JSON");
        let nodes = state["nodes"].as_array_mut().expect("a list");
        let found = nodes.iter_mut().find(|it| it["name"] == node).expect("the node is there");
        found["address"] = address.into();
        std::fs::write(path, state.to_string()).expect("written");
    }

    /// As [`Cluster::ctl`]; must succeed. Its standard output.
    pub fn ok(&self, words: &str) -> String {
        let result = self.ctl(words);
        assert_eq!(result.code, 0, "ctl {words}: {}{}", result.stdout, result.stderr);
        result.stdout
    }

    /// A sandbox verb with its words.
    pub fn sandbox(&self, words: &str) -> Output {
        let mut words = words.split_whitespace();
        let verb = words.next().unwrap_or_default();
        output(Command::new(programs().join("ctl")).args(["sandbox", verb, "--name", &self.name]).args(words))
    }

    /// As [`Cluster::sandbox`]; must succeed.
    pub fn sandbox_ok(&self, words: &str) -> String {
        let result = self.sandbox(words);
        assert_eq!(result.code, 0, "ctl sandbox {words}: {}", result.stderr);
        result.stdout
    }

    /// The machine is gone.
    pub fn kill(&self, node: &str) {
        self.sandbox_ok(&format!("kill {node}"));
    }

    /// A list as JSON rows.
    pub fn rows(&self, list: &str) -> Vec<Value> {
        let text = self.ok(&format!("{list} --format json"));
        serde_json::from_str::<Value>(&text).expect("a JSON array").as_array().cloned().expect("a JSON array")
    }

    /// Tasks of a service that run and shall run, on nodes that are ready.
    pub fn running(&self, service: &str) -> Vec<Value> {
        let ready: Vec<Value> =
            self.rows("node ls --filter state=ready").iter().map(|node| node["name"].clone()).collect();
        let mut tasks =
            self.rows(&format!("service ps {service} --filter state=running --filter desiredState=running"));
        tasks.retain(|task| ready.contains(&task["node"]));
        tasks
    }

    /// The name of the node that leads.
    pub fn leader(&self) -> String {
        let nodes = self.rows("node ls --filter leader=true");
        nodes.first().and_then(|node| node["name"].as_str()).expect("somebody leads").to_owned()
    }

    /// Waits until `condition` holds.
    pub fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        wait_for(what, || match condition(self) {
            true => Ok(()),
            false => Err(self.ctl("task ls --no-trunc").stdout),
        });
    }

    /// Waits until a node is in this state.
    pub fn wait_state(&self, node: &str, state: &str) {
        let filter = format!("node ls --filter name={node} --filter state={state}");
        self.wait(&format!("{node} is {state}"), |it| !it.rows(&filter).is_empty());
    }
}
