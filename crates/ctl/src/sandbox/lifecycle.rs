//! The commands on a whole sandbox or on its nodes: start, stop, kill, pause, remove.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use flota_api::proto::control::{Empty, Filter, ListRequest};
use flota_api::proto::node::{InfoRequest, InitRequest, JoinRequest, StopTasksRequest};
use flota_api::reason::Reason;
use flota_network::{Connection, Namespace};

use super::cable::{BRIDGE, CUT_OFF};
use super::groups::{self, pause};
use super::hidden::call;
use super::init::EnterSpec;
use super::node;
use super::state::{self, Lock, NodeState, SandboxState, dir, names, run_dir};
use crate::client::{Client, failure};
use crate::error::{Refused, Usage};
use crate::printer;

/// The longest wait for the daemons of a sandbox to answer.
const START_WAIT: Duration = Duration::from_secs(30);
const MOST_NODES: u32 = 50;
/// The longest wait for nodes to shut down; stop grace periods of tasks must fit into it.
const STOP_WAIT: Duration = Duration::from_secs(600);

fn missing(text: String) -> Refused {
    Refused { reason: Reason::NotFound, text }
}

/// An existing sandbox.
pub(crate) struct Running {
    pub(crate) state: SandboxState,
    /// The lock of commands that change the sandbox. Two such commands at once would overwrite each other's state.
    _lock: Option<Lock>,
}

/// Starts a sandbox and returns when every node is ready. A sandbox that fails to start is removed.
pub(crate) async fn up(name: &str, managers: u32, workers: u32, config: Option<&Path>) -> anyhow::Result<()> {
    flota_api::naming::check(name).map_err(|error| Usage(format!("--name: {error}")))?;
    if managers == 0 || managers + workers > MOST_NODES {
        bail!(Usage(format!("a sandbox has at least one manager and at most {MOST_NODES} nodes")));
    }
    if dir(name).exists() {
        bail!(Refused { reason: Reason::AlreadyExists, text: format!("the sandbox `{name}` exists already") });
    }
    let begun = Instant::now();
    let result = begin(name, managers, workers, config).await;
    if let Err(error) = result {
        let logs = SandboxState::load(name).map(|state| last_words(&state)).unwrap_or_default();
        down(name).context("and what was begun could not be removed")?;
        return Err(error.context(format!("the sandbox did not start{logs}")));
    }
    printer::message(&format!("{} nodes are ready after {:.1} s", managers + workers, begun.elapsed().as_secs_f64()));
    printer::line(&format!("eval \"$(ctl sandbox env --name {name})\"   # points ctl at it"));
    Ok(())
}

fn last_words(state: &SandboxState) -> String {
    let last = |node: &NodeState| {
        let text = std::fs::read_to_string(dir(&state.name).join(&node.name).join("flotad.log")).ok()?;
        text.lines().last().map(|line| format!("\n  {}: {line}", node.name))
    };
    state.nodes.iter().filter_map(last).collect()
}

async fn begin(name: &str, managers: u32, workers: u32, config: Option<&Path>) -> anyhow::Result<()> {
    fs_err::create_dir_all(dir(name))?;
    fs_err::create_dir_all(run_dir(name))?;
    let names = (1..=managers).map(|number| (format!("m{number}"), true));
    let names = names.chain((1..=workers).map(|number| (format!("w{number}"), false)));
    let nodes = names.zip(10u8..).map(|((name, manager), last)| NodeState {
        name,
        manager,
        address: Ipv4Addr::new(198, 18, 0, last),
        pid: 0,
        start_time: 0,
        daemon: 0,
        daemon_start_time: 0,
        paused: false,
        cut_off: false,
        link: None,
    });
    let state = SandboxState { name: name.to_owned(), nodes: nodes.collect() };
    let mut sandbox = Running { state, _lock: Some(state::lock(name)?) };
    sandbox.state.save()?;
    groups::prepare(name)?;
    let mut network = Connection::open(&Namespace::make(&sandbox.state.network())?)?;
    network.add_bridge(BRIDGE)?;
    network.add_bridge(CUT_OFF)?;
    for index in 0..sandbox.state.nodes.len() {
        let mut node = sandbox.state.nodes[index].clone();
        node::boot(&sandbox.state, &mut node)?;
        if let Some(config) = config {
            fs_err::copy(config, node::settings(name, &node.name))?;
        }
        node::start_daemon(name, &mut node)?;
        sandbox.state.nodes[index] = node;
    }
    sandbox.state.save()?;
    sandbox.form().await
}

pub(crate) fn down(name: &str) -> anyhow::Result<()> {
    if let Ok(state) = SandboxState::load(name) {
        for node in &state.nodes {
            node::destroy(name, node)?;
        }
    }
    Namespace::remove(&run_dir(name).join("network"))?;
    // This also finds processes whose state was never written.
    let groups = groups::below(name, "")?;
    for pid in groups::processes(&groups)? {
        let _ = kill(pid, Signal::SIGKILL);
    }
    groups.remove()?;
    for folder in groups.folders() {
        // The parent folder is shared with other sandboxes and is removed with the last of them.
        if let Some(parent) = folder.path.parent() {
            let _ = std::fs::remove_dir(parent);
        }
    }
    for path in [dir(name), run_dir(name)] {
        match fs_err::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        if let Some(parent) = path.parent() {
            let _ = std::fs::remove_dir(parent);
        }
    }
    Ok(())
}

impl Running {
    /// Opens a sandbox and takes its lock. Waits until another command has released it.
    pub(crate) fn open_alone(name: Option<&str>) -> anyhow::Result<Self> {
        let found = Self::open(name)?;
        let lock = state::lock(&found.state.name)?;
        // The state is read again now that no other command can change it.
        Ok(Self { _lock: Some(lock), ..Self::open(Some(&found.state.name))? })
    }

    /// Opens the sandbox of that name or, without a name, the only one.
    pub(crate) fn open(name: Option<&str>) -> anyhow::Result<Self> {
        let name = match (name, names().as_slice()) {
            (Some(name), _) => name.to_owned(),
            (None, [one]) => one.clone(),
            (None, []) => bail!(missing("there is no sandbox: `ctl sandbox up` starts one".into())),
            (None, many) => {
                bail!(Usage(format!("there are several sandboxes ({}): choose one with --name", many.join(", "))))
            }
        };
        flota_api::naming::check(&name).map_err(|error| Usage(format!("--name: {error}")))?;
        if !dir(&name).exists() {
            bail!(missing(format!("there is no sandbox `{name}`")));
        }
        Ok(Self { state: SandboxState::load(&name)?, _lock: None })
    }

    /// Opens a netlink connection in the namespace of the sandbox's cables.
    pub(crate) fn network(&self) -> anyhow::Result<Connection> {
        Ok(Connection::open(&Namespace::at(&self.state.network()))?)
    }

    fn socket(&self, node: &str) -> String {
        format!("unix://{}", run_dir(&self.state.name).join(node).join("flota.sock").display())
    }

    pub(crate) fn node(&self, name: &str) -> anyhow::Result<usize> {
        let found = self.state.nodes.iter().position(|node| node.name == name);
        found.ok_or_else(|| missing(format!("the sandbox has no node `{name}`")).into())
    }

    fn client(&self, node: &str) -> anyhow::Result<Client> {
        Client::new(&[self.socket(node)])
    }

    /// Joins all nodes into one cluster.
    async fn form(&self) -> anyhow::Result<()> {
        let until = Instant::now() + START_WAIT;
        let first = self.client("m1")?;
        self.wait("flotad answers everywhere", until, async |it| {
            for node in &it.state.nodes {
                it.client(&node.name)?.node().await?.info(InfoRequest {}).await.map_err(failure)?;
            }
            Ok(())
        })
        .await?;
        let begun = first.node().await?.init(InitRequest::default()).await.map_err(failure)?.into_inner();
        let cluster =
            first.read(Empty {}, |mut control, request| async move { control.get_cluster(request).await }).await?;
        let mut joining = tokio::task::JoinSet::new();
        for node in self.state.nodes.iter().filter(|node| node.name != "m1") {
            let token = if node.manager { &cluster.manager_token } else { &cluster.worker_token }.clone();
            let (client, address, name) = (self.client(&node.name)?, begun.address.clone(), node.name.clone());
            joining.spawn(async move {
                let request = JoinRequest { token, manager: address, advertise: String::new() };
                let joined = client.node().await?.join(request).await.map_err(failure);
                joined.map(drop).with_context(|| format!("node {name} could not join"))
            });
        }
        while let Some(joined) = joining.join_next().await {
            joined??;
        }
        let ready = async |it: &Self| {
            let filter = Filter { key: "state".into(), value: "ready".into() };
            let request = ListRequest { filters: vec![filter], ..ListRequest::default() };
            let ready = crate::commands::node::list(&it.client("m1")?, request).await?.nodes.len();
            anyhow::ensure!(ready == it.state.nodes.len(), "{ready} of {} nodes are ready", it.state.nodes.len());
            Ok(())
        };
        self.wait("every node is ready", until, ready).await
    }

    async fn wait(
        &self,
        what: &str,
        until: Instant,
        condition: impl AsyncFn(&Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        loop {
            match condition(self).await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > until => return Err(error.context(format!("not in time: {what}"))),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Applies an action to each node and saves the resulting state.
    pub(crate) fn each(
        &mut self,
        nodes: &[String],
        act: impl Fn(&mut Self, usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if nodes.is_empty() {
            bail!(Usage("no node is given: give at least one".into()));
        }
        let indexes = nodes.iter().map(|name| self.node(name)).collect::<anyhow::Result<Vec<_>>>()?;
        for index in indexes {
            act(self, index)?;
            self.state.save()?;
        }
        Ok(())
    }

    pub(crate) fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        let node = &self.state.nodes[index];
        if node.runs() {
            // The link goes down first, so that nothing on the node can report its end to the others.
            self.network()?.bring_down(&node.name)?;
        }
        node::destroy(&self.state.name, node)
    }

    pub(crate) fn kill_daemon(&mut self, index: usize) -> anyhow::Result<()> {
        self.end_daemon(index, Signal::SIGKILL)
    }

    fn end_daemon(&mut self, index: usize, signal: Signal) -> anyhow::Result<()> {
        let node = &self.state.nodes[index];
        if !node.daemon_runs() {
            return Ok(());
        }
        match kill(Pid::from_raw(node.daemon), signal) {
            // It has ended by itself.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => bail!("failed to end flotad on {}: {}", node.name, error.desc()),
        }
        let until = Instant::now() + START_WAIT;
        while node.daemon_runs() {
            if Instant::now() > until {
                bail!("flotad on {} does not end", node.name);
            }
            pause();
        }
        Ok(())
    }

    pub(crate) async fn stop(&mut self, nodes: &[String], daemon_only: bool) -> anyhow::Result<()> {
        if nodes.is_empty() {
            bail!(Usage("no node is given: give at least one".into()));
        }
        for name in nodes {
            let index = self.node(name)?;
            if self.state.nodes[index].paused {
                self.start(index)?;
            }
            if !daemon_only && self.state.nodes[index].daemon_runs() {
                let mut node = self.client(name)?.node().await?;
                let stopped = tokio::time::timeout(STOP_WAIT, node.stop_tasks(StopTasksRequest {})).await;
                stopped.with_context(|| format!("the tasks on {name} do not end"))?.map_err(failure)?;
            }
            self.end_daemon(index, Signal::SIGTERM)?;
            if !daemon_only {
                node::destroy(&self.state.name, &self.state.nodes[index])?;
            }
            self.state.save()?;
        }
        Ok(())
    }

    pub(crate) fn pause(&mut self, index: usize) -> anyhow::Result<()> {
        let name = self.state.nodes[index].name.clone();
        for pid in node::processes(&self.state.name, &name)? {
            let _ = kill(pid, Signal::SIGSTOP);
        }
        self.state.nodes[index].paused = true;
        Ok(())
    }

    pub(crate) fn start(&mut self, index: usize) -> anyhow::Result<()> {
        let mut node = self.state.nodes[index].clone();
        if node.paused {
            for pid in node::processes(&self.state.name, &node.name)? {
                let _ = kill(pid, Signal::SIGCONT);
            }
            node.paused = false;
        } else if !node.runs() {
            node::boot(&self.state, &mut node)?;
        }
        // The state is kept before the daemon starts, which may fail: a second PID 1 must not be created.
        self.state.nodes[index] = node.clone();
        if !node.daemon_runs() {
            self.state.save()?;
            node::start_daemon(&self.state.name, &mut node)?;
        }
        self.state.nodes[index] = node;
        Ok(())
    }

    pub(crate) fn env(&self, node: Option<&str>) -> anyhow::Result<String> {
        let sockets: Vec<String> = match node {
            Some(name) => vec![self.socket(&self.state.nodes[self.node(name)?].name)],
            None => self.state.nodes.iter().filter(|node| node.manager).map(|node| self.socket(&node.name)).collect(),
        };
        Ok(format!("export FLOTA_HOST={}", sockets.join(",")))
    }

    pub(crate) fn exec(&self, name: &str, command: &[String]) -> anyhow::Result<u8> {
        let node = &self.state.nodes[self.node(name)?];
        if !node.runs() {
            bail!("node {name} does not run");
        }
        let cgroups = groups::below(&self.state.name, name)?;
        let spec = EnterSpec { pid: node.pid, cgroups, command: command.to_vec(), log: None };
        let status = call(&spec)?.status()?;
        Ok(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
    }

    pub(crate) fn logs(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        let node = &self.state.nodes[self.node(name)?];
        Ok(fs_err::read(dir(&self.state.name).join(&node.name).join("flotad.log"))?)
    }
}
