//! Device rules as a program for the kernel's small virtual machine (BPF_PROG_TYPE_CGROUP_DEVICE), and its assembler.
//!
//! The kernel calls it with kind, access, major and minor of each open(2) and mknod(2) of a device; 1 allows. The rules
//! stand in it from last to first: the first that says something about the access wins. What a rule allows of it is
//! crossed off, and when nothing is left the whole is allowed.

use super::{Kind, MAKE, READ, Rule, WRITE};

/// One instruction, as the kernel wants it (linux/bpf.h, struct bpf_insn).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u8,
    /// Four bits each: target, source.
    registers: u8,
    offset: i16,
    immediate: i32,
}

// Of linux/bpf_common.h and linux/bpf.h: class, size or source, and operation.
const LOAD_WORD: u8 = 0x61;
const AND_IMMEDIATE: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const COPY: u8 = 0xbf;
const SET: u8 = 0xb7;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_IF_NOT: u8 = 0x55;
const EXIT: u8 = 0x95;

/// What the program returns.
const RESULT: u8 = 0;
/// Points to struct bpf_cgroup_dev_ctx: kind (low half) and access (high half), major, minor; 32 bits each.
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
/// What is asked and not yet allowed.
const ASKED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const DENIED: u8 = 6;

fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    let registers = if cfg!(target_endian = "little") { source << 4 | target } else { target << 4 | source };
    Instruction { code, registers, offset, immediate }
}

/// Access as the kernel numbers it.
fn bits(access: u8) -> i32 {
    [(MAKE, 1), (READ, 2), (WRITE, 4)].iter().filter(|(bit, _)| access & bit != 0).map(|(_, number)| number).sum()
}

fn give(program: &mut Vec<Instruction>, allow: bool) {
    program.push(instruction(SET, RESULT, 0, 0, i32::from(allow)));
    program.push(instruction(EXIT, 0, 0, 0, 0));
}

/// The program of these rules; what none names is denied.
pub(super) fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(COPY, ASKED, KIND, 0, 0),
        instruction(AND_IMMEDIATE, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ASKED, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        if rule.is_reset() {
            // What stood before is never reached, and the kernel takes no program with such a part.
            give(&mut program, rule.allow);
            return program;
        }
        add(&mut program, rule);
    }
    give(&mut program, false);
    program
}

fn add(program: &mut Vec<Instruction>, rule: &Rule) {
    let start = program.len();
    let kind = rule.kind.map(|kind| if kind == Kind::Block { 1 } else { 2 });
    for (register, value) in [(KIND, kind), (MAJOR, rule.major), (MINOR, rule.minor)] {
        let Some(value) = value.and_then(|value| i32::try_from(value).ok()) else { continue };
        program.push(instruction(JUMP_IF_NOT, register, 0, 0, value));
    }
    if rule.allow {
        program.push(instruction(AND_IMMEDIATE, ASKED, 0, 0, !bits(rule.access)));
        program.push(instruction(JUMP_IF_NOT, ASKED, 0, 0, 0));
    } else {
        program.push(instruction(COPY, DENIED, ASKED, 0, 0));
        program.push(instruction(AND_IMMEDIATE, DENIED, 0, 0, bits(rule.access)));
        program.push(instruction(JUMP_IF_EQUAL, DENIED, 0, 0, 0));
    }
    give(program, rule.allow);
    let end = program.len();
    // All jumps of a rule lead to the next one: they count from the instruction after them.
    for (at, jump) in program.iter_mut().enumerate().skip(start) {
        if matches!(jump.code, JUMP_IF_NOT | JUMP_IF_EQUAL) {
            jump.offset = i16::try_from(end - at - 1).expect("a rule has at most eight instructions");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ALL;
    use super::*;

    /// Runs a program as the kernel would.
    fn run(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0;
        loop {
            let it = program[at];
            at += 1;
            let (target, source) = (usize::from(it.registers & 15), usize::from(it.registers >> 4));
            let wide = i64::from(it.immediate).cast_unsigned();
            let jump = |yes: bool| if yes { usize::try_from(it.offset).expect("forwards") } else { 0 };
            match it.code {
                LOAD_WORD => registers[target] = u64::from(context[usize::try_from(it.offset).expect("inside") / 4]),
                AND_IMMEDIATE => registers[target] = registers[target] & wide & 0xffff_ffff,
                SHIFT_RIGHT => registers[target] = (registers[target] & 0xffff_ffff) >> it.immediate,
                COPY => registers[target] = registers[source],
                SET => registers[target] = wide,
                JUMP_IF_EQUAL => at += jump(registers[target] == wide),
                JUMP_IF_NOT => at += jump(registers[target] != wide),
                EXIT => return registers[usize::from(RESULT)] == 1,
                other => panic!("no such instruction: {other:x}"),
            }
        }
    }

    fn rule(allow: bool, kind: Option<Kind>, major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
        Rule { allow, kind, major, minor, access }
    }

    const C: Option<Kind> = Some(Kind::Char);
    const B: Option<Kind> = Some(Kind::Block);

    /// Rules; kind, access, major and minor of what is asked; whether it is allowed.
    type Row<'a> = (&'a [Rule], u32, u32, u32, u32, bool);

    #[test]
    fn the_last_rule_that_says_something_wins() {
        let (make, read, write) = (1, 2, 4);
        let (block, char) = (1, 2);
        let none = rule(false, None, None, None, ALL);
        let usual = [none, rule(true, C, None, None, MAKE), rule(true, C, Some(1), Some(3), ALL)];
        let hole = [rule(true, C, Some(1), None, ALL), rule(false, C, Some(1), Some(3), WRITE)];
        let parts = [rule(true, C, Some(1), None, READ), rule(true, C, None, Some(3), WRITE)];
        let all = [
            rule(true, C, Some(9), None, ALL),
            rule(true, None, None, None, ALL),
            rule(false, B, Some(8), None, WRITE),
        ];
        let table: [Row<'_>; 19] = [
            (&[], char, read, 1, 3, false),
            (&usual, char, read | write, 1, 3, true),
            (&usual, char, read, 1, 5, false),
            (&usual, char, make, 1, 5, true),
            (&usual, char, make | read, 1, 5, false),
            (&usual, block, make, 1, 3, false),
            (&usual, block, read, 1, 3, false),
            (&hole, char, read, 1, 3, true),
            (&hole, char, write, 1, 3, false),
            (&hole, char, read | write, 1, 3, false),
            (&hole, char, write, 1, 4, true),
            (&hole, char, write, 2, 3, false),
            (&parts, char, read | write, 1, 3, true),
            (&parts, char, read | write, 1, 4, false),
            (&parts, char, read | write | make, 1, 3, false),
            (&all, block, write, 8, 1, false),
            (&all, block, read, 8, 1, true),
            (&all, block, write, 7, 1, true),
            (&all, char, write, 8, 1, true),
        ];
        for (number, (rules, kind, access, major, minor, expected)) in table.into_iter().enumerate() {
            assert_eq!(run(&program(rules), kind, access, major, minor), expected, "row {number}");
        }
    }

    #[test]
    fn rules_before_one_for_all_are_left_out() {
        let none = rule(false, None, None, None, ALL);
        let one = rule(true, C, Some(1), Some(3), ALL);
        assert_eq!(program(&[one, one, none, one]), program(&[one]));
    }
}
