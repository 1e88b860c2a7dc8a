//! Measures the cost of a large cluster: three managers, many workers in one process, and services that are all created
//! at once. `flota-simulate --scale` prints the figures.

use std::time::Duration;

use futures::future::join_all;

use flota_api::clock::Random;
use flota_api::proto::control::CreateServiceRequest;
use flota_api::proto::control::control_client::ControlClient;
use flota_api::state::TaskState;

use super::cluster::SimCluster;
use super::host::USER;
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

/// Cost from the first create until every task ran.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Virtual time until every task was assigned to a node, in milliseconds.
    pub assigned_ms: u64,
    /// Virtual time until every task ran, in milliseconds.
    pub running_ms: u64,
    /// CPU time of the leader.
    pub leader: Duration,
    /// CPU time of the other managers together.
    pub followers: Duration,
    /// CPU time of the workers and of the user together.
    pub others: Duration,
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
        let leader = cluster.leader().ok_or("nobody leads")?;
        let (begun, before) = (cluster.world.now(), cpu(&cluster, leader));
        self.create_services(&mut cluster);
        until(&mut cluster, "every task is assigned", |it| self.all_are_at_least(TaskState::Assigned, it))?;
        let assigned_ms = cluster.world.now() - begun;
        until(&mut cluster, "every task runs", |it| self.all_are_at_least(TaskState::Running, it))?;
        let running_ms = cluster.world.now() - begun;
        let after = cpu(&cluster, leader);
        until(&mut cluster, "everything is as the user wants it", converged)?;
        self.check_spread(&cluster)?;
        let [leader, followers, others] = [0, 1, 2].map(|who| after[who] - before[who]);
        Ok(Cost { assigned_ms, running_ms, leader, followers, others })
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
                let request = CreateServiceRequest { request_id: spec.name.clone(), spec: Some(spec) };
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
        let view = cluster.view().ok_or("nobody leads")?;
        let count = view.tasks().filter(|task| task.status.state >= state).count() as u64;
        if count == self.tasks { Ok(()) } else { Err(format!("{count} of {}", self.tasks)) }
    }

    /// Checks that there are no surplus tasks and that every node has the same number of tasks.
    fn check_spread(self, cluster: &SimCluster) -> Result<(), String> {
        let tasks = cluster.view().ok_or("nobody leads")?.tasks().count() as u64;
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
