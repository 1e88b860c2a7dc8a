//! The files in a container's folder that record that it runs (`state.json`) and how it ended (`exit.json`).

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The state of a started container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Process id of its init, in the namespace of the supervisor.
    pub pid: i32,
    /// Start time of that process in the kernel's ticks, which distinguishes it from a later process with the same id.
    pub start_time: u64,
    /// Process id of the supervisor.
    pub supervisor: i32,
}

/// Exit code of a process that SIGKILL has ended: 128 and the signal's number.
pub const KILLED: i32 = 137;

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Exit code; 128 + the signal's number if a signal ended it.
    pub code: i32,
    /// Which of its processes the kernel killed because memory ran out.
    pub out_of_memory: Option<OomVictim>,
    /// Time of the end in ms since 1970.
    pub at: u64,
}

/// A process that the kernel killed because memory ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OomVictim {
    /// The container's init, which ended the container.
    Init,
    /// Another process. The container ended later, for another reason.
    Other,
}

/// Space for a small file that must be written even if the file system is full by then.
pub(crate) struct Reserved {
    path: PathBuf,
    file: fs::File,
}

impl Reserved {
    /// Largest file in bytes.
    const SPACE: i64 = 4096;

    /// Reserves space for the file, which does not exist before [`Reserved::write`].
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let temporary = path.with_extension("new");
        let file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(temporary)?;
        nix::fcntl::posix_fallocate(&file, 0, Self::SPACE)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Writes the file atomically and durably.
    pub(crate) fn write(&self, value: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec(value)?;
        self.file.write_all_at(&bytes, 0)?;
        self.file.set_len(bytes.len() as u64)?;
        self.file.sync_data()?;
        fs::rename(self.path.with_extension("new"), &self.path)
    }
}

/// Writes a small file that need not survive a boot atomically, without waiting for the disk.
pub(crate) fn write_volatile(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let temporary = path.with_extension("new");
    write_new(&temporary, value)?;
    fs::rename(&temporary, path)
}

/// Writes a small file in place, before any other process reads it.
pub(crate) fn write_new(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&serde_json::to_vec(value)?)
}

/// Reads such a file; `None` if it does not exist.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl ContainerState {
    /// Loads the state from a container's folder; `None` if the container was not started.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn load(dir: &Path) -> io::Result<Option<Self>> {
        read(&dir.join("state.json"))
    }

    /// Returns the time since its start; `None` if the kernel does not report it.
    pub fn age(&self) -> Option<std::time::Duration> {
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
        let started = std::time::Duration::from_millis(self.start_time * 1000 / u64::try_from(ticks).ok()?);
        Some(std::time::Duration::from_secs_f64(uptime.max(0.0)).saturating_sub(started))
    }

    /// Returns whether the process still exists.
    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }
}

impl ExitStatus {
    /// Loads the exit status from a container's folder; `None` if the container has not ended.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn load(dir: &Path) -> io::Result<Option<Self>> {
        read(&dir.join("exit.json"))
    }
}

/// Returns whether the process has received SIGKILL. The signal stays in the list of those that are pending for the whole
/// process until it has ended (proc_pid_status(5), "ShdPnd").
pub(crate) fn is_killed(pid: i32) -> bool {
    const BIT: u64 = 1 << (libc::SIGKILL - 1);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    pending.and_then(|it| u64::from_str_radix(it.trim(), 16).ok()).is_some_and(|it| it & BIT != 0)
}

/// Returns when the process started, from field 22 of /proc/PID/stat (proc_pid_stat(5)).
pub fn start_time(pid: i32) -> Option<u64> {
    // The file has about 50 numbers and a name of 15 bytes.
    let mut stat = [0; 1024];
    let count = fs::File::open(format!("/proc/{pid}/stat")).and_then(|mut it| it.read(&mut stat)).ok()?;
    let stat = String::from_utf8_lossy(&stat[..count]);
    // The second field is in parentheses and may contain any character, so fields are counted after its end.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // The first thread of a program becomes a zombie as soon as it ends, while other threads may still hold its
    // resources.
    let dead = match *fields.first()? {
        "X" => true,
        "Z" => fields.get(17)?.parse::<u32>().ok()? <= 1,
        _ => false,
    };
    if dead { None } else { fields.get(19)?.parse().ok() }
}
