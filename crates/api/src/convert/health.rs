//! Conversion of health checks and of what workers find out with them.

use std::num::NonZeroU32;
use std::time::Duration;

use super::{FromNumber, Malformed, millis};
use crate::model::{Health, HealthResult, HealthSpec, HealthTest};
use crate::proto::specs::health_test::Test as Wire;
use crate::proto::{specs as ps, types as pt};
use crate::version::Timestamp;

impl From<&HealthSpec> for ps::HealthSpec {
    fn from(it: &HealthSpec) -> Self {
        Self {
            test: it.test.as_ref().map(Into::into),
            interval_ms: it.interval.map(millis),
            timeout_ms: it.timeout.map(millis),
            start_period_ms: it.start_period.map(millis),
            start_interval_ms: it.start_interval.map(millis),
            retries: it.retries.map_or(0, NonZeroU32::get),
        }
    }
}

impl TryFrom<Option<ps::HealthSpec>> for HealthSpec {
    type Error = Malformed;
    fn try_from(it: Option<ps::HealthSpec>) -> Result<Self, Malformed> {
        let it = it.unwrap_or_default();
        let duration = |millis: Option<u64>| millis.map(Duration::from_millis);
        Ok(Self {
            test: it.test.map(TryInto::try_into).transpose()?,
            interval: duration(it.interval_ms),
            timeout: duration(it.timeout_ms),
            start_period: duration(it.start_period_ms),
            start_interval: duration(it.start_interval_ms),
            retries: NonZeroU32::new(it.retries),
        })
    }
}

impl From<&HealthTest> for ps::HealthTest {
    fn from(it: &HealthTest) -> Self {
        let test = match it {
            HealthTest::None => Wire::None(true),
            HealthTest::Command(words) => Wire::Command(ps::HealthCommand { words: words.clone() }),
            HealthTest::Shell(line) => Wire::Shell(line.clone()),
            HealthTest::Http { port, path } => {
                Wire::Http(ps::HealthHttp { port: u32::from(*port), path: path.clone() })
            }
            HealthTest::Tcp { port } => Wire::TcpPort(u32::from(*port)),
        };
        Self { test: Some(test) }
    }
}

impl TryFrom<ps::HealthTest> for HealthTest {
    type Error = Malformed;
    fn try_from(it: ps::HealthTest) -> Result<Self, Malformed> {
        let port = |port: u32| {
            let why = || Malformed::new("healthcheck.test", format!("has the port {port}; the largest is 65535"));
            u16::try_from(port).map_err(|_| why())
        };
        Ok(match it.test.ok_or_else(|| Malformed::new("healthcheck.test", "has an unknown kind"))? {
            Wire::None(_) => Self::None,
            Wire::Command(it) => Self::Command(it.words),
            Wire::Shell(line) => Self::Shell(line),
            Wire::Http(it) => Self::Http { port: port(it.port)?, path: it.path },
            Wire::TcpPort(it) => Self::Tcp { port: port(it)? },
        })
    }
}

impl From<&Health> for pt::Health {
    fn from(it: &Health) -> Self {
        let result =
            |it: &HealthResult| pt::HealthResult { at: it.at.0, exit_code: it.exit_code, output: it.output.clone() };
        let log = it.log.iter().map(result).collect();
        let decides_within_ms = millis(it.decides_within);
        Self { state: it.state.number(), failing_streak: it.failing_streak, log, decides_within_ms }
    }
}

impl TryFrom<pt::Health> for Health {
    type Error = Malformed;
    fn try_from(it: pt::Health) -> Result<Self, Malformed> {
        let result =
            |it: pt::HealthResult| HealthResult { at: Timestamp(it.at), exit_code: it.exit_code, output: it.output };
        Ok(Self {
            state: FromNumber::from_number(it.state)?,
            failing_streak: it.failing_streak,
            log: it.log.into_iter().map(result).collect(),
            decides_within: Duration::from_millis(it.decides_within_ms),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HealthState;

    #[test]
    fn what_is_said_and_found_of_health_survives_the_way_to_the_wire_and_back() {
        let (second, retries) = (Some(Duration::from_secs(1)), NonZeroU32::new(4));
        for test in [
            HealthTest::None,
            HealthTest::Command(vec!["a".into(), String::new()]),
            HealthTest::Shell("a b".into()),
            HealthTest::Http { port: 1, path: "/a".into() },
            HealthTest::Tcp { port: 65_535 },
        ] {
            let interval = Some(Duration::ZERO);
            let spec = HealthSpec { test: Some(test), timeout: second, retries, interval, ..HealthSpec::default() };
            assert_eq!(HealthSpec::try_from(Some(ps::HealthSpec::from(&spec))), Ok(spec));
        }
        assert_eq!(HealthSpec::try_from(None), Ok(HealthSpec::default()));
        let result = HealthResult { at: Timestamp(5), exit_code: Some(0), output: "ok".into() };
        let log = vec![HealthResult::default(), result];
        let decides_within = Duration::from_millis(90_001);
        let health = Health { state: HealthState::Unhealthy, failing_streak: 3, log, decides_within };
        assert_eq!(Health::try_from(pt::Health::from(&health)), Ok(health));
    }

    #[test]
    fn what_is_no_test_is_an_error_with_the_name_of_the_field() {
        let test = |test| HealthTest::try_from(ps::HealthTest { test }).expect_err("it is bad").field;
        assert_eq!(test(None), "healthcheck.test");
        assert_eq!(test(Some(Wire::TcpPort(65_536))), "healthcheck.test");
    }
}
