//! The cluster object: its join tokens, and its defaults.

use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::time::Duration;

use flota_api::Violation;
use flota_api::model::{Cluster, Rebalance, Role, UserRole};
use flota_api::{LEVEL_OF_KEYS, LEVEL_OF_RENEWAL_GRACE};
use flota_identity::{JoinToken, UnlockKey, new_secret};
use flota_raft_store::{Tables, WriteTx};

use super::error::ControlError;
use super::{Control, Member};
use crate::level;
use crate::promotion::LEAST_DEAD_MANAGER_AFTER;

/// The cluster with its join tokens.
#[derive(Clone, Debug)]
pub(crate) struct ClusterInfo {
    /// The cluster as the store holds it.
    pub(crate) cluster: Cluster,
    /// Token with which workers join.
    pub(crate) worker_token: Option<JoinToken>,
    /// Token with which managers join.
    pub(crate) manager_token: Option<JoinToken>,
}

/// The defaults of the cluster; those that are `None` stay as they are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ClusterDefaults {
    /// Whether programs can't gain privileges, if neither their service nor their node says so.
    pub(crate) no_new_privileges: Option<bool>,
    /// Whether tasks move by themselves when nodes have come.
    pub(crate) auto_rebalance: Option<bool>,
    /// Shortest period of the nodes' heartbeats.
    pub(crate) heartbeat: Option<Duration>,
    /// Number of missed heartbeats after which a node is down.
    pub(crate) heartbeats_missed: Option<u64>,
    /// Validity of the certificates that nodes get from now on.
    pub(crate) certificate_life: Option<Duration>,
    /// How long a node can renew its certificate after that has expired.
    pub(crate) renewal_grace: Option<Duration>,
    /// How long a manager may be down before another node replaces it; for ever if zero.
    pub(crate) dead_manager_after: Option<Duration>,
    /// Number of tasks of each slot that are kept.
    pub(crate) task_history_limit: Option<u64>,
    /// Whether managers are locked after a start.
    pub(crate) autolock: Option<bool>,
}

/// The periods of heartbeats that can be chosen. A lost node is to be found within minutes.
const HEARTBEATS: RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_secs(60);
/// The numbers of missed heartbeats that can be chosen.
const MISSED: RangeInclusive<u64> = 2..=100;
/// The validities of certificates that can be chosen. In an hour, a node that can't reach a manager still has half an
/// hour to renew, and no certificate may outlive the CA that has signed it.
const CERTIFICATE_LIVES: RangeInclusive<Duration> = LEAST_CERTIFICATE_LIFE..=Duration::from_secs(10 * 365 * 24 * 3_600);
/// In builds for tests, a certificate may expire while a test runs.
const LEAST_CERTIFICATE_LIFE: Duration =
    Duration::from_secs(if cfg!(feature = "brief-certificates") { 10 } else { 3_600 });

/// The numbers of tasks of a slot that can be kept. The store has all of them in memory.
const TASK_HISTORY_LIMITS: RangeInclusive<u64> = 1..=100;

/// The shortest time for which a join token can be made.
const LEAST_TTL: Duration = Duration::from_secs(1);

/// Checks a validity of certificates, or how long one that has expired can be renewed.
///
/// # Errors
/// The validity is too short or too long; the text says what is allowed.
pub fn check_certificate_life(life: Duration) -> Result<(), String> {
    let (least, days) = (CERTIFICATE_LIVES.start(), CERTIFICATE_LIVES.end().as_secs() / 86_400);
    if CERTIFICATE_LIVES.contains(&life) { Ok(()) } else { Err(format!("it is from {least:?} to {days} days")) }
}

impl ClusterDefaults {
    fn check(&self) -> Result<(), ControlError> {
        let mut found = Vec::new();
        if self.heartbeat.is_some_and(|it| !HEARTBEATS.contains(&it)) {
            let why = format!("it is from {:?} to {:?}", HEARTBEATS.start(), HEARTBEATS.end());
            found.push(Violation { field: "dispatcher_heartbeat".into(), why });
        }
        if self.heartbeats_missed.is_some_and(|it| !MISSED.contains(&it)) {
            let why = format!("it is from {} to {}", MISSED.start(), MISSED.end());
            found.push(Violation { field: "missed_heartbeats".into(), why });
        }
        if let Some(why) = self.certificate_life.and_then(|it| check_certificate_life(it).err()) {
            found.push(Violation { field: "cert_expiry".into(), why });
        }
        if let Some(why) = self.renewal_grace.and_then(|it| check_certificate_life(it).err()) {
            found.push(Violation { field: "cert_renewal_grace".into(), why });
        }
        if self.dead_manager_after.is_some_and(|it| !it.is_zero() && it < LEAST_DEAD_MANAGER_AFTER) {
            let why = format!("it is at least {LEAST_DEAD_MANAGER_AFTER:?}, or 0 if no manager is to be replaced");
            found.push(Violation { field: "dead_manager_after".into(), why });
        }
        if self.task_history_limit.is_some_and(|it| !TASK_HISTORY_LIMITS.contains(&it)) {
            let why = format!("it is from {} to {}", TASK_HISTORY_LIMITS.start(), TASK_HISTORY_LIMITS.end());
            found.push(Violation { field: "task_history_limit".into(), why });
        }
        if found.is_empty() { Ok(()) } else { Err(ControlError::Invalid(found)) }
    }
}

fn unlock_key(cluster: &Cluster) -> Option<UnlockKey> {
    cluster.autolock.then(|| UnlockKey::new(cluster.unlock_secret.as_text()))
}

fn info(view: &Tables) -> Result<ClusterInfo, ControlError> {
    let cluster = view.cluster().ok_or(ControlError::NoClusterYet)?;
    Ok(ClusterInfo {
        worker_token: Some(JoinToken::of(cluster, Role::Worker)),
        manager_token: Some(JoinToken::of(cluster, Role::Manager)),
        cluster: cluster.as_ref().clone(),
    })
}

impl<M: Member> Control<M> {
    /// Returns the current cluster.
    pub(crate) async fn get_cluster(&self) -> Result<ClusterInfo, ControlError> {
        let view = self.proven_view().await?;
        let info = info(&view)?;
        // Who has a token can bring a node of their own into the cluster.
        let is_told = self.caller.is(UserRole::Admin);
        let token = |it: Option<JoinToken>| it.filter(|_| is_told);
        Ok(ClusterInfo { worker_token: token(info.worker_token), manager_token: token(info.manager_token), ..info })
    }

    /// Changes the defaults that are given.
    pub(crate) async fn update_cluster(
        &self,
        request_id: Option<&str>,
        defaults: ClusterDefaults,
    ) -> Result<ClusterInfo, ControlError> {
        defaults.check()?;
        let updated = self.write_once(request_id, |view| {
            let cluster = view.cluster().ok_or(ControlError::NoClusterYet)?.as_ref().clone();
            let no_new_privileges = defaults.no_new_privileges.unwrap_or(cluster.no_new_privileges);
            let auto_rebalance = defaults.auto_rebalance.unwrap_or(cluster.auto_rebalance);
            let heartbeat = defaults.heartbeat.or(cluster.heartbeat);
            let heartbeats_missed = defaults.heartbeats_missed.map_or(cluster.heartbeats_missed, NonZeroU64::new);
            let certificate_life = defaults.certificate_life.or(cluster.certificate_life);
            let renewal_grace = defaults.renewal_grace.or(cluster.renewal_grace);
            let dead_manager_after = defaults.dead_manager_after.or(cluster.dead_manager_after);
            let dead_manager_after = dead_manager_after.filter(|it| !it.is_zero());
            let task_history_limit = defaults.task_history_limit.map_or(cluster.task_history_limit, NonZeroU64::new);
            let cluster = match defaults.autolock.filter(|it| *it != cluster.autolock) {
                Some(autolock) => self.with_new_unlock_key(&view, Cluster { autolock, ..cluster })?,
                None => cluster,
            };
            let feature_level = match renewal_grace {
                Some(_) => level::raised(&view, LEVEL_OF_RENEWAL_GRACE)?.max(cluster.feature_level),
                None => cluster.feature_level,
            };
            let mut tx = WriteTx::new(view, request_id);
            tx.update(Cluster {
                feature_level,
                no_new_privileges,
                auto_rebalance,
                heartbeat,
                heartbeats_missed,
                certificate_life,
                renewal_grace,
                dead_manager_after,
                task_history_limit,
                ..cluster
            });
            Ok((tx.finish(), ()))
        });
        updated.await?;
        self.read(|view| info(view)).await
    }

    /// Returns the cluster with another unlock key. The feature level rises to one at which managers know what it is.
    fn with_new_unlock_key(&self, view: &Tables, cluster: Cluster) -> Result<Cluster, ControlError> {
        let feature_level = level::raised(view, LEVEL_OF_KEYS)?;
        let secret = self.random.draw(|rng| new_secret(cluster.unlock_secret.as_text(), rng));
        Ok(Cluster { unlock_secret: secret.into(), feature_level, ..cluster })
    }

    /// Returns the key that opens the keys of locked managers; `None` if autolock is off.
    pub(crate) async fn get_unlock_key(&self) -> Result<Option<UnlockKey>, ControlError> {
        let view = self.proven_view().await?;
        Ok(unlock_key(view.cluster().ok_or(ControlError::NoClusterYet)?))
    }

    /// Replaces the unlock key. Each manager that runs seals its keys anew, and one that does not has to be opened with the
    /// old key when it starts.
    pub(crate) async fn rotate_unlock_key(&self, request_id: Option<&str>) -> Result<Option<UnlockKey>, ControlError> {
        let rotated = self.write_once(request_id, |view| {
            let cluster = view.cluster().ok_or(ControlError::NoClusterYet)?.as_ref().clone();
            if !cluster.autolock {
                let text = "autolock is off, so there is no unlock key; `ctl swarm update --autolock` switches it on";
                return Err(ControlError::WrongState(text.into()));
            }
            let cluster = self.with_new_unlock_key(&view, cluster)?;
            let mut tx = WriteTx::new(view, request_id);
            tx.update(cluster);
            Ok((tx.finish(), ()))
        });
        rotated.await?;
        self.get_unlock_key().await
    }

    /// Begins to move tasks from nodes with many to nodes with few, unless that is under way.
    pub(crate) async fn rebalance(&self, request_id: Option<&str>) -> Result<ClusterInfo, ControlError> {
        let begun = self.write_once(request_id, |view| {
            let cluster = view.cluster().ok_or(ControlError::NoClusterYet)?.as_ref().clone();
            let under_way = cluster.rebalance.filter(|it| it.ended_at.is_none());
            let begins = Rebalance { begun_at: self.clock.wall().now(), ..Rebalance::default() };
            let mut tx = WriteTx::new(view, request_id);
            tx.update(Cluster { rebalance: Some(under_way.unwrap_or(begins)), ..cluster });
            Ok((tx.finish(), ()))
        });
        begun.await?;
        self.read(|view| info(view)).await
    }

    /// Replaces the join token for `role`; the old token is invalid from then on. The new one expires after `ttl`, if it is
    /// given.
    pub(crate) async fn rotate_join_token(
        &self,
        request_id: Option<&str>,
        role: Role,
        ttl: Option<Duration>,
    ) -> Result<ClusterInfo, ControlError> {
        if ttl.is_some_and(|it| it < LEAST_TTL) {
            return Err(ControlError::invalid("ttl", format!("it is at least {LEAST_TTL:?}")));
        }
        let expires_at = ttl.map(|ttl| self.clock.wall().now() + ttl);
        let rotated = self.write_once(request_id, |view| {
            let cluster = view.cluster().ok_or(ControlError::NoClusterYet)?;
            let mut cluster = cluster.as_ref().clone();
            let (secret, expiry) = match role {
                Role::Worker => (&mut cluster.worker_token_secret, &mut cluster.worker_token_expires_at),
                Role::Manager => (&mut cluster.manager_token_secret, &mut cluster.manager_token_expires_at),
            };
            *expiry = expires_at;
            *secret = self.random.draw(|rng| new_secret(secret.as_text(), rng)).into();
            let mut tx = WriteTx::new(view, request_id);
            tx.update(cluster);
            Ok((tx.finish(), ()))
        });
        rotated.await?;
        self.read(|view| info(view)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_live_for_an_hour_at_least_and_never_as_long_as_the_ca() {
        let checked = |seconds: u64| check_certificate_life(Duration::from_secs(seconds));
        assert_eq!(
            [checked(LEAST_CERTIFICATE_LIFE.as_secs()), checked(90 * 86_400), checked(3_650 * 86_400)],
            [Ok(()), Ok(()), Ok(())]
        );
        for seconds in [0, LEAST_CERTIFICATE_LIFE.as_secs() - 1, 3_650 * 86_400 + 1] {
            let refused = checked(seconds).expect_err("it is out of bounds");
            assert!(refused.ends_with("to 3650 days"), "{refused}");
        }
        assert!(*CERTIFICATE_LIVES.end() < flota_api::defaults::CA_LIFE);
        let defaults = ClusterDefaults { certificate_life: Some(Duration::ZERO), ..ClusterDefaults::default() };
        let refused = defaults.check().expect_err("it is too short").to_string();
        assert!(refused.contains("cert_expiry: it is from"), "{refused}");
    }
}
