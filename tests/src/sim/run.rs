//! Runs one simulation from its seed to its result, in a thread of its own.

use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;
use std::time::Duration;

use rand::Rng;

use flota_api::clock::Random;
use flota_api::model::Stack;
use flota_raft_store::faults::{self, Fault};
use flota_raft_store::{Entry, WriteTx};
use flota_worker::FakeProgram;

use super::availability::Availability;
use super::changes::all_vote;
use super::cluster::SimCluster;
use super::focus::Focus;
use super::host::{MOST_MANAGERS, USER};
use super::invariants::{Invariants, converged, picture};
use super::schedule::Schedule;
use super::user::rollouts::NOT_TAKEN;
use super::user::{CRON, History, Users, chain, channels, jobs, rollouts, runs, scaled};
use super::violation::{Kind, Violation};
use super::world::World;

/// Parameters of a simulation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// The seed, which determines the whole simulation.
    pub seed: u64,
    /// Number of managers.
    pub managers: u16,
    /// Number of workers.
    pub workers: u16,
    /// How long faults are scheduled, in milliseconds of virtual time.
    pub trouble: u64,
    /// A fault in the code that is turned on to check that it is detected.
    pub fault: Option<Fault>,
    /// What goes wrong, and what users ask for.
    pub focus: Focus,
}

impl Options {
    /// Three managers, three workers and 30 seconds of all kinds of faults.
    pub fn new(seed: u64) -> Self {
        Self { seed, managers: 3, workers: 3, trouble: 30_000, fault: None, focus: Focus::Everything }
    }
}

/// The result of a simulation.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The parameters.
    pub options: Options,
    /// The first promise that was broken; `None` if none was.
    pub violation: Option<Violation>,
    /// All lines of the log.
    pub log: Vec<String>,
    /// Duration of the simulation in milliseconds of virtual time.
    pub virtual_ms: u64,
    /// Number of operations of users.
    pub operations: u64,
}

impl Outcome {
    /// Returns the result as a text that says how to reproduce it.
    pub fn report(&self) -> String {
        let Options { seed, trouble, fault, focus, .. } = self.options;
        let Some(violation) = &self.violation else { return format!("seed {seed}: everything held") };
        let last = &self.log[self.log.len().saturating_sub(30)..];
        let fault = fault.map(|fault| format!(" {fault:?}")).unwrap_or_default();
        let focus = if focus == Focus::Everything { String::new() } else { format!(" {focus:?}") };
        // Other builds draw other random numbers.
        let release = if cfg!(debug_assertions) { "" } else { "--release " };
        format!(
            "seed {seed}: {violation}\n--- the last of {} lines\n{}\n--- the whole log: \
             cargo run {release}-p flota-tests --bin flota-simulate -- --log {seed} {}{fault}{focus}",
            self.log.len(),
            last.join("\n"),
            trouble / 1_000,
        )
    }
}

/// Time limit for the cluster to be up, in milliseconds.
const START: u64 = 30_000;
/// Time limit for convergence after the last fault, in milliseconds.
const CONVERGE: u64 = 90_000;
/// Time for which the cluster must then stay converged, in milliseconds: longer than it takes to detect that a node is
/// down.
const STEADY: u64 = 6_000;
/// Time for which nothing may then start or stop, in milliseconds.
const QUIET: u64 = 5_000;
/// Time within which an entry then reaches every manager, in milliseconds.
const CATCH_UP: u64 = 1_000;
/// The longest pause between two requests of a client, in milliseconds.
const PAUSE: u64 = 150;
/// How long a task of the service runs whose tasks end.
const RUN: Duration = Duration::from_secs(2);
/// Number of quanta between two checks of the invariants.
const LOOK_EVERY: u64 = 5;

/// Runs a simulation in this process, which must not have run another one before.
///
/// # Panics
/// The thread can't be created.
pub(super) fn simulate_here(options: Options) -> Outcome {
    // A new thread is needed so that all its random numbers and hash maps come from the seed.
    let thread = std::thread::Builder::new().name(format!("seed {}", options.seed)).stack_size(16 << 20);
    let run = move || {
        note_panics();
        faults::set(options.fault);
        Run::new(options).finish(options)
    };
    thread.spawn(run).expect("a thread").join().expect("panics are caught inside")
}

/// Whether every manager votes, every worker has a session, and every service runs as its spec says.
pub(super) fn is_up(cluster: &SimCluster) -> Result<(), String> {
    all_vote(cluster)?;
    converged(cluster)
}

/// The first panic of any task of any process.
static PANIC: OnceLock<String> = OnceLock::new();

/// Records the first panic, because the runtime of the task that panicked hides it.
fn note_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // It fails if a panic is recorded already; only the first counts.
        let _ = PANIC.set(panic.to_string());
        usual(panic);
    }));
}

/// A running simulation.
pub struct Run {
    /// The cluster.
    pub cluster: SimCluster,
    /// The operations that users have recorded.
    pub history: History,
    invariants: Invariants,
    availability: Availability,
    random: Random,
    trouble: u64,
    quanta: u64,
}

impl Run {
    /// Starts the cluster. It needs a new thread of its own.
    pub fn new(options: Options) -> Self {
        let world = World::new(options.seed);
        let random = Random::seeded(options.seed);
        let cluster = SimCluster::start(world, options.managers, options.workers, &random);
        for prepare in [chain::prepare, jobs::prepare, rollouts::prepare, runs::prepare, scaled::prepare] {
            cluster.workers.iter().for_each(|worker| prepare(&worker.machine));
        }
        let ends = FakeProgram { runs: Some(RUN), ..FakeProgram::default() };
        cluster.workers.iter().for_each(|worker| worker.machine.set_program(CRON, ends.clone()));
        Self {
            cluster,
            history: History::default(),
            invariants: Invariants::default(),
            availability: Availability::default(),
            random,
            trouble: 0,
            quanta: 0,
        }
    }

    fn finish(mut self, options: Options) -> Outcome {
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| self.judge(options)));
        let result = result.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned()));
            Err(Kind::Panicked.because(text.unwrap_or_default()))
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

    fn judge(&mut self, options: Options) -> Result<(), Violation> {
        self.until_up()?;
        self.start_users(options.focus);
        let mut schedule = Schedule::new(options.focus, self.random.fork(), self.cluster.world.now());
        let end = self.cluster.world.now() + options.trouble;
        while self.cluster.world.now() < end {
            schedule.run(&mut self.cluster);
            self.restart_ended(&mut schedule)?;
            self.trouble = schedule.trouble();
            self.step()?;
            // Where the same things go wrong again and again, users may have to wait.
            if options.focus == Focus::Everything {
                self.check_availability(&schedule)?;
            }
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
                (_, open) if open > 0 => Some(format!("{open} requests of users are under way")),
                _ if schedule.is_changing() => Some("the set of managers changes".into()),
                _ if schedule.is_draining() => Some("a node is drained".into()),
                _ => is_up(&self.cluster).err(),
            };
            match missing {
                None => since = since.or(Some(self.cluster.world.now())),
                Some(what) if self.cluster.world.now() > until => {
                    let text = format!("{CONVERGE} ms after the last trouble, {what}");
                    return Err(Kind::NotConverged.because(text));
                }
                Some(_) => since = None,
            }
        }
        self.check_quiet()?;
        let checked = self.history.check(self.invariants.changed());
        checked.map_err(|violation| Kind::NotLinearizable.because(violation.to_string()))
    }

    /// Runs until every manager votes and every worker has a session.
    ///
    /// # Errors
    /// The invariant that is violated, or what is still missing after the time limit.
    pub fn until_up(&mut self) -> Result<(), Violation> {
        self.until("the cluster is up", START, is_up)?;
        self.cluster.all_were_here();
        Ok(())
    }

    /// Runs until `condition` holds, for at most the given time in milliseconds.
    ///
    /// # Errors
    /// The invariant that is violated, or the condition that does not hold in time.
    pub fn until(
        &mut self,
        what: &str,
        most: u64,
        condition: impl Fn(&SimCluster) -> Result<(), String>,
    ) -> Result<(), Violation> {
        let until = self.cluster.world.now() + most;
        while let Err(missing) = condition(&self.cluster) {
            if self.cluster.world.now() > until {
                return Err(Kind::NotInTime.because(format!("not within {most} ms: {what}: {missing}")));
            }
            self.step()?;
        }
        Ok(())
    }

    /// Runs for this many milliseconds.
    ///
    /// # Errors
    /// The invariant that is violated.
    pub fn pass(&mut self, millis: u64) -> Result<(), Violation> {
        let until = self.cluster.world.now() + millis;
        while self.cluster.world.now() < until {
            self.step()?;
        }
        Ok(())
    }

    /// Starts the users that this focus asks for.
    fn start_users(&mut self, focus: Focus) {
        let (clients, wishes) = self.random.draw(|rng| focus.users(rng));
        let users = Users { clients, pause: PAUSE, wishes, channels: Vec::new(), history: self.history.clone() };
        self.history.start();
        let seed: u64 = self.random.draw(|rng| rng.random());
        let network = self.cluster.world.network.clone();
        // They also know the machines that may become managers.
        let managers = self.cluster.managers.len().max(MOST_MANAGERS);
        let managers: Vec<String> = (0..managers).map(|number| self.cluster.manager_host(number).address()).collect();
        // A channel must be created in the runtime that uses it.
        let main = async move { Users { channels: channels(&network, &managers), ..users }.run(seed).await };
        self.cluster.world.start(USER, main);
    }

    /// Changes the tables of one manager without Raft, as bad memory can.
    ///
    /// # Panics
    /// The manager does not run.
    pub fn spoil_tables(&mut self, manager: usize) {
        self.invariants.let_tables_differ();
        let store = self.cluster.managers[manager].manager().expect("it runs").store().clone();
        let view = store.view();
        let mut tx = WriteTx::new(view.clone(), None);
        tx.create(Stack { id: "spoiled".into(), ..Stack::default() });
        store.apply(view.version, Entry { at: view.time, transactions: vec![tx.finish()], ..Entry::default() });
    }

    /// Runs one quantum, and regularly checks the invariants.
    ///
    /// # Errors
    /// The invariant that is violated.
    pub fn step(&mut self) -> Result<(), Violation> {
        self.cluster.world.step();
        self.quanta += 1;
        if let Some(panic) = PANIC.get() {
            return Err(Kind::Panicked.because(panic));
        }
        if self.quanta.is_multiple_of(LOOK_EVERY) {
            self.invariants.check(&self.cluster, self.trouble)?;
        }
        Ok(())
    }

    /// Checks that users can write, unless the network is bad or the set of managers changes.
    fn check_availability(&mut self, schedule: &Schedule) -> Result<(), Violation> {
        let now = self.cluster.world.now();
        if schedule.is_changing() || schedule.is_network_bad(now) {
            self.availability.reset();
            return Ok(());
        }
        let sound = |manager| !schedule.is_hurt(manager, now);
        self.availability.check(&self.cluster, self.history.written(), sound)
    }

    /// Restarts managers that have ended by themselves. That is a violation unless their disk fails.
    fn restart_ended(&mut self, schedule: &mut Schedule) -> Result<(), Violation> {
        for (number, why) in self.cluster.ended_managers() {
            let host = self.cluster.managers[number].host;
            self.cluster.world.log.add(format_args!("{host} has ended: {why}"));
            if !schedule.is_hurt(number, self.cluster.world.now()) {
                return Err(Kind::ManagerEnded.because(format!("the manager on {host} has ended: {why}")));
            }
            schedule.restart(&mut self.cluster, number);
        }
        Ok(())
    }

    /// Checks that a converged cluster stays converged without starting or stopping anything.
    fn check_quiet(&mut self) -> Result<(), Violation> {
        let before = picture(&self.cluster);
        self.pass(QUIET)?;
        let after = picture(&self.cluster);
        if before != after {
            return Err(Kind::Unrest.because(format!("{before} became {after}, although nothing was to do")));
        }
        // An entry may be on its way to the managers.
        let until = self.cluster.world.now() + CATCH_UP;
        while let Err(missing) = converged(&self.cluster) {
            if self.cluster.world.now() >= until {
                return Err(Kind::NotConverged.because(format!("it did not stay so: {missing}")));
            }
            self.step()?;
        }
        let bad = ["tables of this manager and of the leader differ", "an answer that no manager gives", NOT_TAKEN];
        match bad.iter().find_map(|text| self.cluster.world.log.find(text)) {
            Some(line) => Err(Kind::BadLog.because(line)),
            None => Ok(()),
        }
    }
}
