//! Conversion of modes, schedules and runs.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use super::networks::all;
use super::{FromNumber, Malformed, millis, require};
use crate::model::{CronRun, CronStatus, Handled, ServiceMode};
use crate::proto::{objects as po, specs as ps};
use crate::schedule::{Schedule, ScheduleError, UTC};
use crate::version::Timestamp;

/// Parses a schedule. An empty time zone is UTC.
fn schedule(text: &str, time_zone: &str) -> Result<Arc<Schedule>, Malformed> {
    let zone = if time_zone.is_empty() { UTC } else { time_zone };
    let malformed = |error: ScheduleError| {
        let field = if matches!(error, ScheduleError::TimeZone(_)) { "time_zone" } else { "schedule" };
        Malformed::new(field, format!("can't be used: {error}"))
    };
    Schedule::parse(text, zone).map(Arc::new).map_err(malformed)
}

/// Writes what a mode says into the fields of a spec.
pub(super) fn set_mode(mode: &ServiceMode, spec: &mut ps::ServiceSpec) {
    spec.mode = match mode {
        ServiceMode::Replicated { .. } => ps::ServiceMode::Replicated,
        ServiceMode::Global {} => ps::ServiceMode::Global,
        ServiceMode::ReplicatedJob { .. } => ps::ServiceMode::ReplicatedJob,
        ServiceMode::GlobalJob {} => ps::ServiceMode::GlobalJob,
        ServiceMode::Cron { .. } => ps::ServiceMode::Cron,
    }
    .into();
    spec.replicas = mode.replicas().unwrap_or_default();
    spec.max_concurrent = mode.max_concurrent().map_or(0, NonZeroU64::get);
    if let Some((schedule, concurrency)) = mode.cron() {
        spec.schedule = schedule.text().to_owned();
        spec.time_zone = schedule.time_zone().to_owned();
        spec.concurrency = concurrency.number();
        spec.start_deadline_ms = mode.start_deadline().map_or(0, millis);
    }
}

/// Reads the mode of a spec from its fields.
pub(super) fn mode(spec: &ps::ServiceSpec) -> Result<ServiceMode, Malformed> {
    let max_concurrent = NonZeroU64::new(spec.max_concurrent);
    let mode = match ps::ServiceMode::try_from(spec.mode) {
        Ok(ps::ServiceMode::Replicated) => ServiceMode::Replicated { replicas: spec.replicas },
        Ok(ps::ServiceMode::Global) => ServiceMode::Global {},
        Ok(ps::ServiceMode::ReplicatedJob) => ServiceMode::ReplicatedJob { completions: spec.replicas, max_concurrent },
        Ok(ps::ServiceMode::GlobalJob) => ServiceMode::GlobalJob {},
        Ok(ps::ServiceMode::Cron) => ServiceMode::Cron {
            schedule: schedule(&spec.schedule, &spec.time_zone)?,
            concurrency: FromNumber::from_number(spec.concurrency)?,
            start_deadline: Some(Duration::from_millis(spec.start_deadline_ms)).filter(|it| !it.is_zero()),
            completions: spec.replicas,
            max_concurrent,
        },
        Err(_) => return Err(Malformed::new("spec.mode", "is unknown")),
    };
    if mode.cron().is_none() && !(spec.schedule.is_empty() && spec.time_zone.is_empty()) {
        return Err(Malformed::new("schedule", format!("is for the mode cron, and the mode is {}", mode.as_str())));
    }
    Ok(mode)
}

impl From<&CronStatus> for po::CronStatus {
    fn from(it: &CronStatus) -> Self {
        let handled = |it: &Handled| po::CronHandled {
            schedule: it.schedule.text().to_owned(),
            time_zone: it.schedule.time_zone().to_owned(),
            until: it.until.0,
        };
        Self {
            handled: it.handled.as_ref().map(handled),
            last_number: it.last_number,
            runs: it.runs.iter().map(Into::into).collect(),
            missed: it.missed,
            requested: it.requested,
        }
    }
}

impl TryFrom<Option<po::CronStatus>> for CronStatus {
    type Error = Malformed;
    fn try_from(it: Option<po::CronStatus>) -> Result<Self, Malformed> {
        let Some(it) = it else { return Ok(Self::default()) };
        let handled = |it: po::CronHandled| {
            Ok(Handled { schedule: schedule(&it.schedule, &it.time_zone)?, until: Timestamp(it.until) })
        };
        Ok(Self {
            handled: it.handled.map(handled).transpose()?,
            last_number: it.last_number,
            runs: all(it.runs)?,
            missed: it.missed,
            requested: it.requested,
        })
    }
}

impl From<&CronRun> for po::CronRun {
    fn from(it: &CronRun) -> Self {
        Self {
            number: it.number.get(),
            scheduled_at: it.scheduled_at.0,
            began_at: it.began_at.0,
            ended_at: it.ended_at.map(|it| it.0),
            state: it.state.number(),
            spec_version: it.spec_version,
            completions: it.completions,
        }
    }
}

impl TryFrom<po::CronRun> for CronRun {
    type Error = Malformed;
    fn try_from(it: po::CronRun) -> Result<Self, Malformed> {
        Ok(Self {
            number: require(NonZeroU64::new(it.number), "cron.runs.number")?,
            scheduled_at: Timestamp(it.scheduled_at),
            began_at: Timestamp(it.began_at),
            ended_at: it.ended_at.map(Timestamp),
            state: FromNumber::from_number(it.state)?,
            spec_version: it.spec_version,
            completions: it.completions,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Concurrency, ModeName, RunState, Service, ServiceSpec};

    #[test]
    fn every_mode_survives_the_way_to_the_wire_and_back() {
        let weekly = Arc::new(Schedule::parse("0 9 * * MON", "Europe/Zurich").expect("a good schedule"));
        let (concurrency, max_concurrent) = (Concurrency::Replace, NonZeroU64::new(2));
        let start_deadline = Some(Duration::from_secs(600));
        for (mode, json) in [
            (ServiceMode::Replicated { replicas: 3 }, r#"{"mode":"replicated","replicas":3}"#),
            (ServiceMode::Global {}, r#"{"mode":"global"}"#),
            (
                ServiceMode::ReplicatedJob { completions: 5, max_concurrent },
                r#"{"mode":"replicated-job","completions":5,"maxConcurrent":2}"#,
            ),
            (ServiceMode::GlobalJob {}, r#"{"mode":"global-job"}"#),
            (
                ServiceMode::Cron { schedule: weekly, concurrency, start_deadline, completions: 4, max_concurrent },
                concat!(
                    r#"{"mode":"cron","schedule":"0 9 * * MON","timeZone":"Europe/Zurich","concurrency":"replace","#,
                    r#""startDeadline":"600s","completions":4,"maxConcurrent":2}"#
                ),
            ),
        ] {
            let spec = ServiceSpec::of_mode(mode.clone());
            assert_eq!(ServiceSpec::try_from(ps::ServiceSpec::from(&spec)), Ok(spec));
            assert_eq!(serde_json::to_string(&mode).expect("it is a map"), json);
            assert_eq!(ModeName::parse(mode.as_str()), Ok(mode.name()));
        }
    }

    #[test]
    fn a_schedule_that_is_none_is_refused_with_the_name_of_its_field() {
        let cron = |schedule: &str, time_zone: &str| ps::ServiceSpec {
            mode: ps::ServiceMode::Cron.into(),
            schedule: schedule.into(),
            time_zone: time_zone.into(),
            restart: Some(Default::default()),
            ..Default::default()
        };
        let refusal = |spec: ps::ServiceSpec| ServiceSpec::try_from(spec).expect_err("it is not good").to_string();
        for (schedule, time_zone, expected) in [
            ("", "", "schedule"),
            ("0 0 30 2 *", "", "`0 0 30 2 *` never comes"),
            ("* * * *", "", "schedule"),
            ("* * * * *", "Europe/Zürich", "time_zone"),
        ] {
            let error = refusal(cron(schedule, time_zone));
            assert!(error.contains(expected), "{schedule} {time_zone}: {error}");
        }
        let job = ps::ServiceSpec { mode: ps::ServiceMode::ReplicatedJob.into(), ..cron("* * * * *", "") };
        assert!(refusal(job).contains("is for the mode cron"));
        let unknown = ps::ServiceSpec { concurrency: 9, ..cron("* * * * *", "") };
        assert!(refusal(unknown).contains("concurrency"));
    }

    #[test]
    fn runs_survive_the_way_to_the_wire_and_back_and_cost_nothing_where_there_are_none() {
        let schedule = Arc::new("@daily".parse::<Schedule>().expect("a good schedule"));
        let run = |number, state, ended_at| CronRun {
            number: NonZeroU64::new(number).unwrap(),
            scheduled_at: Timestamp(1),
            began_at: Timestamp(2),
            ended_at,
            state,
            spec_version: 3,
            completions: 4,
        };
        let ended = RunState::ALL.iter().map(|state| run(1, *state, Some(Timestamp(3))));
        let cron = CronStatus {
            handled: Some(Handled { schedule, until: Timestamp(5) }),
            last_number: 7,
            runs: ended.chain([run(7, RunState::Running, None)]).collect(),
            missed: 8,
            requested: true,
        };
        let service = Service { spec_set_at: Some(Timestamp(1)), cron, ..Service::default() };
        assert_eq!(Service::try_from(po::Service::from(&service)), Ok(service));
        assert_eq!(po::Service::from(&Service::default()).cron, None);
    }
}
