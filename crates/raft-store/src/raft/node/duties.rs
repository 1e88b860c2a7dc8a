//! Background work of a manager's Raft: it follows leadership, makes snapshots, compares tables and keeps the age
//! small.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{ReadPolicy, ServerState};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::freshness::{Freshness, RENEWAL_WAIT};
use super::{Leadership, QUORUM_WAIT};
use crate::digest::Digest;
use crate::raft::Raft;
use crate::raft::digests::{Digests, Verdict, judge};
use crate::raft::disk::Disk;
use crate::raft::state_machine::{Milestones, Progress};
use crate::raft::storage::{LogStore, OpenError};
use crate::raft::transport::{Method, Peers};
use crate::raft::type_config::{EntryBytes, TypeConfig};
use crate::transaction::Entry;
use flota_api::clock::Clock;

/// Time that followers have to apply a comparison before the leader asks for their digests.
const CHECK_AFTER: Duration = Duration::from_secs(1);
/// How long to wait for a requested snapshot to begin before requesting it again.
const SNAPSHOT_AGAIN: Duration = Duration::from_secs(5);
/// How long to wait after an entry before settling the log. If the burst is not over then, it costs one extra sync.
const SETTLE_AFTER: Duration = Duration::from_secs(1);
/// Interval at which a manager renews its age without a request.
const FRESHEN_EVERY: Duration = Duration::from_secs(15);
/// The interval after a request that got no answer.
const FRESHEN_AGAIN: Duration = Duration::from_secs(1);
/// How long to wait for the digest of another manager.
const DIGEST_WAIT: Duration = Duration::from_secs(2);
/// File that marks the tables as wrong. A folder with this file must not be used any more.
const MARK: &str = "diverged";

/// Refuses a folder that is marked because its tables differed from those of the other managers.
pub(super) fn check_mark(disk: &dyn Disk) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { place: disk.place(), source };
    if disk.list().map_err(io)?.iter().any(|name| name == MARK) {
        let what = "its tables differed from those of the other managers".to_owned();
        return Err(OpenError::Damaged { place: disk.place(), what });
    }
    Ok(())
}

/// State that the duties need. It does not keep the core alive.
pub(super) struct Duties {
    pub(super) id: u64,
    pub(super) raft: Raft,
    pub(super) peers: Peers,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) leadership: watch::Receiver<Leadership>,
    pub(super) progress: watch::Receiver<Progress>,
    pub(super) milestones: watch::Receiver<Milestones>,
    pub(super) digests: Digests,
    pub(super) log: LogStore,
    pub(super) freshness: Freshness,
    pub(super) clock: Clock,
}

impl Duties {
    /// Runs all duties until `stop` is cancelled or the core has stopped.
    pub(super) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = self.make_snapshots() => {}
            () = self.purge_log() => {}
            () = self.watch_log() => {}
            () = self.check_tables() => {}
            () = self.judge_tables() => {}
            () = self.freshen() => {}
            () = self.settle() => {}
            () = stop.cancelled() => {}
        }
    }

    /// Requests a snapshot whenever the log has become long enough.
    async fn make_snapshots(&self) {
        let mut milestones = self.milestones.clone();
        while milestones.wait_for(|it| it.wants_snapshot).await.is_ok() {
            if let Err(error) = self.raft.trigger().snapshot().await {
                tracing::warn!(%error, "a snapshot could not be begun");
                return;
            }
            // `wants_snapshot` is cleared when the snapshot is taken. A trigger while one is being built does nothing.
            let begun = milestones.wait_for(|it| !it.wants_snapshot);
            if let Ok(Err(_)) = tokio::time::timeout(SNAPSHOT_AGAIN, begun).await {
                return;
            }
        }
    }

    /// Purges the log up to each snapshot, except for entries that followers slightly behind still need.
    async fn purge_log(&self) {
        let mut milestones = self.milestones.clone();
        let mut purged = None;
        loop {
            let Ok(snapshot) = milestones.wait_for(|it| it.snapshot > purged).await.map(|it| it.snapshot) else {
                return;
            };
            purged = snapshot;
            // The library purges only entries that the newest snapshot it knows of contains, so wait until it knows of
            // this one.
            let mut metrics = self.raft.data_metrics();
            while metrics.borrow_watched().snapshot.map(|id| id.index) < snapshot {
                if metrics.changed().await.is_err() {
                    return;
                }
            }
            if let Some(upto) = snapshot.and_then(|snapshot| self.log.purge_point(snapshot))
                && self.raft.trigger().purge_log(upto).await.is_err()
            {
                return;
            }
        }
    }

    /// Stops the core when the log can no longer be written, even if no proposal is waiting.
    async fn watch_log(&self) {
        self.log.failed().await;
        tracing::error!("the Raft log has failed: this manager stops");
        self.stop_core().await;
    }

    /// While this manager leads, proposes the digest of its tables at the start of the term and every 1,000 entries.
    async fn check_tables(&self) {
        let (mut leadership, mut milestones) = (self.leadership.clone(), self.milestones.clone());
        loop {
            let Ok(term) = leadership.wait_for(|it| it.is_self).await.map(|it| it.term) else { return };
            if let Some(index) = self.propose_check().await {
                // The followers compare their tables with the leader's. To find out whether its own are wrong, the
                // leader must ask.
                tokio::time::sleep(CHECK_AFTER).await;
                if self.verdict(index).await == Verdict::Wrong {
                    return self.stop_diverged(index).await;
                }
            }
            let before = milestones.borrow().thousands;
            tokio::select! {
                next = milestones.wait_for(|it| it.thousands > before) => if next.is_err() { return },
                changed = leadership.wait_for(|it| !it.is_self || it.term != term) => if changed.is_err() { return },
            }
        }
    }

    /// Proposes a comparison and returns the index of the entry whose digest it holds.
    async fn propose_check(&self) -> Option<u64> {
        // A manager that has just started may not have applied every committed entry yet.
        let caught_up = self.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        tokio::time::timeout(QUORUM_WAIT, caught_up).await.ok()?.ok()?;
        let applied = self.progress.borrow().applied;
        let check = Some((applied, self.digests.at(applied)?));
        let entry = Entry { at: self.clock.now(), check, ..Entry::default() };
        // If it is lost, the next comparison replaces it.
        let written = self.raft.client_write(EntryBytes(entry.encode().into()));
        tokio::time::timeout(QUORUM_WAIT, written).await.ok()?.ok()?;
        Some(applied)
    }

    /// Finds out which manager is wrong when tables differ. If it is this one, it marks its folder and stops; it is
    /// then rebuilt from the others under a new Raft id, like a manager with a damaged log.
    async fn judge_tables(&self) {
        let mut suspects = self.digests.suspects();
        loop {
            let Ok(index) = suspects.wait_for(Option::is_some).await.map(|it| *it) else { return };
            // If the digest is not kept any more, this comparison can't be judged; wait for the next one.
            let Some(index) = index.filter(|index| self.digests.at(*index).is_some()) else {
                if suspects.changed().await.is_err() {
                    return;
                }
                continue;
            };
            match self.verdict(index).await {
                Verdict::Right => {
                    tracing::error!(entry = index, "the tables of another manager are wrong; those here are not");
                    if suspects.changed().await.is_err() {
                        return;
                    }
                }
                Verdict::Wrong => return self.stop_diverged(index).await,
                Verdict::Unknown => {
                    tracing::error!(entry = index, "the tables of managers differ, and no majority agrees yet");
                    tokio::time::sleep(DIGEST_WAIT).await;
                }
            }
        }
    }

    async fn verdict(&self, index: u64) -> Verdict {
        let Some(own) = self.digests.at(index) else { return Verdict::Unknown };
        let voters: Vec<u64> = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().voter_ids().collect()
        };
        let mut others = Vec::new();
        for voter in voters.iter().filter(|voter| **voter != self.id) {
            let digest = self.peers.call::<_, Option<Digest>>(*voter, Method::Digest, &index, DIGEST_WAIT).await;
            others.extend(digest.ok().flatten());
        }
        judge(own, &others, voters.len())
    }

    /// Stops the core from a task of its own. Stopping the core ends the other duties and so cancels this future, and
    /// the library panics on any later call if a shutdown was started and then cancelled.
    async fn stop_core(&self) {
        let raft = self.raft.clone();
        // The task ends with the core and returns nothing.
        let _ = tokio::spawn(async move { raft.shutdown().await }).await;
    }

    async fn stop_diverged(&self, index: u64) {
        tracing::error!(
            entry = index,
            "the tables of this manager differ from those of a majority: it stops, and is rebuilt from the others"
        );
        let marked = self.disk.create(MARK).and_then(|_| self.disk.sync_names());
        if let Err(error) = marked {
            tracing::error!(%error, "the folder with the wrong tables could not be marked");
        }
        self.stop_core().await;
    }

    /// Settles the log after each burst of entries.
    async fn settle(&self) {
        let mut progress = self.progress.clone();
        while progress.changed().await.is_ok() {
            tokio::time::sleep(SETTLE_AFTER).await;
            progress.mark_unchanged();
            self.log.settle();
        }
    }

    /// Renews the age of this manager's data regularly, even without requests.
    async fn freshen(&self) {
        let mut leadership = self.leadership.clone();
        loop {
            leadership.mark_unchanged();
            let wait = if self.freshness.freshen(RENEWAL_WAIT).await { FRESHEN_EVERY } else { FRESHEN_AGAIN };
            tokio::select! {
                changed = leadership.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

/// Follows the core's view of the leader and updates the addresses of the peers from the membership.
pub(super) fn watch_leadership(raft: &Raft, peers: Peers) -> watch::Receiver<Leadership> {
    let mut metrics = raft.server_metrics();
    let read = move |metrics: &openraft::metrics::RaftServerMetrics<TypeConfig>| {
        for (id, node) in metrics.membership_config.membership().nodes() {
            peers.set_address(*id, &node.addr);
        }
        let is_self = metrics.state == ServerState::Leader && metrics.current_leader == Some(metrics.id);
        let leader = metrics.current_leader.filter(|id| is_self || *id != metrics.id);
        Leadership { term: metrics.vote.leader_id.term, leader, is_self }
    };
    let (sender, receiver) = watch::channel(read(&metrics.borrow_watched()));
    tokio::spawn(async move {
        while metrics.changed().await.is_ok() {
            let now = read(&metrics.borrow_watched());
            sender.send_if_modified(|known| {
                let changed = *known != now;
                *known = now;
                changed
            });
        }
        sender.send_replace(Leadership::default());
    });
    receiver
}
