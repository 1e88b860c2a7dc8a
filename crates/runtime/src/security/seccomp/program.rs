//! Writes the program of a filter, which checks the architecture, then the call's number, then its arguments.
//!
//! Numbers with the same verdict form ranges, which are found by binary search. A call that is decided by its number
//! alone loads no argument, so the kernel answers it from its cache after the first time (kernel/seccomp.c,
//! `seccomp_is_const_allow`).

use super::actions::KILL_THREAD;
use super::architectures::{Architecture, X32_BIT};
use super::assembler::{Assembler, Comparison, Instruction, LOAD, Target};
use super::rules::{Rules, Verdict};
use crate::error::StepError;

/// Offsets of the call's number and the architecture in struct seccomp_data.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// The numbers from `start` up to the next range.
struct Range {
    start: u32,
    verdict: Verdict,
}

/// Writes the program. The first architecture is the native one.
pub(super) fn write(rules: &Rules<'_>, architectures: &[Architecture]) -> Result<Vec<Instruction>, StepError> {
    let mut assembler = Assembler::default();
    let mut dispatch = Target::Return(KILL_THREAD);
    let mut blocks: Vec<Vec<Architecture>> = Vec::new();
    for &one in architectures {
        match blocks.iter_mut().find(|it| it[0].audit() == one.audit()) {
            Some(block) => block.push(one),
            None => blocks.push(vec![one]),
        }
    }
    let mut entries = Vec::with_capacity(blocks.len());
    for block in blocks.iter().rev() {
        let ranges = ranges(rules, block)?;
        let search = search(&mut assembler, &ranges, rules.default);
        let entry = match search {
            Target::Return(_) => search,
            Target::At(_) => assembler.prepend(LOAD, NUMBER, search),
        };
        entries.push((block[0].audit(), entry));
    }
    for (audit, entry) in entries {
        dispatch = assembler.jump(Comparison::Equal, audit, entry, dispatch);
    }
    if let Target::At(_) = dispatch {
        dispatch = assembler.prepend(LOAD, ARCHITECTURE, dispatch);
    }
    Ok(assembler.finish(dispatch))
}

fn ranges(rules: &Rules<'_>, block: &[Architecture]) -> Result<Vec<Range>, StepError> {
    let mut ranges: Vec<Range> = Vec::new();
    let mut push = |start, verdict| {
        if ranges.last().is_none_or(|it| it.verdict != verdict) {
            ranges.push(Range { start, verdict });
        }
    };
    let mut next = 0;
    for (number, verdict) in rules.verdicts(block)? {
        if number > next {
            push(next, Verdict::Always(rules.default));
        }
        push(number, verdict);
        next = number + 1;
    }
    push(next, Verdict::Always(rules.default));
    if block == [Architecture::X86_64] {
        // x32 calls have the same audit number. As in libseccomp, they count as another architecture, except for the
        // number -1, which a tracer sets to skip a call.
        push(X32_BIT, Verdict::Always(KILL_THREAD));
        push(u32::MAX, Verdict::Always(rules.default));
    }
    Ok(ranges)
}

fn search(assembler: &mut Assembler, ranges: &[Range], default: u32) -> Target {
    match ranges {
        [] => Target::Return(default),
        [one] => judge(assembler, &one.verdict, default),
        _ => {
            let (left, right) = ranges.split_at(ranges.len() / 2);
            let from = right[0].start;
            let right = search(assembler, right, default);
            let left = search(assembler, left, default);
            assembler.jump(Comparison::AtLeast, from, right, left)
        }
    }
}

fn judge(assembler: &mut Assembler, verdict: &Verdict, default: u32) -> Target {
    match verdict {
        Verdict::Always(answer) => Target::Return(*answer),
        Verdict::First(on, rules) => rules.iter().rev().fold(Target::Return(default), |next, rule| {
            let matched = Target::Return(rule.answer);
            rule.conditions.iter().rev().fold(matched, |then, it| it.write(*on, assembler, then, next))
        }),
    }
}
