//! How tasks are started again: the key `restart` of a service, and `deploy.restart_policy`. The former is Docker Compose's
//! older word for the condition and the number of attempts.

use std::num::NonZeroU64;

use flota_api::model::{RestartCondition, RestartPolicy};

use crate::parse;
use crate::tree::{Fault, Node, Value};

/// Reads `deploy.restart_policy`. What is absent there is that of `base`.
pub(super) fn policy(node: &Node, base: RestartPolicy) -> Result<RestartPolicy, Fault> {
    let mut keys = node.fields()?;
    let condition = |text: &str| match text {
        "any" => Ok(RestartCondition::Any),
        "on-failure" => Ok(RestartCondition::OnFailure),
        "none" => Ok(RestartCondition::None),
        other => Err(format!("`{other}` is not one of any, on-failure, none")),
    };
    let policy = RestartPolicy {
        condition: keys.read("condition", |it| it.parsed(condition))?.unwrap_or(base.condition),
        delay: keys.read("delay", |it| it.parsed(parse::duration))?.unwrap_or(base.delay),
        max_attempts: keys.read("max_attempts", Node::number)?.and_then(NonZeroU64::new),
        window: keys.read("window", |it| it.parsed(parse::duration))?.filter(|it| !it.is_zero()),
    };
    keys.finish()?;
    Ok(policy)
}

/// Reads the key `restart` of a service into `policy`, which is that of the service's `deploy`. Both may not say different
/// things.
pub(super) fn restart(node: &Node, deploy: Option<&Node>, policy: &mut RestartPolicy) -> Result<(), Fault> {
    let (condition, max_attempts) = node.parsed(parsed)?;
    let stated = entry(deploy, "restart_policy");
    let contradicts = |key: &str, same: bool| {
        let why = format!("`deploy.restart_policy.{key}` says something else: give one of the two");
        if same || entry(stated, key).is_none() { Ok(()) } else { Err(node.fault(why)) }
    };
    contradicts("condition", policy.condition == condition)?;
    policy.condition = condition;
    if let Some(most) = max_attempts {
        contradicts("max_attempts", policy.max_attempts == NonZeroU64::new(most))?;
        policy.max_attempts = NonZeroU64::new(most);
    }
    Ok(())
}

/// Returns the condition, and the number of attempts if there is one.
fn parsed(text: &str) -> Result<(RestartCondition, Option<u64>), String> {
    let refused = || format!("`{text}` is not one of no, always, unless-stopped, on-failure and on-failure:NUMBER");
    match text.split_once(':') {
        None => match text {
            "no" => Ok((RestartCondition::None, None)),
            // A service that a user has stopped stays so in any case.
            "always" | "unless-stopped" => Ok((RestartCondition::Any, None)),
            "on-failure" => Ok((RestartCondition::OnFailure, None)),
            _ => Err(refused()),
        },
        Some(("on-failure", most)) => {
            let most = most.parse().map_err(|_| refused())?;
            Ok((RestartCondition::OnFailure, Some(most)))
        }
        Some(_) => Err(refused()),
    }
}

/// Returns the value of a key, if the node is a map that has it.
fn entry<'a>(node: Option<&'a Node>, key: &str) -> Option<&'a Node> {
    let map = node.and_then(|it| it.map().ok())?;
    map.get(key).filter(|it| !matches!(it.value, Value::Null))
}

#[cfg(test)]
mod tests {
    use flota_api::model::RestartCondition::{self, Any, None as Never, OnFailure};

    use crate::load;

    /// The condition and the number of attempts of a service with these keys.
    fn read(keys: &str) -> Result<(RestartCondition, u64), String> {
        let text = format!("services: {{ web: {{ image: a, {keys} }} }}");
        let stack = load::parse(&text, "s", &|_| None).map_err(|fault| format!("{}: {}", fault.key, fault.why))?;
        let policy = &stack.services[0].restart;
        Ok((policy.condition, policy.max_attempts.map_or(0, u64::from)))
    }

    #[test]
    fn the_older_word_is_the_condition_and_the_number_of_attempts() {
        for (keys, expected) in [
            ("restart: no", (Never, 0)),
            ("restart: always", (Any, 0)),
            ("restart: unless-stopped", (Any, 0)),
            ("restart: on-failure", (OnFailure, 0)),
            ("restart: 'on-failure:3'", (OnFailure, 3)),
            ("deploy: { mode: replicated-job }", (OnFailure, 0)),
            ("restart: no, deploy: { mode: replicated-job }", (Never, 0)),
            ("restart: always, deploy: { restart_policy: { delay: 1s, max_attempts: 2 } }", (Any, 2)),
            (
                "restart: 'on-failure:3', deploy: { restart_policy: { condition: on-failure, max_attempts: 3 } }",
                (OnFailure, 3),
            ),
            ("restart: on-failure, deploy: { restart_policy: { max_attempts: 3 } }", (OnFailure, 3)),
        ] {
            assert_eq!(read(keys), Ok(expected), "{keys}");
        }
    }

    #[test]
    fn both_words_may_not_say_different_things() {
        let bad = "services.web.restart: `deploy.restart_policy";
        for (keys, expected) in [
            ("restart: no, deploy: { restart_policy: { condition: any } }", format!("{bad}.condition` says something")),
            (
                "restart: 'on-failure:3', deploy: { restart_policy: { max_attempts: 4 } }",
                format!("{bad}.max_attempts` says something"),
            ),
            ("restart: sometimes", "services.web.restart: `sometimes` is not one of no, always, unless-stopped".into()),
            ("restart: 'always:3'", "services.web.restart: `always:3` is not one of".into()),
            ("restart: 'on-failure:-1'", "services.web.restart: `on-failure:-1` is not one of".into()),
        ] {
            let error = read(keys).expect_err(keys);
            assert!(error.starts_with(&expected), "{keys}: {error}");
        }
    }
}
