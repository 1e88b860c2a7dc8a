//! One simulation from its seed to its verdict, in a thread of its own.

use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;

use rand::Rng;

use flota_api::clock::Random;
use flota_api::model::Stack;
use flota_raft_store::faults::{self, Fault};
use flota_raft_store::{Entry, WriteTx};

use super::cluster::SimCluster;
use super::host::USER;
use super::invariants::{Invariants, converged, picture};
use super::schedule::Schedule;
use super::user::{History, Users, Wishes, channels};
use super::world::World;

/// What is simulated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Everything follows from it.
    pub seed: u64,
    /// How many managers there are.
    pub managers: u16,
    /// How many workers there are.
    pub workers: u16,
    /// For how long things go wrong, in milliseconds of virtual time.
    pub trouble: u64,
    /// A fault that is put in on purpose.
    pub fault: Option<Fault>,
}

impl Options {
    /// Three managers and three workers, half a minute of trouble.
    pub fn new(seed: u64) -> Self {
        Self { seed, managers: 3, workers: 3, trouble: 30_000, fault: None }
    }
}

/// What became of a simulation.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was simulated.
    pub options: Options,
    /// What did not hold; `None`: all did.
    pub violation: Option<String>,
    /// Everything that happened.
    pub log: Vec<String>,
    /// How much time went by in it, in milliseconds.
    pub virtual_ms: u64,
    /// Operations of users.
    pub operations: u64,
}

impl Outcome {
    /// The verdict as a text that says how to see it again.
    pub fn report(&self) -> String {
        let Options { seed, trouble, fault, .. } = self.options;
        let Some(violation) = &self.violation else { return format!("seed {seed}: everything held") };
        let last = &self.log[self.log.len().saturating_sub(30)..];
        let fault = fault.map(|fault| format!(" {fault:?}")).unwrap_or_default();
        format!(
            "seed {seed}: {violation}\n--- the last of {} lines\n{}\n--- the whole log: \
             cargo run -p flota-tests --bin flota-simulate -- --log {seed} {}{fault}",
            self.log.len(),
            last.join("\n"),
            trouble / 1_000,
        )
    }
}

/// The cluster must be up after this long.
const START: u64 = 30_000;
/// Everything must be as users want it this long after the last thing went wrong.
const CONVERGE: u64 = 90_000;
/// And stay so for this long: longer than it takes to find out that a node is away.
const STEADY: u64 = 6_000;
/// Then nothing moves for this long.
const QUIET: u64 = 5_000;
/// Quanta between two looks.
const LOOK_EVERY: u64 = 5;

/// Runs a simulation in this process, which must not have run another before.
///
/// # Panics
/// When no thread can be made.
pub(super) fn simulate_here(options: Options) -> Outcome {
    // A new thread: its random numbers and hash maps are the seed's from the first one on.
    let thread = std::thread::Builder::new().name(format!("seed {}", options.seed)).stack_size(16 << 20);
    let run = move || {
        note_panics();
        faults::set(options.fault);
        Run::new(options).finish(options)
    };
    thread.spawn(run).expect("a thread").join().expect("panics are caught inside")
}

/// Whether every manager votes, every worker is in session, and every service runs as it should.
pub(super) fn is_up(cluster: &SimCluster) -> Result<(), String> {
    let managers = cluster.managers.len();
    let leader = cluster.leader().and_then(|number| cluster.managers[number].manager());
    // While the set changes, a majority of the old set is needed as well, and one manager more may stop the cluster.
    let leader = leader.filter(|it| !it.raft().is_changing()).ok_or("nobody leads a complete set of managers")?;
    let voters = leader.raft().members().iter().filter(|member| member.votes).count();
    if voters < managers { Err(format!("{voters} of {managers} managers vote")) } else { converged(cluster) }
}

/// The first panic of any task of any process.
static PANIC: OnceLock<String> = OnceLock::new();

/// Remembers a panic: the runtime of the task that panicked would hide it.
fn note_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // Only the first counts.
        let _ = PANIC.set(panic.to_string());
        usual(panic);
    }));
}

/// A running simulation.
pub struct Run {
    /// The cluster.
    pub cluster: SimCluster,
    /// What users see.
    pub history: History,
    invariants: Invariants,
    random: Random,
    trouble: u64,
    quanta: u64,
}

impl Run {
    /// Starts the cluster. The thread must be new, and belongs to it.
    pub fn new(options: Options) -> Self {
        let world = World::new(options.seed);
        let random = Random::seeded(options.seed);
        let cluster = SimCluster::start(world, options.managers, options.workers, &random);
        Self { cluster, history: History::default(), invariants: Invariants::default(), random, trouble: 0, quanta: 0 }
    }

    fn finish(mut self, options: Options) -> Outcome {
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| self.judge(options)));
        let result = result.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned()));
            Err(format!("something panicked: {}", text.unwrap_or_default()))
        });
        let log = self.cluster.world.log.clone();
        let operations = self.history.count().0;
        if let Err(violation) = &result {
            log.add(format_args!("violation: {violation}"));
        }
        Outcome {
            options,
            violation: result.err(),
            log: log.lines(),
            virtual_ms: self.cluster.world.now(),
            operations: u64::try_from(operations).unwrap_or_default(),
        }
    }

    fn judge(&mut self, options: Options) -> Result<(), String> {
        self.until_up()?;
        self.start_users(3, 150);
        let mut schedule = Schedule::new(self.random.fork(), self.cluster.world.now());
        let end = self.cluster.world.now() + options.trouble;
        while self.cluster.world.now() < end {
            schedule.run(&mut self.cluster);
            self.restart_ended(&mut schedule)?;
            self.trouble = schedule.trouble();
            self.step()?;
        }
        schedule.end(&mut self.cluster);
        self.trouble = schedule.trouble();
        self.history.stop();
        let until = self.cluster.world.now() + CONVERGE;
        let mut since = None;
        while since.is_none_or(|since| self.cluster.world.now() < since + STEADY) {
            schedule.run_due(&mut self.cluster);
            self.restart_ended(&mut schedule)?;
            self.step()?;
            let missing = match self.history.count() {
                (_, 0) => converged(&self.cluster).err(),
                (_, open) => Some(format!("{open} requests of users are under way")),
            };
            match missing {
                None => since = since.or(Some(self.cluster.world.now())),
                Some(what) if self.cluster.world.now() > until => {
                    return Err(format!("{CONVERGE} ms after the last trouble, {what}"));
                }
                Some(_) => since = None,
            }
        }
        self.check_quiet()?;
        self.history.check(self.invariants.paused()).map_err(|violation| violation.to_string())
    }

    /// Runs until every manager votes and every worker is in session.
    ///
    /// # Errors
    /// What does not hold, or is missing.
    pub fn until_up(&mut self) -> Result<(), String> {
        self.until("the cluster is up", START, is_up)?;
        self.cluster.all_were_here();
        Ok(())
    }

    /// Runs until `condition` holds, for so many milliseconds at most.
    ///
    /// # Errors
    /// What does not hold.
    pub fn until(
        &mut self,
        what: &str,
        most: u64,
        condition: impl Fn(&SimCluster) -> Result<(), String>,
    ) -> Result<(), String> {
        let until = self.cluster.world.now() + most;
        while let Err(missing) = condition(&self.cluster) {
            if self.cluster.world.now() > until {
                return Err(format!("not within {most} ms: {what}: {missing}"));
            }
            self.step()?;
        }
        Ok(())
    }

    /// Runs for so many milliseconds.
    ///
    /// # Errors
    /// What does not hold.
    pub fn pass(&mut self, millis: u64) -> Result<(), String> {
        let until = self.cluster.world.now() + millis;
        while self.cluster.world.now() < until {
            self.step()?;
        }
        Ok(())
    }

    /// Starts users with so many clients, each with a pause of at most so many milliseconds.
    pub fn start_users(&mut self, clients: u64, pause: u64) {
        let users = Users {
            clients,
            pause,
            wishes: Wishes { image: "app", replicas: 4, devices: true },
            channels: Vec::new(),
            history: self.history.clone(),
        };
        self.history.start();
        let seed: u64 = self.random.draw(|rng| rng.random());
        let (network, managers) = (self.cluster.world.network.clone(), self.cluster.addresses());
        // Channels belong to the runtime that they are made in.
        let main = async move { Users { channels: channels(&network, &managers), ..users }.run(seed).await };
        self.cluster.world.start(USER, main);
    }

    /// Changes the tables of one manager behind its back, as bad memory would.
    ///
    /// # Panics
    /// When that manager does not run.
    pub fn spoil_tables(&mut self, manager: usize) {
        self.invariants.let_tables_differ();
        let store = self.cluster.managers[manager].manager().expect("it runs").store().clone();
        let view = store.view();
        let mut tx = WriteTx::new(view.clone(), "");
        tx.create(Stack { id: "spoiled".into(), ..Stack::default() });
        store.apply(view.version, Entry { at: view.time, transactions: vec![tx.finish()], ..Entry::default() });
    }

    /// One quantum of everybody, and now and then a look at everything.
    ///
    /// # Errors
    /// What does not hold.
    pub fn step(&mut self) -> Result<(), String> {
        self.cluster.world.step();
        self.quanta += 1;
        if let Some(panic) = PANIC.get() {
            return Err(format!("a task panicked: {panic}"));
        }
        if self.quanta.is_multiple_of(LOOK_EVERY) {
            self.invariants.check(&self.cluster, self.trouble)?;
        }
        Ok(())
    }

    /// A manager may end by itself where its disk fails; anywhere else it must not.
    fn restart_ended(&mut self, schedule: &mut Schedule) -> Result<(), String> {
        for (number, why) in self.cluster.ended_managers() {
            let host = self.cluster.managers[number].host;
            self.cluster.world.log.add(format_args!("{host} has ended: {why}"));
            if !schedule.is_hurt(number, self.cluster.world.now()) {
                return Err(format!("the manager on {host} has ended: {why}"));
            }
            schedule.restart(&mut self.cluster, number);
        }
        Ok(())
    }

    /// Once everything is as it should be, it stays so, and nothing is started or stopped.
    fn check_quiet(&mut self) -> Result<(), String> {
        let before = picture(&self.cluster);
        self.pass(QUIET)?;
        let after = picture(&self.cluster);
        if before != after {
            return Err(format!("something moved although nothing was to do: {before} became {after}"));
        }
        converged(&self.cluster).map_err(|missing| format!("it did not stay so: {missing}"))?;
        let bad = ["tables of this manager and of the leader differ", "an answer that nobody gives"];
        match bad.iter().find_map(|text| self.cluster.world.log.find(text)) {
            Some(line) => Err(format!("the log says: {line}")),
            None => Ok(()),
        }
    }
}
