//! A container, as its folder in the state root describes it, and the operations on it.
//!
//! ```text
//!  ROOT/ID/state.json    what is needed to find it again         (written whole, renamed)
//!          config.json   what a further process needs of its configuration
//!          seccomp       the compiled filter
//!          start         FIFO at which init waits; it goes when the container is started
//!          started       FIFO that tells `start` that the program runs, or why not
//! ```

mod create;
mod delete;
mod exec;
mod groups;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cgroup::{Groups, Scope};
use crate::error::{Act, RunError, StepError};
use crate::oci::{self, Hook, Spec, State, Status};
use crate::process::{self, hooks};
use crate::security::Filter;
use crate::state::{self, start_time};
use crate::syscall::process as kernel;

pub use create::Creation;
pub use delete::remove_remains;
pub use exec::Execution;
pub use groups::GroupChoice;

/// Longest id, which is more than programs use.
const ID_BOUND: usize = 1024;

/// A container that was created.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Container {
    /// Version of the specification that the bundle uses.
    pub oci_version: String,
    /// Id, unique in its state root.
    pub id: String,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root file system.
    pub rootfs: PathBuf,
    /// Process id of its init; 0 while there is none.
    pub pid: i32,
    /// Start time of that process, which tells it from a later process with the same id.
    pub start_time: u64,
    /// Process id and start time of the process that creates it.
    pub creator: (i32, u64),
    /// Time of creation in RFC 3339 format, in UTC.
    pub created: String,
    /// User id of its creator.
    pub owner: u32,
    /// Annotations of the configuration.
    pub annotations: BTreeMap<String, String>,
    /// Its control groups.
    pub groups: Groups,
    /// The scope of systemd to which the groups belong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// Whether its processes are in their own PID namespace and end with its init.
    pub own_pids: bool,
    /// Hooks that run after the start.
    pub poststart: Vec<Hook>,
    /// Hooks that run after the deletion.
    pub poststop: Vec<Hook>,
    /// Whether the configuration has a program to start.
    pub has_process: bool,
    /// Whether its mounts are in their own namespace and are removed with it.
    pub own_mounts: bool,
    /// Whether its processes have the session keyring of the caller.
    #[serde(default)]
    pub no_new_keyring: bool,
    /// Its folder.
    #[serde(skip)]
    pub(crate) dir: PathBuf,
}

/// Refuses an id that can't be the name of a folder or names another folder.
pub(crate) fn check_id(id: &str) -> Result<(), StepError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    let why = match id {
        "" => "it is empty",
        "." | ".." => "it is not a name",
        _ if id.len() > ID_BOUND => "it is too long",
        _ if !id.chars().all(legal) => "only letters, digits and _+-. are allowed",
        _ => return Ok(()),
    };
    Err(StepError::refuse(format!("use the container id `{id}`"), why))
}

impl Container {
    /// Loads the container with this id.
    ///
    /// # Errors
    /// The id is not valid, the state can't be read, or there is no such container. The text of the last error contains
    /// "does not exist", which callers rely on.
    pub fn load(root: &Path, id: &str) -> Result<Self, StepError> {
        check_id(id)?;
        let dir = root.join(id);
        let found: Option<Self> = state::read(&dir.join("state.json")).act(|| format!("read the state of `{id}`"))?;
        match found {
            Some(container) => Ok(Self { dir, ..container }),
            None => Err(StepError::refuse(format!("find the container `{id}`"), "container does not exist")),
        }
    }

    /// Loads all containers of a state root, sorted by id.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn list(root: &Path) -> Result<Vec<Self>, StepError> {
        let entries = match fs::read_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.act(|| format!("read {}", root.display()))?,
        };
        let names = entries.flatten().filter_map(|it| it.file_name().into_string().ok());
        let mut found: Vec<Self> = names.filter_map(|id| Self::load(root, &id).ok()).collect();
        found.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(found)
    }

    pub(crate) fn save(&self) -> Result<(), StepError> {
        state::write_volatile(&self.dir.join("state.json"), self).act(|| format!("write the state of `{}`", self.id))
    }

    /// Saves the state in a new folder, which no other process reads yet.
    pub(crate) fn save_first(&self) -> Result<(), StepError> {
        state::write_new(&self.dir.join("state.json"), self).act(|| format!("write the state of `{}`", self.id))
    }

    /// Creates the folder. The existence of the folder reserves the id.
    pub(crate) fn make_dir(root: &Path, id: &str) -> Result<PathBuf, StepError> {
        check_id(id)?;
        let dir = root.join(id);
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        let made = builder.create(&dir).or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            fs::DirBuilder::new().recursive(true).mode(0o711).create(root)?;
            builder.create(&dir)
        });
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(StepError::refuse(format!("use the container id `{id}`"), "container with given ID already exists"))
            }
            other => other.act(|| format!("make {}", dir.display())).map(|()| dir),
        }
    }

    /// Returns the container's status.
    pub fn status(&self) -> Status {
        if self.pid == 0 {
            // Creation is in progress, or the creating process was killed.
            return Status::Creating;
        }
        if start_time(self.pid) != Some(self.start_time) {
            return Status::Stopped;
        }
        self.status_of_alive()
    }

    fn status_of_alive(&self) -> Status {
        if self.groups.is_frozen() {
            return Status::Paused;
        }
        if self.dir.join("start").exists() { Status::Created } else { Status::Running }
    }

    /// Returns a descriptor of its init and the status.
    ///
    /// # Errors
    /// The container has stopped or is still being created.
    pub(crate) fn reach(&self) -> Result<(OwnedFd, Status), StepError> {
        if self.pid == 0 {
            return Err(self.refuse("reach", "it is still being created"));
        }
        Ok((self.open_process()?, self.status_of_alive()))
    }

    /// Returns the state in the format of the specification.
    pub fn state(&self, status: Status) -> State {
        State {
            oci_version: self.oci_version.clone(),
            id: self.id.clone(),
            status,
            pid: if status == Status::Stopped { 0 } else { self.pid },
            bundle: self.bundle.clone(),
            annotations: self.annotations.clone(),
        }
    }

    /// Returns the part of its configuration that a further process needs: `process`, namespaces, personality, the
    /// seccomp agent.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn spec(&self) -> Result<Spec, StepError> {
        oci::read_json(&self.dir.join("config.json"))
    }

    pub(crate) fn filter(&self) -> Result<Option<Filter>, StepError> {
        Filter::load(&self.dir.join("seccomp"))
    }

    /// Opens a descriptor of its init, which can't refer to another process later. It is readable when init has ended.
    ///
    /// # Errors
    /// The container has stopped.
    pub fn open_process(&self) -> Result<OwnedFd, StepError> {
        let gone = || StepError::refuse(format!("reach the container `{}`", self.id), "container not running");
        if self.pid == 0 {
            return Err(gone());
        }
        let process = kernel::open(self.pid).map_err(|_| gone())?;
        // The check comes after the open: if the start time matches now, the descriptor refers to this process.
        if start_time(self.pid) == Some(self.start_time) { Ok(process) } else { Err(gone()) }
    }

    fn require(&self, act: &str, allowed: &[Status]) -> Result<(), StepError> {
        let status = self.status();
        if allowed.contains(&status) {
            return Ok(());
        }
        let why = match status {
            // This is runc's text, which callers rely on.
            Status::Stopped => "container not running".to_owned(),
            other => format!("the container is {other}"),
        };
        Err(StepError::refuse(format!("{act} the container `{}`", self.id), why))
    }

    /// Starts its program. Returns when the program runs.
    ///
    /// # Errors
    /// The status is not `created`, or the program can't be run.
    pub fn start(&self) -> Result<(), RunError> {
        match self.status() {
            Status::Created => {}
            Status::Stopped => return Err(self.refuse("start", "cannot start a container that has stopped").into()),
            Status::Running => return Err(self.refuse("start", "cannot start an already running container").into()),
            other => return Err(self.refuse("start", &format!("the container is {other}")).into()),
        }
        if !self.has_process {
            return Err(self.refuse("start", "its configuration has no process").into());
        }
        process::start::start(&self.dir)?;
        // If a hook fails, the container is deleted (runtime.md, "Lifecycle").
        self.run_poststart().inspect_err(|_| drop(self.delete(true, drop)))
    }

    pub(crate) fn run_poststart(&self) -> Result<(), RunError> {
        Ok(hooks::run("poststart", &self.poststart, &self.state(Status::Running), &[])?)
    }

    fn refuse(&self, act: &str, why: &str) -> StepError {
        StepError::refuse(format!("{act} the container `{}`", self.id), why)
    }

    /// Sends a signal to its init.
    ///
    /// # Errors
    /// The container has stopped.
    pub fn kill(&self, signal: i32) -> Result<(), StepError> {
        self.require("kill", &[Status::Created, Status::Running, Status::Paused])?;
        let process = self.open_process()?;
        kernel::signal(process.as_fd(), signal).act(|| format!("send signal {signal} to `{}`", self.id))?;
        if signal == libc::SIGKILL {
            if !self.own_pids {
                self.groups.kill_all(libc::SIGKILL)?;
            }
            if self.groups.is_frozen() {
                // A process that is frozen on v1 receives no signal before it is thawed.
                self.groups.thaw()?;
            }
        }
        Ok(())
    }

    /// Sends a signal to all of its processes, including those that outlived its init.
    ///
    /// # Errors
    /// The groups can't be read.
    pub fn kill_all(&self, signal: i32) -> Result<(), StepError> {
        self.groups.kill_all(signal)
    }

    /// Freezes all of its processes.
    ///
    /// # Errors
    /// The container does not run, or there is no freezer.
    pub fn pause(&self) -> Result<(), StepError> {
        self.require("pause", &[Status::Created, Status::Running])?;
        self.groups.freeze()
    }

    /// Thaws its processes.
    ///
    /// # Errors
    /// The container is not paused.
    pub fn resume(&self) -> Result<(), StepError> {
        self.require("resume", &[Status::Paused])?;
        self.groups.thaw()
    }

    /// Changes its limits. Its devices stay as they are, as with runc: callers send the rules of the configuration again, which
    /// do not have those of the default devices.
    ///
    /// # Errors
    /// The container has stopped, or a limit can't be set; earlier limits stay set.
    pub fn update(&self, resources: &oci::Resources) -> Result<(), StepError> {
        self.require("update", &[Status::Created, Status::Running, Status::Paused])?;
        let resources = oci::Resources { devices: Vec::new(), ..resources.clone() };
        self.groups.apply(&resources)?;
        self.scope.as_ref().map_or(Ok(()), |scope| scope.update(&resources, self.groups.is_pure_v2()))
    }

    /// Returns the ids of all of its processes in the caller's PID namespace.
    ///
    /// # Errors
    /// The groups can't be read.
    pub fn processes(&self) -> Result<Vec<i32>, StepError> {
        self.groups.processes()
    }
}
