//! `Healthcheck` of an image's config: Docker's extension of the OCI format, which `oci-spec` does not know
//! (<https://github.com/moby/docker-image-spec>).

use serde::Deserialize;

use crate::manifest::ManifestError;

/// The health check that an image declares. A zero or an empty list is a setting that it leaves out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `NONE`, `CMD` and the words of a program, or `CMD-SHELL` and a command line.
    #[serde(deserialize_with = "or_default")]
    pub test: Vec<String>,
    /// Nanoseconds between two checks.
    pub interval: u64,
    /// Nanoseconds after which a check has failed.
    pub timeout: u64,
    /// Nanoseconds from the start in which failures do not count.
    pub start_period: u64,
    /// Nanoseconds between two checks in that time.
    pub start_interval: u64,
    /// Number of failures in a row that are too many.
    pub retries: u32,
    /// The image's `Shell`: the words that run a command line. Empty if it names none, which stands for `/bin/sh -c`.
    #[serde(skip)]
    pub shell: Vec<String>,
}

fn or_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Parses the part of an image's config file.
pub(crate) fn parse(config: &[u8]) -> Result<Healthcheck, ManifestError> {
    #[derive(Default, Deserialize)]
    struct Config {
        #[serde(default, rename = "Healthcheck", deserialize_with = "or_default")]
        healthcheck: Healthcheck,
        #[serde(default, rename = "Shell", deserialize_with = "or_default")]
        shell: Vec<String>,
    }
    #[derive(Deserialize)]
    struct File {
        #[serde(default, deserialize_with = "or_default")]
        config: Config,
    }
    let parsed: Result<File, _> = serde_json::from_slice(config);
    let malformed = |error: serde_json::Error| ManifestError::Malformed { what: "config", why: error.to_string() };
    let Config { healthcheck, shell } = parsed.map_err(malformed)?.config;
    Ok(Healthcheck { shell, ..healthcheck })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_writes_is_read_and_what_is_absent_says_nothing() {
        let full = r#"{ "config": { "Cmd": ["a"], "Healthcheck": {
            "Test": ["CMD-SHELL", "true"], "Interval": 1000000000, "Timeout": 2, "StartPeriod": 3, "StartInterval": 4,
            "Retries": 5
        }, "Shell": ["/bin/bash", "-c"] } }"#;
        let test = vec!["CMD-SHELL".to_owned(), "true".to_owned()];
        let shell = vec!["/bin/bash".to_owned(), "-c".to_owned()];
        let timing = Healthcheck { interval: 1_000_000_000, timeout: 2, ..Healthcheck::default() };
        let expected = Healthcheck { test, start_period: 3, start_interval: 4, retries: 5, shell, ..timing };
        assert_eq!(parse(full.as_bytes()), Ok(expected));
        for absent in ["{}", r#"{ "config": null }"#, r#"{ "config": { "Healthcheck": null, "Shell": null } }"#] {
            assert_eq!(parse(absent.as_bytes()), Ok(Healthcheck::default()), "{absent}");
        }
        let none = r#"{ "config": { "Healthcheck": { "Test": null } } }"#;
        assert_eq!(parse(none.as_bytes()), Ok(Healthcheck::default()));
        for bad in [r#"{ "config": { "Healthcheck": "x" } }"#, r#"{ "config": { "Healthcheck": { "Retries": -1 } } }"#]
        {
            assert!(matches!(parse(bad.as_bytes()), Err(ManifestError::Malformed { what: "config", .. })), "{bad}");
        }
    }
}
