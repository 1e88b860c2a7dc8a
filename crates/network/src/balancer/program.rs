//! Programs: loading them, and attaching them to control groups.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::assembler::Instruction;
use super::system::{
    MAP_BY_ID, NAME, PROGRAM_ATTACH, PROGRAM_BY_ID, PROGRAM_DETACH, PROGRAM_LOAD, PROGRAM_QUERY, bpf, by_id, inform,
    number, own, padded, unless_missing,
};

/// Programs that see and change the address of a socket's peer (BPF_PROG_TYPE_CGROUP_SOCK_ADDR).
const TYPE_SOCKET_ADDRESS: u32 = 18;
/// Other programs may be attached to the same group, and to those above and below it.
const ALLOW_MULTI: u32 = 1 << 1;
const REPLACE: u32 = 1 << 2;

/// Largest number of programs that the kernel allows in one group (BPF_CGROUP_MAX_PROGS).
const MOST_PROGRAMS: usize = 64;
/// Largest number of maps that are asked for of a program. A program with more is not one of the balancer.
const MOST_MAPS: usize = 16;
/// Errors of opening a program that is another user's, that a security module guards, or that has just been removed.
const LEFT_OUT: [i32; 3] = [libc::EPERM, libc::EACCES, libc::ENOENT];
/// Length of the verifier's explanation.
const EXPLANATION: usize = 1 << 16;
/// The verifier gives up when a signal arrives, so loading is tried several times.
const TRIES: usize = 5;

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; NAME],
    interface: u32,
    hook: u32,
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    group: u32,
    program: u32,
    hook: u32,
    flags: u32,
    replaced: u32,
}

/// All fields are present, because Linux 6.17 to 7.1 write `revision` regardless of the given size.
#[repr(C)]
#[derive(Default)]
struct Query {
    group: u32,
    hook: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    link_ids: u64,
    link_flags: u64,
    revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgramRecord {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    machine_code: u32,
    code: u32,
    machine_code_at: u64,
    code_at: u64,
    load_time: u64,
    user: u32,
    map_count: u32,
    map_ids: u64,
    name: [u8; NAME],
}

/// The place to which a program is attached (enum bpf_attach_type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hook(pub(super) u32);

/// A loaded program.
#[derive(Debug)]
pub(super) struct Program {
    descriptor: OwnedFd,
    /// A hash of the instructions.
    tag: [u8; 8],
    name: [u8; NAME],
    /// Sorted.
    map_ids: Vec<u32>,
}

impl Program {
    /// Loads a program. Its name has at most 15 letters, digits and underscores.
    ///
    /// # Errors
    /// The kernel refuses, and its verifier may explain why.
    pub(super) fn load(name: &str, hook: Hook, code: &[Instruction]) -> Result<Self, (io::Error, Option<String>)> {
        let mut load = Load {
            kind: TYPE_SOCKET_ADDRESS,
            count: code.len() as u32,
            instructions: code.as_ptr() as u64,
            license: c"Apache".as_ptr() as u64,
            name: padded(name),
            hook: hook.0,
            ..Load::default()
        };
        let mut result = bpf(PROGRAM_LOAD, &mut load);
        for _ in 1..TRIES {
            if result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EAGAIN)) {
                result = bpf(PROGRAM_LOAD, &mut load);
            }
        }
        match result {
            Ok(descriptor) => Self::of(own(descriptor)).map_err(|error| (error, None)),
            Err(error) => Err((error, explain(load))),
        }
    }

    fn of(descriptor: OwnedFd) -> io::Result<Self> {
        let mut maps = [0u32; MOST_MAPS];
        let mut record =
            ProgramRecord { map_count: MOST_MAPS as u32, map_ids: maps.as_mut_ptr() as u64, ..Default::default() };
        inform(descriptor.as_fd(), &mut record)?;
        let mut map_ids = maps[..MOST_MAPS.min(record.map_count as usize)].to_vec();
        map_ids.sort_unstable();
        Ok(Self { descriptor, tag: record.tag, name: record.name, map_ids })
    }

    /// Whether this is a version of the program with that name.
    pub(super) fn is_named(&self, name: &str) -> bool {
        self.name == padded(name)
    }

    /// Whether both have the same instructions and the same maps.
    pub(super) fn equals(&self, other: &Self) -> bool {
        self.tag == other.tag && self.map_ids == other.map_ids
    }

    /// Opens the program's maps.
    pub(super) fn maps(&self) -> io::Result<Vec<OwnedFd>> {
        self.map_ids.iter().map(|id| by_id(MAP_BY_ID, *id)).collect()
    }

    fn attachment(&self, group: BorrowedFd<'_>, hook: Hook) -> Attach {
        let (group, program) = (number(group.as_raw_fd()), number(self.descriptor.as_raw_fd()));
        Attach { group, program, hook: hook.0, ..Attach::default() }
    }

    /// Attaches the program to a group, in which other programs stay attached. It stays attached until it is detached or
    /// the group is removed, also when this process ends.
    pub(super) fn attach(&self, group: BorrowedFd<'_>, hook: Hook) -> io::Result<()> {
        let mut attach = Attach { flags: ALLOW_MULTI, ..self.attachment(group, hook) };
        bpf(PROGRAM_ATTACH, &mut attach).map(drop)
    }

    /// Attaches the program in the place of another, in one step.
    pub(super) fn replace(&self, old: &Self, group: BorrowedFd<'_>, hook: Hook) -> io::Result<()> {
        let replaced = number(old.descriptor.as_raw_fd());
        let mut attach = Attach { flags: ALLOW_MULTI | REPLACE, replaced, ..self.attachment(group, hook) };
        bpf(PROGRAM_ATTACH, &mut attach).map(drop)
    }

    /// Detaches the program from a group. Does nothing if it is not attached.
    pub(super) fn detach(&self, group: BorrowedFd<'_>, hook: Hook) -> io::Result<()> {
        unless_missing(bpf(PROGRAM_DETACH, &mut self.attachment(group, hook))).map(drop)
    }

    /// Returns the programs that are attached to the group itself. Leaves out those that this process may not open or
    /// that have just been removed.
    pub(super) fn attached(group: BorrowedFd<'_>, hook: Hook) -> io::Result<Vec<Self>> {
        let mut ids = [0u32; MOST_PROGRAMS];
        let mut query = Query {
            group: number(group.as_raw_fd()),
            hook: hook.0,
            ids: ids.as_mut_ptr() as u64,
            count: MOST_PROGRAMS as u32,
            ..Query::default()
        };
        bpf(PROGRAM_QUERY, &mut query)?;
        let mut found = Vec::new();
        for id in ids.iter().take(query.count as usize) {
            match by_id(PROGRAM_BY_ID, *id) {
                Err(error) if LEFT_OUT.iter().any(|code| error.raw_os_error() == Some(*code)) => (),
                result => found.push(Self::of(result?)?),
            }
        }
        Ok(found)
    }
}

/// Loads a refused program again, for the verifier's last lines.
fn explain(mut load: Load) -> Option<String> {
    let mut log = vec![0u8; EXPLANATION];
    (load.log_level, load.log_size, load.log) = (1, EXPLANATION as u32, log.as_mut_ptr() as u64);
    bpf(PROGRAM_LOAD, &mut load).map(own).err()?;
    let text = String::from_utf8_lossy(log.split(|byte| *byte == 0).next()?).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("processed ")).collect();
    lines.last().map(|line| (*line).to_owned())
}
