//! The mode of a service, with its schedule if it is cron. Compose has no words for a schedule: `x-flota-schedule`,
//! `x-flota-time-zone`, `x-flota-concurrency` and `x-flota-start-deadline` are.

use flota_api::model::{Concurrency, ModeName, ServiceMode};
use flota_api::schedule::{Schedule, ScheduleError, UTC};

use crate::fields::Fields;
use crate::parse::duration_or_none;
use crate::tree::{Fault, Node};

/// Reads the mode from the keys of `deploy`. A job with a schedule, and a service with a schedule and no mode, are of the
/// mode cron.
pub(super) fn mode(keys: &mut Fields<'_>) -> Result<ServiceMode, Fault> {
    let node = keys.get("mode");
    let name = node.map(|it| it.parsed(ModeName::parse)).transpose()?;
    let (schedule, zone) = (keys.get("x-flota-schedule"), keys.get("x-flota-time-zone"));
    let (rule, deadline) = (keys.get("x-flota-concurrency"), keys.get("x-flota-start-deadline"));
    let Some(schedule) = schedule else {
        if let Some(it) = zone.or(rule).or(deadline) {
            return Err(it.fault("it is for a service with `x-flota-schedule`"));
        }
        let name = name.unwrap_or(ModeName::Replicated);
        return ServiceMode::named(name, None).map_err(|why| match node {
            Some(it) => it.fault(format!("{why}: `x-flota-schedule`")),
            None => keys.fault(&why),
        });
    };
    let name = match name {
        None | Some(ModeName::ReplicatedJob | ModeName::Cron) => ModeName::Cron,
        Some(other) => return Err(schedule.fault(format!("a service of the mode {other} has no schedule"))),
    };
    let concurrency = rule.map(|it| it.parsed(Concurrency::parse)).transpose()?;
    let deadline = deadline.map(|it| it.parsed(duration_or_none)).transpose()?.flatten();
    let parsed = parse(schedule, zone)?;
    let mut mode = ServiceMode::named(name, Some(parsed)).map_err(|why| schedule.fault(why))?;
    if let ServiceMode::Cron { concurrency: rule, start_deadline, .. } = &mut mode {
        *rule = concurrency.unwrap_or(*rule);
        *start_deadline = deadline;
    }
    Ok(mode)
}

/// Parses a schedule. A fault is that of the key that is wrong.
fn parse(schedule: &Node, zone: Option<&Node>) -> Result<Schedule, Fault> {
    let name = zone.map(Node::text).transpose()?;
    let parsed = Schedule::parse(&schedule.text()?, name.as_deref().unwrap_or(UTC));
    parsed.map_err(|error| match (&error, zone) {
        (ScheduleError::TimeZone(_), Some(zone)) => zone.fault(error.to_string()),
        _ => schedule.fault(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::parse;

    /// Reads the keys of `deploy`; a fault is returned with its key.
    fn read(text: &str) -> Result<String, String> {
        let node = parse(text).map_err(|fault| fault.why)?;
        let mode = node.fields().and_then(|mut keys| mode(&mut keys));
        let mode = mode.map_err(|fault| format!("{}: {}", fault.key, fault.why))?;
        let cron = mode.cron().map(|(schedule, concurrency)| format!(" {schedule} {concurrency}"));
        let deadline = mode.start_deadline().map(|it| format!(" {it:?}"));
        Ok(format!("{}{}{}", mode.as_str(), cron.unwrap_or_default(), deadline.unwrap_or_default()))
    }

    #[test]
    fn a_schedule_makes_a_service_one_of_the_mode_cron() {
        for (text, expected) in [
            ("{}", "replicated"),
            ("mode: global-job", "global-job"),
            ("x-flota-schedule: '@daily'", "cron @daily UTC forbid"),
            ("{ mode: replicated-job, x-flota-schedule: '@daily' }", "cron @daily UTC forbid"),
            ("{ x-flota-schedule: '@daily', x-flota-start-deadline: 1h }", "cron @daily UTC forbid 3600s"),
            (
                "{ mode: cron, x-flota-schedule: '*/5 * * * *', x-flota-time-zone: Asia/Tokyo, x-flota-concurrency: allow }",
                "cron */5 * * * * Asia/Tokyo allow",
            ),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_contradicts_itself_or_never_comes_is_refused_at_its_key() {
        for (text, expected) in [
            ("mode: cron", "mode: a service of the mode cron needs a schedule: `x-flota-schedule`"),
            ("{ mode: global, x-flota-schedule: '@daily' }", "x-flota-schedule: a service of the mode global has no"),
            ("x-flota-schedule: 0 0 30 2 *", "x-flota-schedule: `0 0 30 2 *` never comes"),
            ("{ x-flota-schedule: '@daily', x-flota-time-zone: Mars }", "x-flota-time-zone: `Mars` is no time zone"),
            ("{ x-flota-schedule: '@daily', x-flota-concurrency: no }", "x-flota-concurrency: `no` is none of"),
            ("{ x-flota-schedule: '@daily', x-flota-start-deadline: soon }", "x-flota-start-deadline: `soon` is not"),
            ("x-flota-start-deadline: 1h", "x-flota-start-deadline: it is for a service with `x-flota-schedule`"),
            ("x-flota-time-zone: UTC", "x-flota-time-zone: it is for a service with `x-flota-schedule`"),
        ] {
            let refused = read(text).expect_err(text);
            assert!(refused.contains(expected), "{text}: {refused}");
        }
    }
}
