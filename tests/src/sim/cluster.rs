//! A cluster of simulated processes: managers with disks that forget, workers on machines without containers.
//!
//! Hosts 1, 2, 3 ... are the managers, 101, 102 ... the workers, and 200 is the user's machine. What outlives a process (disk,
//! machine, clock) is kept here; the process itself is a runtime of the [`World`].

use std::sync::{Arc, Mutex};

use rand::Rng;
use rand::rngs::StdRng;

use flota_api::clock::Random;
use flota_api::id::{ClusterId, NodeId};
use flota_api::model::{Availability, Cluster, Node, NodeDescription, NodeDevice, NodeState, Role, Secret};
use flota_api::resources::Resources;
use flota_api::{FEATURE_LEVEL, VERSION};
use flota_manager::Manager;
use flota_raft_store::raft::ModelDisk;
use flota_raft_store::{Store, Transaction, View, WriteTx};
use flota_worker::{FakeMachine, MemoryRecords, MemoryState};

use super::clock::WallClock;
use super::host::Host;
use super::process::{Ended, ManagerProcess, WorkerProcess, run_manager, run_worker};
use super::raft_network::RaftNetwork;
use super::world::World;

/// A manager's machine.
pub struct ManagerHost {
    /// Where it is.
    pub host: Host,
    /// Of its node.
    pub node_id: NodeId,
    /// Its disk.
    pub disk: ModelDisk,
    /// Its wall clock.
    pub clock: WallClock,
    raft_id: u64,
    /// Whether its log must hold something: the cluster has taken it in.
    was_here: bool,
    running: Arc<Mutex<Option<Manager>>>,
    ended: Ended,
}

impl ManagerHost {
    /// The manager, while its process runs and has started.
    pub fn manager(&self) -> Option<Manager> {
        self.running.lock().expect("no holder panics").clone()
    }
}

/// A worker's machine.
pub struct WorkerHost {
    /// Where it is.
    pub host: Host,
    /// Of its node.
    pub node_id: NodeId,
    /// What runs on it; outlives the daemon.
    pub machine: FakeMachine,
    /// Its wall clock.
    pub clock: WallClock,
    records: MemoryRecords,
    state: MemoryState,
}

/// The whole cluster.
pub struct SimCluster {
    /// Processes, time and network.
    pub world: World,
    /// Raft's messages.
    pub raft_network: RaftNetwork,
    /// The managers.
    pub managers: Vec<ManagerHost>,
    /// The workers.
    pub workers: Vec<WorkerHost>,
    random: Random,
}

/// Devices of each worker that tasks may ask for.
pub const DEVICE_KIND: &str = "gpu";
const DEVICES: usize = 2;

impl SimCluster {
    /// Starts a cluster; it is not up yet.
    pub fn start(world: World, managers: u8, workers: u8, random: &Random) -> Self {
        let raft_network = RaftNetwork::new(world.network.clone());
        let id = || random.draw(NodeId::random);
        let clock = || {
            let (offset, drift) = random.draw(|rng| (rng.random_range(-5_000..5_000), rng.random_range(-200..200)));
            WallClock::new(offset, drift)
        };
        let managers = (1..=managers).map(|number| ManagerHost {
            host: Host(number),
            node_id: id(),
            disk: ModelDisk::new(Random::seeded(random.draw(|rng| rng.random()))),
            clock: clock(),
            raft_id: u64::from(number),
            was_here: false,
            running: Arc::default(),
            ended: Ended::default(),
        });
        let managers: Vec<_> = managers.collect();
        let workers = (1..=workers).map(|number| WorkerHost {
            host: Host(100 + number),
            node_id: id(),
            machine: FakeMachine::new(&format!("w{number}")),
            clock: clock(),
            records: MemoryRecords::default(),
            state: MemoryState::default(),
        });
        let workers = workers.collect();
        let mut cluster = Self { world, raft_network, managers, workers, random: random.clone() };
        let first = random.draw(|rng| cluster.first_entry(rng));
        for number in 0..cluster.managers.len() {
            cluster.spawn_manager(number, (number == 0).then(|| first.clone()));
        }
        (0..cluster.workers.len()).for_each(|number| cluster.start_worker(number));
        cluster
    }

    /// The cluster object and all nodes: nobody has to join.
    fn first_entry(&self, rng: &mut StdRng) -> Transaction {
        let view: View = Store::default().view();
        let mut tx = WriteTx::new(view, "");
        tx.create(Cluster {
            id: ClusterId::random(rng),
            epoch: 1,
            feature_level: FEATURE_LEVEL,
            next_raft_id: u64::try_from(self.managers.len()).expect("they are few") + 1,
            ca_key: Secret(vec![1]),
            ..Cluster::default()
        });
        let node = |id: &NodeId, host: Host, hostname: String| Node {
            id: id.clone(),
            address: host.address(),
            state: NodeState::Unknown,
            description: description(hostname),
            ..Node::default()
        };
        for (number, it) in (1..).zip(&self.managers) {
            let mut node = node(&it.node_id, it.host, format!("m{number}"));
            (node.role, node.raft_id) = (Role::Manager, it.raft_id);
            // No agent runs on it.
            node.spec.availability = Availability::Drain;
            tx.create(node);
        }
        for (number, it) in (1..).zip(&self.workers) {
            tx.create(node(&it.node_id, it.host, format!("w{number}")));
        }
        tx.finish()
    }

    fn spawn_manager(&mut self, number: usize, first: Option<Transaction>) {
        let it = &mut self.managers[number];
        it.running = Arc::default();
        it.ended = Ended::default();
        let process = ManagerProcess {
            host: it.host,
            node_id: it.node_id.clone(),
            raft_id: it.raft_id,
            was_here: it.was_here,
            disk: it.disk.clone(),
            clock: it.clock.as_clock(),
            random: Random::seeded(self.random.draw(|rng| rng.random())),
            network: self.world.network.clone(),
            raft_network: self.raft_network.clone(),
            first,
            running: Arc::clone(&it.running),
            ended: it.ended.clone(),
        };
        self.world.start(it.host, run_manager(process));
    }

    /// Starts a manager that does not run.
    pub fn start_manager(&mut self, number: usize) {
        self.spawn_manager(number, None);
    }

    /// Kills a manager's process; with `power` its machine goes, too, and forgets what it has not synced.
    pub fn crash_manager(&mut self, number: usize, power: bool) {
        let it = &mut self.managers[number];
        *it.running.lock().expect("no holder panics") = None;
        self.raft_network.close(it.host);
        self.world.crash(it.host, power);
        it.disk = if power { it.disk.crash() } else { it.disk.restart() };
    }

    /// Starts a worker that does not run.
    pub fn start_worker(&mut self, number: usize) {
        let it = &self.workers[number];
        let device = |index: usize| NodeDevice {
            kind: DEVICE_KIND.into(),
            id: format!("{DEVICE_KIND}{index}"),
            paths: vec![format!("/dev/{DEVICE_KIND}{index}")],
        };
        let mut description = description(format!("w{}", number + 1));
        description.boot_id = it.machine.boot_id();
        let process = WorkerProcess {
            host: it.host,
            node_id: it.node_id.clone(),
            description,
            devices: (0..DEVICES).map(device).collect(),
            machine: it.machine.clone(),
            records: it.records.clone(),
            state: it.state.clone(),
            managers: self.addresses(),
            clock: it.clock.as_clock(),
            random: Random::seeded(self.random.draw(|rng| rng.random())),
            network: self.world.network.clone(),
        };
        self.world.start(it.host, run_worker(process));
    }

    /// Kills a worker's daemon; with `power` its machine goes, too, with everything that runs on it.
    pub fn crash_worker(&mut self, number: usize, power: bool) {
        let it = &self.workers[number];
        self.world.crash(it.host, power);
        if power {
            it.machine.reboot();
        }
    }

    /// Where the managers are.
    pub fn addresses(&self) -> Vec<String> {
        self.managers.iter().map(|it| it.host.address()).collect()
    }

    /// From now on each manager's log must hold something when it starts.
    pub fn all_were_here(&mut self) {
        self.managers.iter_mut().for_each(|it| it.was_here = true);
    }

    /// The manager that leads and has taken up its work, if there is one.
    pub fn leader(&self) -> Option<usize> {
        let leads = |it: &ManagerHost| it.manager().is_some_and(|manager| manager.leads());
        // One that was deposed and paused may think so, too: the newest term counts.
        let leaders = self.managers.iter().enumerate().filter(|(_, it)| leads(it));
        leaders.max_by_key(|(_, it)| it.manager().map(|manager| manager.leadership().term)).map(|(number, _)| number)
    }

    /// What the leader's store holds.
    pub fn view(&self) -> Option<View> {
        self.managers[self.leader()?].manager().map(|manager| manager.store().view())
    }

    /// Processes of managers that have ended by themselves, and why.
    pub fn ended_managers(&self) -> Vec<(usize, String)> {
        let ended = self.managers.iter().enumerate();
        ended.filter_map(|(number, it)| Some((number, it.ended.why()?))).collect()
    }
}

fn description(hostname: String) -> NodeDescription {
    NodeDescription {
        hostname,
        os: "linux".into(),
        architecture: "x86_64".into(),
        resources: Resources { nano_cpus: 8_000_000_000, memory_bytes: 16 << 30, pids: 0 },
        program_version: VERSION.into(),
        feature_level: FEATURE_LEVEL,
        ..NodeDescription::default()
    }
}
