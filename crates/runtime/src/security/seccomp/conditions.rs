//! A condition on an argument: parsed from a profile and written as BPF.
//!
//! BPF words have 32 bits and arguments have 64, so most conditions compare the upper half first.

use super::actions::{Operator, operator};
use super::architectures::Architecture;
use super::assembler::{AND, Assembler, Comparison, LOAD, Target};
use super::refuse;
use crate::error::StepError;
use crate::oci::Argument;

/// One comparison. The mask has all bits set if the operator has no mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u32,
    pub(super) operator: Operator,
    pub(super) mask: u64,
    pub(super) value: u64,
}

impl Condition {
    /// Parses a condition. `at` is the path of the field that holds it.
    pub(super) fn read(from: &Argument, at: impl Fn() -> String) -> Result<Self, StepError> {
        let operator = operator(&from.op, || format!("{}.op", at()))?;
        if from.index > 5 {
            return Err(refuse(format!("{}.index: {} is larger than 5", at(), from.index)));
        }
        let (mask, value) = match operator {
            Operator::MaskedEqual => (from.value, from.value_two & from.value),
            _ => (u64::MAX, from.value),
        };
        Ok(Self { argument: from.index, operator, mask, value })
    }

    /// Returns the condition that an argument equals a number.
    pub(super) fn equal(argument: u32, value: u64) -> Self {
        Self { argument, operator: Operator::Equal, mask: u64::MAX, value }
    }

    /// Returns the condition as it applies to arguments of 32 bits.
    pub(super) fn narrow(self) -> Self {
        let low = u64::from(u32::MAX);
        Self { mask: self.mask & low, value: self.value & low, ..self }
    }

    /// Returns whether the condition always holds.
    pub(super) fn always_holds(&self) -> bool {
        self.mask == 0
    }

    /// Writes the comparison.
    pub(super) fn write(&self, on: Architecture, into: &mut Assembler, holds: Target, fails: Target) -> Target {
        if holds == fails {
            return holds;
        }
        let (comparison, holds, fails) = match self.operator {
            Operator::Equal | Operator::MaskedEqual => (Comparison::Equal, holds, fails),
            Operator::NotEqual => (Comparison::Equal, fails, holds),
            Operator::Greater => (Comparison::Above, holds, fails),
            Operator::LessOrEqual => (Comparison::Above, fails, holds),
            Operator::GreaterOrEqual => (Comparison::AtLeast, holds, fails),
            Operator::Less => (Comparison::AtLeast, fails, holds),
        };
        // `args` is the last member of struct seccomp_data, after a number, an architecture and an address.
        let first = 16 + self.argument * 8;
        let (high, low) = if on.is_big_endian() { (first, first + 4) } else { (first + 4, first) };
        let lower = self.half(into, low, 0, comparison, holds, fails);
        if !on.is_wide() {
            return lower;
        }
        if comparison == Comparison::Equal {
            return self.half(into, high, 32, Comparison::Equal, lower, fails);
        }
        let upper = half(self.value, 32);
        let equal = into.jump(Comparison::Equal, upper, lower, fails);
        let above = into.jump(Comparison::Above, upper, holds, equal);
        into.prepend(LOAD, high, above)
    }

    fn half(
        &self,
        into: &mut Assembler,
        offset: u32,
        shift: u32,
        comparison: Comparison,
        holds: Target,
        fails: Target,
    ) -> Target {
        let mask = half(self.mask, shift);
        if mask == 0 {
            return holds;
        }
        let compared = into.jump(comparison, half(self.value, shift), holds, fails);
        let masked = if mask == u32::MAX { compared } else { into.prepend(AND, mask, compared) };
        into.prepend(LOAD, offset, masked)
    }
}

fn half(value: u64, shift: u32) -> u32 {
    u32::try_from(value >> shift & u64::from(u32::MAX)).expect("32 bits fit into 32 bits")
}
