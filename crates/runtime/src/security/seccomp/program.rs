//! Writes the program of a filter, which checks the architecture, then the call's number, then its arguments.
//!
//! Numbers with the same verdict form ranges, which are found by binary search. A call that is decided by its number
//! alone loads no argument, so the kernel answers it from its cache after the first time (kernel/seccomp.c,
//! `seccomp_is_const_allow`).

use super::actions::KILL_THREAD;
use super::architectures::Architecture;
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
    let mut ranges = Vec::new();
    let unnamed = unnamed(rules, block);
    let mut next = 0;
    for (number, verdict) in rules.verdicts(block)? {
        push_unnamed(&mut ranges, &unnamed, next..number);
        push(&mut ranges, number, verdict);
        next = number + 1;
    }
    push_unnamed(&mut ranges, &unnamed, next..u32::MAX);
    // A tracer sets the number -1 to skip a call, on every architecture.
    push(&mut ranges, u32::MAX, Verdict::Always(rules.default));
    Ok(ranges)
}

fn push(ranges: &mut Vec<Range>, start: u32, verdict: Verdict) {
    if ranges.last().is_none_or(|it| it.verdict != verdict) {
        ranges.push(Range { start, verdict });
    }
}

/// Adds numbers that no rule names, which have the answers of [`unnamed`].
fn push_unnamed(ranges: &mut Vec<Range>, unnamed: &[(u32, u32)], numbers: std::ops::Range<u32>) {
    if numbers.is_empty() {
        return;
    }
    let first = unnamed.partition_point(|it| it.0 <= numbers.start) - 1;
    for (start, answer) in unnamed[first..].iter().take_while(|it| it.0 < numbers.end) {
        push(ranges, numbers.start.max(*start), Verdict::Always(*answer));
    }
}

/// Returns the answers for numbers that no rule names, each with the number from which it holds, from 0 on.
fn unnamed(rules: &Rules<'_>, block: &[Architecture]) -> Vec<(u32, u32)> {
    // x32 calls have the same audit number. As in libseccomp, they count as another architecture.
    let beyond = if block == [Architecture::X86_64] { KILL_THREAD } else { rules.default };
    let mut starts = vec![(0, rules.default)];
    for on in block {
        starts.extend(rules.newest(*on).map(|newest| (newest + 1, rules.answer_for_newer())));
        starts.push((on.end(), beyond));
    }
    starts.sort_by_key(|it| it.0);
    starts
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
