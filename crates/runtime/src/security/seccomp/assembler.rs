//! An assembler for classic BPF. Programs are assembled from the end to the start: jumps only go forwards, so the
//! target of a jump already exists and its distance is known when it is written.
//!
//! A conditional jump reaches 255 instructions. For a target farther away, a nearby hop is inserted: a copy of the
//! return, or a long jump.

/// One instruction, laid out as the kernel's `struct sock_filter` (linux/filter.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) when_true: u8,
    pub(super) when_false: u8,
    pub(super) value: u32,
}

/// BPF_LD | BPF_W | BPF_ABS: loads a word of `struct seccomp_data`.
pub(super) const LOAD: u16 = 0x20;
/// BPF_ALU | BPF_AND | BPF_K.
pub(super) const AND: u16 = 0x54;
/// BPF_JMP | BPF_JA.
pub(super) const HOP: u16 = 0x05;
/// BPF_RET | BPF_K.
pub(super) const RETURN: u16 = 0x06;

/// Largest distance of a conditional jump.
const REACH: usize = u8::MAX as usize;

/// Comparison of a conditional jump, as BPF_JMP's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Comparison {
    /// BPF_JEQ.
    Equal = 0x15,
    /// BPF_JGT.
    Above = 0x25,
    /// BPF_JGE.
    AtLeast = 0x35,
}

/// Target of a jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Ends the program with this answer.
    Return(u32),
    /// An instruction, counted from the program's end.
    At(usize),
}

/// An incomplete program, with its last instruction first.
#[derive(Default)]
pub(super) struct Assembler {
    reversed: Vec<Instruction>,
    /// Answers that were written, each with the position of its copy nearest to the start.
    returns: Vec<(u32, usize)>,
}

impl Assembler {
    /// Writes a jump to one of two targets, depending on the loaded word.
    pub(super) fn jump(&mut self, comparison: Comparison, value: u32, holds: Target, fails: Target) -> Target {
        if holds == fails {
            return holds;
        }
        // The second hop lies between this jump and the target of the first hop.
        let holds = self.near(holds, REACH - 1);
        let fails = self.near(fails, REACH);
        let (when_true, when_false) = (self.distance(holds), self.distance(fails));
        let within = |distance| u8::try_from(distance).expect("a near target is within reach");
        self.push(Instruction {
            code: comparison as u16,
            when_true: within(when_true),
            when_false: within(when_false),
            value,
        })
    }

    /// Writes an instruction without jumps in front of `then`, which must be the last one written.
    pub(super) fn prepend(&mut self, code: u16, value: u32, then: Target) -> Target {
        debug_assert_eq!(
            then,
            Target::At(self.reversed.len().wrapping_sub(1)),
            "falls through to what was written last"
        );
        self.push(Instruction { code, when_true: 0, when_false: 0, value })
    }

    /// Makes the program begin with `target` and returns it.
    pub(super) fn finish(mut self, target: Target) -> Vec<Instruction> {
        match target {
            Target::At(at) if at + 1 == self.reversed.len() => {}
            Target::At(at) => self.hop(at),
            Target::Return(answer) => self.answer(answer),
        }
        self.reversed.reverse();
        self.reversed
    }

    fn push(&mut self, instruction: Instruction) -> Target {
        self.reversed.push(instruction);
        Target::At(self.reversed.len() - 1)
    }

    /// Returns the number of instructions that the next one must skip to reach a position.
    fn distance(&self, at: usize) -> usize {
        self.reversed.len() - 1 - at
    }

    fn near(&mut self, target: Target, reach: usize) -> usize {
        match target {
            Target::At(at) if self.distance(at) <= reach => return at,
            Target::At(at) => self.hop(at),
            Target::Return(answer) => {
                let written = self.returns.iter().find(|it| it.0 == answer).map(|it| it.1);
                match written.filter(|at| self.distance(*at) <= reach) {
                    Some(at) => return at,
                    None => self.answer(answer),
                }
            }
        }
        self.reversed.len() - 1
    }

    fn hop(&mut self, at: usize) {
        let distance = u32::try_from(self.distance(at)).expect("a filter is shorter than 2^32 instructions");
        self.push(Instruction { code: HOP, when_true: 0, when_false: 0, value: distance });
    }

    fn answer(&mut self, answer: u32) {
        let at = self.reversed.len();
        self.push(Instruction { code: RETURN, when_true: 0, when_false: 0, value: answer });
        match self.returns.iter_mut().find(|it| it.0 == answer) {
            Some(written) => written.1 = at,
            None => self.returns.push((answer, at)),
        }
    }
}
