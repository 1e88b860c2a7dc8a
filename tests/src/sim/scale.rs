//! Measures the cost of a large cluster: three managers, many workers in one process, and services that are all created
//! at once. Then some workers are cut off for a while, and the leader crashes. `flota-simulate --scale` prints the
//! figures. `loops.rs` measures the control loops alone.

use std::cell::RefCell;
use std::time::Duration;

use futures::future::join_all;

use flota_api::clock::Random;
use flota_api::model::{NodeState, Role};
use flota_api::proto::control::CreateServiceRequest;
use flota_api::proto::control::control_client::ControlClient;
use flota_api::state::TaskState;

use super::cluster::SimCluster;
use super::host::{Host, USER};
use super::invariants::converged;
use super::run::is_up;
use super::script::spec;
use super::user::channels;
use super::world::World;

/// How large the cluster is.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Number of workers.
    pub workers: u16,
    /// Number of tasks, a multiple of twenty: there are twenty services.
    pub tasks: u64,
}

/// The figures of such a cluster. CPU time is that from the first create until every task ran, unless said otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Virtual time until every task was assigned to a node, in milliseconds.
    pub assigned_ms: u64,
    /// Virtual time until every task ran, in milliseconds.
    pub running_ms: u64,
    /// CPU time of all nodes together until every task was assigned.
    pub until_assigned: Duration,
    /// CPU time of the leader.
    pub leader: Duration,
    /// CPU time of the other managers together.
    pub followers: Duration,
    /// CPU time of the workers and of the user together.
    pub others: Duration,
    /// CPU time of the leader for each worker that is cut off until it is down, and comes back: its tasks are replaced,
    /// and it is told so.
    pub lost_node: Duration,
    /// Memory of the leader, in bytes, its sessions included.
    pub memory: u64,
    /// Memory of a manager without sessions, in bytes.
    pub follower_memory: u64,
    /// Virtual time from the crash of the leader until every worker had a session with the next, in milliseconds.
    pub reconnected_ms: u64,
    /// CPU time of the next leader meanwhile.
    pub reconnect: Duration,
}

impl Cost {
    /// Total CPU time.
    pub fn cpu(&self) -> Duration {
        self.leader + self.followers + self.others
    }
}

const SERVICES: u64 = 20;
/// Time between two checks, in milliseconds of virtual time.
const LOOK_EVERY: u64 = 50;
/// Time for the cluster to be up, and then for each next state of the tasks, in milliseconds of virtual time.
const PATIENCE: u64 = 300_000;

impl Scale {
    /// Runs such a cluster until every task runs once and the tasks are spread evenly over the nodes.
    ///
    /// # Errors
    /// The condition that does not hold.
    ///
    /// # Panics
    /// The thread can't be created.
    pub fn run(self) -> Result<Cost, String> {
        // A new thread is needed, because the simulation sets its time and its random numbers.
        let thread = std::thread::Builder::new().name("scale".into()).stack_size(16 << 20);
        let thread = thread.spawn(move || self.measure()).expect("a thread");
        thread.join().unwrap_or_else(|_| Err("the simulation panicked".into()))
    }

    fn measure(self) -> Result<Cost, String> {
        let mut cluster = SimCluster::start_fleet(World::new(1), 3, self.workers, &Random::seeded(1));
        until(&mut cluster, "the cluster is up", is_up)?;
        let leader = cluster.leader().ok_or("no manager leads")?;
        let (begun, before) = (cluster.world.now(), cpu(&cluster, leader));
        self.create_services(&mut cluster);
        until(&mut cluster, "every task is assigned", |it| self.all_are_at_least(TaskState::Assigned, it))?;
        let assigned_ms = cluster.world.now() - begun;
        let at_assigned = cpu(&cluster, leader);
        until(&mut cluster, "every task runs", |it| self.all_are_at_least(TaskState::Running, it))?;
        let running_ms = cluster.world.now() - begun;
        let after = cpu(&cluster, leader);
        until(&mut cluster, "everything is as the user wants it", converged)?;
        self.check_spread(&cluster)?;
        let [by_leader, followers, others] = [0, 1, 2].map(|who| after[who] - before[who]);
        let until_assigned = (0..3).map(|who| at_assigned[who] - before[who]).sum();
        let cost =
            Cost { until_assigned, assigned_ms, running_ms, leader: by_leader, followers, others, ..Cost::default() };
        let cost = Cost { lost_node: self.lose_nodes(&mut cluster, leader)?, ..cost };
        self.change_leader(&mut cluster, leader, cost)
    }

    /// Cuts off one worker in a hundred until all of them are down, and returns what each costs the leader.
    fn lose_nodes(self, cluster: &mut SimCluster, leader: usize) -> Result<Duration, String> {
        let lost: Vec<Host> =
            cluster.workers.iter().map(|it| it.host).take(usize::from(self.workers / 100 + 1)).collect();
        let managers: Vec<Host> = cluster.managers.iter().map(|it| it.host).collect();
        let paths = || lost.iter().flat_map(|lost| managers.iter().map(move |manager| (*lost, *manager)));
        let (begun, before) = (cluster.world.now(), cpu(cluster, leader)[0]);
        paths().for_each(|(worker, manager)| cluster.world.network.block(worker, manager));
        paths().for_each(|(worker, manager)| cluster.world.network.block(manager, worker));
        until(cluster, "the workers that were cut off are down", |it| count_down(it, lost.len()))?;
        cluster.world.network.heal_all();
        until(cluster, "they are back", converged)?;
        let (taken, lasted) = (cpu(cluster, leader)[0] - before, cluster.world.now() - begun);
        // The same time without any change.
        let (quiet, before) = (cluster.world.now() + lasted, cpu(cluster, leader)[0]);
        while cluster.world.now() < quiet {
            cluster.world.step();
        }
        let usual = cpu(cluster, leader)[0] - before;
        Ok(taken.saturating_sub(usual) / u32::try_from(lost.len()).expect("they are few"))
    }

    /// Crashes the leader and waits until every worker has a session with the next one. None may be taken for down
    /// meanwhile.
    fn change_leader(self, cluster: &mut SimCluster, leader: usize, cost: Cost) -> Result<Cost, String> {
        let begun = cluster.world.now();
        let memory = cluster.crash_and_weigh(leader);
        let others: Vec<usize> = (0..cluster.managers.len()).filter(|number| *number != leader).collect();
        let taken = |cluster: &SimCluster| -> Vec<Duration> { others.iter().map(|it| cpu(cluster, *it)[0]).collect() };
        let before = taken(cluster);
        let lost = RefCell::new(None);
        until(cluster, "every worker has a session with another leader", |it| {
            if let Some(Err(down)) = it.view().map(|_| count_down(it, 0)) {
                lost.borrow_mut().get_or_insert(down);
            }
            let next = it.leader().and_then(|number| it.managers[number].manager()).ok_or("no manager leads")?;
            let sessions = next.sessions();
            if sessions == usize::from(self.workers) { Ok(()) } else { Err(format!("{sessions} sessions")) }
        })?;
        if let Some(down) = lost.take() {
            return Err(format!("while the workers had to connect to another leader, {down}"));
        }
        let next = cluster.leader().and_then(|next| others.iter().position(|it| *it == next));
        let next = next.ok_or("no manager leads")?;
        let reconnect = taken(cluster)[next] - before[next];
        let reconnected_ms = cluster.world.now() - begun;
        let follower_memory = cluster.crash_and_weigh(others[1 - next]);
        Ok(Cost { memory, follower_memory, reconnected_ms, reconnect, ..cost })
    }

    /// Makes a user create all services at once.
    fn create_services(self, cluster: &mut SimCluster) {
        let (network, managers) = (cluster.world.network.clone(), cluster.addresses());
        let replicas = self.tasks / SERVICES;
        let main = async move {
            let client = ControlClient::new(channels(&network, &managers).remove(0));
            let creates = (0..SERVICES).map(|number| {
                let mut client = client.clone();
                let spec = spec(&format!("service-{number}"), replicas);
                let request = CreateServiceRequest {
                    request_id: spec.name.clone(),
                    spec: Some(spec),
                    ..CreateServiceRequest::default()
                };
                async move {
                    if let Err(status) = client.create_service(request).await {
                        tracing::error!(%status, "a service could not be created");
                    }
                }
            });
            join_all(creates).await;
        };
        cluster.world.start(USER, main);
    }

    /// Whether all tasks exist and have reached this state, according to the leader's store.
    fn all_are_at_least(self, state: TaskState, cluster: &SimCluster) -> Result<(), String> {
        let view = cluster.view().ok_or("no manager leads")?;
        let count = view.tasks().filter(|task| task.status.state >= state).count() as u64;
        if count == self.tasks { Ok(()) } else { Err(format!("{count} of {}", self.tasks)) }
    }

    /// Checks that there are no surplus tasks and that every node has the same number of tasks.
    fn check_spread(self, cluster: &SimCluster) -> Result<(), String> {
        let tasks = cluster.view().ok_or("no manager leads")?.tasks().count() as u64;
        if tasks != self.tasks {
            return Err(format!("{tasks} tasks were made for {} that are wanted", self.tasks));
        }
        let share = self.tasks / u64::from(self.workers);
        let loads = cluster.workers.iter().map(|it| (it.host, it.machine.running().len() as u64));
        match loads.into_iter().find(|(_, load)| load.abs_diff(share) > 1) {
            Some((host, load)) => Err(format!("{load} tasks run on {host}, and {share} are its share")),
            None => Ok(()),
        }
    }
}

/// CPU time so far of the leader, of the other managers, and of all other processes.
fn cpu(cluster: &SimCluster, leader: usize) -> [Duration; 3] {
    let leader = cluster.world.cpu(cluster.managers[leader].host);
    let managers: Duration = cluster.managers.iter().map(|it| cluster.world.cpu(it.host)).sum();
    let others = cluster.world.cpu(USER) + cluster.world.cpu(cluster.workers[0].host);
    [leader, managers - leader, others]
}

/// Whether exactly this many nodes are down.
fn count_down(cluster: &SimCluster, expected: usize) -> Result<(), String> {
    let view = cluster.view().ok_or("no manager leads")?;
    let down = view.nodes().filter(|node| node.role == Role::Worker && node.state == NodeState::Down).count();
    if down == expected { Ok(()) } else { Err(format!("{down} nodes are down, not {expected}")) }
}

/// Runs until `condition` holds, without checking the invariants: that costs more than the cluster itself.
fn until(
    cluster: &mut SimCluster,
    what: &str,
    condition: impl Fn(&SimCluster) -> Result<(), String>,
) -> Result<(), String> {
    let end = cluster.world.now() + PATIENCE;
    while let Err(missing) = condition(cluster) {
        if cluster.world.now() > end {
            return Err(format!("not within {PATIENCE} ms: {what}: {missing}"));
        }
        let next = cluster.world.now() + LOOK_EVERY;
        while cluster.world.now() < next {
            cluster.world.step();
        }
    }
    Ok(())
}
