//! The schedule of faults: drawn from the seed, one after the other, each with its end. The focus of a simulation says from
//! which they are drawn.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use flota_raft_store::raft::DiskFaults;

use super::changes::{Change, Changes};
use super::cluster::SimCluster;
use super::drains::Drains;
use super::focus::Focus;
use super::host::{Host, USER};
use super::network::DELAY;
use super::raft_network::Mishaps;
use super::user::yard::LABELS;

/// A step of a fault.
#[derive(Clone, Debug)]
enum Action {
    CrashManager { number: usize, power: bool, down: u64 },
    CrashLeader { power: bool, down: u64 },
    CrashAll { power: bool, down: u64 },
    StartManager(usize),
    CrashWorker { number: usize, power: bool, down: u64 },
    StartWorker(usize),
    Pause { host: Host, time: u64 },
    PauseLeader { time: u64 },
    Resume(Host),
    Block { from: Host, to: Host, time: u64 },
    Split { alone: Host, both_ways: bool, time: u64 },
    SplitLeader { both_ways: bool, time: u64 },
    Heal { from: Host, to: Host },
    Slow { most: u64, time: u64 },
    Fast,
    Mishaps { loss: f64, doubling: f64, time: u64 },
    NoMishaps,
    StepClock { host: Host, by: i64 },
    HurtDisk { number: usize, faults: DiskFaults, time: u64 },
    RepairDisk(usize),
    KillContainer { worker: usize },
    ChangeManagers(Change),
    Drain { worker: usize, time: u64 },
    Label { worker: usize, label: usize, is_set: bool },
}

/// Draws faults and applies them.
pub struct Schedule {
    focus: Focus,
    begun: u64,
    rng: StdRng,
    due: BTreeMap<u64, Vec<Action>>,
    next: u64,
    last: u64,
    /// Managers whose disk fails, with the time until which that may end them.
    hurt: BTreeMap<usize, u64>,
    /// Until when messages are slow or lost.
    bad_network: u64,
    changes: Changes,
    drains: Drains,
}

/// Range of the pause between two faults, in milliseconds.
const PAUSE: std::ops::Range<u64> = 100..2_500;
/// The same where leaders start again, before the log that a slow disk lacks has grown old.
const SHORT_PAUSE: std::ops::Range<u64> = 100..600;
/// Range of the time for which a worker is gone, in milliseconds, so that its tasks are replaced or kept.
const LONG: std::ops::Range<u64> = 6_000..15_000;
/// For how long leaders change where that is only how a simulation begins, in milliseconds.
const NEW_SESSIONS: u64 = 6_000;
/// Delay before a manager that has ended by itself is started again, in milliseconds, as with systemd.
const RESTART: u64 = 100;
/// How long after its end a disk fault may still end a manager, in milliseconds.
const FELT: u64 = 2_000;

impl Schedule {
    /// Creates a schedule that starts at `now`.
    pub fn new(focus: Focus, rng: StdRng, now: u64) -> Self {
        Self {
            focus,
            begun: now,
            rng,
            due: BTreeMap::new(),
            next: now,
            last: now,
            hurt: BTreeMap::new(),
            bad_network: 0,
            changes: Changes::new(if focus == Focus::Roles { 2 } else { 3 }),
            drains: Drains::default(),
        }
    }

    /// Time of the last fault or end of a fault.
    pub fn trouble(&self) -> u64 {
        self.last
    }

    /// Whether the set of managers changes.
    pub fn is_changing(&self) -> bool {
        self.changes.is_open()
    }

    /// Whether a node is drained, or gets a label.
    pub fn is_draining(&self) -> bool {
        self.drains.is_open()
    }

    /// Whether messages are slow or lost.
    pub fn is_network_bad(&self, now: u64) -> bool {
        now < self.bad_network
    }

    /// Whether this manager's disk fails, or failed a short time ago.
    pub fn is_hurt(&self, manager: usize, now: u64) -> bool {
        self.hurt.get(&manager).is_some_and(|until| now <= *until)
    }

    /// Applies what is due, and draws new faults.
    pub fn run(&mut self, cluster: &mut SimCluster) {
        let now = cluster.world.now();
        if now >= self.next {
            if let Some(action) = self.draw_focused(cluster) {
                self.at(now, action);
            }
            self.next = now + self.rng.random_range(if self.focus == Focus::Restarts { SHORT_PAUSE } else { PAUSE });
        }
        self.run_due(cluster);
    }

    /// Schedules the restart of a manager that has ended.
    pub fn restart(&mut self, cluster: &mut SimCluster, number: usize) {
        cluster.crash_manager(number, false);
        self.at(cluster.world.now() + RESTART, Action::StartManager(number));
    }

    /// Applies what is due, without new faults.
    pub fn run_due(&mut self, cluster: &mut SimCluster) {
        let now = cluster.world.now();
        self.changes.advance(cluster);
        self.drains.advance(cluster);
        while let Some(entry) = self.due.first_entry().filter(|entry| *entry.key() <= now) {
            for action in entry.remove() {
                cluster.world.log.add(format_args!("{action:?}"));
                self.last = now;
                self.act(cluster, action);
            }
        }
    }

    /// Ends all faults, and starts every process that does not run.
    pub fn end(&mut self, cluster: &mut SimCluster) {
        let now = cluster.world.now();
        cluster.world.log.add(format_args!("nothing goes wrong from now on"));
        self.due.clear();
        self.last = now;
        cluster.world.network.heal_all();
        cluster.world.network.set_delay(DELAY);
        cluster.raft_network.set_mishaps(Mishaps::default());
        for number in 0..cluster.managers.len() {
            let it = &cluster.managers[number];
            it.disk.set_faults(DiskFaults::default());
            cluster.world.pause(it.host, false);
            if it.is_member && !cluster.world.is_up(it.host) {
                cluster.start_manager(number);
            }
        }
        for number in 0..cluster.workers.len() {
            let host = cluster.workers[number].host;
            cluster.world.pause(host, false);
            if !cluster.world.is_up(host) {
                cluster.start_worker(number);
            }
        }
        self.hurt.values_mut().for_each(|until| *until = (*until).min(now + FELT));
    }

    fn at(&mut self, time: u64, action: Action) {
        self.due.entry(time).or_default().push(action);
    }

    /// Draws a fault of those that the focus asks for.
    fn draw_focused(&mut self, cluster: &SimCluster) -> Option<Action> {
        if self.focus == Focus::Everything {
            return Some(self.draw(cluster));
        }
        let rng = &mut self.rng;
        let worker = rng.random_range(0..cluster.workers.len());
        let down = rng.random_range(0..2_000);
        let time = rng.random_range(2_000..5_000);
        Some(match self.focus {
            Focus::Sessions if self.begun + NEW_SESSIONS > cluster.world.now() => {
                Action::CrashLeader { power: false, down }
            }
            Focus::Everything | Focus::Sessions | Focus::Runs => return None,
            Focus::Restarts if rng.random_bool(0.5) => {
                Action::CrashLeader { power: true, down: rng.random_range(0..=100) }
            }
            Focus::Restarts => {
                let faults = DiskFaults { delay: Duration::from_millis(200), ..DiskFaults::default() };
                Action::HurtDisk { number: cluster.leader()?, faults, time }
            }
            Focus::Splits => Action::SplitLeader { both_ways: true, time },
            Focus::Jobs if rng.random_bool(0.5) => Action::KillContainer { worker },
            Focus::Rollouts if rng.random_bool(0.7) => Action::Drain { worker, time },
            Focus::Jobs | Focus::Rollouts => Action::CrashLeader { power: false, down },
            Focus::Roles => match rng.random_range(0..10) {
                0..=2 => Action::ChangeManagers(Change::Demote(rng.random_range(0..cluster.managers.len()))),
                3..=4 => Action::ChangeManagers(Change::Promote(worker)),
                5 => Action::ChangeManagers(Change::RotateCa { twice: rng.random_bool(0.5) }),
                6 => Action::CrashLeader { power: false, down },
                7 => Action::CrashWorker { number: worker, power: false, down },
                _ => {
                    let number = rng.random_range(0..cluster.managers.len());
                    Action::CrashManager { number, power: false, down: time * 2 }
                }
            },
            Focus::Labels => {
                Action::Label { worker, label: rng.random_range(0..LABELS.len()), is_set: rng.random_bool(0.5) }
            }
            Focus::Volumes if rng.random_bool(0.3) => Action::CrashLeader { power: false, down },
            Focus::Volumes if rng.random_bool(0.5) => {
                let down = if rng.random_bool(0.3) { rng.random_range(LONG) } else { down };
                Action::CrashWorker { number: worker, power: rng.random_bool(0.5), down }
            }
            Focus::Scaling | Focus::Volumes => {
                Action::Split { alone: cluster.workers[worker].host, both_ways: true, time }
            }
        })
    }

    fn draw(&mut self, cluster: &SimCluster) -> Action {
        let rng = &mut self.rng;
        let (managers, workers) = (cluster.managers.len(), cluster.workers.len());
        let (number, worker) = (rng.random_range(0..managers), rng.random_range(0..workers));
        let manager_host = cluster.managers[number].host;
        let hosts: Vec<Host> =
            cluster.managers.iter().map(|it| it.host).chain(cluster.workers.iter().map(|it| it.host)).collect();
        let (host, other) = (hosts[rng.random_range(0..hosts.len())], hosts[rng.random_range(0..hosts.len())]);
        let power = rng.random_bool(0.5);
        // Half of all restarts happen before another leader can be elected.
        let down = if rng.random_bool(0.5) { rng.random_range(0..=100) } else { rng.random_range(500..4_000) };
        let time = rng.random_range(200..5_000);
        let both_ways = rng.random_bool(0.5);
        match rng.random_range(0..38) {
            0..=1 => Action::CrashManager { number, power, down },
            2..=6 => Action::CrashLeader { power, down },
            7 => Action::CrashAll { power, down },
            8..=9 => Action::CrashWorker { number: worker, power, down },
            10 => Action::Pause { host, time },
            11..=12 => Action::PauseLeader { time },
            13 => Action::Block { from: host, to: other, time },
            14 => Action::Split { alone: host, both_ways, time },
            15..=16 => Action::SplitLeader { both_ways, time },
            17..=18 => Action::Slow { most: rng.random_range(20..300), time },
            19..=20 => {
                let (loss, doubling) = (rng.random_range(0.0..0.1), rng.random_range(0.0..0.1));
                Action::Mishaps { loss, doubling, time }
            }
            21 => {
                let size = 10_i64.pow(rng.random_range(2..8));
                Action::StepClock { host, by: rng.random_range(-size..size) }
            }
            22..=23 => {
                let delay = Duration::from_millis(rng.random_range(1..200));
                Action::HurtDisk { number, faults: DiskFaults { delay, ..DiskFaults::default() }, time }
            }
            24 => {
                let faults = DiskFaults { broken: both_ways, failing_syncs: !both_ways, ..DiskFaults::default() };
                Action::HurtDisk { number, faults, time }
            }
            25 => Action::HurtDisk { number, faults: DiskFaults { capacity: Some(0), ..DiskFaults::default() }, time },
            26 => Action::ChangeManagers(Change::Join),
            27 => Action::ChangeManagers(Change::Leave(number)),
            28 => Action::ChangeManagers(Change::Replace(number)),
            29..=30 => Action::Drain { worker, time },
            31 => Action::ChangeManagers(Change::Promote(worker)),
            32 => Action::ChangeManagers(Change::Demote(number)),
            33 => Action::ChangeManagers(Change::RotateCa { twice: both_ways }),
            34 => Action::Label { worker, label: rng.random_range(0..LABELS.len()), is_set: both_ways },
            35 => Action::CrashWorker { number: worker, power, down: rng.random_range(LONG) },
            36 => Action::Split { alone: cluster.workers[worker].host, both_ways: true, time: rng.random_range(LONG) },
            _ if both_ways => Action::KillContainer { worker },
            _ => Action::Block { from: USER, to: manager_host, time },
        }
    }

    fn act(&mut self, cluster: &mut SimCluster, action: Action) {
        let now = cluster.world.now();
        match action {
            Action::CrashManager { number, power, down } => self.crash_manager(cluster, number, power, down),
            Action::CrashLeader { power, down } => {
                if let Some(number) = cluster.leader() {
                    self.crash_manager(cluster, number, power, down);
                }
            }
            Action::CrashAll { power, down } => {
                for number in 0..cluster.managers.len() {
                    let later = self.rng.random_range(0..100);
                    self.crash_manager(cluster, number, power, down + later);
                }
            }
            Action::StartManager(number) => {
                let it = &cluster.managers[number];
                if it.is_member && !cluster.world.is_up(it.host) {
                    cluster.start_manager(number);
                }
            }
            Action::CrashWorker { number, power, down } if cluster.world.is_up(cluster.workers[number].host) => {
                cluster.crash_worker(number, power);
                self.at(now + down, Action::StartWorker(number));
            }
            Action::StartWorker(number) if !cluster.world.is_up(cluster.workers[number].host) => {
                cluster.start_worker(number);
            }
            Action::CrashWorker { .. } | Action::StartWorker(_) => {}
            Action::ChangeManagers(change) => self.changes.begin(cluster, change),
            Action::Drain { worker, time } => self.drains.drain(cluster, worker, time),
            Action::Label { worker, label, is_set } => self.drains.label(cluster, worker, LABELS[label], is_set),
            Action::Pause { host, time } => self.pause(cluster, host, time),
            Action::PauseLeader { time } => {
                if let Some(number) = cluster.leader() {
                    self.pause(cluster, cluster.managers[number].host, time);
                }
            }
            Action::Resume(host) => cluster.world.pause(host, false),
            Action::KillContainer { worker } => {
                let machine = &cluster.workers[worker].machine;
                if let Some(running) = machine.running().first() {
                    machine.kill(&running.task);
                }
            }
            Action::StepClock { host, by } => {
                let clocks = cluster.managers.iter().map(|it| (it.host, &it.clock));
                let mut clocks = clocks.chain(cluster.workers.iter().map(|it| (it.host, &it.clock)));
                if let Some((_, clock)) = clocks.find(|(it, _)| *it == host) {
                    clock.step(by);
                }
            }
            Action::HurtDisk { number, faults, time } => {
                cluster.managers[number].disk.set_faults(faults);
                self.hurt.insert(number, u64::MAX);
                self.at(now + time, Action::RepairDisk(number));
            }
            Action::RepairDisk(number) => {
                cluster.managers[number].disk.set_faults(DiskFaults::default());
                self.hurt.insert(number, now + FELT);
            }
            network => self.act_on_network(cluster, network),
        }
    }

    fn act_on_network(&mut self, cluster: &mut SimCluster, action: Action) {
        let now = cluster.world.now();
        match action {
            Action::Block { from, to, time } => self.block(cluster, from, to, time),
            Action::Split { alone, both_ways, time } => self.split(cluster, alone, both_ways, time),
            Action::SplitLeader { both_ways, time } => {
                if let Some(number) = cluster.leader() {
                    self.split(cluster, cluster.managers[number].host, both_ways, time);
                }
            }
            Action::Heal { from, to } => cluster.world.network.heal(from, to),
            Action::Slow { most, time } => {
                cluster.world.network.set_delay(*DELAY.start()..=most);
                self.bad_network = self.bad_network.max(now + time);
                self.at(now + time, Action::Fast);
            }
            Action::Fast => cluster.world.network.set_delay(DELAY),
            Action::Mishaps { loss, doubling, time } => {
                cluster.raft_network.set_mishaps(Mishaps { loss, doubling });
                self.bad_network = self.bad_network.max(now + time);
                self.at(now + time, Action::NoMishaps);
            }
            Action::NoMishaps => cluster.raft_network.set_mishaps(Mishaps::default()),
            other => unreachable!("{other:?} does not concern the network"),
        }
    }

    fn crash_manager(&mut self, cluster: &mut SimCluster, number: usize, power: bool, down: u64) {
        if cluster.world.is_up(cluster.managers[number].host) {
            cluster.crash_manager(number, power);
            self.at(cluster.world.now() + down, Action::StartManager(number));
        }
    }

    fn pause(&mut self, cluster: &mut SimCluster, host: Host, time: u64) {
        if cluster.world.is_up(host) && !cluster.world.is_paused(host) {
            cluster.world.pause(host, true);
            self.at(cluster.world.now() + time, Action::Resume(host));
        }
    }

    fn block(&mut self, cluster: &SimCluster, from: Host, to: Host, time: u64) {
        cluster.world.network.block(from, to);
        self.at(cluster.world.now() + time, Action::Heal { from, to });
    }

    /// Cuts one host off from all managers and workers, in both directions or only the outgoing one.
    fn split(&mut self, cluster: &SimCluster, alone: Host, both_ways: bool, time: u64) {
        let hosts = cluster.managers.iter().map(|it| it.host).chain(cluster.workers.iter().map(|it| it.host));
        for host in hosts.filter(|host| *host != alone) {
            self.block(cluster, alone, host, time);
            if both_ways {
                self.block(cluster, host, alone, time);
            }
        }
    }
}
