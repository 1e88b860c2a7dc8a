//! Kills by the kernel's OOM killer: their number so far, and a descriptor that reports new ones.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{Folder, Groups};
use crate::error::{Act, StepError};

impl Groups {
    /// Returns the number of processes of this container that the kernel killed because memory ran out. Zero if it is
    /// not counted.
    pub fn out_of_memory(&self) -> u64 {
        self.memory().map_or(0, kills)
    }

    /// Watches for OOM kills from now on.
    ///
    /// # Errors
    /// There is no memory controller, or no group.
    pub fn watch_out_of_memory(&self) -> Result<OomWatch, StepError> {
        let refuse =
            || StepError::refuse("watch the container's memory", "this machine has no `memory` cgroup controller");
        let folder = self.memory().ok_or_else(refuse)?;
        let source = if folder.v2 { watch_v2(folder) } else { watch_v1(folder) };
        let source = source.act(|| format!("watch the memory of the cgroup {}", folder.path.display()))?;
        Ok(OomWatch { seen: kills(folder), folder: folder.clone(), source })
    }

    fn memory(&self) -> Option<&Folder> {
        self.folders.iter().find(|folder| folder.has("memory"))
    }
}

fn kills(folder: &Folder) -> u64 {
    folder.key(if folder.v2 { "memory.events" } else { "memory.oom_control" }, "oom_kill").unwrap_or(0)
}

/// A watch for OOM kills, whose descriptor is readable when there may be an event.
#[derive(Debug)]
pub struct OomWatch {
    folder: Folder,
    source: Source,
    seen: u64,
}

#[derive(Debug)]
enum Source {
    V1(EventFd, #[expect(dead_code, reason = "the kernel's end is there as long as this is open")] File),
    V2(Inotify),
}

/// An event of an [`OomWatch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OomEvent {
    /// Memory ran out. v1 reports it before the kill, v2 after it.
    OutOfMemory,
    /// No relevant event.
    Nothing,
    /// No processes are left, or the group was removed; no more events follow.
    Ended,
}

/// Watches with an eventfd that is registered for the group's file (cgroup-v1/memory.rst, "OOM Control").
fn watch_v1(folder: &Folder) -> io::Result<Source> {
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let control = File::open(folder.path.join("memory.oom_control"))?;
    let line = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
    folder.write("cgroup.event_control", &line)?;
    Ok(Source::V1(event, control))
}

/// Watches both files with inotify, because the kernel reports their changes as modifications (cgroup-v2.rst). Removal
/// of the group is not reported.
fn watch_v2(folder: &Folder) -> io::Result<Source> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    for file in ["memory.events", "cgroup.events"] {
        inotify.add_watch(&folder.path.join(file), AddWatchFlags::IN_MODIFY)?;
    }
    Ok(Source::V2(inotify))
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::V1(event, _) => event.as_fd(),
            Source::V2(inotify) => inotify.as_fd(),
        }
    }
}

impl OomWatch {
    /// Returns what has happened. Afterwards the descriptor is readable again only for a new event.
    pub fn read(&mut self) -> OomEvent {
        let (news, ended) = match &self.source {
            Source::V1(event, _) => {
                let times = event.read().unwrap_or(0);
                // The removal of the group also raises the counter.
                let ended = !self.folder.path.exists();
                (times > u64::from(ended), ended)
            }
            Source::V2(inotify) => {
                while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
                let kills = kills(&self.folder).max(self.seen);
                let before = std::mem::replace(&mut self.seen, kills);
                (self.seen > before, self.folder.key("cgroup.events", "populated") != Some(1))
            }
        };
        match (news, ended) {
            (true, _) => OomEvent::OutOfMemory,
            (false, true) => OomEvent::Ended,
            (false, false) => OomEvent::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::poll::{PollFd, PollFlags, poll};

    use super::*;

    fn is_readable(watch: &OomWatch) -> bool {
        poll(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)], 0u8).is_ok_and(|ready| ready == 1)
    }

    #[test]
    fn a_watch_of_v2_tells_kills_and_the_end() {
        let path = std::env::temp_dir().join(format!("flota-oom-{}", std::process::id()));
        fs::create_dir_all(&path).expect("in a temporary folder");
        let write = |file: &str, text: &str| fs::write(path.join(file), text).expect("in a temporary folder");
        write("memory.events", "oom 0\noom_kill 2\n");
        write("cgroup.events", "populated 1\nfrozen 0\n");
        let folder = Folder {
            path: path.clone(),
            point: path.clone(),
            root: path.clone(),
            controllers: vec!["memory".into()],
            v2: true,
            made: 0,
        };
        let groups = Groups { folders: vec![folder] };
        let mut watch = groups.watch_out_of_memory().expect("both files are there");
        assert!(!is_readable(&watch), "an earlier kill is not reported");
        write("memory.events", "oom 1\noom_kill 3\n");
        assert!(is_readable(&watch));
        assert_eq!((watch.read(), groups.out_of_memory()), (OomEvent::OutOfMemory, 3));
        assert!(!is_readable(&watch), "it has been told");
        write("memory.events", "low 1\noom_kill 3\n");
        assert_eq!(watch.read(), OomEvent::Nothing);
        write("cgroup.events", "populated 0\nfrozen 0\n");
        assert!(is_readable(&watch));
        assert_eq!(watch.read(), OomEvent::Ended);
        fs::remove_dir_all(path).expect("its own folder");
    }

    #[test]
    fn memory_that_is_not_counted_can_not_be_watched() {
        let error = Groups::default().watch_out_of_memory().expect_err("no controller");
        let expected = "failed to watch the container's memory: this machine has no `memory` cgroup controller";
        assert_eq!((error.to_string().as_str(), Groups::default().out_of_memory()), (expected, 0));
    }
}
