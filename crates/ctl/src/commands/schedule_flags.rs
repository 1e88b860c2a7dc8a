//! The flags of the mode cron: when a service runs, and what happens when runs would overlap.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use flota_api::model::{Concurrency, ModeName, ServiceMode, ServiceSpec};
use flota_api::schedule::{Schedule, ScheduleError, UTC};

use crate::error::Usage;
use crate::parse;

#[derive(Debug, Default, Args)]
pub(crate) struct ScheduleFlags {
    /// Times at which a service of the mode cron runs, as in crontab(5), such as "*/5 * * * *", or @daily
    #[arg(long, value_name = "FIELDS")]
    schedule: Option<String>,
    /// Time zone of the schedule, such as Europe/Zurich (default UTC)
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// Rule for a run that is due while another is under way: forbid (skip it), allow or replace
    #[arg(long, value_parser = Concurrency::parse)]
    concurrency: Option<Concurrency>,
    /// Longest delay of a run; a time that is longer ago is missed (default 0: no limit, only the newest is made up for)
    #[arg(long, value_name = "TIME", value_parser = parse::duration_or_none)]
    start_deadline: Option<Duration>,
}

impl ScheduleFlags {
    /// Returns the mode of this name, for a service that is created.
    pub(super) fn mode(&self, name: ModeName) -> anyhow::Result<ServiceMode> {
        let schedule = match (&self.schedule, name) {
            (Some(text), ModeName::Cron) => Some(self.parse(text, UTC)?),
            (None, ModeName::Cron) => anyhow::bail!(Usage("--mode cron needs --schedule".into())),
            _ => None,
        };
        ServiceMode::named(name, schedule).map_err(|why| Usage(format!("--mode {name}: {why}")).into())
    }

    /// Sets the given flags in the spec and leaves the rest as it is.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> anyhow::Result<()> {
        let given = [
            ("--schedule", self.schedule.is_some()),
            ("--time-zone", self.time_zone.is_some()),
            ("--concurrency", self.concurrency.is_some()),
            ("--start-deadline", self.start_deadline.is_some()),
        ];
        let Some((flag, _)) = given.into_iter().find(|(_, is_given)| *is_given) else { return Ok(()) };
        let ServiceMode::Cron { schedule, concurrency, start_deadline, .. } = &mut spec.mode else {
            anyhow::bail!(Usage(format!("{flag}: it is for services of the mode cron")));
        };
        let text = self.schedule.as_deref().unwrap_or(schedule.text());
        *schedule = Arc::new(self.parse(text, schedule.time_zone())?);
        *concurrency = self.concurrency.unwrap_or(*concurrency);
        if let Some(given) = self.start_deadline {
            *start_deadline = Some(given).filter(|it| !it.is_zero());
        }
        Ok(())
    }

    /// Parses a schedule, in the time zone that is given, or else in this one.
    fn parse(&self, text: &str, time_zone: &str) -> Result<Schedule, Usage> {
        let parsed = Schedule::parse(text, self.time_zone.as_deref().unwrap_or(time_zone));
        parsed.map_err(|error| {
            let flag = if matches!(error, ScheduleError::TimeZone(_)) { "--time-zone" } else { "--schedule" };
            Usage(format!("{flag}: {error}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(schedule: Option<&str>, time_zone: Option<&str>, concurrency: Option<Concurrency>) -> ScheduleFlags {
        let (schedule, time_zone) = (schedule.map(Into::into), time_zone.map(Into::into));
        ScheduleFlags { schedule, time_zone, concurrency, start_deadline: None }
    }

    #[test]
    fn a_new_service_of_the_mode_cron_has_its_schedule_and_no_other_has_one() {
        let mode = flags(Some("@daily"), Some("Europe/Zurich"), None).mode(ModeName::Cron).expect("a good schedule");
        let (schedule, concurrency) = mode.cron().expect("it is cron");
        assert_eq!((schedule.to_string().as_str(), concurrency), ("@daily Europe/Zurich", Concurrency::Forbid));
        for (flags, name, expected) in [
            (flags(None, None, None), ModeName::Cron, "--mode cron needs --schedule"),
            (flags(Some("0 0 30 2 *"), None, None), ModeName::Cron, "--schedule: `0 0 30 2 *` never comes"),
            (flags(Some("@daily"), Some("Mars"), None), ModeName::Cron, "--time-zone: `Mars` is no time zone"),
        ] {
            let error = flags.mode(name).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
        let mut job = ServiceSpec::of_mode(ServiceMode::GlobalJob {});
        let error = flags(None, Some("UTC"), None).apply(&mut job).expect_err("it is another mode").to_string();
        assert!(error.contains("--time-zone: it is for services of the mode cron"), "{error}");
    }

    #[test]
    fn a_flag_that_is_not_given_leaves_what_the_service_has() {
        let mode = flags(Some("@daily"), Some("Europe/Zurich"), None).mode(ModeName::Cron).expect("a good schedule");
        let mut spec = ServiceSpec::of_mode(mode.with_replicas(3).expect("it has a number"));
        let mut after = |flags: ScheduleFlags| {
            flags.apply(&mut spec).expect("good flags");
            let (schedule, concurrency) = spec.mode.cron().expect("it is cron");
            format!("{schedule} {concurrency} {:?}", spec.mode.replicas())
        };
        assert_eq!(after(flags(None, None, Some(Concurrency::Allow))), "@daily Europe/Zurich allow Some(3)");
        assert_eq!(after(flags(Some("@hourly"), None, None)), "@hourly Europe/Zurich allow Some(3)");
        assert_eq!(after(flags(None, Some("Asia/Tokyo"), None)), "@hourly Asia/Tokyo allow Some(3)");
        let mut deadline = |seconds| {
            let start_deadline = Some(Duration::from_secs(seconds));
            ScheduleFlags { start_deadline, ..ScheduleFlags::default() }.apply(&mut spec).expect("good flags");
            spec.mode.start_deadline()
        };
        assert_eq!((deadline(60), deadline(0)), (Some(Duration::from_secs(60)), None), "0 removes it");
    }
}
