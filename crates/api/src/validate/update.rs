//! The rules for how the tasks of a service are replaced: the bounds of the policies, and what can't work together with
//! the rest of the spec.

use std::time::Duration;

use crate::defaults;
use crate::model::{FailureAction, HealthSpec, HealthTest, ServiceSpec, UpdateOrder, UpdatePolicy};

/// Longest delay, monitor and progress deadline. An update that takes longer is a mistake.
const MOST: Duration = Duration::from_secs(365 * 24 * 3600);
/// Shortest progress deadline.
const LEAST_DEADLINE: Duration = Duration::from_millis(1);

/// Calls `check` with the result for every field.
pub(super) fn judge(spec: &ServiceSpec, check: &mut impl FnMut(&str, Result<(), String>)) {
    for (name, policy) in [("update", &spec.update), ("rollback", &spec.rollback)] {
        let mut check = |field: &str, result| check(&format!("{name}.{field}"), result);
        check("delay", within(policy.delay, Duration::ZERO));
        check("monitor", within(policy.monitor, Duration::ZERO));
        check("order", order(policy, spec));
        let deadline = policy.progress_deadline.map_or(Ok(()), |deadline| {
            within(deadline, LEAST_DEADLINE).and_then(|()| leaves_time_to_fail(deadline, &spec.healthcheck))
        });
        check("progress_deadline", deadline);
    }
    if spec.rollback.failure_action == FailureAction::Rollback {
        check(
            "rollback.failure_action",
            Err("a rollback that fails is not rolled back: it is pause or continue".into()),
        );
    }
}

fn within(duration: Duration, least: Duration) -> Result<(), String> {
    let days = MOST.as_secs() / (24 * 3600);
    (least..=MOST).contains(&duration).then_some(()).ok_or_else(|| format!("it is from {least:?} to {days} days"))
}

/// Refuses an order in which no task could ever be replaced.
fn order(policy: &UpdatePolicy, spec: &ServiceSpec) -> Result<(), String> {
    let named = spec.constraints.iter().find(|it| it.names_node()).map(ToString::to_string);
    let is_global = spec.mode.is_global().then(|| "each in its turn".to_owned());
    match (policy.order, spec.host_ports().next(), named.or(is_global)) {
        (UpdateOrder::StartFirst, Some(port), Some(node)) => Err(format!(
            "start-first can't work: the new task runs beside the old one, both on one node ({node}), where both need \
             port {}/{}; use stop-first",
            port.published.unwrap_or(port.target),
            port.protocol
        )),
        _ => Ok(()),
    }
}

/// Refuses a deadline before which the spec's own health check can't find out that a task is unhealthy: the task would
/// be given up while it may still become healthy.
fn leaves_time_to_fail(deadline: Duration, check: &HealthSpec) -> Result<(), String> {
    if matches!(check.test, None | Some(HealthTest::None)) {
        return Ok(());
    }
    let (start, interval) =
        (check.start_period.unwrap_or_default(), check.interval.unwrap_or(defaults::HEALTH_INTERVAL));
    let retries = check.retries.unwrap_or(defaults::HEALTH_RETRIES).get();
    // The settings of the check may be out of bounds themselves.
    let needed = start.saturating_add(interval.saturating_mul(retries));
    (deadline >= needed).then_some(()).ok_or_else(|| {
        format!(
            "{deadline:?} is less than the {needed:?} that the health check needs: its start period and {retries} \
             intervals"
        )
    })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use crate::constraint::Constraint;
    use crate::model::{Protocol, PublishMode, PublishedPort};

    use super::*;
    use crate::validate::violations;

    fn broken(spec: ServiceSpec) -> Vec<String> {
        let spec = ServiceSpec { name: "web".into(), image: "web".into(), ..spec };
        violations(&spec).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn all_settings_out_of_bounds_are_named_at_once() {
        let good = UpdatePolicy {
            delay: MOST,
            monitor: Duration::ZERO,
            progress_deadline: Some(LEAST_DEADLINE),
            failure_action: FailureAction::Rollback,
            ..UpdatePolicy::default()
        };
        assert_eq!(broken(ServiceSpec { update: good, ..ServiceSpec::default() }), [""; 0]);
        let beyond = MOST + Duration::from_millis(1);
        let bad = UpdatePolicy { delay: beyond, monitor: beyond, progress_deadline: Some(Duration::ZERO), ..good };
        let found = broken(ServiceSpec { update: bad, rollback: bad, ..ServiceSpec::default() });
        let of = |name: &str| {
            [
                format!("{name}.delay: it is from 0ns to 365 days"),
                format!("{name}.monitor: it is from 0ns to 365 days"),
                format!("{name}.progress_deadline: it is from 1ms to 365 days"),
            ]
        };
        let action = "rollback.failure_action: a rollback that fails is not rolled back: it is pause or continue";
        let expected: Vec<_> = of("update").into_iter().chain(of("rollback")).chain([action.to_owned()]).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn start_first_is_refused_where_two_tasks_would_need_one_port_of_one_node() {
        let start_first = UpdatePolicy { order: UpdateOrder::StartFirst, ..UpdatePolicy::default() };
        for (mode, constraint, order, is_refused) in [
            (PublishMode::Host, "node.hostname==n1", UpdateOrder::StartFirst, true),
            (PublishMode::Host, "node.id==n1", UpdateOrder::StartFirst, true),
            (PublishMode::Host, "node.hostname==n1", UpdateOrder::StopFirst, false),
            (PublishMode::Host, "node.hostname!=n1", UpdateOrder::StartFirst, false),
            (PublishMode::Host, "node.labels.zone==a", UpdateOrder::StartFirst, false),
            (PublishMode::Ingress, "node.hostname==n1", UpdateOrder::StartFirst, false),
        ] {
            let port = PublishedPort { target: 80, published: Some(8080), protocol: Protocol::Tcp, mode };
            let spec = ServiceSpec {
                ports: vec![port],
                constraints: vec![Constraint::parse(constraint).expect("it is good")],
                update: UpdatePolicy { order, ..UpdatePolicy::default() },
                ..ServiceSpec::default()
            };
            let why = format!(
                "update.order: start-first can't work: the new task runs beside the old one, both on one node \
                 ({constraint}), where both need port 8080/tcp; use stop-first"
            );
            let expected = if is_refused { vec![why] } else { Vec::new() };
            assert_eq!(broken(spec.clone()), expected, "{mode:?} {constraint} {order}");
            let found = broken(ServiceSpec { update: UpdatePolicy::default(), rollback: spec.update, ..spec });
            assert_eq!(found.len(), usize::from(is_refused));
            assert!(found.iter().all(|it| it.starts_with("rollback.order: ")), "{found:?}");
        }
        assert_eq!(broken(ServiceSpec { update: start_first, ..ServiceSpec::default() }), [""; 0]);
    }

    #[test]
    fn a_deadline_leaves_the_specs_own_check_time_to_fail() {
        let (seconds, shell) = (Duration::from_secs, || Some(HealthTest::Shell("true".into())));
        let check = HealthSpec {
            test: shell(),
            start_period: Some(seconds(20)),
            interval: Some(seconds(5)),
            retries: NonZeroU32::new(2),
            ..HealthSpec::default()
        };
        let own = |test| HealthSpec { test, ..check.clone() };
        let defaults = HealthSpec { test: shell(), ..HealthSpec::default() };
        for (check, deadline, needed) in [
            (own(shell()), 30, None),
            (own(shell()), 29, Some("30s that the health check needs: its start period and 2 intervals")),
            (defaults.clone(), 90, None),
            (defaults, 89, Some("90s that the health check needs: its start period and 3 intervals")),
            // The check of the image is not known here, and there may be none.
            (own(None), 1, None),
            (own(Some(HealthTest::None)), 1, None),
        ] {
            let policy = UpdatePolicy { progress_deadline: Some(seconds(deadline)), ..UpdatePolicy::default() };
            let found = broken(ServiceSpec { update: policy, healthcheck: check, ..ServiceSpec::default() });
            let why = |needed| format!("update.progress_deadline: {deadline}s is less than the {needed}");
            assert_eq!(found, needed.map(why).into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_check_that_is_out_of_bounds_itself_breaks_nothing() {
        let most = Some(Duration::from_millis(u64::MAX));
        let check = HealthSpec {
            test: Some(HealthTest::Tcp { port: 1 }),
            start_period: most,
            interval: most,
            retries: Some(NonZeroU32::MAX),
            ..HealthSpec::default()
        };
        let policy = UpdatePolicy { progress_deadline: Some(MOST), ..UpdatePolicy::default() };
        let found = broken(ServiceSpec { update: policy, healthcheck: check, ..ServiceSpec::default() });
        let fields: Vec<_> = found.iter().filter_map(|it| it.split(':').next()).collect();
        let expected =
            ["healthcheck.interval", "healthcheck.start_period", "healthcheck.retries", "update.progress_deadline"];
        assert_eq!(fields, expected);
    }
}
