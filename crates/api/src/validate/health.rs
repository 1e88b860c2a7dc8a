//! The rules for the health check of a service.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::model::{HealthSpec, HealthTest, ServiceSpec};

/// Shortest interval and timeout, as in Docker.
const LEAST: Duration = Duration::from_millis(1);
/// Longest interval, timeout and start period. A task that is checked less often than daily is not checked.
const MOST: Duration = Duration::from_secs(24 * 3600);
/// Largest number of retries.
const MOST_RETRIES: NonZeroU32 = NonZeroU32::new(1_000).expect("it is not zero");

/// Calls `check` with the result for every field.
pub(super) fn judge(spec: &ServiceSpec, check: &mut impl FnMut(&str, Result<(), String>)) {
    let HealthSpec { test, interval, timeout, start_period, start_interval, retries } = &spec.healthcheck;
    check("healthcheck.test", test.as_ref().map_or(Ok(()), self::test));
    for (field, least, duration) in [
        ("healthcheck.interval", LEAST, interval),
        ("healthcheck.timeout", LEAST, timeout),
        ("healthcheck.start_period", Duration::ZERO, start_period),
        ("healthcheck.start_interval", LEAST, start_interval),
    ] {
        let is_good = duration.is_none_or(|it| (least..=MOST).contains(&it));
        check(
            field,
            is_good.then_some(()).ok_or_else(|| format!("it is from {least:?} to {} h", MOST.as_secs() / 3600)),
        );
    }
    let is_good = retries.is_none_or(|it| it <= MOST_RETRIES);
    check("healthcheck.retries", is_good.then_some(()).ok_or_else(|| format!("the most is {MOST_RETRIES}")));
}

impl HealthSpec {
    /// Returns it with what is out of bounds replaced by the nearest bound: an image may not ask for more than a service.
    #[must_use]
    pub fn within_bounds(self) -> Self {
        let bounded = |it: Option<Duration>| it.map(|it| it.clamp(LEAST, MOST));
        Self {
            test: self.test,
            interval: bounded(self.interval),
            timeout: bounded(self.timeout),
            start_period: self.start_period.map(|it| it.min(MOST)),
            start_interval: bounded(self.start_interval),
            retries: self.retries.map(|it| it.min(MOST_RETRIES)),
        }
    }
}

fn test(test: &HealthTest) -> Result<(), String> {
    let filled = |text: &str| match text {
        "" => Err("it has nothing to run".to_owned()),
        text if text.contains('\0') => Err("it holds a NUL byte".to_owned()),
        _ => Ok(()),
    };
    let some_port = |port: u16| if port == 0 { Err("a port is from 1 to 65535".to_owned()) } else { Ok(()) };
    match test {
        HealthTest::None => Ok(()),
        HealthTest::Command(words) => {
            filled(words.first().map_or("", String::as_str))?;
            words.iter().filter(|it| !it.is_empty()).try_for_each(|it| filled(it))
        }
        HealthTest::Shell(line) => filled(line.trim()),
        HealthTest::Tcp { port } => some_port(*port),
        HealthTest::Http { port, path } => {
            let is_path = path.starts_with('/') && path.bytes().all(|it| it.is_ascii_graphic() && it != b'#');
            some_port(*port)?;
            is_path.then_some(()).ok_or_else(|| format!("`{}` is not a path of an HTTP request", path.escape_debug()))
        }
    }
}

/// Returns the texts of these fields, which count towards the size of a spec.
pub(super) fn texts(spec: &ServiceSpec) -> impl Iterator<Item = &String> {
    let (words, text) = match &spec.healthcheck.test {
        Some(HealthTest::Command(words)) => (words.as_slice(), None),
        Some(HealthTest::Shell(text) | HealthTest::Http { path: text, .. }) => (&[][..], Some(text)),
        Some(HealthTest::None | HealthTest::Tcp { .. }) | None => (&[][..], None),
    };
    words.iter().chain(text)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::validate::violations;

    fn broken(healthcheck: HealthSpec) -> Vec<String> {
        let spec = ServiceSpec { name: "web".into(), image: "web".into(), healthcheck, ..ServiceSpec::default() };
        violations(&spec).into_iter().map(|it| format!("{}: {}", it.field, it.why)).collect()
    }

    #[test]
    fn all_bad_settings_are_named_at_once() {
        let (second, day) = (Some(Duration::from_secs(1)), Some(MOST));
        let good = HealthSpec {
            test: Some(HealthTest::Shell("true".into())),
            interval: second,
            timeout: day,
            start_period: Some(Duration::ZERO),
            start_interval: Some(LEAST),
            retries: Some(MOST_RETRIES),
        };
        assert_eq!(broken(good), [""; 0]);
        let bad = HealthSpec {
            test: Some(HealthTest::Command(Vec::new())),
            interval: Some(Duration::ZERO),
            timeout: Some(Duration::from_millis(u64::MAX)),
            start_period: Some(MOST + LEAST),
            start_interval: Some(Duration::ZERO),
            retries: MOST_RETRIES.checked_add(1),
        };
        let expected = [
            "healthcheck.test: it has nothing to run",
            "healthcheck.interval: it is from 1ms to 24 h",
            "healthcheck.timeout: it is from 1ms to 24 h",
            "healthcheck.start_period: it is from 0ns to 24 h",
            "healthcheck.start_interval: it is from 1ms to 24 h",
            "healthcheck.retries: the most is 1000",
        ];
        assert_eq!(broken(bad), expected);
    }

    #[test]
    fn a_test_that_can_not_be_run_is_refused() {
        let command = |words: &[&str]| HealthTest::Command(words.iter().map(|it| (*it).to_owned()).collect());
        let http = |port, path: &str| HealthTest::Http { port, path: path.into() };
        for good in [HealthTest::None, command(&["a", ""]), HealthTest::Tcp { port: 1 }, http(80, "/a?b=c%20d")] {
            assert_eq!(broken(HealthSpec { test: Some(good), ..HealthSpec::default() }), [""; 0]);
        }
        for (bad, why) in [
            (command(&[""]), "it has nothing to run"),
            (command(&["a", "\0"]), "it holds a NUL byte"),
            (HealthTest::Shell(" ".into()), "it has nothing to run"),
            (HealthTest::Tcp { port: 0 }, "a port is from 1 to 65535"),
            (http(0, "/"), "a port is from 1 to 65535"),
            (http(1, "a"), "`a` is not a path of an HTTP request"),
            (http(1, "/a b"), "`/a b` is not a path of an HTTP request"),
            (http(1, "/\r\nX: y"), "`/\\r\\nX: y` is not a path of an HTTP request"),
        ] {
            let found = broken(HealthSpec { test: Some(bad), ..HealthSpec::default() });
            assert_eq!(found, [format!("healthcheck.test: {why}")]);
        }
    }

    #[test]
    fn what_an_image_asks_for_is_brought_within_the_bounds() {
        let wild = HealthSpec {
            interval: Some(Duration::from_nanos(1)),
            timeout: Some(MOST * 2),
            start_period: Some(MOST * 2),
            start_interval: Some(Duration::ZERO),
            retries: NonZeroU32::new(u32::MAX),
            ..HealthSpec::default()
        };
        let tame = HealthSpec {
            interval: Some(LEAST),
            timeout: Some(MOST),
            start_period: Some(MOST),
            start_interval: Some(LEAST),
            retries: Some(MOST_RETRIES),
            ..HealthSpec::default()
        };
        assert_eq!(wild.within_bounds(), tame);
        assert_eq!(tame.clone().within_bounds(), tame);
    }
}
