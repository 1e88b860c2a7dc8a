//! The daemon's connection to the supervisor of one container. It comes from the start of the container or, after a
//! restart of the daemon, from the supervisor's socket. Events come out of it and signals go in, so that neither
//! depends on opening a connection when it is needed. If it breaks while the supervisor lives, it is opened again.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use flota_api::clock::Clock;
use flota_api::id::TaskId;
use flota_runtime::{ContainerClient, ContainerEvent, ContainerEvents, ContainerState, ExitStatus, KILLED};

use crate::executor::{Control, TaskPaths};

/// Longest delay between the end of the supervisor's connection and the exit status. The status is normally written
/// before.
const END_WAIT: Duration = Duration::from_secs(5);
/// Pauses between tries to find a container whose connection broke; they double.
const PAUSE: Duration = Duration::from_millis(5);
const MOST_PAUSE: Duration = Duration::from_secs(1);

/// Where a task's container is found.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) paths: TaskPaths,
    pub(super) clock: Clock,
    pub(super) task: TaskId,
}

/// A container that [`Place::find`] has found.
#[derive(Debug)]
pub(super) enum Located {
    Runs(ContainerEvents),
    Ended(ExitStatus),
}

impl Place {
    /// Finds the task's container. Blocks. A container without its supervisor is killed, because it has no output log
    /// and can't be stopped.
    ///
    /// # Errors
    /// It is unknown whether there is a container; for example, no descriptor is available.
    pub(super) fn find(&self) -> io::Result<Option<Located>> {
        if let Some(status) = self.exit_status()? {
            return Ok(Some(Located::Ended(status)));
        }
        let folder = self.paths.run_folder(&self.task);
        match ContainerClient::connect(&folder).and_then(ContainerClient::watch) {
            Ok(events) => return Ok(Some(Located::Runs(events))),
            Err(error) if !is_gone(&error) => return Err(error),
            Err(_) => {}
        }
        // The supervisor may have written the status and ended between the first check and the connection.
        if let Some(status) = self.exit_status()? {
            return Ok(Some(Located::Ended(status)));
        }
        let Some(state) = ContainerState::load(&folder).or_else(damaged)? else { return Ok(None) };
        if state.is_alive() {
            tracing::warn!(task.id = %self.task, "the container's supervisor is gone: the container is killed");
            self.paths.cgroups(&self.task).sweep().map_err(io::Error::other)?;
        }
        Ok(Some(Located::Ended(self.killed())))
    }

    fn exit_status(&self) -> io::Result<Option<ExitStatus>> {
        ExitStatus::load(&self.paths.run_folder(&self.task)).or_else(damaged)
    }

    fn killed(&self) -> ExitStatus {
        ExitStatus { code: KILLED, out_of_memory: None, at: self.clock.now().0 }
    }
}

/// Returns whether nothing listens at the supervisor's socket. Other errors of a connection say nothing about the
/// supervisor.
pub(super) fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset | BrokenPipe)
}

/// Treats a file that was only written in part as missing.
fn damaged<T>(error: io::Error) -> io::Result<Option<T>> {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Ok(None),
        _ => Err(error),
    }
}

/// The connection to the supervisor of a running container. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Supervisor {
    place: Place,
    events: Arc<Mutex<Arc<AsyncFd<ContainerEvents>>>>,
}

#[expect(deprecated, reason = "it is unsound for types that change their descriptor, and this one never does")]
fn register(events: ContainerEvents) -> io::Result<Arc<AsyncFd<ContainerEvents>>> {
    Ok(Arc::new(AsyncFd::with_interest(events, Interest::READABLE)?))
}

impl Supervisor {
    pub(super) fn new(place: Place, events: ContainerEvents) -> io::Result<Self> {
        Ok(Self { place, events: Arc::new(Mutex::new(register(events)?)) })
    }

    fn events(&self) -> Arc<AsyncFd<ContainerEvents>> {
        Arc::clone(&self.events.lock().expect("no holder panics"))
    }

    /// Waits until the container has ended.
    pub(super) async fn end(self) -> ExitStatus {
        let mut pause = PAUSE;
        loop {
            if let Some(status) = self.last_event().await {
                return status;
            }
            if let Some(status) = self.reconnect(&mut pause).await {
                return status;
            }
        }
    }

    /// Reads events until the container has ended. Returns `None` if the connection ends before.
    async fn last_event(&self) -> Option<ExitStatus> {
        let events = self.events();
        loop {
            match events.async_io(Interest::READABLE, ContainerEvents::next_event).await {
                Ok(Some(ContainerEvent::Exited(status))) => return Some(status),
                Ok(Some(ContainerEvent::OutOfMemory)) => {
                    tracing::info!(task.id = %self.place.task, "a container ran out of memory");
                }
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Opens the connection again, or returns how the container ended.
    async fn reconnect(&self, pause: &mut Duration) -> Option<ExitStatus> {
        let until = Instant::now() + END_WAIT;
        loop {
            tokio::time::sleep(*pause).await;
            *pause = (*pause * 2).min(MOST_PAUSE);
            match blocking(&self.place, Place::find).await.and_then(std::convert::identity) {
                Ok(Some(Located::Ended(status))) => return Some(status),
                Ok(Some(Located::Runs(events))) => {
                    if let Ok(events) = register(events) {
                        *self.events.lock().expect("no holder panics") = events;
                        return None;
                    }
                }
                // A failed start leaves neither a state nor an exit status.
                Ok(None) if Instant::now() >= until => {
                    let _ = blocking(&self.place, |place| place.paths.cgroups(&place.task).sweep()).await;
                    return Some(self.place.killed());
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(task.id = %self.place.task, %error, "failed to find a container"),
            }
        }
    }
}

impl Control for Supervisor {
    fn signal(&self, signal: i32) -> io::Result<()> {
        self.events().get_ref().kill(signal)
    }
}

/// Runs blocking work on a place outside the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    place: &Place,
    work: impl FnOnce(&Place) -> T + Send + 'static,
) -> io::Result<T> {
    let place = place.clone();
    tokio::task::spawn_blocking(move || work(&place)).await.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn place(dir: &std::path::Path) -> Place {
        let paths = TaskPaths {
            data_dir: dir.join("data"),
            run_dir: dir.join("run"),
            hierarchies: Vec::new(),
            cgroup_parent: "flota".into(),
        };
        let place = Place { paths, clock: Clock::system(), task: "t".into() };
        fs_err::create_dir_all(place.paths.run_folder(&place.task)).unwrap();
        place
    }

    #[test]
    fn a_supervisor_that_can_not_be_asked_is_not_taken_for_one_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        assert!(place.find().unwrap().is_none());
        // A socket of another type refuses the connection for a reason that says nothing about the container.
        let _listener = UnixListener::bind(place.paths.run_folder(&place.task).join("sock")).unwrap();
        let error = place.find().expect_err("nothing is known");
        assert_eq!(error.raw_os_error(), Some(nix::libc::EPROTOTYPE));
    }

    #[test]
    fn files_that_were_written_in_part_count_as_missing() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        for text in ["", "{\"code\":", "nonsense"] {
            fs_err::write(place.paths.run_folder(&place.task).join("exit.json"), text).unwrap();
            assert!(place.find().unwrap().is_none(), "{text}");
        }
    }
}
