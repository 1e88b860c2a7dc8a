//! Keeps the programs attached to a control group: all of them, or none.
//!
//! Attached programs outlive this process, with their maps. They are found again by their names, and a program whose
//! code or maps differ from this version's is replaced in one step.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use super::error::{BalancerError, kernel};
use super::hooks::{ENTRANCES, Entrance};
use super::program::Program;
use super::tables::BalancerMaps;

/// The programs of this version, and the group that they belong to.
#[derive(Debug)]
pub(super) struct AttachedPrograms {
    group: File,
    /// One for each of [`ENTRANCES`].
    programs: Vec<Program>,
}

/// A change of one hook, so that it can be undone.
enum HookChange<'a> {
    Added(&'a Program, &'a Entrance),
    Replaced(&'a Program, Program, &'a Entrance),
}

impl AttachedPrograms {
    /// Loads the programs. None of them is attached yet.
    pub(super) fn load(group: File, tables: &BalancerMaps) -> Result<Self, BalancerError> {
        let load = |entrance: &Entrance| {
            Program::load(entrance.name, entrance.hook, &entrance.program(tables)).map_err(|(source, explanation)| {
                let explanation = explanation.unwrap_or_else(|| "the verifier says nothing".into());
                BalancerError::Program { name: entrance.name, explanation, source }
            })
        };
        Ok(Self { group, programs: ENTRANCES.iter().map(load).collect::<Result<_, _>>()? })
    }

    /// Makes sure that exactly these programs are attached, and returns how many were not. If one of them can't be
    /// attached, everything is as before.
    pub(super) fn ensure(&self) -> Result<usize, BalancerError> {
        let mut changes = Vec::new();
        for (entrance, program) in ENTRANCES.iter().zip(&self.programs) {
            match self.ensure_one(entrance, program) {
                Ok(change) => changes.extend(change),
                Err(error) => {
                    self.undo(changes);
                    return Err(error);
                }
            }
        }
        Ok(changes.len())
    }

    fn ensure_one<'a>(
        &'a self,
        entrance: &'a Entrance,
        program: &'a Program,
    ) -> Result<Option<HookChange<'a>>, BalancerError> {
        let (group, hook) = (self.group.as_fd(), entrance.hook);
        let mut attached = ours(group, entrance)?;
        let failed = |source| kernel(format!("attach the program {}", entrance.name))(source);
        if let Some(current) = attached.iter().position(|it| it.equals(program)) {
            attached.swap_remove(current);
            detach(group, entrance, &attached)?;
            return Ok(None);
        }
        let Some(old) = attached.pop() else {
            program.attach(group, hook).map_err(failed)?;
            return Ok(Some(HookChange::Added(program, entrance)));
        };
        program.replace(&old, group, hook).map_err(failed)?;
        detach(group, entrance, &attached)?;
        Ok(Some(HookChange::Replaced(program, old, entrance)))
    }

    /// Undoes changes, the last one first. It goes on if one can't be undone: the caller reports the first error.
    fn undo(&self, changes: Vec<HookChange<'_>>) {
        let group = self.group.as_fd();
        for change in changes.into_iter().rev() {
            let _ = match change {
                HookChange::Added(program, entrance) => program.detach(group, entrance.hook),
                HookChange::Replaced(program, old, entrance) => old.replace(program, group, entrance.hook),
            };
        }
    }
}

/// Opens the folder of a group.
pub(super) fn open(group: &Path) -> Result<File, BalancerError> {
    File::open(group).map_err(kernel(format!("open the control group {}", group.display())))
}

/// Returns the maps of the programs that are attached, if they are those of this version.
pub(super) fn find_tables(group: BorrowedFd<'_>) -> Result<Option<BalancerMaps>, BalancerError> {
    for entrance in &ENTRANCES {
        for program in ours(group, entrance)? {
            let found = program.maps().and_then(|maps| BalancerMaps::find(&maps));
            if let Some(tables) = found.map_err(kernel("open the maps of attached programs"))? {
                return Ok(Some(tables));
            }
        }
    }
    Ok(None)
}

/// Detaches all programs from a group, of whatever version they are.
pub(super) fn detach_all(group: BorrowedFd<'_>) -> Result<(), BalancerError> {
    // In reverse, so that an address is not replaced any more before it is no longer told.
    let detached = ENTRANCES.iter().rev().map(|entrance| detach(group, entrance, &ours(group, entrance)?));
    let all: Vec<_> = detached.collect();
    all.into_iter().collect()
}

fn ours(group: BorrowedFd<'_>, entrance: &Entrance) -> Result<Vec<Program>, BalancerError> {
    let act = || format!("find the programs {} of a control group", entrance.name);
    let mut found = Program::attached(group, entrance.hook).map_err(|source| kernel(act())(source))?;
    found.retain(|program| program.is_named(entrance.name));
    Ok(found)
}

fn detach(group: BorrowedFd<'_>, entrance: &Entrance, programs: &[Program]) -> Result<(), BalancerError> {
    let detach = |program: &Program| program.detach(group, entrance.hook);
    programs.iter().try_for_each(detach).map_err(kernel(format!("detach the program {}", entrance.name)))
}
