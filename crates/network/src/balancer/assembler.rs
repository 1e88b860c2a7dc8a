//! An assembler for the kernel's virtual machine (eBPF): one method per instruction, and jumps to labels. It has the
//! instructions that the balancer's programs use; opcodes and layout are those of linux/bpf.h.

use std::os::fd::{AsRawFd, BorrowedFd};

/// One instruction in the kernel's layout (struct bpf_insn).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u8,
    /// Target and source register, four bits each.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// A register. A call takes its arguments in R1 to R5, overwrites them, and returns in R0; R6 to R9 survive it.
#[derive(Clone, Copy, Debug)]
pub(super) struct BpfRegister(u8);

pub(super) const R0: BpfRegister = BpfRegister(0);
pub(super) const R1: BpfRegister = BpfRegister(1);
pub(super) const R2: BpfRegister = BpfRegister(2);
pub(super) const R3: BpfRegister = BpfRegister(3);
pub(super) const R4: BpfRegister = BpfRegister(4);
pub(super) const R5: BpfRegister = BpfRegister(5);
pub(super) const R6: BpfRegister = BpfRegister(6);
pub(super) const R7: BpfRegister = BpfRegister(7);
pub(super) const R8: BpfRegister = BpfRegister(8);
pub(super) const R9: BpfRegister = BpfRegister(9);
/// The end of the stack, which grows downwards. It is read-only.
pub(super) const STACK: BpfRegister = BpfRegister(10);

/// Number of bytes that a load or store moves.
#[derive(Clone, Copy, Debug)]
pub(super) enum Width {
    Word = 0x00,
    Double = 0x18,
}

/// Operations on 64 bits, with the codes of their form with an immediate.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    Add = 0x07,
    Multiply = 0x27,
    Divide = 0x37,
    And = 0x57,
    ShiftLeft = 0x67,
    ShiftRight = 0x77,
    Remainder = 0x97,
    Set = 0xb7,
}

/// Conditions on 64 unsigned bits, with the codes of their form with an immediate.
#[derive(Clone, Copy, Debug)]
pub(super) enum Condition {
    Equal = 0x15,
    AtLeast = 0x35,
    Different = 0x55,
}

/// Functions of the kernel (enum bpf_func_id).
#[derive(Clone, Copy, Debug)]
pub(super) enum Function {
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    RandomNumber = 7,
    SocketCookie = 46,
    NamespaceCookie = 122,
    SetReturnValue = 187,
}

const LOAD: u8 = 0x61;
const STORE: u8 = 0x63;
const STORE_IMMEDIATE: u8 = 0x62;
const LOAD_IMMEDIATE: u8 = 0x18;
const ATOMIC_ADD: u8 = 0xdb;
const JUMP: u8 = 0x05;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// Bit of the form whose second operand is a register.
const FROM_REGISTER: u8 = 0x08;
/// Source register of [`LOAD_IMMEDIATE`] that makes the immediate the descriptor of a map.
const MAP_DESCRIPTOR: BpfRegister = BpfRegister(1);

/// A place in the program that jumps lead to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Label(usize);

/// A program under construction.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    code: Vec<Instruction>,
    /// The place of each label, once it is known.
    labels: Vec<Option<usize>>,
    /// The places of jumps, and where they lead.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn push(&mut self, code: u8, target: BpfRegister, source: BpfRegister, offset: i16, immediate: i32) {
        let (low, high) = if cfg!(target_endian = "little") { (target.0, source.0) } else { (source.0, target.0) };
        self.code.push(Instruction { code, registers: high << 4 | low, offset, immediate });
    }

    /// Returns a label whose place follows ([`Self::place`]).
    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Makes the next instruction the place of a label.
    pub(super) fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// Loads from memory; a word is extended with zeros.
    pub(super) fn load(&mut self, width: Width, target: BpfRegister, base: BpfRegister, offset: i16) {
        self.push(LOAD | width as u8, target, base, offset, 0);
    }

    /// Stores a register in memory.
    pub(super) fn store(&mut self, width: Width, base: BpfRegister, offset: i16, source: BpfRegister) {
        self.push(STORE | width as u8, base, source, offset, 0);
    }

    /// Stores a word in memory.
    pub(super) fn store_word(&mut self, base: BpfRegister, offset: i16, word: i32) {
        self.push(STORE_IMMEDIATE | Width::Word as u8, base, R0, offset, word);
    }

    /// Adds a register to 64 bits of memory, atomically.
    pub(super) fn add_to_memory(&mut self, base: BpfRegister, offset: i16, source: BpfRegister) {
        self.push(ATOMIC_ADD, base, source, offset, 0);
    }

    /// Applies an operation to a register and a number, whose sign is extended.
    pub(super) fn apply(&mut self, operation: Operation, target: BpfRegister, number: i32) {
        self.push(operation as u8, target, R0, 0, number);
    }

    /// Applies an operation to two registers.
    pub(super) fn apply_register(&mut self, operation: Operation, target: BpfRegister, source: BpfRegister) {
        self.push(operation as u8 | FROM_REGISTER, target, source, 0, 0);
    }

    /// Makes a register point to the stack.
    pub(super) fn point_to_stack(&mut self, target: BpfRegister, offset: i16) {
        self.apply_register(Operation::Set, target, STACK);
        self.apply(Operation::Add, target, i32::from(offset));
    }

    fn load_immediate(&mut self, target: BpfRegister, source: BpfRegister, number: u64) {
        let [low, high] = [number & 0xffff_ffff, number >> 32].map(|half| (half as u32).cast_signed());
        self.push(LOAD_IMMEDIATE, target, source, 0, low);
        self.push(0, R0, R0, 0, high);
    }

    /// Sets a register to a number of 64 bits.
    pub(super) fn set_number(&mut self, target: BpfRegister, number: u64) {
        self.load_immediate(target, R0, number);
    }

    /// Sets a register to a map.
    pub(super) fn set_map(&mut self, target: BpfRegister, map: BorrowedFd<'_>) {
        self.load_immediate(target, MAP_DESCRIPTOR, u64::from(map.as_raw_fd().cast_unsigned()));
    }

    /// Calls a function of the kernel.
    pub(super) fn call(&mut self, function: Function) {
        self.push(CALL, R0, R0, 0, function as i32);
    }

    /// Jumps.
    pub(super) fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(JUMP, R0, R0, 0, 0);
    }

    /// Jumps if a register and a number meet a condition.
    pub(super) fn jump_if(&mut self, left: BpfRegister, condition: Condition, right: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(condition as u8, left, R0, 0, right);
    }

    /// Jumps if two registers meet a condition.
    pub(super) fn jump_if_register(&mut self, left: BpfRegister, condition: Condition, right: BpfRegister, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(condition as u8 | FROM_REGISTER, left, right, 0, 0);
    }

    /// Ends the program with this result.
    pub(super) fn exit(&mut self, result: i32) {
        self.apply(Operation::Set, R0, result);
        self.push(EXIT, R0, R0, 0, 0);
    }

    /// Returns the program.
    pub(super) fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let target = self.labels[label.0].expect("each label that a program jumps to has a place");
            // Offsets count from the instruction after the jump.
            let offset = target as i64 - at as i64 - 1;
            self.code[at].offset = i16::try_from(offset).expect("programs have a few hundred instructions");
        }
        self.code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_lead_to_their_labels_in_both_directions() {
        let mut program = Assembler::default();
        let (again, end) = (program.label(), program.label());
        program.place(again);
        program.jump_if(R1, Condition::Equal, 7, end);
        program.set_number(R2, 0x1_8000_0000);
        program.jump(again);
        program.place(end);
        program.exit(1);
        let code = program.finish();
        assert_eq!(code.iter().map(|it| it.offset).collect::<Vec<_>>(), [3, 0, 0, -4, 0, 0]);
        assert_eq!((code[1].immediate, code[2].immediate), (i32::MIN, 1), "the halves of the number");
        assert_eq!(code[0], Instruction { code: 0x15, registers: 1, offset: 3, immediate: 7 });
    }
}
