//! Health checks: what users and images ask for, the check that follows from both, and what a worker has found out with
//! it about a task. The settings and their defaults are Docker's; checks by HTTP and TCP are Flota's own.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::seconds_or_zero;
use crate::defaults;
use crate::resources::number_or_zero;
use crate::state::states;
use crate::version::Timestamp;

/// Port of an HTTP check whose address names none.
const HTTP_PORT: u16 = 80;

/// The test of a task's health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthTest {
    /// No test, even if the image has one.
    None,
    /// By a program and its arguments, run in the container: its exit code 0 is a success.
    Command(Vec<String>),
    /// By a command line, run in the container by `/bin/sh -c`.
    Shell(String),
    /// By a GET request to 127.0.0.1 in the network namespace of the task: a status from 200 to 399 is a success.
    Http {
        /// The port.
        port: u16,
        /// The path, with its leading slash.
        path: String,
    },
    /// By a connection to 127.0.0.1 in the network namespace of the task.
    Tcp {
        /// The port.
        port: u16,
    },
}

impl HealthTest {
    /// Parses Docker's list: `NONE`, `CMD` and the words of a program, or `CMD-SHELL` and a command line. Returns `None`
    /// for an empty list, which means the test of the image.
    ///
    /// # Errors
    /// The list has another form; the text says which forms are allowed.
    pub fn from_words(words: &[String]) -> Result<Option<Self>, String> {
        let Some((kind, rest)) = words.split_first() else { return Ok(None) };
        match (kind.as_str(), rest) {
            ("NONE", []) => Ok(Some(Self::None)),
            ("CMD", words) => Ok(Some(Self::Command(words.to_vec()))),
            ("CMD-SHELL", [line]) => Ok(Some(Self::Shell(line.clone()))),
            _ => Err(format!("`{kind}` is not NONE, CMD with the words of a program, or CMD-SHELL with one text")),
        }
    }

    /// Parses the address of an HTTP check: `http://:8080/path`. The host is left out or `localhost`, because the check
    /// connects to the task itself.
    ///
    /// # Errors
    /// A message that names the text and the form that is expected.
    pub fn http(text: &str) -> Result<Self, String> {
        let fail =
            || format!("`{text}` is not an address such as http://:8080/path; the host is left out or localhost");
        let rest = text.strip_prefix("http://").ok_or_else(fail)?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
        let port = if port.is_empty() { Ok(HTTP_PORT) } else { port.parse() };
        match port {
            Ok(port) if ["", "localhost", "127.0.0.1"].contains(&host) && !authority.is_empty() => {
                Ok(Self::Http { port, path: if path.is_empty() { "/".into() } else { path.into() } })
            }
            _ => Err(fail()),
        }
    }

    /// Returns the words for which the test stands in a list, the first of which is its kind.
    pub fn words(&self) -> Vec<String> {
        let with = |kind: &str, word: String| vec![kind.to_owned(), word];
        match self {
            Self::None => vec!["NONE".to_owned()],
            Self::Command(words) => std::iter::once("CMD".to_owned()).chain(words.iter().cloned()).collect(),
            Self::Shell(line) => with("CMD-SHELL", line.clone()),
            Self::Http { port, path } => with("HTTP", format!("http://:{port}{path}")),
            Self::Tcp { port } => with("TCP", port.to_string()),
        }
    }
}

fn words_or_none<S: Serializer>(test: &Option<HealthTest>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(test.iter().flat_map(HealthTest::words))
}

/// The settings of a health check by a user or an image. A setting that neither gives has a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthSpec {
    /// How health is found out.
    #[serde(serialize_with = "words_or_none")]
    pub test: Option<HealthTest>,
    /// Time from the start of a task, and from the end of a check, to the next check.
    #[serde(serialize_with = "seconds_or_zero")]
    pub interval: Option<Duration>,
    /// Time after which a check has failed.
    #[serde(serialize_with = "seconds_or_zero")]
    pub timeout: Option<Duration>,
    /// Time from the start of a task in which failures do not count, until its first success.
    #[serde(serialize_with = "seconds_or_zero")]
    pub start_period: Option<Duration>,
    /// The interval in the start period.
    #[serde(serialize_with = "seconds_or_zero")]
    pub start_interval: Option<Duration>,
    /// Number of failures in a row that make a task unhealthy.
    #[serde(serialize_with = "retries_or_zero")]
    pub retries: Option<NonZeroU32>,
}

fn retries_or_zero<S: Serializer>(retries: &Option<NonZeroU32>, serializer: S) -> Result<S::Ok, S::Error> {
    number_or_zero(&retries.map(NonZeroU32::get), serializer)
}

/// A health check with all its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// How health is found out; never [`HealthTest::None`].
    pub test: HealthTest,
    /// Time from the start of a task, and from the end of a check, to the next check.
    pub interval: Duration,
    /// Time after which a check has failed.
    pub timeout: Duration,
    /// Time from the start of a task in which failures do not count, until its first success.
    pub start_period: Duration,
    /// The interval in the start period.
    pub start_interval: Duration,
    /// Number of failures in a row that make a task unhealthy.
    pub retries: NonZeroU32,
}

impl HealthCheck {
    /// Returns how long it takes at most, from the start of a task that never becomes healthy, until the task is unhealthy.
    pub fn decides_within(&self) -> Duration {
        self.start_period.saturating_add(self.interval.saturating_mul(self.retries.get()))
    }
}

impl HealthSpec {
    /// Returns the check of a task whose service says `self`, and whose image says `image`; `None` if there is none.
    pub fn check(&self, image: &Self) -> Option<HealthCheck> {
        let test = self.test.as_ref().or(image.test.as_ref()).filter(|it| **it != HealthTest::None)?;
        Some(HealthCheck {
            test: test.clone(),
            interval: self.interval.or(image.interval).unwrap_or(defaults::HEALTH_INTERVAL),
            timeout: self.timeout.or(image.timeout).unwrap_or(defaults::HEALTH_TIMEOUT),
            start_period: self.start_period.or(image.start_period).unwrap_or_default(),
            start_interval: self.start_interval.or(image.start_interval).unwrap_or(defaults::HEALTH_START_INTERVAL),
            retries: self.retries.or(image.retries).unwrap_or(defaults::HEALTH_RETRIES),
        })
    }
}

states! {
    /// The health of a task with a check.
    HealthState {
        /// No check has succeeded yet.
        Starting = "starting",
        /// The last checks have not all failed.
        Healthy = "healthy",
        /// As many checks in a row have failed as the service allows.
        Unhealthy = "unhealthy",
    }
}

/// One run of a health check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthResult {
    /// When it began, by the clock of the worker.
    pub at: Timestamp,
    /// Exit code of its program; for a check without one 0 or 1. `None` if the check did not end in time.
    pub exit_code: Option<i32>,
    /// The beginning of what it wrote, or why it failed.
    pub output: String,
}

/// The health of the current attempt of a task as its worker knows it, as of the last change of its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// The state.
    pub state: HealthState,
    /// Number of failures that count since the last success.
    pub failing_streak: u32,
    /// The last results, oldest first.
    pub log: Vec<HealthResult>,
    /// [`HealthCheck::decides_within`] of the check, which may be the image's. Zero if the worker does not say it.
    #[serde(skip)]
    pub decides_within: Duration,
}

impl Default for Health {
    fn default() -> Self {
        Self { state: HealthState::Starting, failing_streak: 0, log: Vec::new(), decides_within: Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_service_comes_before_the_image_and_the_image_before_the_defaults() {
        let shell = |line: &str| Some(HealthTest::Shell(line.into()));
        let second = |number| Some(Duration::from_secs(number));
        let image = HealthSpec { test: shell("of the image"), interval: second(7), ..HealthSpec::default() };
        let check = HealthSpec::default().check(&image).expect("the image has one");
        assert_eq!((check.test, check.interval), (HealthTest::Shell("of the image".into()), Duration::from_secs(7)));
        assert_eq!((check.timeout, check.retries.get()), (Duration::from_secs(30), 3));
        assert_eq!((check.start_period, check.start_interval), (Duration::ZERO, Duration::from_secs(5)));
        let own = HealthSpec { interval: second(1), timeout: second(2), ..HealthSpec::default() };
        let check = own.check(&image).expect("the image has one");
        assert_eq!((check.interval, check.timeout), (Duration::from_secs(1), Duration::from_secs(2)));
        let own = HealthSpec { test: shell("own"), ..own };
        assert_eq!(own.check(&image).expect("it has one").test, HealthTest::Shell("own".into()));
        let disabled = HealthSpec { test: Some(HealthTest::None), ..own };
        assert_eq!((disabled.check(&image), HealthSpec::default().check(&HealthSpec::default())), (None, None));
    }

    #[test]
    fn tests_are_read_as_docker_writes_them_and_written_as_they_are_read() {
        for text in ["NONE", "CMD a b", "CMD", "CMD-SHELL line"] {
            let test = HealthTest::from_words(&words(text)).expect(text).expect(text);
            assert_eq!(test.words(), words(text));
        }
        assert_eq!(HealthTest::from_words(&[]), Ok(None));
        for bad in ["NONE x", "CMD-SHELL", "CMD-SHELL a b", "curl x"] {
            assert!(HealthTest::from_words(&words(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_http_check_names_a_port_and_a_path_and_no_other_host() {
        for (text, port, path) in [
            ("http://:8080/a/b?c", 8080, "/a/b?c"),
            ("http://localhost", 80, "/"),
            ("http://127.0.0.1:1", 1, "/"),
            ("http://localhost/", 80, "/"),
        ] {
            assert_eq!(HealthTest::http(text), Ok(HealthTest::Http { port, path: path.into() }), "{text}");
        }
        for bad in ["", "http://", "http:///x", "https://:1/", ":80/", "http://host/", "http://:65536/", "http://:x"] {
            assert!(HealthTest::http(bad).is_err(), "{bad}");
        }
    }
}
