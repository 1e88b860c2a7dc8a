//! The rules for autoscaling.

use std::time::Duration;

use crate::defaults::REPLICAS_BOUND;
use crate::model::{ScalePolicy, ServiceMode, ServiceSpec};

/// Longest window. A longer one is most likely a mistaken unit.
const MOST: Duration = Duration::from_secs(3600);

/// Calls `check` with the result for every field.
pub(super) fn judge(spec: &ServiceSpec, check: &mut impl FnMut(&str, Result<(), String>)) {
    let Some(ScalePolicy { min, max, nano_cpus, memory_bytes, requests, up_window, down_window }) = &spec.scale else {
        return;
    };
    let rule = |is_met: bool, why: &str| is_met.then_some(()).ok_or_else(|| why.to_owned());
    let is_replicated = matches!(spec.mode, ServiceMode::Replicated { .. });
    let other = format!("a service of the mode {} has no number of tasks that could follow a load", spec.mode.as_str());
    check("scale", rule(is_replicated, &other));
    let has_target = nano_cpus.is_some() || memory_bytes.is_some() || requests.is_some();
    check("scale", rule(has_target, "it has no target: CPU, memory or requests"));
    check("scale.min", rule(min <= max, &format!("{min} is over the largest number of tasks, {max}")));
    let over = format!("{max} is over the bound of {REPLICAS_BOUND}");
    check("scale.max", rule(max.get() <= REPLICAS_BOUND, &over));
    for (field, window) in [("scale.up_window", up_window), ("scale.down_window", down_window)] {
        check(field, rule(*window <= MOST, "the most is 1 h"));
    }
}

/// Returns the text that counts towards the size of a spec.
pub(super) fn text(spec: &ServiceSpec) -> Option<String> {
    Some(spec.scale.as_ref()?.requests.as_ref()?.from.to_string())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::validate::violations;

    #[test]
    fn bounds_targets_and_windows_are_checked_all_at_once() {
        let number = |it| NonZeroU64::new(it).expect("it is not zero");
        let policy = |min, max| ScalePolicy {
            nano_cpus: NonZeroU64::new(500_000_000),
            ..ScalePolicy::between(number(min), number(max))
        };
        let broken = |mode: ServiceMode, scale: ScalePolicy| -> Vec<String> {
            let spec = ServiceSpec {
                name: "web".into(),
                image: "web".into(),
                mode,
                scale: Some(scale),
                ..ServiceSpec::default()
            };
            violations(&spec).into_iter().map(|it| format!("{}: {}", it.field, it.why)).collect()
        };
        assert_eq!(broken(ServiceMode::default(), policy(1, REPLICAS_BOUND)), [""; 0]);
        let long = MOST + Duration::from_secs(1);
        let bad =
            ScalePolicy { up_window: long, down_window: long, ..ScalePolicy::between(number(20_001), number(20_000)) };
        assert_eq!(
            broken(ServiceMode::Global {}, bad),
            [
                "scale: a service of the mode global has no number of tasks that could follow a load",
                "scale: it has no target: CPU, memory or requests",
                "scale.min: 20001 is over the largest number of tasks, 20000",
                "scale.max: 20000 is over the bound of 10000",
                "scale.up_window: the most is 1 h",
                "scale.down_window: the most is 1 h",
            ]
        );
    }
}
