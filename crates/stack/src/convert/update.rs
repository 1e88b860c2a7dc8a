//! `update_config` and `rollback_config` of a service: how its tasks are replaced. Compose has no word for the progress
//! deadline; `x-flota-progress-deadline` is.

use std::fmt::Display;
use std::num::NonZeroU64;

use flota_api::model::{FailureAction, UpdateOrder, UpdatePolicy};

use crate::parse;
use crate::tree::{Fault, Node};

/// Reads `update_config`.
pub(super) fn update(node: &Node) -> Result<UpdatePolicy, Fault> {
    policy(node, FailureAction::ALL)
}

/// Reads `rollback_config`. A rollback that fails is not rolled back.
pub(super) fn rollback(node: &Node) -> Result<UpdatePolicy, Fault> {
    policy(node, &[FailureAction::Pause, FailureAction::Continue])
}

fn policy(node: &Node, actions: &[FailureAction]) -> Result<UpdatePolicy, Fault> {
    let base = UpdatePolicy::default();
    let mut keys = node.fields()?;
    let action = |text: &str| one_of(actions, text);
    let order = |text: &str| one_of(UpdateOrder::ALL, text);
    let policy = UpdatePolicy {
        parallelism: keys.read("parallelism", Node::number)?.map_or(base.parallelism, NonZeroU64::new),
        delay: keys.read("delay", |it| it.parsed(parse::duration))?.unwrap_or(base.delay),
        monitor: keys.read("monitor", |it| it.parsed(parse::duration))?.unwrap_or(base.monitor),
        max_failure_ratio: keys
            .read("max_failure_ratio", |it| it.parsed(str::parse))?
            .unwrap_or(base.max_failure_ratio),
        failure_action: keys.read("failure_action", |it| it.parsed(action))?.unwrap_or(base.failure_action),
        order: keys.read("order", |it| it.parsed(order))?.unwrap_or(base.order),
        progress_deadline: keys.read("x-flota-progress-deadline", |it| it.parsed(parse::duration_or_none))?.flatten(),
    };
    keys.finish()?;
    Ok(policy)
}

/// Returns the value with this text.
fn one_of<T: Copy + Display>(all: &[T], text: &str) -> Result<T, String> {
    let names: Vec<String> = all.iter().map(ToString::to_string).collect();
    let found = all.iter().zip(&names).find(|(_, name)| *name == text);
    found.map(|(value, _)| *value).ok_or_else(|| format!("`{text}` is not one of {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::parse;

    fn read(read: impl Fn(&Node) -> Result<UpdatePolicy, Fault>, text: &str) -> Result<String, String> {
        let node = parse(text).map_err(|fault| fault.why)?;
        let policy = read(&node).map_err(|fault| format!("{}: {}", fault.key, fault.why))?;
        let UpdatePolicy { delay, monitor, max_failure_ratio, failure_action, order, progress_deadline, .. } = policy;
        let parallelism = policy.parallelism.map_or(0, NonZeroU64::get);
        let deadline = progress_deadline.map_or_else(|| "-".to_owned(), |it| format!("{it:?}"));
        Ok(format!("{parallelism} {delay:?} {monitor:?} {max_failure_ratio} {failure_action} {order} {deadline}"))
    }

    #[test]
    fn policies_are_read_as_compose_writes_them_and_with_one_key_more() {
        for (text, expected) in [
            ("{}", "1 0ns 5s 0 pause stop-first -"),
            ("{ parallelism: 0, delay: 10s }", "0 10s 5s 0 pause stop-first -"),
            ("{ parallelism: 2, monitor: 1m30s, x-note: ignored }", "2 0ns 90s 0 pause stop-first -"),
            ("{ max_failure_ratio: 0.3, failure_action: continue }", "1 0ns 5s 0.3 continue stop-first -"),
            ("{ order: start-first, delay: }", "1 0ns 5s 0 pause start-first -"),
            ("{ x-flota-progress-deadline: 20s }", "1 0ns 5s 0 pause stop-first 20s"),
            ("{ x-flota-progress-deadline: 0 }", "1 0ns 5s 0 pause stop-first -"),
        ] {
            assert_eq!(read(update, text).as_deref(), Ok(expected), "{text}");
            assert_eq!(read(rollback, text).as_deref(), Ok(expected), "{text}");
        }
        let expected = "1 0ns 5s 0 rollback stop-first -";
        assert_eq!(read(update, "{ failure_action: rollback }").as_deref(), Ok(expected));
    }

    #[test]
    fn faults_name_their_key_and_what_is_allowed() {
        let refused = read(rollback, "{ failure_action: rollback }");
        assert_eq!(refused, Err("failure_action: `rollback` is not one of pause, continue".into()));
        for (text, expected) in [
            ("{ failure_action: stop }", "failure_action: `stop` is not one of pause, continue, rollback"),
            ("{ order: first }", "order: `first` is not one of stop-first, start-first"),
            ("{ parallelism: -1 }", "parallelism: `-1` is not a whole number from 0"),
            ("{ delay: 10 }", "delay: `10` is not a duration"),
            ("{ monitor: soon }", "monitor: `soon` is not a duration"),
            ("{ max_failure_ratio: 1.5 }", "max_failure_ratio: `1.5` is not a share between 0 and 1, such as 0.25"),
            ("{ x-flota-progress-deadline: -1s }", "x-flota-progress-deadline: `-1s` is not a duration"),
            ("{ progress_deadline: 1s }", "progress_deadline: this key is not supported"),
            ("[]", ": a map is needed, not a list"),
        ] {
            let error = read(update, text).expect_err(text);
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
