//! Deletes a container and everything that belongs to it, even if another process is working on it.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Container, check_id};
use crate::error::{Act, StepError};
use crate::oci::Status;
use crate::process::{self, hooks};
use crate::state::{self, is_killed, start_time};
use crate::syscall::process as kernel;

/// Longest wait for a killed init; one that takes longer hangs in the kernel.
const END_WAIT: Duration = Duration::from_secs(10);
/// Pause between two checks of what another process does.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

impl Container {
    /// Deletes the container. With `force`, it is killed first. `warn` is called for each failed `poststop` hook.
    ///
    /// # Errors
    /// The container runs and `force` is not given, or a part of it can't be removed.
    pub fn delete(&self, force: bool, warn: impl FnMut(StepError)) -> Result<(), StepError> {
        let mut status = self.status();
        if status == Status::Running && is_killed(self.pid) {
            // A killed init ends a moment after its signal.
            self.wait_for_end()?;
            status = Status::Stopped;
        }
        if force && status == Status::Creating {
            match self.interrupt_creator()? {
                None => {}
                Some(done) if done.dir.exists() => return done.delete(force, warn),
                Some(_) => return Ok(()),
            }
        }
        // A container that is being created belongs to another runtime, unless that was killed.
        let is_over = matches!(status, Status::Stopped | Status::Created);
        if !is_over && !force {
            let why = format!("cannot delete container that is not stopped: {status}");
            return Err(self.refuse("delete", &why));
        }
        if !matches!(status, Status::Stopped | Status::Creating) {
            // The container may end by itself at this moment.
            if let Err(error) = self.kill(libc::SIGKILL)
                && self.status() != Status::Stopped
            {
                return Err(error);
            }
            self.wait_for_end()?;
        }
        let ours = self.has_groups();
        if ours && (!self.own_pids || self.pid == 0) {
            // Processes that are left in its groups would keep them busy. With its own PID namespace all have ended
            // with init.
            self.groups.kill_all(libc::SIGKILL)?;
        }
        let removed = self.groups.remove();
        if ours {
            removed?;
        }
        if !self.own_mounts {
            // The mounts were created in the runtime's namespace, all below one. The root may not exist any more.
            let _ = nix::mount::umount2(&self.rootfs, nix::mount::MntFlags::MNT_DETACH);
        }
        fs::remove_dir_all(&self.dir).act(|| format!("remove {}", self.dir.display()))?;
        hooks::run_all("poststop", &self.poststop, &self.state(Status::Stopped), warn);
        Ok(())
    }

    /// Kills the init of a container that is being created and waits until the creating process has completed or
    /// undone its work. Returns the container's current state, or `None` if the creating process was killed and left
    /// it unchanged.
    fn interrupt_creator(&self) -> Result<Option<Self>, StepError> {
        let until = Instant::now() + END_WAIT;
        let (creator, started) = self.creator;
        let process = kernel::open(creator).ok().filter(|_| start_time(creator) == Some(started));
        loop {
            // This check comes before the state is read, because a process that is still alive may change the state.
            let is_alive = process.as_ref().is_some_and(|it| !process::ended(it, Instant::now() + LOOK_AGAIN));
            let found: Option<Self> = state::read(&self.dir.join("state.json")).ok().flatten();
            match found.map(|it| Self { dir: self.dir.clone(), ..it }) {
                None if !self.dir.exists() => return Ok(Some(self.clone())),
                Some(found) if found.pid != 0 => return Ok(Some(found)),
                _ if !is_alive => return Ok(None),
                Some(found) if found.has_groups() => found.groups.kill_all(libc::SIGKILL)?,
                _ => {}
            }
            if Instant::now() > until {
                return Err(self.refuse("delete", &format!("process {creator} is still creating it")));
            }
        }
    }

    /// Returns whether the groups belong to the container. If its creator was killed before that was recorded, no
    /// process of the container is in them.
    fn has_groups(&self) -> bool {
        self.pid != 0 || self.groups.folders().iter().any(|it| it.made > 0)
    }

    fn wait_for_end(&self) -> Result<(), StepError> {
        let until = Instant::now() + END_WAIT;
        let Ok(process) = self.open_process() else { return Ok(()) };
        if process::ended(&process, until) {
            return Ok(());
        }
        Err(self.refuse("delete", "its init was killed and does not end"))
    }
}

/// Removes what a runtime that was killed during `create` has left of an id.
///
/// # Errors
/// The remains can't be removed.
pub fn remove_remains(root: &Path, id: &str) -> Result<(), StepError> {
    check_id(id)?;
    match fs::remove_dir_all(root.join(id)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.act(|| format!("remove {}", root.join(id).display())),
    }
}
