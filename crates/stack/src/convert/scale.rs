//! Autoscaling of a service, for which Compose has no word: `x-flota-scale` of `deploy`.

use std::num::NonZeroU64;

use flota_api::model::{RequestCounter, RequestTarget, ScalePolicy};

use crate::parse;
use crate::tree::{Fault, Node};

/// Reads a policy.
pub(super) fn policy(node: &Node) -> Result<ScalePolicy, Fault> {
    let count = |it: &Node| NonZeroU64::new(it.number()?).ok_or_else(|| it.fault("it is at least 1"));
    let mut keys = node.fields()?;
    let max = count(keys.required("max")?)?;
    let mut policy = ScalePolicy::between(keys.read("min", count)?.unwrap_or(NonZeroU64::MIN), max);
    policy.nano_cpus = keys.read("cpus", |it| it.parsed(parse::cpus))?.and_then(NonZeroU64::new);
    policy.memory_bytes = keys.read("memory", |it| it.parsed(parse::bytes))?.and_then(NonZeroU64::new);
    let requests = keys.read("requests", count)?;
    let from = keys.read("requests_from", |it| it.parsed(str::parse::<RequestCounter>))?;
    policy.requests = match (requests, from) {
        (Some(per_second), Some(from)) => Some(RequestTarget { per_second, from }),
        (None, None) => None,
        (Some(_), None) => return Err(keys.fault("`requests` needs `requests_from`")),
        (None, Some(_)) => return Err(keys.fault("`requests_from` needs `requests`")),
    };
    policy.up_window = keys.read("up_window", |it| it.parsed(parse::duration))?.unwrap_or(policy.up_window);
    policy.down_window = keys.read("down_window", |it| it.parsed(parse::duration))?.unwrap_or(policy.down_window);
    keys.finish()?;
    Ok(policy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::parse;

    fn read(text: &str) -> Result<String, String> {
        let tree = parse(text).map_err(|fault| fault.why)?;
        let it = policy(&tree).map_err(|fault| format!("{}: {}", fault.key, fault.why))?;
        let number = |it: Option<NonZeroU64>| it.map_or(0, NonZeroU64::get);
        let requests = it.requests.as_ref().map_or("none".into(), |it| format!("{} of {}", it.per_second, it.from));
        let (cpu, memory) = (number(it.nano_cpus), number(it.memory_bytes));
        Ok(format!("{}-{} {cpu} {memory} {requests} {:?} {:?}", it.min, it.max, it.up_window, it.down_window))
    }

    #[test]
    fn a_policy_has_bounds_targets_and_windows() {
        for (text, expected) in [
            ("{ max: 9, cpus: '0.5' }", "1-9 500000000 0 none 0ns 300s"),
            (
                "{ min: 2, max: 4, memory: 1m, requests: 50, requests_from: 'http://:80/m#r', up_window: 10s, down_window: 1m }",
                "2-4 0 1048576 50 of http://:80/m#r 10s 60s",
            ),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected), "{text}");
        }
        for (text, expected) in [
            ("{ min: 2 }", "max"),
            ("{ max: 0 }", "it is at least 1"),
            ("{ max: 2, requests: 5 }", "`requests` needs `requests_from`"),
            ("{ max: 2, requests_from: 'http://:80/m#r' }", "`requests_from` needs `requests`"),
            ("{ max: 2, requests: 5, requests_from: here }", "is not a counter such as"),
            ("{ max: 2, cpu: 1 }", "cpu"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
