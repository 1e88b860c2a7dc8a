//! Runs a filter as the kernel does, with all checks of its verifier (net/core/filter.c, kernel/seccomp.c).

use crate::security::seccomp::assembler::{AND, Comparison, HOP, Instruction, LOAD, RETURN};

/// A call, as a filter sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Data {
    pub(super) number: u32,
    pub(super) audit: u32,
    pub(super) arguments: [u64; 6],
}

impl Data {
    fn word(&self, offset: u32, big_endian: bool) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < 64, "a load at {offset}");
        match offset {
            0 => self.number,
            4 => self.audit,
            8 | 12 => 0,
            _ => {
                let argument = self.arguments[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) == big_endian { (argument >> 32) as u32 } else { argument as u32 }
            }
        }
    }
}

/// Returns the filter's answer.
pub(super) fn run(program: &[Instruction], data: &Data, big_endian: bool) -> u32 {
    let (mut at, mut loaded) = (0, 0);
    loop {
        let it = program[at];
        let jump = |holds: bool| usize::from(if holds { it.when_true } else { it.when_false });
        at += 1;
        match it.code {
            LOAD => loaded = data.word(it.value, big_endian),
            AND => loaded &= it.value,
            HOP => at += it.value as usize,
            RETURN => return it.value,
            code if code == Comparison::Equal as u16 => at += jump(loaded == it.value),
            code if code == Comparison::Above as u16 => at += jump(loaded > it.value),
            code if code == Comparison::AtLeast as u16 => at += jump(loaded >= it.value),
            code => panic!("an instruction {code:#x}"),
        }
    }
}
