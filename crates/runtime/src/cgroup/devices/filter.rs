//! Compiles device rules to a program for the kernel's virtual machine (BPF_PROG_TYPE_CGROUP_DEVICE).
//!
//! The kernel calls the program with kind, access, major and minor of each open(2) and mknod(2) of a device; the
//! result 1 allows the access. The program checks the rules from last to first, because the last matching rule
//! decides. The access bits that a rule allows are cleared, and when none is left the whole access is allowed.

use super::{CheckedRule, Kind, MAKE, READ, WRITE};

/// One instruction in the kernel's layout (linux/bpf.h, struct bpf_insn).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EbpfInstruction {
    code: u8,
    /// Target and source register, four bits each.
    registers: u8,
    offset: i16,
    immediate: i32,
}

// Opcodes of linux/bpf_common.h and linux/bpf.h: class, size or source, and operation.
const LOAD_WORD: u8 = 0x61;
const AND_IMMEDIATE: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const COPY: u8 = 0xbf;
const SET: u8 = 0xb7;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_IF_NOT: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Register of the program's return value.
const RESULT: u8 = 0;
/// Register of the pointer to struct bpf_cgroup_dev_ctx: kind (low half) and access (high half), major, minor; 32 bits
/// each.
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
/// Register of the requested access bits that are not allowed yet.
const ASKED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const DENIED: u8 = 6;

fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> EbpfInstruction {
    let registers = if cfg!(target_endian = "little") { source << 4 | target } else { target << 4 | source };
    EbpfInstruction { code, registers, offset, immediate }
}

/// Converts access bits to the kernel's.
fn bits(access: u8) -> i32 {
    [(MAKE, 1), (READ, 2), (WRITE, 4)].iter().filter(|(bit, _)| access & bit != 0).map(|(_, number)| number).sum()
}

fn give(program: &mut Vec<EbpfInstruction>, allow: bool) {
    program.push(instruction(SET, RESULT, 0, 0, i32::from(allow)));
    program.push(instruction(EXIT, 0, 0, 0, 0));
}

/// Returns the program of these rules. An access that no rule matches is denied.
pub(super) fn program(rules: &[CheckedRule]) -> Vec<EbpfInstruction> {
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
            // Earlier rules are unreachable, and the kernel refuses a program with unreachable instructions.
            give(&mut program, rule.allow);
            return program;
        }
        add(&mut program, rule);
    }
    give(&mut program, false);
    program
}

fn add(program: &mut Vec<EbpfInstruction>, rule: &CheckedRule) {
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
    // All jumps of a rule lead to the next rule; offsets count from the instruction after the jump.
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

    /// Interprets a program as the kernel does.
    fn run(program: &[EbpfInstruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
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

    fn rule(allow: bool, kind: Option<Kind>, major: Option<u32>, minor: Option<u32>, access: u8) -> CheckedRule {
        CheckedRule { allow, kind, major, minor, access }
    }

    const C: Option<Kind> = Some(Kind::Char);
    const B: Option<Kind> = Some(Kind::Block);

    /// The rules, then kind, access, major and minor of the request, and whether it is allowed.
    type Row<'a> = (&'a [CheckedRule], u32, u32, u32, u32, bool);

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
