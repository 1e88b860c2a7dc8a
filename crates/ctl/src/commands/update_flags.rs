//! The flags of `ctl service create` and `update` for how tasks are replaced, in an update and in the rollback of one
//! that has failed. They are Docker's; the progress deadline is Flota's own.

use std::num::NonZeroU64;
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use flota_api::model::{FailureAction, Ratio, ServiceSpec, UpdateOrder, UpdatePolicy};

use crate::parse;

/// The flags for updates.
#[derive(Debug, Default, Args)]
pub(crate) struct UpdateFlags {
    /// Largest number of tasks that an update replaces at once; 0 means all (default: 1)
    #[arg(long, value_name = "COUNT")]
    update_parallelism: Option<u64>,
    /// Time between one group of tasks that an update replaces and the next (default: 0s)
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    update_delay: Option<Duration>,
    /// Time for which an update watches a new task for failures once it serves (default: 5s)
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    update_monitor: Option<Duration>,
    /// Share of the new tasks that may fail, from 0 to 1 (default: 0)
    #[arg(long, value_name = "SHARE")]
    update_max_failure_ratio: Option<Ratio>,
    /// Action when more new tasks fail: pause, continue or rollback (default: pause)
    #[arg(long, value_name = "ACTION", value_parser = action(FailureAction::ALL))]
    update_failure_action: Option<FailureAction>,
    /// Order in which an update stops the old task of a slot and starts the new one (default: stop-first)
    #[arg(long, value_name = "ORDER", value_parser = order())]
    update_order: Option<UpdateOrder>,
    /// Longest time until a new task serves, once its image is there; 0 means the default: what its health check needs,
    /// and a minute
    #[arg(long, value_name = "TIME", value_parser = parse::duration_or_none)]
    update_progress_deadline: Option<Duration>,
}

/// The flags for rollbacks.
#[derive(Debug, Default, Args)]
pub(crate) struct RollbackFlags {
    /// Largest number of tasks that a rollback replaces at once; 0 means all (default: 1)
    #[arg(long, value_name = "COUNT")]
    rollback_parallelism: Option<u64>,
    /// Time between one group of tasks that a rollback replaces and the next (default: 0s)
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    rollback_delay: Option<Duration>,
    /// Time for which a rollback watches a task for failures once it serves (default: 5s)
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    rollback_monitor: Option<Duration>,
    /// Share of the tasks that may fail in a rollback, from 0 to 1 (default: 0)
    #[arg(long, value_name = "SHARE")]
    rollback_max_failure_ratio: Option<Ratio>,
    /// Action when more tasks fail in a rollback: pause or continue (default: pause)
    #[arg(long, value_name = "ACTION", value_parser = action(&[FailureAction::Pause, FailureAction::Continue]))]
    rollback_failure_action: Option<FailureAction>,
    /// Order in which a rollback stops the old task of a slot and starts the new one (default: stop-first)
    #[arg(long, value_name = "ORDER", value_parser = order())]
    rollback_order: Option<UpdateOrder>,
    /// Longest time until a task serves in a rollback, once its image is there; 0 means the default: what its health
    /// check needs, and a minute
    #[arg(long, value_name = "TIME", value_parser = parse::duration_or_none)]
    rollback_progress_deadline: Option<Duration>,
}

/// Accepts one of these actions.
fn action(accepted: &'static [FailureAction]) -> impl TypedValueParser<Value = FailureAction> {
    let find = |text: String| accepted.iter().copied().find(|it| it.as_str() == text);
    PossibleValuesParser::new(accepted.iter().map(|it| it.as_str()))
        .map(move |text| find(text).expect("the parser accepts no other text"))
}

fn order() -> impl TypedValueParser<Value = UpdateOrder> {
    let find = |text: String| UpdateOrder::ALL.iter().copied().find(|it| it.as_str() == text);
    PossibleValuesParser::new(UpdateOrder::ALL.iter().map(|it| it.as_str()))
        .map(move |text| find(text).expect("the parser accepts no other text"))
}

impl UpdateFlags {
    /// Sets the given flags in the spec and leaves the rest as it is.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) {
        let policy = spec.update;
        spec.update = UpdatePolicy {
            parallelism: self.update_parallelism.map_or(policy.parallelism, NonZeroU64::new),
            delay: self.update_delay.unwrap_or(policy.delay),
            monitor: self.update_monitor.unwrap_or(policy.monitor),
            max_failure_ratio: self.update_max_failure_ratio.unwrap_or(policy.max_failure_ratio),
            failure_action: self.update_failure_action.unwrap_or(policy.failure_action),
            order: self.update_order.unwrap_or(policy.order),
            progress_deadline: deadline(self.update_progress_deadline, policy.progress_deadline),
        };
    }
}

impl RollbackFlags {
    /// Sets the given flags in the spec and leaves the rest as it is.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) {
        let policy = spec.rollback;
        spec.rollback = UpdatePolicy {
            parallelism: self.rollback_parallelism.map_or(policy.parallelism, NonZeroU64::new),
            delay: self.rollback_delay.unwrap_or(policy.delay),
            monitor: self.rollback_monitor.unwrap_or(policy.monitor),
            max_failure_ratio: self.rollback_max_failure_ratio.unwrap_or(policy.max_failure_ratio),
            failure_action: self.rollback_failure_action.unwrap_or(policy.failure_action),
            order: self.rollback_order.unwrap_or(policy.order),
            progress_deadline: deadline(self.rollback_progress_deadline, policy.progress_deadline),
        };
    }
}

/// Returns the deadline that a flag gives, of which zero means the default, or else the present one.
fn deadline(given: Option<Duration>, present: Option<Duration>) -> Option<Duration> {
    given.map_or(present, |it| Some(it).filter(|it| !it.is_zero()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        update: UpdateFlags,
        #[command(flatten)]
        rollback: RollbackFlags,
    }

    fn updated(spec: &ServiceSpec, flags: &str) -> Result<ServiceSpec, String> {
        let words = ["ctl"].into_iter().chain(flags.split_whitespace());
        let flags = Flags::try_parse_from(words).map_err(|error| error.to_string())?;
        let mut spec = spec.clone();
        flags.update.apply(&mut spec);
        flags.rollback.apply(&mut spec);
        Ok(spec)
    }

    fn shown(policy: &UpdatePolicy) -> String {
        let UpdatePolicy { delay, monitor, max_failure_ratio, failure_action, order, progress_deadline, .. } = policy;
        let parallelism = policy.parallelism.map_or(0, NonZeroU64::get);
        let deadline = progress_deadline.map_or_else(|| "-".to_owned(), |it| format!("{it:?}"));
        format!("{parallelism} {delay:?} {monitor:?} {max_failure_ratio} {failure_action} {order} {deadline}")
    }

    #[test]
    fn each_flag_changes_one_setting_of_its_own_policy() {
        const DEFAULT: &str = "1 0ns 5s 0 pause stop-first -";
        for prefix in ["update", "rollback"] {
            let mut spec = ServiceSpec::default();
            for (flags, expected) in [
                ("", DEFAULT),
                ("parallelism=3", "3 0ns 5s 0 pause stop-first -"),
                ("delay=1m30s monitor=0s", "3 90s 0ns 0 pause stop-first -"),
                ("max-failure-ratio=0.25", "3 90s 0ns 0.25 pause stop-first -"),
                ("failure-action=continue", "3 90s 0ns 0.25 continue stop-first -"),
                ("order=start-first progress-deadline=20s", "3 90s 0ns 0.25 continue start-first 20s"),
                ("", "3 90s 0ns 0.25 continue start-first 20s"),
                ("parallelism=0 progress-deadline=0", "0 90s 0ns 0.25 continue start-first -"),
                ("progress-deadline=1s order=stop-first", "0 90s 0ns 0.25 continue stop-first 1s"),
                ("progress-deadline= failure-action=pause", "0 90s 0ns 0.25 pause stop-first -"),
            ] {
                let flags: String = flags.split_whitespace().map(|it| format!("--{prefix}-{it} ")).collect();
                spec = updated(&spec, &flags).unwrap_or_else(|error| panic!("{error}"));
                let (own, other) =
                    if prefix == "update" { (spec.update, spec.rollback) } else { (spec.rollback, spec.update) };
                assert_eq!((shown(&own).as_str(), shown(&other).as_str()), (expected, DEFAULT), "{flags}");
            }
        }
        let spec = updated(&ServiceSpec::default(), "--update-failure-action rollback").expect("it is an action");
        assert_eq!(spec.update.failure_action, FailureAction::Rollback);
    }

    #[test]
    fn bad_values_are_refused_and_the_accepted_ones_are_named() {
        for (flags, expected) in [
            ("--update-failure-action=stop", "[possible values: pause, continue, rollback]"),
            ("--rollback-failure-action=rollback", "[possible values: pause, continue]"),
            ("--update-order=first", "[possible values: stop-first, start-first]"),
            ("--rollback-order=first", "[possible values: stop-first, start-first]"),
            ("--update-max-failure-ratio=1.5", "`1.5` is not a share between 0 and 1, such as 0.25"),
            ("--update-max-failure-ratio=25%", "`25%` is not a share between 0 and 1, such as 0.25"),
            ("--update-parallelism=-1", "invalid digit found in string"),
            ("--update-delay=10", "`10` is not a duration such as"),
            ("--rollback-monitor=10", "`10` is not a duration such as"),
            ("--update-progress-deadline=10", "`10` is not a duration such as"),
        ] {
            let error = updated(&ServiceSpec::default(), flags).expect_err(expected);
            assert!(error.contains(expected), "{flags}: {error}");
        }
    }
}
