//! How a cluster begins anew: from what this manager has, after the majority is lost, or on an empty node from a backup. Both
//! write a new Raft folder in which this manager is alone. What counts after a crash is decided in one step: for a manager by
//! `StateDir::decide_switch`, and on an empty node by its identity, which is written last.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use flota_api::clock::Clock;
use flota_api::id::NodeId;
use flota_api::model::Role;
use flota_api::proto::node::{LostManager, RecoveryReport};
use flota_identity::{Identity, KeyPair, RootCa};
use flota_manager::{Manager, NewBeginning, OnlyManager, RecoverySurvey, TermClock, begin_anew, survey};
use flota_raft_store::raft::{DirDisk, NewFolder, Threads, replay_folder, write_folder};
use flota_raft_store::{Backup, Store, Tables, View};

use super::Node;
use crate::address::{self, own_address};
use crate::backups::{BackupSource, backup_source, counts, is_newest, number};
use crate::cluster::{Membership, RaftParts};
use crate::rpc::ManagerState;

/// How long a majority may take to answer before it counts as lost. Other failures are over within six seconds.
const MAJORITY_WAIT: Duration = Duration::from_secs(8);
const MAJORITY_PAUSE: Duration = Duration::from_millis(200);

impl Node {
    /// `ctl swarm init --force-new-cluster`. With `dry_run`, it only says what would be kept and lost.
    pub(crate) async fn force_new_cluster(self: &Arc<Self>, dry_run: bool) -> anyhow::Result<RecoveryReport> {
        let mut current = self.membership.lock().await;
        let Some(membership) = current.as_mut() else {
            let text =
                "this node belongs to no cluster; run this on a manager that is left, or `ctl swarm restore` here";
            return Err(self.absence(text));
        };
        let Some(manager) = membership.manager().cloned() else {
            bail!(
                "this node is not a manager, and has no copy of the cluster's state; run this on a manager that is left"
            )
        };
        if has_majority(&manager).await {
            bail!(
                "the cluster has a majority of managers that answer, so it needs no new beginning; a dead manager is \
                 removed with `ctl node rm --force`"
            );
        }
        let (own, uncertain_entries) = (membership.identity.node_id.clone(), manager.raft().unapplied());
        if dry_run {
            let view = manager.store().view();
            return Ok(RecoveryReport { uncertain_entries, ..report(&survey(&view, &own), &view, &own) });
        }
        self.manager.send_replace(ManagerState::Starting);
        drop(manager);
        membership.stop_manager().await;
        let prepared = self.prepare_alone(membership).await;
        // Whether this has succeeded or not, the manager starts again: as the only one, or as it was.
        let started = self.start_again(membership, prepared.is_ok()).await;
        if started.is_err() {
            // A restart of the daemon goes on where this has stopped.
            self.fatal.cancel();
        }
        let (survey, view, beginning) = prepared.context("the manager was left as it was")?;
        started.context("the new cluster is on disk, but its manager failed to start")?;
        tracing::warn!(cluster.epoch = beginning.epoch, raft.id = beginning.raft_id, "the cluster has begun anew");
        let epoch = beginning.epoch;
        Ok(RecoveryReport { uncertain_entries, epoch, ..report(&survey, &view, &own) })
    }

    /// Writes the folder of the new cluster, and decides that it counts. The manager does not run.
    async fn prepare_alone(&self, membership: &Membership) -> anyhow::Result<(RecoverySurvey, View, NewBeginning)> {
        let Membership { identity, address, dialer, .. } = membership;
        let id = self.state.read("raft-id").and_then(|text| text.parse().ok());
        let id = id.context("failed to read this manager's Raft id")?;
        let store = Store::default();
        // Nothing is sent to anybody.
        let removed = CancellationToken::new();
        let parts = RaftParts { config: &self.config, state: &self.state, dialer, removed: &removed, store };
        let end = replay_folder(&parts.options(id, true, &TermClock::new(Clock::system()))?).await?;
        let own = &identity.node_id;
        let before = parts.store.view();
        let only = OnlyManager::Member { id: own, address };
        let beginning = begin_anew(&parts.store, end.index, only, Clock::system().now())?;
        let next = self.state.next_raft()?;
        self.write_raft(&next, &parts.store, &beginning, (address, end.term + 1)).await?;
        self.state.decide_switch(beginning.raft_id)?;
        Ok((survey(&before, own), before, beginning))
    }

    async fn write_raft(
        &self,
        path: &Path,
        store: &Store,
        beginning: &NewBeginning,
        (address, term): (&str, u64),
    ) -> anyhow::Result<()> {
        // Before there is a folder, so that it gets a key of its own.
        let (id, sealer) = (beginning.raft_id, self.state.store_sealer()?);
        let disk = Arc::new(DirDisk::open(path).context("failed to create the new Raft log")?);
        let folder = NewFolder { disk, sealer, id, address, term, threads: Threads::Own };
        write_folder(folder, &store.view()).await.context("failed to write the new Raft log")
    }

    /// Starts the manager again with what is on disk. If it is the only one of a new cluster, it is waited for.
    async fn start_again(&self, membership: &mut Membership, is_alone: bool) -> anyhow::Result<()> {
        self.state.finish_switch()?;
        if is_alone {
            membership.worker.follow_only(&membership.address);
        }
        membership.start_manager(&self.config, &self.state, &self.fatal).await?;
        self.publish(membership);
        if is_alone { membership.wait_until_leader().await } else { Ok(()) }
    }

    /// Returns the tables for `ctl swarm backup`.
    pub(crate) async fn backup_source(&self) -> anyhow::Result<BackupSource> {
        let Some(manager) = self.manager() else {
            bail!("this node is not a running manager, and has no copy of the cluster's state")
        };
        backup_source(&manager).await
    }

    /// `ctl swarm restore`. With `dry_run`, it only says what would be kept and lost.
    pub(crate) async fn restore(
        self: &Arc<Self>,
        backup: Backup,
        advertise: &str,
        dry_run: bool,
    ) -> anyhow::Result<RecoveryReport> {
        let mut current = self.membership.lock().await;
        self.refuse_second(current.as_ref())?;
        let address = own_address(advertise, self.config.listen)?;
        let (before, made_at) = (View::from(backup.tables), backup.made_at.0);
        if dry_run {
            let none = NodeId::default();
            return Ok(RecoveryReport { made_at, ..report(&survey(&before, &none), &before, &none) });
        }
        let identity = identity_from(&before)?;
        let restored = async {
            let beginning = self.write_restored(&before, &identity, &address).await?;
            self.resume(&mut current).await?;
            if let Some(membership) = current.as_ref() {
                membership.wait_until_leader().await?;
            }
            anyhow::Ok(beginning)
        };
        match restored.await {
            Ok(beginning) => {
                tracing::warn!(cluster.epoch = beginning.epoch, "the cluster was restored from a backup");
                let (own, epoch) = (&identity.node_id, beginning.epoch);
                Ok(RecoveryReport { made_at, epoch, ..report(&survey(&before, own), &before, own) })
            }
            Err(error) => {
                self.forget(&mut current).await?;
                Err(error)
            }
        }
    }

    /// Writes everything that a manager has on disk; the identity, which makes it count, comes last.
    async fn write_restored(&self, view: &View, identity: &Identity, address: &str) -> anyhow::Result<NewBeginning> {
        let hostname = flota_worker::describe().hostname;
        let certificate = identity.known_certificate()?;
        let store = Store::default();
        store.restore(Arc::clone(view));
        let only = OnlyManager::New { id: &identity.node_id, address, hostname: &hostname, certificate: &certificate };
        let beginning = begin_anew(&store, 0, only, Clock::system().now())?;
        self.write_raft(&self.state.raft(), &store, &beginning, (address, 1)).await?;
        self.state.write("raft-id", &beginning.raft_id.to_string())?;
        address::record(&self.state, address)?;
        self.state.write("worker/managers", address)?;
        self.state.keys().save_identity(identity)?;
        Ok(beginning)
    }
}

/// Makes an identity for a new manager with the CA in these tables.
fn identity_from(view: &Tables) -> anyhow::Result<Identity> {
    let cluster = view.cluster().context("there is no cluster in the backup")?;
    let ca = RootCa::from_der(cluster.ca_certificate.clone(), cluster.ca_key.0.clone());
    let (node, key) = (NodeId::random(&mut rand::rng()), KeyPair::generate()?);
    let (request, now) = (key.signing_request()?, SystemTime::now());
    let certificate = ca.sign(&request, &node, Role::Manager, &cluster.id, now, cluster.certificate_life())?;
    let trusted = flota_manager::trusted_cas(cluster);
    Ok(Identity::new(certificate, key.to_der(), trusted)?.with_intermediates(flota_manager::ca_intermediates(cluster)))
}

/// Returns whether a majority of the managers answers, which an election may delay.
async fn has_majority(manager: &Manager) -> bool {
    let until = Instant::now() + MAJORITY_WAIT;
    while !is_newest(manager).await {
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(MAJORITY_PAUSE).await;
    }
    true
}

fn report(survey: &RecoverySurvey, view: &Tables, own: &NodeId) -> RecoveryReport {
    let lost = |it: &flota_manager::LostManager| LostManager {
        name: it.name.clone(),
        address: it.address.clone(),
        tasks: number(it.tasks),
        volumes: it.volumes.clone(),
    };
    RecoveryReport {
        cluster_id: view.cluster().map(|it| it.id.to_string()).unwrap_or_default(),
        index: view.version,
        kept: Some(counts(survey)),
        lost_managers: survey.lost_managers.iter().map(lost).collect(),
        lost_images: survey.lost_images.clone(),
        node_id: own.to_string(),
        ..RecoveryReport::default()
    }
}
