//! Conversion of the settings of tasks in `model/setting.rs`.

use std::num::NonZeroU64;

use super::{FromNumber, Malformed};
use crate::model::{Bound, LogSpec, Ulimit, UlimitError};
use crate::proto::specs as ps;

/// Returns the bound that a number of the wire stands for.
pub(super) fn bound(field: &'static str, number: i64) -> Result<Bound, Malformed> {
    Bound::from_number(number).ok_or_else(|| Malformed::new(field, format!("is {number}, below -1")))
}

impl From<&Ulimit> for ps::Ulimit {
    fn from(limit: &Ulimit) -> Self {
        Self { name: limit.name.as_str().to_owned(), soft: limit.soft.number(), hard: limit.hard.number() }
    }
}

impl TryFrom<ps::Ulimit> for Ulimit {
    type Error = Malformed;
    fn try_from(limit: ps::Ulimit) -> Result<Self, Malformed> {
        let named = |error: UlimitError| Malformed::new("ulimits", format!("can't be used: {error}"));
        Ok(Self {
            name: limit.name.parse().map_err(named)?,
            soft: bound("ulimits.soft", limit.soft)?,
            hard: bound("ulimits.hard", limit.hard)?,
        })
    }
}

impl From<LogSpec> for ps::LogSpec {
    fn from(log: LogSpec) -> Self {
        let number = |it: Option<NonZeroU64>| it.map_or(0, NonZeroU64::get);
        Self { driver: log.driver.number(), max_size: number(log.max_size), max_file: number(log.max_file) }
    }
}

impl TryFrom<Option<ps::LogSpec>> for LogSpec {
    type Error = Malformed;
    fn try_from(log: Option<ps::LogSpec>) -> Result<Self, Malformed> {
        let log = log.unwrap_or_default();
        Ok(Self {
            driver: FromNumber::from_number(log.driver)?,
            max_size: NonZeroU64::new(log.max_size),
            max_file: NonZeroU64::new(log.max_file),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::{LogDriver, PullPolicy, ServiceSpec};
    use crate::proto::types as pt;

    #[test]
    fn settings_survive_the_wire() {
        let map = |name: &str| BTreeMap::from([(name.to_owned(), "1".to_owned())]);
        let spec = ServiceSpec {
            read_only: true,
            tty: true,
            shm_size: NonZeroU64::new(1 << 20),
            ulimits: vec!["nofile=1:2".parse().expect("a limit"), "core=-1".parse().expect("a limit")],
            sysctls: map("net.core.somaxconn"),
            groups: vec!["audio".into()],
            container_labels: map("a"),
            memory_swap: Some(Bound::Unlimited),
            oom_score_adj: Some(-500),
            log: LogSpec { driver: LogDriver::None, max_size: NonZeroU64::new(1), max_file: NonZeroU64::new(2) },
            pull: PullPolicy::Always,
            ..ServiceSpec::default()
        };
        assert_eq!(ServiceSpec::try_from(ps::ServiceSpec::from(&spec)), Ok(spec));
    }

    #[test]
    fn numbers_and_names_that_mean_nothing_are_refused_by_field() {
        let good = || ps::ServiceSpec { restart: Some(pt::RestartPolicy::default()), ..ps::ServiceSpec::default() };
        let limit = |name: &str, soft| vec![ps::Ulimit { name: name.into(), soft, hard: 1 }];
        for (spec, expected) in [
            (ps::ServiceSpec { memory_swap: Some(-2), ..good() }, "the field `memory_swap` is -2, below -1"),
            (ps::ServiceSpec { ulimits: limit("nofile", -2), ..good() }, "the field `ulimits.soft` is -2, below -1"),
            (
                ps::ServiceSpec { ulimits: limit("x", 1), ..good() },
                "the field `ulimits` can't be used: `x` is not a limit",
            ),
            (ps::ServiceSpec { pull: 7, ..good() }, "the field `pull` has an unknown value"),
        ] {
            let error = ServiceSpec::try_from(spec).expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
