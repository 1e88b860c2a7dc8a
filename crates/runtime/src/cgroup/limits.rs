//! Writes limits to the files of the controllers, v1 and v2.
//!
//! Each controller's file translates its part of `linux.resources` to a list of writes. This is pure, and it is
//! complete before the first write. A limit that can't be set is refused with an error that names the field, and never
//! ignored.

mod block_io;
mod cpu;
mod hugetlb;
mod memory;
mod network;
mod pids;
mod rdma;
mod unified;

pub(super) use cpu::weight as cpu_weight;

use std::borrow::Cow;

use super::make::USUAL;
use super::{Folder, Groups, devices};
use crate::error::{Act, StepError};
use crate::oci::Resources;

/// The write of a limit to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Write {
    /// Name of the field below `linux.resources`.
    field: &'static str,
    file: Cow<'static, str>,
    value: String,
    /// Whether the write removes a limit, in which case a missing file is not an error.
    lifts: bool,
    missing: Missing,
    /// Explanations of error numbers, for errors of the kernel whose own text says little.
    hints: &'static [(i32, &'static str)],
}

/// The treatment of a limit whose file does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Missing {
    Refuse,
    Skip,
    Instead(Box<Write>),
}

impl Write {
    fn new(field: &'static str, file: impl Into<Cow<'static, str>>, value: impl ToString) -> Self {
        let (file, value) = (file.into(), value.to_string());
        Self { field, file, value, lifts: false, missing: Missing::Refuse, hints: &[] }
    }

    fn lifting(self, lifts: bool) -> Self {
        Self { lifts, ..self }
    }

    fn skip_if_missing(self, skip: bool) -> Self {
        Self { missing: if skip { Missing::Skip } else { Missing::Refuse }, ..self }
    }

    fn or(self, other: Self) -> Self {
        Self { missing: Missing::Instead(Box::new(other)), ..self }
    }

    fn hints(self, hints: &'static [(i32, &'static str)]) -> Self {
        Self { hints, ..self }
    }

    fn run(&self, folder: &Folder) -> Result<(), StepError> {
        let Err(error) = folder.write(&self.file, &self.value) else { return Ok(()) };
        let number = error.raw_os_error();
        match &self.missing {
            Missing::Skip if number == Some(libc::ENOENT) => return Ok(()),
            Missing::Instead(other) if number == Some(libc::ENOENT) => return other.run(folder),
            _ => (),
        }
        match self.hints.iter().find(|(known, _)| number == Some(*known)) {
            Some((_, meaning)) => Err(refuse(self.field, *meaning)),
            None => Err(error).act(|| {
                let path = folder.path.join(self.file.as_ref());
                format!("set linux.resources.{} (`{}` to {})", self.field, self.value, path.display())
            }),
        }
    }
}

fn refuse(field: &str, why: impl Into<String>) -> StepError {
    StepError::refuse(format!("set linux.resources.{field}"), why)
}

/// Refuses a field that only exists on v1.
fn only_v1(field: &str, asked: bool) -> Result<(), StepError> {
    if asked { Err(refuse(field, "cgroup v2 has no such limit")) } else { Ok(()) }
}

/// The part of `linux.resources` that one controller handles.
trait Controller {
    /// Returns the controller's name as in /proc/cgroups.
    fn name(&self, v2: bool) -> &'static str;

    /// Returns the writes on v1. A write that the kernel finds invalid is repeated after the others, because the order
    /// that the kernel accepts depends on the current values.
    fn v1(&self) -> Result<Vec<Write>, StepError>;

    /// Returns the writes on v2. `now` reads the first number of a file of the group.
    fn v2(&self, now: &dyn Fn(&str) -> Option<u64>) -> Result<Vec<Write>, StepError>;
}

/// The writes to one group, in order.
struct Step<'a> {
    folder: &'a Folder,
    controller: Cow<'a, str>,
    writes: Vec<Write>,
}

/// Sets all given limits. In a `fresh` group no limit is set yet.
pub(super) fn apply(groups: &Groups, resources: &Resources, fresh: bool) -> Result<(), StepError> {
    let mut steps = plan(groups, resources)?;
    if fresh {
        steps.iter_mut().for_each(|step| step.writes.retain(|write| !write.lifts));
    }
    let devices = devices::plan(groups, &resources.devices)?;
    steps.iter().try_for_each(Step::run)?;
    devices.map_or(Ok(()), |devices| devices.run(fresh))
}

fn plan<'a>(groups: &'a Groups, resources: &'a Resources) -> Result<Vec<Step<'a>>, StepError> {
    let mut steps = Vec::new();
    let mut add = |part: &dyn Controller| -> Result<(), StepError> {
        steps.extend(step(groups, part)?);
        Ok(())
    };
    resources.pids.as_ref().map_or(Ok(()), |it| add(it))?;
    resources.memory.as_ref().map_or(Ok(()), |it| add(it))?;
    resources.block_io.as_ref().map_or(Ok(()), |it| add(it))?;
    if let Some(cpu) = &resources.cpu {
        add(cpu)?;
        add(&cpu::Cpuset(cpu))?;
    }
    if let Some(network) = &resources.network {
        add(&network::Class(network))?;
        add(&network::Priorities(network))?;
    }
    add(&resources.hugepage_limits)?;
    add(&resources.rdma)?;
    steps.extend(unified::plan(groups, &resources.unified)?);
    Ok(steps)
}

/// Returns the writes of one controller; `None` if no limit of it is given.
fn step<'a>(groups: &'a Groups, part: &dyn Controller) -> Result<Option<Step<'a>>, StepError> {
    let found = groups.folders.iter().find(|folder| folder.has(part.name(folder.v2)));
    let v2 = found.map_or_else(|| groups.is_pure_v2(), |folder| folder.v2);
    let now = |file: &str| found?.read(file).ok().and_then(|text| super::folder::parse_number(first_word(&text)));
    let writes = if v2 { part.v2(&now)? } else { part.v1()? };
    let controller = Cow::from(part.name(v2));
    match (found, writes.iter().find(|it| !it.lifts)) {
        (_, None) if found.is_none() || writes.is_empty() => Ok(None),
        (Some(folder), _) => Ok(Some(Step { folder, controller, writes })),
        (None, asked) => {
            let why = format!("this machine has no `{controller}` cgroup controller");
            Err(refuse(asked.map_or("", |it| it.field), why))
        }
    }
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

impl Step<'_> {
    fn run(&self) -> Result<(), StepError> {
        let controller = self.controller.as_ref();
        if self.folder.v2 && !USUAL.contains(&controller) && self.folder.has(controller) {
            self.folder.want(&[controller]);
        }
        if !self.folder.v2 && controller == "cpuset" {
            self.folder.inherit_above()?;
        }
        let mut left: Vec<&Write> = self.writes.iter().collect();
        loop {
            let mut again = Vec::new();
            let mut last = None;
            for write in &left {
                match self.run_one(write) {
                    // The value may be invalid until another one is set.
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) || !write.hints.is_empty() => {
                        again.push(*write);
                        last = Some(error);
                    }
                    result => result?,
                }
            }
            match last {
                Some(error) if again.len() == left.len() => return Err(error),
                Some(_) => left = again,
                None => return Ok(()),
            }
        }
    }

    /// Does one write. On v2 a missing file may only mean that the controller is not enabled for this group yet.
    fn run_one(&self, write: &Write) -> Result<(), StepError> {
        let Err(error) = write.run(self.folder) else { return Ok(()) };
        if self.folder.v2 && error.raw_os_error() == Some(libc::ENOENT) {
            let here = self.folder.read("cgroup.controllers");
            if here.is_ok_and(|here| here.split_whitespace().all(|it| it != self.controller)) {
                let path = self.folder.path.display();
                let why = format!("the groups above {path} don't hand the `{}` controller down", self.controller);
                return Err(refuse(write.field, why));
            }
        }
        Err(error)
    }
}

#[cfg(test)]
mod tests;
