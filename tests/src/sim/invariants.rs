//! Invariants that hold at every moment of a simulation, and conditions that hold after the faults have ended.

use std::collections::{BTreeMap, BTreeSet};

use flota_api::model::{Availability, Node, NodeState, Service, ServiceMode, Task, UpdatePhase, UpdateStatus};
use flota_api::state::TaskState;
use flota_manager::Manager;
use flota_raft_store::Digest;
use flota_raft_store::View;

use super::cluster::{ManagerHost, SimCluster};
use super::cron_invariants::CronInvariants;
use super::health_invariants;
use super::host::Host;
use super::job_invariants::{self, JobInvariants};
use super::leader_invariants::LeaderInvariants;
use super::membership_invariants::MembershipInvariants;
use super::network_invariants::{self, NetworkInvariants};
use super::rollout_invariants::RolloutInvariants;
use super::scale_invariants::{self, ScaleInvariants};
use super::steady_invariants::{self, SteadyInvariants};
use super::task_invariants::{TaskInvariants, is_wanted, slots};
use super::user::{CRON, RUN, TAG, chain};
use super::violation::{Kind, Violation};
use super::volume_invariants::{self, VolumeInvariants};

/// State from earlier checks, for comparison with later ones.
#[derive(Default)]
pub struct Invariants {
    leaders: LeaderInvariants,
    membership: MembershipInvariants,
    digests: BTreeMap<u64, Digest>,
    /// The last entry of each process, by its host and number, after which its tables were compared.
    compared: BTreeMap<(Host, u64), u64>,
    newest: u64,
    tasks: TaskInvariants,
    changed: BTreeSet<u64>,
    networks: NetworkInvariants,
    cron: CronInvariants,
    volumes: VolumeInvariants,
    rollouts: RolloutInvariants,
    jobs: JobInvariants,
    scales: ScaleInvariants,
    steady: SteadyInvariants,
    tables_may_differ: bool,
}

impl Invariants {
    /// Allows the tables of managers to differ from now on, because a test has changed those of one.
    pub fn let_tables_differ(&mut self) {
        self.tables_may_differ = true;
    }

    /// Tags of services that the cluster may have changed: their update has ended or was paused, or they have got addresses
    /// or ports.
    pub fn changed(&self) -> &BTreeSet<u64> {
        &self.changed
    }

    /// Checks all invariants. `trouble`: time of the last fault.
    ///
    /// # Errors
    /// The invariant that is violated.
    pub fn check(&mut self, cluster: &SimCluster, trouble: u64) -> Result<(), Violation> {
        if let Some(conflict) = cluster.raft_network.conflict() {
            return Err(Kind::EntriesDiffer.because(conflict));
        }
        self.membership.note_down(cluster);
        for it in &cluster.managers {
            let Some(manager) = it.manager() else { continue };
            self.leaders.check(cluster, it)?;
            if !self.tables_may_differ {
                self.check_digests(cluster, it, &manager)?;
            }
            let view = manager.store().view();
            if view.version > self.newest {
                self.newest = view.version;
                self.note_changed(&view);
                self.tasks.check_tables(cluster, &view)?;
                self.membership.check_tables(cluster, &view)?;
                self.networks.check_tables(&view)?;
                chain::check_order(&view)?;
                self.cron.check_tables(&view)?;
                self.volumes.check_tables(&view)?;
                self.rollouts.check_tables(&view)?;
                self.jobs.check_tables(&view)?;
                self.scales.check_tables(&view)?;
                self.steady.check_tables(&view)?;
                health_invariants::check_tables(cluster, &view)?;
            }
        }
        self.tasks.check_machines(cluster)?;
        self.volumes.check_machines(cluster)?;
        self.networks.check_nodes(cluster, trouble)
    }

    /// Compares the tables of a manager with those of all others, after each entry that it has applied since the last
    /// check.
    fn check_digests(&mut self, cluster: &SimCluster, it: &ManagerHost, manager: &Manager) -> Result<(), Violation> {
        let (applied, _) = manager.raft().applied();
        let process = (it.host, cluster.world.network.incarnation(it.host));
        let compared = self.compared.insert(process, applied).unwrap_or_default();
        for index in compared + 1..=applied {
            // A manager knows no digests of entries that a snapshot contains.
            let Some(digest) = manager.raft().digest_at(index) else { continue };
            if *self.digests.entry(index).or_insert(digest) != digest {
                let text = format!("the tables of {} differ from another manager's after entry {index}", it.host);
                return Err(Kind::TablesDiffer.because(text));
            }
        }
        Ok(())
    }

    fn note_changed(&mut self, view: &View) {
        let is_changed = |service: &Service| {
            let UpdateStatus { phase, reason, failed_slots, previous_version, .. } = &service.update;
            let has_ended = *phase != UpdatePhase::Updating && previous_version.is_some();
            let has_failures = reason.is_some() || !failed_slots.is_empty();
            let has_runs = !service.cron.is_unused();
            has_ended || has_failures || has_runs || !service.virtual_ips.is_empty() || !service.ports.is_empty()
        };
        let changed = view.services().filter(|service| is_changed(service));
        self.changed.extend(changed.filter_map(|service| service.spec.labels.get(TAG)?.parse::<u64>().ok()));
    }
}

fn describe(task: &Task) -> String {
    let Task { slot, spec_version, desired_state, status, pending_reason, .. } = task;
    let reason = pending_reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("slot {slot} of spec {spec_version} is {}, should be {desired_state}{reason}", status.state)
}

/// Returns a text that lists all running containers, and that changes only if one starts or stops, but for those of runs,
/// which begin when their time comes.
pub fn picture(cluster: &SimCluster) -> String {
    let running =
        slots(cluster).into_values().flatten().filter(|it| it.service != CRON && !RUN.contains(&it.service.as_str()));
    let running: Vec<String> = running.map(|it| format!("{}.{} is {}", it.service, it.slot, it.task)).collect();
    running.join(", ")
}

/// Returns how many tasks of the service should run while every node is ready.
fn wanted(service: &Service, view: &View) -> u64 {
    match &service.spec.mode {
        _ if service.spec.stopped => 0,
        ServiceMode::Replicated { .. } | ServiceMode::ReplicatedJob { .. } => service.replicas().unwrap_or_default(),
        ServiceMode::Cron { .. } => 0,
        ServiceMode::Global {} | ServiceMode::GlobalJob {} => {
            let takes = |node: &&std::sync::Arc<Node>| {
                node.state == NodeState::Ready
                    && node.spec.availability != Availability::Drain
                    && service.spec.constraints.iter().all(|constraint| node.satisfies(constraint))
            };
            view.nodes().filter(takes).count() as u64
        }
    }
}

/// Whether the state of the whole cluster is the one that users have requested.
///
/// # Errors
/// The condition that does not hold.
pub fn converged(cluster: &SimCluster) -> Result<(), String> {
    let view = cluster.view().ok_or("no manager leads")?;
    let mut applied = Vec::new();
    for it in cluster.members() {
        let manager = it.manager().ok_or_else(|| format!("{} does not run", it.host))?;
        applied.push(manager.raft().applied());
        manager.raft().age().ok_or_else(|| format!("{} does not know how old its tables are", it.host))?;
    }
    if applied.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(format!("managers have applied {applied:?}"));
    }
    for it in &cluster.workers {
        let state = view.node(&it.node_id).map(|node| node.state);
        if state != Some(NodeState::Ready) {
            return Err(format!("{} is {state:?}", it.host));
        }
    }
    let slots = slots(cluster);
    for service in view.services() {
        scale_invariants::converged(service)?;
        job_invariants::converged(service, wanted(service, &view), &view)?;
        steady_invariants::converged(service, &view)?;
    }
    volume_invariants::converged(&view)?;
    // A paused update waits for a user, and so does the failed task of its slot.
    for service in view.services().filter(|it| !it.update.is_paused() && !it.spec.mode.is_job()) {
        let (name, wanted) = (&service.spec.name, wanted(service, &view));
        let here = slots.iter().filter(|((service, _), _)| service == name);
        let runs = here.map(|(_, running)| running.len()).collect::<Vec<_>>();
        if runs.len() as u64 != wanted || runs.iter().any(|count| *count != 1) {
            return Err(format!("{name} runs {runs:?} containers by slot, and {wanted} are wanted"));
        }
        let current = |task: &&std::sync::Arc<Task>| {
            is_wanted(task) && task.status.state == TaskState::Running && task.spec_version == service.spec_version
        };
        let known = view.tasks_of_service(&service.id).filter(current).count() as u64;
        if known != wanted {
            let tasks: Vec<String> = view.tasks_of_service(&service.id).map(|task| describe(task)).collect();
            return Err(format!("{known} of {wanted} tasks of {name} run as the store knows: {}", tasks.join("; ")));
        }
    }
    match slots.keys().find(|(name, _)| view.service_by_name(name).is_none()) {
        Some((name, _)) => Err(format!("{name} was removed, and runs")),
        None => network_invariants::converged(cluster, &view),
    }
}
