//! `linux.resources.memory`. Its `swap` is memory and swap together, as on v1; on v2 the file holds swap alone.
//!
//! `kernel` and `kernelTCP` are ignored: kernels since 5.4 do not enforce them, and runc ignores them too.

use super::{Controller, Write, only_v1, refuse};
use crate::error::StepError;
use crate::oci::Memory;

/// Go's -1 in an unsigned field, which means that the value is left unchanged.
const NO_SWAPPINESS: u64 = u64::MAX;

const BUSY: (i32, &str) = (libc::EBUSY, "more than that is in use");
const IN_USE: [(i32, &str); 1] = [BUSY];
const LIMIT_ALONE: [(i32, &str); 2] =
    [BUSY, (libc::EINVAL, "it is more than the limit of memory and swap, which must be raised with it")];

/// The meaning of an amount. Zero counts as absent.
#[derive(Clone, Copy, PartialEq)]
enum Amount {
    Unlimited,
    Bytes(u64),
}

fn amount(field: &str, value: Option<i64>) -> Result<Option<Amount>, StepError> {
    match value {
        None | Some(0) => Ok(None),
        Some(-1) => Ok(Some(Amount::Unlimited)),
        Some(value) => match u64::try_from(value) {
            Ok(bytes) => Ok(Some(Amount::Bytes(bytes))),
            Err(_) => Err(refuse(field, format!("{value} is not a number of bytes"))),
        },
    }
}

impl Amount {
    fn v1(self) -> String {
        match self {
            Self::Unlimited => "-1".into(),
            Self::Bytes(bytes) => bytes.to_string(),
        }
    }

    fn v2(self) -> String {
        match self {
            Self::Unlimited => "max".into(),
            Self::Bytes(bytes) => bytes.to_string(),
        }
    }
}

/// Returns the limit of memory and that of memory and swap together. As in runc, unlimited memory also makes swap
/// unlimited.
fn limits(memory: &Memory) -> Result<(Option<Amount>, Option<Amount>), StepError> {
    let limit = amount("memory.limit", memory.limit)?;
    let swap = amount("memory.swap", memory.swap)?;
    match (limit, swap) {
        (Some(Amount::Unlimited), None) => Ok((limit, Some(Amount::Unlimited))),
        (Some(Amount::Bytes(limit)), Some(Amount::Bytes(swap))) if swap < limit => Err(refuse(
            "memory.swap",
            "it counts memory and swap together, so it can't be less than linux.resources.memory.limit",
        )),
        _ => Ok((limit, swap)),
    }
}

impl Controller for Memory {
    fn name(&self, _v2: bool) -> &'static str {
        "memory"
    }

    fn v1(&self) -> Result<Vec<Write>, StepError> {
        let (limit, swap) = limits(self)?;
        let mut writes = Vec::new();
        if let Some(limit) = limit {
            let write = Write::new("memory.limit", "memory.limit_in_bytes", limit.v1());
            let write = write.lifting(limit == Amount::Unlimited);
            writes.push(write.hints(if swap.is_none() { &LIMIT_ALONE } else { &IN_USE }));
        }
        if let Some(swap) = swap {
            // The file is absent if the kernel does not account for swap. Then a limit of swap is an error, but not
            // "no swap", because such a kernel is not expected to swap.
            let skip = swap == Amount::Unlimited || Some(swap) == limit;
            let write = Write::new("memory.swap", "memory.memsw.limit_in_bytes", swap.v1());
            writes.push(write.lifting(swap == Amount::Unlimited).skip_if_missing(skip).hints(&IN_USE));
        }
        if let Some(reservation) = amount("memory.reservation", self.reservation)? {
            let write = Write::new("memory.reservation", "memory.soft_limit_in_bytes", reservation.v1());
            writes.push(write.lifting(reservation == Amount::Unlimited));
        }
        match self.swappiness {
            None | Some(NO_SWAPPINESS) => (),
            Some(value @ 0..=100) => writes.push(Write::new("memory.swappiness", "memory.swappiness", value)),
            Some(_) => return Err(refuse("memory.swappiness", "it is not from 0 to 100")),
        }
        if let Some(disable) = self.disable_oom_killer {
            let write = Write::new("memory.disableOOMKiller", "memory.oom_control", u8::from(disable));
            writes.push(write.lifting(!disable));
        }
        if self.use_hierarchy == Some(true) {
            writes.push(Write::new("memory.useHierarchy", "memory.use_hierarchy", 1).skip_if_missing(true));
        }
        Ok(writes)
    }

    fn v2(&self, now: &dyn Fn(&str) -> Option<u64>) -> Result<Vec<Write>, StepError> {
        only_v1("memory.swappiness", self.swappiness.is_some_and(|it| it != NO_SWAPPINESS))?;
        only_v1("memory.disableOOMKiller", self.disable_oom_killer == Some(true))?;
        let (limit, swap) = limits(self)?;
        if self.check_before_update == Some(true) {
            check(limit, swap, now)?;
        }
        let mut writes = Vec::new();
        if let Some(swap) = swap_alone(limit, swap, now)? {
            let lifts = swap == Amount::Unlimited;
            let write = Write::new("memory.swap", "memory.swap.max", swap.v2()).lifting(lifts);
            writes.push(write.skip_if_missing(lifts || swap == Amount::Bytes(0)));
        }
        if let Some(limit) = limit {
            let write = Write::new("memory.limit", "memory.max", limit.v2());
            writes.push(write.lifting(limit == Amount::Unlimited));
        }
        if let Some(reservation) = amount("memory.reservation", self.reservation)? {
            let write = Write::new("memory.reservation", "memory.low", reservation.v2());
            writes.push(write.lifting(reservation == Amount::Unlimited));
        }
        Ok(writes)
    }
}

/// Returns the limit of swap without memory. An update that only gives swap uses the current limit of memory.
fn swap_alone(
    limit: Option<Amount>,
    swap: Option<Amount>,
    now: &dyn Fn(&str) -> Option<u64>,
) -> Result<Option<Amount>, StepError> {
    let Some(Amount::Bytes(both)) = swap else { return Ok(swap) };
    let memory = match limit {
        Some(Amount::Unlimited) => return Ok(swap),
        Some(Amount::Bytes(memory)) => Some(memory),
        None => now("memory.max").filter(|memory| *memory != u64::MAX),
    };
    let Some(memory) = memory else {
        return Err(refuse(
            "memory.swap",
            "it counts memory and swap together: linux.resources.memory.limit must be set too",
        ));
    };
    match both.checked_sub(memory) {
        Some(swap) => Ok(Some(Amount::Bytes(swap))),
        None => Err(refuse(
            "memory.swap",
            "it counts memory and swap together, so it can't be less than the limit of memory",
        )),
    }
}

/// Refuses a limit below the current usage: v2 would kill processes until the limit is met, while v1 refuses it
/// itself.
fn check(limit: Option<Amount>, swap: Option<Amount>, now: &dyn Fn(&str) -> Option<u64>) -> Result<(), StepError> {
    let Some(used) = now("memory.current") else { return Ok(()) };
    for (field, amount) in [("memory.swap", swap), ("memory.limit", limit)] {
        match amount {
            Some(Amount::Bytes(bytes)) if bytes <= used => {
                return Err(refuse(field, format!("{bytes} bytes are not more than the {used} that are in use")));
            }
            _ => (),
        }
    }
    Ok(())
}
