//! `linux.resources.blockIO`: `blkio` on v1, `io` on v2. Weights belong to a disk's I/O scheduler: BFQ has files of
//! its own, while v2's `io.weight` belongs to the kernel's separate cost model.

use super::{Controller, Write, only_v1, refuse};
use crate::error::StepError;
use crate::oci::{BlockIo, ThrottleDevice};

/// Converts v1's weight (10 to 1000) linearly to v2's (1 to 10000), as runc and crun do.
fn io_weight(field: &'static str, weight: u16) -> Result<u64, StepError> {
    match weight {
        10..=1000 => Ok(1 + (u64::from(weight) - 10) * 9999 / 990),
        _ => Err(refuse(field, format!("{weight} is not from 10 to 1000"))),
    }
}

fn asked(weight: Option<u16>) -> Option<u16> {
    weight.filter(|weight| *weight != 0)
}

type Throttle<'a> = (&'static str, &'static str, &'static str, &'a [ThrottleDevice]);

impl BlockIo {
    /// Returns field, v1's file and v2's key of each throttle.
    fn throttles(&self) -> [Throttle<'_>; 4] {
        [
            ("blockIO.throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps", &self.throttle_read_bps_device),
            (
                "blockIO.throttleWriteBpsDevice",
                "blkio.throttle.write_bps_device",
                "wbps",
                &self.throttle_write_bps_device,
            ),
            (
                "blockIO.throttleReadIOPSDevice",
                "blkio.throttle.read_iops_device",
                "riops",
                &self.throttle_read_iops_device,
            ),
            (
                "blockIO.throttleWriteIOPSDevice",
                "blkio.throttle.write_iops_device",
                "wiops",
                &self.throttle_write_iops_device,
            ),
        ]
    }
}

const WEIGHT: &str = "blockIO.weight";
const WEIGHTS: &str = "blockIO.weightDevice";

impl Controller for BlockIo {
    fn name(&self, v2: bool) -> &'static str {
        if v2 { "io" } else { "blkio" }
    }

    fn v1(&self) -> Result<Vec<Write>, StepError> {
        let mut writes = Vec::new();
        if let Some(weight) = asked(self.weight) {
            let write = Write::new(WEIGHT, "blkio.bfq.weight", weight);
            writes.push(write.or(Write::new(WEIGHT, "blkio.weight", weight)));
        }
        if let Some(weight) = asked(self.leaf_weight) {
            writes.push(Write::new("blockIO.leafWeight", "blkio.leaf_weight", weight));
        }
        for device in &self.weight_device {
            let value = |weight| format!("{}:{} {weight}", device.major, device.minor);
            if let Some(weight) = asked(device.weight) {
                let write = Write::new(WEIGHTS, "blkio.bfq.weight_device", value(weight));
                writes.push(write.or(Write::new(WEIGHTS, "blkio.weight_device", value(weight))));
            }
            if let Some(weight) = asked(device.leaf_weight) {
                writes.push(Write::new(WEIGHTS, "blkio.leaf_weight_device", value(weight)));
            }
        }
        for (field, file, _, devices) in self.throttles() {
            let value = |it: &ThrottleDevice| format!("{}:{} {}", it.major, it.minor, it.rate);
            writes.extend(devices.iter().map(|it| Write::new(field, file, value(it)).lifting(it.rate == 0)));
        }
        Ok(writes)
    }

    fn v2(&self, _now: &dyn Fn(&str) -> Option<u64>) -> Result<Vec<Write>, StepError> {
        only_v1("blockIO.leafWeight", asked(self.leaf_weight).is_some())?;
        let mut writes = Vec::new();
        if let Some(weight) = asked(self.weight) {
            let other = Write::new(WEIGHT, "io.weight", io_weight(WEIGHT, weight)?);
            writes.push(Write::new(WEIGHT, "io.bfq.weight", weight).or(other));
        }
        for device in &self.weight_device {
            only_v1(WEIGHTS, asked(device.leaf_weight).is_some())?;
            if let Some(weight) = asked(device.weight) {
                let of = format!("{}:{}", device.major, device.minor);
                let other = Write::new(WEIGHTS, "io.weight", format!("{of} {}", io_weight(WEIGHTS, weight)?));
                writes.push(Write::new(WEIGHTS, "io.bfq.weight", format!("{of} {weight}")).or(other));
            }
        }
        for (field, _, key, devices) in self.throttles() {
            for device in devices {
                let rate = if device.rate == 0 { "max".to_owned() } else { device.rate.to_string() };
                let value = format!("{}:{} {key}={rate}", device.major, device.minor);
                writes.push(Write::new(field, "io.max", value).lifting(device.rate == 0));
            }
        }
        Ok(writes)
    }
}

#[cfg(test)]
mod tests {
    use super::io_weight;

    #[test]
    fn weights_of_disks_become_those_of_v2() {
        for (weight, expected) in [(10, 1), (500, 4950), (1000, 10_000)] {
            assert_eq!(io_weight("blockIO.weight", weight).expect("in range"), expected);
        }
        assert!(io_weight("blockIO.weight", 9).is_err() && io_weight("blockIO.weight", 1001).is_err());
    }
}
