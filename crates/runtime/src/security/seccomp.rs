//! Seccomp filters: the system calls that a container's processes may make (seccomp(2); config-linux.md, "Seccomp").
//!
//! A profile is compiled to a BPF program once, before the container's process is created:
//!
//! ```text
//! profile ── rules ──▶ a verdict for each number ── program ──▶ BPF ──▶ install, between clone and exec
//!              ▲ calls, conditions                     ▲ assembler
//! ```
//!
//! The program answers every call like the filter that runc and crun create with libseccomp; a test compares the two.
//! As runc's, it fails calls that are newer than all calls of the profile with ENOSYS.
//! A compiled filter can be stored as bytes.

mod actions;
mod architectures;
mod assembler;
mod calls;
mod conditions;
mod install;
mod kept;
mod program;
mod rules;
#[cfg(test)]
mod tests;

pub(crate) use actions::{known_actions, known_architectures, known_flags, known_operators};
pub(crate) use kept::KeptFilters;

use std::io;
use std::path::Path;

use actions::{ACTION, ALL_FLAGS, NOTIFY, WAIT_KILLABLE_RECV};
use architectures::{Architecture, NATIVE};
use assembler::{Instruction, RETURN};

use crate::error::{Act, StepError};
use crate::oci::Seccomp;

/// BPF_MAXINSNS (linux/bpf_common.h).
const MAX_INSTRUCTIONS: usize = 4096;

/// First bytes of a stored filter: a name, and the version of the format.
const MAGIC: [u8; 8] = *b"seccomp\x01";

/// Size of the header: magic, audit number of the architecture, flags, number of instructions.
const HEADER: usize = 20;

/// A compiled filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    program: Vec<Instruction>,
    flags: u32,
    notifies: bool,
    warnings: Vec<String>,
}

impl Filter {
    /// Compiles a profile for this machine.
    ///
    /// # Errors
    /// The profile has an unknown name, two contradicting rules, or more rules than the kernel accepts. The error
    /// names the field.
    pub(crate) fn compile(profile: &Seccomp) -> Result<Self, StepError> {
        Self::compile_for(profile, NATIVE)
    }

    fn compile_for(profile: &Seccomp, native: Architecture) -> Result<Self, StepError> {
        let architectures = actions::architectures(&profile.architectures, native)?;
        let mut flags = actions::flags(&profile.flags)?;
        let mut rules = rules::read(profile)?;
        let program = program::write(&rules, &architectures)?;
        if program.len() > MAX_INSTRUCTIONS {
            let why = format!("{} instructions, and the kernel takes {MAX_INSTRUCTIONS}", program.len());
            return Err(refuse(format!("linux.seccomp: the filter has {why}")));
        }
        let notifies = notifies(&program);
        // The kernel refuses the flag without a listener (kernel/seccomp.c, seccomp_set_mode_filter).
        if !notifies && flags & WAIT_KILLABLE_RECV != 0 {
            flags &= !WAIT_KILLABLE_RECV;
            let flag = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV";
            rules.warnings.push(format!("linux.seccomp.flags: {flag} does nothing without SCMP_ACT_NOTIFY"));
        }
        Ok(Self { program, flags, notifies, warnings: rules.warnings })
    }

    /// Returns warnings about ignored calls, which no architecture has.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns whether [`Filter::install`] returns a descriptor.
    pub(crate) fn uses_notify(&self) -> bool {
        self.notifies
    }

    /// Returns the filter as bytes for this machine, without its warnings.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.program.len() * size_of::<Instruction>());
        bytes.extend(MAGIC);
        bytes.extend(NATIVE.audit().to_ne_bytes());
        bytes.extend(self.flags.to_ne_bytes());
        bytes.extend(u32::try_from(self.program.len()).unwrap_or(u32::MAX).to_ne_bytes());
        for it in &self.program {
            bytes.extend(it.code.to_ne_bytes());
            bytes.extend([it.when_true, it.when_false]);
            bytes.extend(it.value.to_ne_bytes());
        }
        bytes
    }

    /// Loads a stored filter from a file; `None` if the file does not exist.
    ///
    /// # Errors
    /// The same as for [`Filter::from_bytes`], or the file can't be read.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, StepError> {
        match std::fs::read(path) {
            Ok(bytes) => Self::from_bytes(&bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).act(|| format!("read {}", path.display())),
        }
    }

    /// Parses the output of [`Filter::to_bytes`].
    ///
    /// # Errors
    /// The bytes are something else, of another version or machine, or incomplete.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, StepError> {
        let wrong = |why: &str| StepError::refuse("read the seccomp filter", why);
        let Some((header, rest)) = bytes.split_at_checked(HEADER).filter(|it| it.0.starts_with(&MAGIC[..7])) else {
            return Err(wrong("it is not a compiled filter"));
        };
        let (words, _) = header[MAGIC.len()..].as_chunks::<4>();
        let [audit, flags, length] = [words[0], words[1], words[2]].map(u32::from_ne_bytes);
        if header[7] != MAGIC[7] || audit != NATIVE.audit() || flags & !ALL_FLAGS != 0 {
            return Err(wrong("it was compiled by another version, or for another machine"));
        }
        let (instructions, remainder) = rest.as_chunks::<8>();
        if !remainder.is_empty() || instructions.len() != length as usize {
            return Err(wrong("it is not whole"));
        }
        if !(1..=MAX_INSTRUCTIONS).contains(&instructions.len()) {
            return Err(wrong("its length is none that a filter has"));
        }
        let read = |&[c0, c1, when_true, when_false, v0, v1, v2, v3]: &[u8; 8]| Instruction {
            code: u16::from_ne_bytes([c0, c1]),
            when_true,
            when_false,
            value: u32::from_ne_bytes([v0, v1, v2, v3]),
        };
        let program: Vec<_> = instructions.iter().map(read).collect();
        Ok(Self { notifies: notifies(&program), program, flags, warnings: Vec::new() })
    }
}

fn notifies(program: &[Instruction]) -> bool {
    program.iter().any(|it| it.code == RETURN && it.value & ACTION == NOTIFY)
}

fn refuse(why: String) -> StepError {
    StepError::refuse("compile the seccomp filter", why)
}
