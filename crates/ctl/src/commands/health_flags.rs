//! The flags of `ctl service create` and `update` for the health check. Those for a command are Docker's.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;

use flota_api::model::{HealthTest, ServiceSpec};

use crate::parse;

/// The flags that `create` and `update` share.
#[derive(Debug, Default, Args)]
pub(crate) struct HealthFlags {
    /// Command line that checks the health of a task, for /bin/sh in its container; empty: the image's check
    #[arg(long, value_name = "COMMAND", group = "health_test")]
    health_cmd: Option<String>,
    /// Address that answers while a task is healthy, http://:PORT/PATH
    #[arg(long, value_name = "ADDRESS", group = "health_test", value_parser = HealthTest::http)]
    health_http: Option<HealthTest>,
    /// Port that accepts connections while a task is healthy
    #[arg(long, value_name = "PORT", group = "health_test")]
    health_tcp: Option<u16>,
    /// Check no health, whatever the image says
    #[arg(long, group = "health_test", conflicts_with_all = HEALTH_TIMES)]
    no_healthcheck: bool,
    /// Time between two checks (default: the image's, or else 30s)
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    health_interval: Option<Duration>,
    /// Time after which a check has failed (default: the image's, or else 30s)
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    health_timeout: Option<Duration>,
    /// Time from the start of a task in which failures do not count (default: the image's, or else 0s)
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    health_start_period: Option<Duration>,
    /// Time between two checks in the start period (default: the image's, or else 5s)
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    health_start_interval: Option<Duration>,
    /// Failures in a row after which a task is unhealthy; 0 means the default: the image's, or else 3
    #[arg(long, value_name = "COUNT")]
    health_retries: Option<u32>,
}

/// The flags that mean nothing without a check.
const HEALTH_TIMES: [&str; 5] =
    ["health_interval", "health_timeout", "health_start_period", "health_start_interval", "health_retries"];

impl HealthFlags {
    /// Sets the given flags in the spec and leaves the rest as it is.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) {
        let health = &mut spec.healthcheck;
        if let Some(line) = &self.health_cmd {
            health.test = (!line.is_empty()).then(|| HealthTest::Shell(line.clone()));
        }
        let others = self.health_http.clone().or(self.health_tcp.map(|port| HealthTest::Tcp { port }));
        health.test = others.or(self.no_healthcheck.then_some(HealthTest::None)).or(health.test.take());
        health.interval = self.health_interval.or(health.interval);
        health.timeout = self.health_timeout.or(health.timeout);
        health.start_period = self.health_start_period.or(health.start_period);
        health.start_interval = self.health_start_interval.or(health.start_interval);
        if let Some(retries) = self.health_retries {
            health.retries = NonZeroU32::new(retries);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Update {
        #[command(flatten)]
        flags: HealthFlags,
    }

    fn updated(spec: &ServiceSpec, flags: &[&str]) -> Result<ServiceSpec, String> {
        let words = ["ctl"].into_iter().chain(flags.iter().copied());
        let update = Update::try_parse_from(words).map_err(|error| error.to_string())?;
        let mut spec = spec.clone();
        update.flags.apply(&mut spec);
        Ok(spec)
    }

    fn shown(spec: &ServiceSpec) -> String {
        let health = &spec.healthcheck;
        let test = health.test.as_ref().map(|it| it.words().join(" ")).unwrap_or_default();
        let times = [health.interval, health.timeout, health.start_period, health.start_interval];
        let times = times.map(|it| it.map_or_else(|| "-".to_owned(), |it| format!("{it:?}"))).join(" ");
        format!("{test}|{times}|{}", health.retries.map_or(0, NonZeroU32::get))
    }

    #[test]
    fn flags_make_of_a_check_what_docker_would() {
        let mut spec = ServiceSpec::default();
        for (flags, expected) in [
            (&[][..], "|- - - -|0"),
            (&["--health-interval=2s", "--health-retries=5"], "|2s - - -|5"),
            (&["--health-cmd", "curl -f x || exit 1"], "CMD-SHELL curl -f x || exit 1|2s - - -|5"),
            (&["--health-timeout=1s", "--health-start-period=1m"], "CMD-SHELL curl -f x || exit 1|2s 1s 60s -|5"),
            (&["--health-http", "http://:80/a", "--health-start-interval=1s"], "HTTP http://:80/a|2s 1s 60s 1s|5"),
            (&["--health-tcp", "5432", "--health-retries=0"], "TCP 5432|2s 1s 60s 1s|0"),
            (&["--no-healthcheck"], "NONE|2s 1s 60s 1s|0"),
            (&[], "NONE|2s 1s 60s 1s|0"),
            (&["--health-cmd="], "|2s 1s 60s 1s|0"),
        ] {
            spec = updated(&spec, flags).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(shown(&spec), expected, "{flags:?}");
        }
    }

    #[test]
    fn what_is_no_check_and_what_contradicts_itself_is_refused() {
        for (flags, expected) in [
            (&["--health-http", "https://:1/"][..], "is not an address such as http://:8080/path"),
            (&["--health-tcp", "65536"], "65536 is not in 0..=65535"),
            (&["--health-interval", "10"], "is not a duration such as"),
            (&["--health-retries=-1"], "-1 is not in 0..=4294967295"),
            (&["--health-cmd", "a", "--health-tcp", "1"], "cannot be used with"),
            (&["--no-healthcheck", "--health-cmd", "a"], "cannot be used with"),
            (&["--no-healthcheck", "--health-retries", "1"], "cannot be used with"),
        ] {
            let error = updated(&ServiceSpec::default(), flags).expect_err(expected);
            assert!(error.contains(expected), "{flags:?}: {error}");
        }
    }
}
