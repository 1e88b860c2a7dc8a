//! `linux.resources.cpu`: time limits for the controller `cpu`, and CPUs and memory nodes for `cpuset`.

use super::{Controller, Write, only_v1, refuse};
use crate::error::StepError;
use crate::oci::Cpu;

/// Smallest and largest value of v1's shares; the kernel silently clamps other values.
const SHARES: (u64, u64) = (2, 262_144);

/// Converts v1's shares to v2's weight (1 to 10000), by the curve through both ends and both defaults (1024 and 100)
/// that runc has used since 1.3.2 and crun since 1.23. The earlier linear conversion made a default share far too
/// small.
pub(in crate::cgroup) fn weight(shares: u64) -> u64 {
    if shares <= SHARES.0 {
        return 1;
    }
    if shares >= SHARES.1 {
        return 10_000;
    }
    let bits = (shares as f64).log2();
    let exponent = (bits * bits + 125.0 * bits) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil() as u64
}

impl Cpu {
    /// Orders the writes of weight and idle: an idle group accepts no weight, so idle is cleared before it or set
    /// after it.
    fn around_idle(&self, weight: Option<Write>) -> Result<Vec<Write>, StepError> {
        let idle = |value: u8| Write::new("cpu.idle", "cpu.idle", value).lifting(value == 0);
        Ok(match (self.idle, weight) {
            (None, weight) => weight.into_iter().collect(),
            (Some(0), weight) => [idle(0)].into_iter().chain(weight).collect(),
            (Some(1), None) => vec![idle(1)],
            (Some(1), Some(weight)) => vec![idle(0), weight, idle(1)],
            (Some(_), _) => return Err(refuse("cpu.idle", "it is neither 0 nor 1")),
        })
    }

    fn asked_shares(&self) -> Option<u64> {
        self.shares.filter(|shares| *shares != 0)
    }

    fn asked_period(&self) -> Option<u64> {
        self.period.filter(|period| *period != 0)
    }

    fn realtime(&self) -> [(&'static str, &'static str, Option<i64>); 2] {
        let period = self.realtime_period.filter(|it| *it != 0).map(|it| i64::try_from(it).unwrap_or(i64::MAX));
        let runtime = self.realtime_runtime.filter(|it| *it != 0);
        [("cpu.realtimePeriod", "cpu.rt_period_us", period), ("cpu.realtimeRuntime", "cpu.rt_runtime_us", runtime)]
    }
}

impl Controller for Cpu {
    fn name(&self, _v2: bool) -> &'static str {
        "cpu"
    }

    fn v1(&self) -> Result<Vec<Write>, StepError> {
        let shares = match self.asked_shares() {
            Some(shares) if shares < SHARES.0 || shares > SHARES.1 => {
                return Err(refuse("cpu.shares", format!("it is not from {} to {}", SHARES.0, SHARES.1)));
            }
            shares => shares.map(|shares| Write::new("cpu.shares", "cpu.shares", shares)),
        };
        let mut writes = self.around_idle(shares)?;
        if let Some(period) = self.asked_period() {
            writes.push(Write::new("cpu.period", "cpu.cfs_period_us", period));
        }
        if let Some(quota) = self.quota {
            writes.push(Write::new("cpu.quota", "cpu.cfs_quota_us", quota_or(quota, "-1")).lifting(quota <= 0));
        }
        if let Some(burst) = self.burst {
            let write = Write::new("cpu.burst", "cpu.cfs_burst_us", burst);
            writes.push(write.lifting(burst == 0).skip_if_missing(burst == 0));
        }
        for (field, file, value) in self.realtime() {
            writes.extend(value.map(|value| Write::new(field, file, value)));
        }
        Ok(writes)
    }

    fn v2(&self, now: &dyn Fn(&str) -> Option<u64>) -> Result<Vec<Write>, StepError> {
        for (field, _, value) in self.realtime() {
            only_v1(field, value.is_some())?;
        }
        let shares = self.asked_shares().map(|shares| Write::new("cpu.shares", "cpu.weight", weight(shares)));
        let mut writes = self.around_idle(shares)?;
        let limit = match (self.quota, self.asked_period()) {
            (None, None) => None,
            // A value that is written without a period leaves the period unchanged.
            (Some(quota), None) => Some(("cpu.quota", quota_or(quota, "max"))),
            (Some(quota), Some(period)) => Some(("cpu.quota", format!("{} {period}", quota_or(quota, "max")))),
            (None, Some(period)) => {
                let quota = now("cpu.max").filter(|quota| *quota != u64::MAX);
                Some(("cpu.period", format!("{} {period}", quota.map_or("max".into(), |it| it.to_string()))))
            }
        };
        let lifts = self.quota.is_some_and(|quota| quota <= 0) && self.asked_period().is_none();
        writes.extend(limit.map(|(field, value)| Write::new(field, "cpu.max", value).lifting(lifts)));
        if let Some(burst) = self.burst {
            let write = Write::new("cpu.burst", "cpu.max.burst", burst);
            writes.push(write.lifting(burst == 0).skip_if_missing(burst == 0));
        }
        Ok(writes)
    }
}

fn quota_or(quota: i64, none: &str) -> String {
    if quota > 0 { quota.to_string() } else { none.to_owned() }
}

/// The part of the controller `cpuset`.
pub(super) struct Cpuset<'a>(pub(super) &'a Cpu);

impl Controller for Cpuset<'_> {
    fn name(&self, _v2: bool) -> &'static str {
        "cpuset"
    }

    fn v1(&self) -> Result<Vec<Write>, StepError> {
        let parts = [("cpu.cpus", "cpuset.cpus", &self.0.cpus), ("cpu.mems", "cpuset.mems", &self.0.mems)];
        let asked = parts.into_iter().filter(|(_, _, value)| !value.is_empty());
        Ok(asked.map(|(field, file, value)| Write::new(field, file, value)).collect())
    }

    fn v2(&self, _now: &dyn Fn(&str) -> Option<u64>) -> Result<Vec<Write>, StepError> {
        self.v1()
    }
}

#[cfg(test)]
mod tests {
    use super::weight;

    #[test]
    fn shares_become_the_weight_that_runc_and_crun_give_them() {
        // The values are those of runc's own test and some in between.
        let table = [(0, 1), (1, 1), (2, 1), (1024, 100), (262_144, 10_000), (262_145, 10_000), (512, 59), (100, 17)];
        for (shares, expected) in table {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        assert!((2..262_144).all(|shares| weight(shares) <= weight(shares + 1)));
    }
}
