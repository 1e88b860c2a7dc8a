//! Updates: how the tasks of a service are replaced when its spec changes, and how far that has come. The settings are
//! those of Docker and Compose (`update_config`, `rollback_config`); the progress deadline is Flota's own.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::health::{Health, HealthSpec, HealthTest};
use super::pinned_image::PinnedImage;
use super::platform::Platform;
use super::value_use::PinnedValue;
use super::{seconds, text_or_empty};
use crate::defaults;
use crate::resources::number_or_zero;
use crate::state::states;
use crate::version::Timestamp;

states! {
    /// What follows when too many new tasks have failed.
    FailureAction {
        /// The update waits for a user's decision.
        Pause = "pause",
        /// The update goes on.
        Continue = "continue",
        /// The tasks are brought back to the spec before the update.
        Rollback = "rollback",
    }
}

states! {
    /// Which of two tasks of one slot comes first when the one replaces the other.
    UpdateOrder {
        /// The old task has ended before the new one runs.
        StopFirst = "stop-first",
        /// The new task serves before the old one is stopped.
        StartFirst = "start-first",
    }
}

states! {
    /// How far the last change of a service's tasks has come.
    UpdatePhase {
        /// Every task has the newest spec, or its slot's new task has failed.
        Completed = "completed",
        /// Tasks are being brought to the newest spec.
        Updating = "updating",
        /// Too many new tasks have failed, or a user wants it: the update waits for a user's decision.
        Paused = "paused",
        /// The update has failed, and tasks are being brought back to the spec before it.
        RollingBack = "rolling-back",
        /// The rollback has failed too, and waits for a user's decision.
        RollbackPaused = "rollback-paused",
        /// The update has failed, and every task has the spec before it again.
        RolledBack = "rolled-back",
    }
}

/// A share between 0 and 1, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ratio(u32);

impl Ratio {
    /// Number of parts that the whole has.
    const WHOLE: u32 = 1_000_000;

    /// Makes a ratio of this many millionths; `None` if they are more than the whole.
    pub fn from_millionths(millionths: u32) -> Option<Self> {
        (millionths <= Self::WHOLE).then_some(Self(millionths))
    }

    /// Returns the number of millionths.
    pub fn millionths(self) -> u32 {
        self.0
    }

    /// Whether `part` is no more than this share of `whole`.
    fn covers(self, part: usize, whole: usize) -> bool {
        part as u128 * u128::from(Self::WHOLE) <= whole as u128 * u128::from(self.0)
    }
}

impl FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fail = || format!("`{text}` is not a share between 0 and 1, such as 0.25");
        let share: f64 = text.parse().map_err(|_| fail())?;
        if !(0.0..=1.0).contains(&share) {
            return Err(fail());
        }
        // It is between 0 and the whole.
        Ok(Self((share * f64::from(Self::WHOLE)).round() as u32))
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (f64::from(self.0) / f64::from(Self::WHOLE)).fmt(f)
    }
}

impl Serialize for Ratio {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / f64::from(Self::WHOLE))
    }
}

/// How the tasks of a service are replaced when its spec changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdatePolicy {
    /// Largest number of slots that are replaced at once; `None` for all.
    #[serde(serialize_with = "number_or_zero")]
    pub parallelism: Option<NonZeroU64>,
    /// Time between the end of one group of slots and the beginning of the next.
    #[serde(serialize_with = "seconds")]
    pub delay: Duration,
    /// How long a new task is watched for failures once it serves. The next slots do not wait for all of that.
    #[serde(serialize_with = "seconds")]
    pub monitor: Duration,
    /// The share of the new tasks that may fail.
    pub max_failure_ratio: Ratio,
    /// What follows when more have failed.
    pub failure_action: FailureAction,
    /// Whether the old or the new task of a slot comes first.
    pub order: UpdateOrder,
    /// How long a task may take until it serves, once its image is there; `None` for as long as its health check needs,
    /// and a minute.
    #[serde(serialize_with = "super::seconds_or_zero")]
    pub progress_deadline: Option<Duration>,
}

impl Default for UpdatePolicy {
    fn default() -> Self {
        Self {
            parallelism: Some(defaults::UPDATE_PARALLELISM),
            delay: Duration::ZERO,
            monitor: defaults::UPDATE_MONITOR,
            max_failure_ratio: Ratio::default(),
            failure_action: FailureAction::Pause,
            order: UpdateOrder::StopFirst,
            progress_deadline: None,
        }
    }
}

impl UpdatePolicy {
    /// Returns the largest number of slots that are replaced at once.
    pub fn at_once(&self) -> usize {
        self.parallelism.map_or(usize::MAX, |most| usize::try_from(most.get()).unwrap_or(usize::MAX))
    }

    /// Returns whether the update may go on although this many of the tasks of a service have failed.
    pub fn tolerates(&self, failed: usize, tasks: usize) -> bool {
        self.failure_action == FailureAction::Continue || self.max_failure_ratio.covers(failed, tasks)
    }

    /// Returns how long a task whose service has this health check may take until it serves. `health`: its own, which
    /// is known once it runs, and with it the settings of the image.
    pub fn deadline(&self, check: &HealthSpec, health: Option<&Health>) -> Duration {
        let found_out = || match (&check.test, health) {
            (Some(HealthTest::None), _) => Duration::ZERO,
            (_, Some(health)) if !health.decides_within.is_zero() => health.decides_within,
            // The image may have a check, with these settings.
            _ => {
                let retries = check.retries.unwrap_or(defaults::HEALTH_RETRIES).get();
                let failures = check.interval.unwrap_or(defaults::HEALTH_INTERVAL).saturating_mul(retries);
                check.start_period.unwrap_or_default().saturating_add(failures)
            }
        };
        self.progress_deadline.unwrap_or_else(|| found_out().saturating_add(defaults::PROGRESS_MARGIN))
    }
}

/// How far the last change of a service's tasks has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdateStatus {
    /// The phase.
    #[serde(rename = "state")]
    pub phase: UpdatePhase,
    /// Why it is paused, for people; or the last failure that was tolerated.
    #[serde(serialize_with = "text_or_empty")]
    pub reason: Option<String>,
    /// The failure because of which the tasks are, or were, brought back to the spec before.
    #[serde(serialize_with = "text_or_empty")]
    pub rollback_cause: Option<String>,
    /// The slots whose new task has failed.
    pub failed_slots: BTreeSet<u64>,
    /// Number of the spec that was in place before, to which the tasks are brought back if too many fail.
    pub previous_version: Option<u64>,
    /// When it began, or went on after a pause, by the leader's clock.
    pub started_at: Timestamp,
}

impl Default for UpdateStatus {
    fn default() -> Self {
        Self {
            phase: UpdatePhase::Completed,
            reason: None,
            rollback_cause: None,
            failed_slots: BTreeSet::new(),
            previous_version: None,
            started_at: Timestamp::default(),
        }
    }
}

impl UpdateStatus {
    /// Returns the status of an update that begins now, from the spec with this number.
    pub fn begun(previous_version: u64) -> Self {
        Self { phase: UpdatePhase::Updating, previous_version: Some(previous_version), ..Self::default() }
    }

    /// Returns whether tasks are being replaced.
    pub fn is_active(&self) -> bool {
        matches!(self.phase, UpdatePhase::Updating | UpdatePhase::RollingBack)
    }

    /// Returns whether it waits for a user's decision.
    pub fn is_paused(&self) -> bool {
        matches!(self.phase, UpdatePhase::Paused | UpdatePhase::RollbackPaused)
    }

    /// Returns whether the spec that users have set is not in place because its tasks failed.
    pub fn is_rollback(&self) -> bool {
        matches!(self.phase, UpdatePhase::RollingBack | UpdatePhase::RollbackPaused | UpdatePhase::RolledBack)
    }

    /// Returns the status in which it waits for a user's decision, for this reason.
    #[must_use]
    pub fn paused(&self, reason: String) -> Self {
        let phase = if self.is_rollback() { UpdatePhase::RollbackPaused } else { UpdatePhase::Paused };
        Self { phase, reason: Some(reason), ..self.clone() }
    }

    /// Returns the status in which it goes on. The new tasks of `failed_slots` stay, whether they work by now or not; in the
    /// others that have failed, a new task is tried once more.
    #[must_use]
    pub fn resumed(&self, failed_slots: BTreeSet<u64>) -> Self {
        let phase = if self.is_rollback() { UpdatePhase::RollingBack } else { UpdatePhase::Updating };
        Self { phase, reason: None, failed_slots, ..self.clone() }
    }

    /// Returns the status in which it has ended.
    #[must_use]
    pub fn completed(&self) -> Self {
        let phase = if self.is_rollback() { UpdatePhase::RolledBack } else { UpdatePhase::Completed };
        Self { phase, ..self.clone() }
    }
}

/// A spec that a service had before, and can be brought back to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    /// Number of the spec.
    pub version: u64,
    /// Digest for which the spec's image reference stood.
    #[serde(serialize_with = "text_or_empty")]
    pub image_digest: Option<String>,
    /// The platforms of that image; empty if they are not known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image_platforms: Vec<Platform>,
    /// The images that its tasks mount, as far as they are known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounted_images: Vec<PinnedImage>,
    /// The versions of its secrets and configs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<PinnedValue>,
    /// When the spec was set; `None` if an older build set it, which did not note that.
    pub set_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_shares_of_a_whole() {
        for (text, millionths) in [("0", 0), ("0.25", 250_000), ("1", 1_000_000), (".000001", 1)] {
            assert_eq!(text.parse(), Ok(Ratio(millionths)), "{text}");
        }
        for text in ["-0.1", "1.01", "NaN", "inf", "25%", ""] {
            assert_eq!(
                text.parse::<Ratio>(),
                Err(format!("`{text}` is not a share between 0 and 1, such as 0.25")),
                "{text}"
            );
        }
        assert_eq!(Ratio(250_000).to_string(), "0.25");
        assert_eq!(Ratio::from_millionths(1_000_001), None);
    }

    #[test]
    fn as_many_failures_as_the_ratio_says_are_tolerated() {
        let policy = |ratio: &str, failure_action| UpdatePolicy {
            max_failure_ratio: ratio.parse().expect("a ratio"),
            failure_action,
            ..UpdatePolicy::default()
        };
        for (ratio, failed, tasks, tolerated) in
            [("0", 0, 5, true), ("0", 1, 5, false), ("0.2", 1, 5, true), ("0.2", 2, 5, false), ("1", 5, 5, true)]
        {
            assert_eq!(policy(ratio, FailureAction::Pause).tolerates(failed, tasks), tolerated, "{ratio} {failed}");
        }
        assert!(policy("0", FailureAction::Continue).tolerates(5, 5));
    }

    #[test]
    fn the_deadline_leaves_a_health_check_its_time() {
        let policy = UpdatePolicy::default();
        let seconds = Duration::from_secs;
        let check = HealthSpec {
            start_period: Some(seconds(20)),
            interval: Some(seconds(5)),
            retries: std::num::NonZeroU32::new(2),
            ..HealthSpec::default()
        };
        assert_eq!(policy.deadline(&check, None), seconds(20 + 2 * 5 + 60));
        assert_eq!(policy.deadline(&HealthSpec::default(), None), seconds(3 * 30 + 60), "with Docker's settings");
        let image =
            HealthSpec { test: Some(HealthTest::Tcp { port: 1 }), start_period: Some(seconds(300)), ..check.clone() };
        let decides_within = HealthSpec::default().check(&image).expect("the image has one").decides_within();
        let health = Health { decides_within, ..Health::default() };
        assert_eq!(policy.deadline(&HealthSpec::default(), Some(&health)), seconds(300 + 2 * 5 + 60));
        assert_eq!(policy.deadline(&check, Some(&Health::default())), seconds(20 + 2 * 5 + 60), "of an older worker");
        let none = HealthSpec { test: Some(HealthTest::None), ..check.clone() };
        assert_eq!(policy.deadline(&none, None), seconds(60));
        let own = UpdatePolicy { progress_deadline: Some(seconds(7)), ..policy };
        assert_eq!(own.deadline(&check, Some(&health)), seconds(7));
    }
}
