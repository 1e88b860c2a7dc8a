//! A cluster of simulated processes: managers with disks that lose unsynced data, and workers without real containers.
//!
//! Hosts 1, 2, 3 ... are the managers, 99 is the operator's machine, 100 the users', and 101, 102 ... are the workers.
//! State that outlives a process (disk, machine, clock) is kept here; the process itself is a runtime of the [`World`].

use std::sync::{Arc, Mutex};

use rand::Rng;
use rand::rngs::StdRng;

use flota_api::clock::Random;
use flota_api::id::{ClusterId, NodeId, TaskId};
use flota_api::model::{Availability, Cluster, Node, NodeDescription, NodeDevice, NodeState, Role, Secret};
use flota_api::resources::Resources;
use flota_api::state::TaskState;
use flota_api::{FEATURE_LEVEL, VERSION};
use flota_identity::{GrantKey, new_secret};
use flota_manager::Manager;
use flota_raft_store::raft::{LogBounds, ModelDisk};
use flota_raft_store::{Store, Transaction, View, WriteTx};
use flota_worker::{FakeMachine, FakeNetworks, MemoryRecords, MemoryState, WorkerState};

use super::clock::WallClock;
use super::host::{Host, USER};
use super::node_ca::key_pair;
use super::process::{Ended, ManagerProcess, WorkerProcess, run_manager, run_worker};
use super::raft_network::RaftNetwork;
use super::registry::FakeRegistry;
use super::system::allocated;
use super::wire::Medium as _;
use super::world::World;

/// A manager's machine.
pub struct ManagerHost {
    /// Its host.
    pub host: Host,
    /// Id of its node.
    pub node_id: NodeId,
    /// Its disk.
    pub disk: ModelDisk,
    /// Its wall clock.
    pub clock: WallClock,
    /// Its Raft id.
    pub raft_id: u64,
    /// Whether it belongs to the cluster: it has not left, and its disk is the one that goes with its Raft id.
    pub is_member: bool,
    /// Whether the cluster has accepted the manager, so that its log must not be empty.
    pub(super) was_here: bool,
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
    /// Its host.
    pub host: Host,
    /// Id of its node.
    pub node_id: NodeId,
    /// Its containers; they outlive the daemon.
    pub machine: FakeMachine,
    /// Its kernel's networks; they outlive the daemon too.
    pub networks: FakeNetworks,
    /// Its wall clock.
    pub clock: WallClock,
    /// The address at which others reach its node: that of its manager, if it has one.
    address: String,
    /// Whether a test speaks for the node, which then has neither containers nor networks of its own.
    pub is_manual: bool,
    records: MemoryRecords,
    state: MemoryState,
}

impl WorkerHost {
    /// Returns the highest (attempt, state) that the worker has ever recorded of a task.
    pub(super) fn highest(&self, task: &TaskId) -> Option<(u32, TaskState)> {
        self.records.highest(task)
    }
}

/// The whole cluster.
pub struct SimCluster {
    /// Processes, time and network.
    pub world: World,
    /// Network for Raft's messages.
    pub raft_network: RaftNetwork,
    /// The managers.
    pub managers: Vec<ManagerHost>,
    /// The workers.
    pub workers: Vec<WorkerHost>,
    /// Every registry that managers ask.
    pub registry: FakeRegistry,
    bounds: LogBounds,
    random: Random,
}

/// Kind of the devices that each worker has and tasks may ask for.
pub const DEVICE_KIND: &str = "gpu";
const DEVICES: usize = 2;

impl SimCluster {
    /// Starts the processes of a cluster, with bounds of the log that are drawn small, so that snapshots and purges are
    /// made within seconds. The cluster is not up when this returns.
    pub fn start(world: World, managers: u16, workers: u16, random: &Random) -> Self {
        let bounds = random.draw(small_bounds);
        let mut cluster = Self::start_managers(world, (managers, workers), bounds, random);
        (0..cluster.workers.len()).for_each(|number| cluster.start_worker(number));
        cluster
    }

    /// Starts a cluster whose workers share one process, which costs much less than a process for each. They can't
    /// crash separately.
    ///
    /// # Panics
    /// There are no workers.
    pub fn start_fleet(world: World, managers: u16, workers: u16, random: &Random) -> Self {
        let mut cluster = Self::start_managers(world, (managers, workers), LogBounds::default(), random);
        let workers: Vec<_> = (0..cluster.workers.len()).map(|number| run_worker(cluster.worker(number))).collect();
        cluster.world.start(cluster.workers[0].host, async { drop(futures::future::join_all(workers).await) });
        cluster
    }

    fn start_managers(world: World, (managers, workers): (u16, u16), bounds: LogBounds, random: &Random) -> Self {
        let raft_network = RaftNetwork::new(world.network.clone());
        let id = || random.draw(NodeId::random);
        let mut cluster = Self {
            world,
            raft_network,
            managers: Vec::new(),
            workers: Vec::new(),
            registry: FakeRegistry::default(),
            bounds,
            random: random.clone(),
        };
        for number in 1..=managers {
            cluster.seat_manager(usize::from(number) - 1, id(), number.into());
        }
        for _ in 0..workers {
            cluster.add_worker(id());
        }
        let first = random.draw(|rng| cluster.first_entry(rng));
        for number in 0..cluster.managers.len() {
            cluster.spawn_manager(number, (number == 0).then(|| first.clone()));
        }
        cluster
    }

    /// Returns the first entry, with the cluster object and all nodes, so that no node has to join.
    fn first_entry(&self, rng: &mut StdRng) -> Transaction {
        let view: View = Store::default().view();
        let mut tx = WriteTx::new(view, None);
        let id = ClusterId::random(rng);
        // The size of the tables decides when a snapshot is made, so that of the certificate must not vary.
        let ca_key = key_pair(rng.random());
        let mut ca = rcgen::CertificateParams::default();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = ca.self_signed(&ca_key).expect("a CA");
        tx.create(Cluster {
            id,
            epoch: 1,
            feature_level: FEATURE_LEVEL,
            next_raft_id: u64::try_from(self.managers.len()).expect("they are few") + 1,
            ca_certificate: ca.der().to_vec(),
            ca_key: Secret(ca_key.serialize_der()),
            worker_token_secret: new_secret("", rng).into(),
            manager_token_secret: new_secret("", rng).into(),
            grant_key: Secret(GrantKey::generate()),
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
            (node.role, node.raft_id) = (Role::Manager, Some(it.raft_id));
            // No worker runs on it.
            node.spec.availability = Availability::Drain;
            tx.create(node);
        }
        for (number, it) in (1..).zip(&self.workers) {
            tx.create(node(&it.node_id, it.host, format!("w{number}")));
        }
        tx.finish()
    }

    /// Returns the host of the manager with this number.
    pub(super) fn manager_host(&self, number: usize) -> Host {
        Host(1 + u16::try_from(number).expect("they are few"))
    }

    /// Returns the host of the worker with this number.
    pub(super) fn worker_host(&self, number: usize) -> Host {
        Host(USER.0 + 1 + u16::try_from(number).expect("they are few"))
    }

    /// Number of a machine that may become a manager.
    pub(super) fn free_place(&self) -> usize {
        self.managers.iter().position(|it| !it.is_member).unwrap_or(self.managers.len())
    }

    /// Whether processes run on both hosts and reach each other.
    pub fn is_connected(&self, one: Host, other: Host) -> bool {
        let runs = |host| self.world.is_up(host) && !self.world.is_paused(host);
        let reaches = |from, to| !self.world.network.is_blocked(from, to);
        runs(one) && runs(other) && reaches(one, other) && reaches(other, one)
    }

    /// Machines of the managers that belong to the cluster.
    pub fn members(&self) -> impl Iterator<Item = &ManagerHost> {
        self.managers.iter().filter(|it| it.is_member)
    }

    /// Returns a secret key for a new machine.
    pub(super) fn draw_key(&self) -> [u8; 32] {
        self.random.draw(|rng| rng.random())
    }

    fn wall_clock(&self) -> WallClock {
        // Some are right within milliseconds, and some are off by hours.
        let draw = |rng: &mut StdRng| {
            let size = 10_i64.pow(rng.random_range(1..8));
            (rng.random_range(-size..size), rng.random_range(-200..200))
        };
        let (offset, drift) = self.random.draw(draw);
        WallClock::new(offset, drift)
    }

    /// Puts a manager's machine with an empty disk and without a running process in this place, which is the next one or
    /// one without a member.
    pub(super) fn seat_manager(&mut self, number: usize, node_id: NodeId, raft_id: u64) {
        let host = self.manager_host(number);
        let manager = ManagerHost {
            host,
            node_id,
            disk: ModelDisk::new(Random::seeded(self.random.draw(|rng| rng.random()))),
            clock: self.wall_clock(),
            raft_id,
            is_member: true,
            was_here: false,
            running: Arc::default(),
            ended: Ended::default(),
        };
        match self.managers.get_mut(number) {
            Some(place) => *place = manager,
            None => self.managers.push(manager),
        }
    }

    /// Switches a manager's machine off for good. It is not a member any more.
    pub(super) fn remove_manager(&mut self, number: usize) {
        self.crash_manager(number, true);
        self.managers[number].is_member = false;
    }

    /// Adds a worker's machine without a running daemon.
    pub(super) fn add_worker(&mut self, node_id: NodeId) {
        let host = self.worker_host(self.workers.len());
        self.workers.push(WorkerHost {
            host,
            node_id,
            address: host.address(),
            machine: FakeMachine::new(&host.to_string()),
            networks: FakeNetworks::default(),
            clock: self.wall_clock(),
            is_manual: false,
            records: MemoryRecords::default(),
            state: MemoryState::default(),
        });
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
            bounds: self.bounds,
            clock: it.clock.as_clock(),
            random: Random::seeded(self.random.draw(|rng| rng.random())),
            network: self.world.network.clone(),
            raft_network: self.raft_network.clone(),
            registry: self.registry.clone(),
            first,
            running: Arc::clone(&it.running),
            ended: it.ended.clone(),
        };
        self.world.start(it.host, run_manager(process));
    }

    /// Starts the process of a manager that does not run.
    pub fn start_manager(&mut self, number: usize) {
        self.spawn_manager(number, None);
    }

    /// Kills a manager's process. With `power`, its machine fails too, and its disk loses unsynced data.
    pub fn crash_manager(&mut self, number: usize, power: bool) {
        self.end_process(number, power);
        let it = &mut self.managers[number];
        it.disk = if power { it.disk.crash() } else { it.disk.restart() };
    }

    /// Kills a manager's process, and its machine. Returns the bytes that the process had allocated, those of its disk not
    /// included. The allocator takes long to count them.
    pub fn crash_and_weigh(&mut self, number: usize) -> u64 {
        let before = allocated();
        self.end_process(number, true);
        let freed = before.saturating_sub(allocated());
        let it = &mut self.managers[number];
        it.disk = it.disk.crash();
        freed
    }

    fn end_process(&mut self, number: usize, power: bool) {
        let it = &self.managers[number];
        *it.running.lock().expect("no holder panics") = None;
        self.raft_network.close(it.host);
        self.world.crash(it.host, power);
    }

    /// Starts the daemon of a worker that does not run.
    pub fn start_worker(&mut self, number: usize) {
        let process = self.worker(number);
        self.world.start(process.host, run_worker(process));
    }

    /// Returns the options for a worker's process.
    fn worker(&self, number: usize) -> WorkerProcess {
        let it = &self.workers[number];
        let device = |index: usize| NodeDevice {
            kind: DEVICE_KIND.into(),
            id: format!("{DEVICE_KIND}{index}"),
            paths: vec![format!("/dev/{DEVICE_KIND}{index}")],
        };
        WorkerProcess {
            host: it.host,
            node_id: it.node_id.clone(),
            address: it.address.clone(),
            description: self.description(number),
            devices: (0..DEVICES).map(device).collect(),
            machine: it.machine.clone(),
            networks: it.networks.clone(),
            records: it.records.clone(),
            state: it.state.clone(),
            managers: self.addresses(),
            clock: it.clock.as_clock(),
            random: Random::seeded(self.random.draw(|rng| rng.random())),
            network: self.world.network.clone(),
        }
    }

    /// Returns the description that a worker's node reports.
    pub fn description(&self, number: usize) -> NodeDescription {
        let boot_id = self.workers[number].machine.boot_id();
        NodeDescription { boot_id, ..description(format!("w{}", number + 1)) }
    }

    /// Kills a worker's daemon. With `power`, its machine fails too, with all its containers.
    pub fn crash_worker(&mut self, number: usize, power: bool) {
        let it = &mut self.workers[number];
        self.world.crash(it.host, power);
        if power {
            it.machine.reboot();
            it.networks = FakeNetworks::default();
        }
    }

    /// Makes a worker that does not run know only this manager.
    pub fn know_only(&self, worker: usize, manager: usize) {
        self.workers[worker].state.write("managers", self.managers[manager].host.address());
    }

    /// Restarts the daemon of a worker, if it runs, with the address of this host for its node.
    pub(super) fn move_worker(&mut self, number: usize, host: Host) {
        self.workers[number].address = host.address();
        if self.world.is_up(self.workers[number].host) {
            self.crash_worker(number, false);
            self.start_worker(number);
        }
    }

    /// Number of the worker on the node of this manager, if there is one.
    pub(super) fn worker_of(&self, manager: usize) -> Option<usize> {
        self.workers.iter().position(|it| it.node_id == self.managers[manager].node_id)
    }

    /// Number of the manager on the node of this worker, if there is one.
    pub(super) fn manager_of(&self, worker: usize) -> Option<usize> {
        self.managers.iter().position(|it| it.is_member && it.node_id == self.workers[worker].node_id)
    }

    /// Addresses of the managers.
    pub fn addresses(&self) -> Vec<String> {
        self.members().map(|it| it.host.address()).collect()
    }

    /// From now on, an empty log of any manager counts as damaged.
    pub fn all_were_here(&mut self) {
        self.managers.iter_mut().for_each(|it| it.was_here = true);
    }

    /// Number of the manager that leads and has started its work, if there is one.
    pub fn leader(&self) -> Option<usize> {
        let leads = |it: &ManagerHost| it.manager().is_some_and(|manager| manager.leads());
        // A deposed leader that is paused may still count itself as leader, so the newest term decides.
        let leaders = self.managers.iter().enumerate().filter(|(_, it)| leads(it));
        leaders.max_by_key(|(_, it)| it.manager().map(|manager| manager.leadership().term)).map(|(number, _)| number)
    }

    /// The leader's view of the store; `None` if no manager leads.
    pub fn view(&self) -> Option<View> {
        self.managers[self.leader()?].manager().map(|manager| manager.store().view())
    }

    /// Managers whose processes have ended by themselves, and why.
    pub fn ended_managers(&self) -> Vec<(usize, String)> {
        let members = self.managers.iter().enumerate().filter(|(_, it)| it.is_member);
        members.filter_map(|(number, it)| Some((number, it.ended.why()?))).collect()
    }
}

fn small_bounds(rng: &mut StdRng) -> LogBounds {
    LogBounds {
        between_snapshots: rng.random_range(8..64) << 10,
        kept_entries: rng.random_range(10..100),
        kept_bytes: rng.random_range(8..64) << 10,
        cached_bytes: rng.random_range(16..128) << 10,
        segment_bytes: rng.random_range(4..16) << 12,
    }
}

fn description(hostname: String) -> NodeDescription {
    NodeDescription {
        hostname,
        os: "linux".into(),
        architecture: "x86_64".into(),
        resources: Resources { nano_cpus: 8_000_000_000, memory_bytes: 16 << 30 },
        program_version: VERSION.into(),
        feature_level: FEATURE_LEVEL,
        ..NodeDescription::default()
    }
}
