//! Measures what a service costs the managers whose program ends at once, again and again: entries of the Raft log.
//! `flota-simulate --crash` prints the figure.

use std::time::Duration;

use flota_api::clock::Random;
use flota_api::proto::control::CreateServiceRequest;
use flota_api::proto::control::control_client::ControlClient;
use flota_api::proto::specs::ServiceSpec;
use flota_worker::FakeProgram;

use super::cluster::SimCluster;
use super::host::USER;
use super::run::is_up;
use super::script::spec;
use super::user::channels;
use super::world::World;

/// Time for the cluster to be up, in milliseconds of virtual time.
const PATIENCE: u64 = 60_000;
/// Time in which the delays before restarts reach their ceiling, in milliseconds of virtual time.
const SETTLE: u64 = 300_000;
/// Time that is measured, in milliseconds of virtual time.
const MEASURED: u64 = 300_000;

/// Runs three managers and so many workers with a service of so many tasks, each of which ends with 1 after 50 ms, under the
/// default restart policy. Returns the number of entries that the leader adds to its log in a second.
///
/// # Errors
/// The cluster did not start, or no longer has the leader that it began with.
///
/// # Panics
/// The thread can't be created.
pub fn measure(workers: u16, tasks: u64) -> Result<f64, String> {
    let thread = std::thread::Builder::new().name("crash loop".into()).stack_size(16 << 20);
    let thread = thread.spawn(move || run(workers, tasks)).expect("a thread");
    thread.join().unwrap_or_else(|_| Err("the simulation panicked".into()))
}

fn run(workers: u16, tasks: u64) -> Result<f64, String> {
    let mut cluster = SimCluster::start_fleet(World::new(1), 3, workers, &Random::seeded(1));
    let program = FakeProgram { runs: Some(Duration::from_millis(50)), exit_code: 1, ..FakeProgram::default() };
    cluster.workers.iter().for_each(|worker| worker.machine.set_default_program(program.clone()));
    while let Err(missing) = is_up(&cluster) {
        if cluster.world.now() > PATIENCE {
            return Err(missing);
        }
        cluster.world.step();
    }
    let leader = cluster.leader().ok_or("no manager leads")?;
    create(&mut cluster, spec("crashes", tasks));
    pass(&mut cluster, SETTLE);
    let before = last_entry(&cluster, leader)?;
    pass(&mut cluster, MEASURED);
    let entries = last_entry(&cluster, leader)? - before;
    let view = cluster.view().ok_or("no manager leads")?;
    let crashing = view.tasks().filter(|task| task.is_live() && task.restarts() > 5).count() as u64;
    if crashing != tasks {
        return Err(format!("{crashing} of {tasks} tasks have been started again more than five times"));
    }
    Ok(entries as f64 * 1e3 / MEASURED as f64)
}

fn create(cluster: &mut SimCluster, spec: ServiceSpec) {
    let (network, managers) = (cluster.world.network.clone(), cluster.addresses());
    cluster.world.start(USER, async move {
        let request =
            CreateServiceRequest { request_id: "1".into(), spec: Some(spec), ..CreateServiceRequest::default() };
        if let Err(status) = ControlClient::new(channels(&network, &managers).remove(0)).create_service(request).await {
            tracing::error!(%status, "the service could not be created");
        }
    });
}

fn pass(cluster: &mut SimCluster, millis: u64) {
    let until = cluster.world.now() + millis;
    while cluster.world.now() < until {
        cluster.world.step();
    }
}

/// The index of the last entry that the leader has applied.
fn last_entry(cluster: &SimCluster, leader: usize) -> Result<u64, String> {
    let manager = cluster.managers[leader].manager().filter(|it| it.leads()).ok_or("another manager leads")?;
    Ok(manager.raft().applied().0)
}
