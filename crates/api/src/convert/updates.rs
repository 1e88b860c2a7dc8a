//! Conversion of update policies, and of how far updates have come.

use std::num::NonZeroU64;
use std::time::Duration;

use super::{FromNumber, Malformed, millis};
use crate::model::{Ratio, Revision, UpdatePhase, UpdatePolicy, UpdateStatus};
use crate::proto::{objects as po, specs as ps};
use crate::version::Timestamp;

impl From<&UpdatePolicy> for ps::UpdatePolicy {
    fn from(it: &UpdatePolicy) -> Self {
        Self {
            parallelism: it.parallelism.map_or(0, NonZeroU64::get),
            delay_ms: millis(it.delay),
            monitor_ms: millis(it.monitor),
            max_failure_millionths: it.max_failure_ratio.millionths(),
            failure_action: it.failure_action.number(),
            order: it.order.number(),
            progress_deadline_ms: it.progress_deadline.map(millis),
        }
    }
}

impl TryFrom<Option<ps::UpdatePolicy>> for UpdatePolicy {
    type Error = Malformed;
    fn try_from(it: Option<ps::UpdatePolicy>) -> Result<Self, Malformed> {
        let Some(it) = it else { return Ok(Self::default()) };
        let too_much = || Malformed::new("update.max_failure_millionths", "is more than the whole");
        Ok(Self {
            parallelism: NonZeroU64::new(it.parallelism),
            delay: Duration::from_millis(it.delay_ms),
            monitor: Duration::from_millis(it.monitor_ms),
            max_failure_ratio: Ratio::from_millionths(it.max_failure_millionths).ok_or_else(too_much)?,
            failure_action: FromNumber::from_number(it.failure_action)?,
            order: FromNumber::from_number(it.order)?,
            progress_deadline: it.progress_deadline_ms.map(Duration::from_millis),
        })
    }
}

impl From<&UpdateStatus> for po::UpdateStatus {
    fn from(it: &UpdateStatus) -> Self {
        Self {
            phase: it.phase.number(),
            reason: it.reason.clone(),
            rollback_cause: it.rollback_cause.clone(),
            failed_slots: it.failed_slots.iter().copied().collect(),
            previous_version: it.previous_version,
            started_at: it.started_at.0,
        }
    }
}

impl TryFrom<po::UpdateStatus> for UpdateStatus {
    type Error = Malformed;
    fn try_from(it: po::UpdateStatus) -> Result<Self, Malformed> {
        Ok(Self {
            phase: FromNumber::from_number(it.phase)?,
            reason: it.reason,
            rollback_cause: it.rollback_cause,
            failed_slots: it.failed_slots.into_iter().collect(),
            previous_version: it.previous_version,
            started_at: Timestamp(it.started_at),
        })
    }
}

/// Returns the status of a service that an older build wrote. It did not say whether an update had ended; the leader goes on
/// with one that has not.
pub(super) fn old_status(paused: Option<String>) -> UpdateStatus {
    let phase = if paused.is_some() { UpdatePhase::Paused } else { UpdatePhase::Completed };
    UpdateStatus { phase, reason: paused, ..UpdateStatus::default() }
}

impl From<&Revision> for po::Revision {
    fn from(it: &Revision) -> Self {
        Self {
            version: it.version,
            image_digest: it.image_digest.clone(),
            image_platforms: it.image_platforms.iter().map(Into::into).collect(),
            values: it.values.iter().map(Into::into).collect(),
            mounted_images: it.mounted_images.iter().map(Into::into).collect(),
            set_at: it.set_at.map(|at| at.0),
        }
    }
}

impl From<po::Revision> for Revision {
    fn from(it: po::Revision) -> Self {
        Self {
            version: it.version,
            image_digest: it.image_digest,
            image_platforms: it.image_platforms.into_iter().map(Into::into).collect(),
            values: it.values.into_iter().map(Into::into).collect(),
            mounted_images: it.mounted_images.into_iter().map(Into::into).collect(),
            set_at: it.set_at.map(Timestamp),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FailureAction, UpdateOrder};

    #[test]
    fn policies_survive_the_way_to_the_wire_and_back() {
        let policy = UpdatePolicy {
            parallelism: None,
            delay: Duration::from_millis(1_500),
            monitor: Duration::ZERO,
            max_failure_ratio: Ratio::from_millionths(250_000).expect("a share"),
            failure_action: FailureAction::Rollback,
            order: UpdateOrder::StartFirst,
            progress_deadline: Some(Duration::from_secs(7)),
        };
        for policy in [policy, UpdatePolicy::default()] {
            assert_eq!(UpdatePolicy::try_from(Some(ps::UpdatePolicy::from(&policy))), Ok(policy));
        }
        assert_eq!(UpdatePolicy::try_from(None), Ok(UpdatePolicy::default()));
        let wire = ps::UpdatePolicy { max_failure_millionths: 1_000_001, ..ps::UpdatePolicy::from(&policy) };
        let error = UpdatePolicy::try_from(Some(wire)).expect_err("more than all");
        assert_eq!(error.to_string(), "the field `update.max_failure_millionths` is more than the whole");
    }

    #[test]
    fn an_update_that_an_older_build_has_paused_is_paused() {
        let status = old_status(Some("web.1: no such image".into()));
        assert!(status.is_paused() && status.reason.as_deref() == Some("web.1: no such image"));
        assert_eq!(old_status(None), UpdateStatus::default());
    }
}
