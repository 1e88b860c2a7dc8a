//! Removes folders that may have been filled by untrusted code: layers, and what containers wrote.
//!
//! A container can create folders millions of levels deep, and links to anywhere. So the removal walks by descriptor
//! and follows neither symbolic links nor mounts, and it holds a bounded number of descriptors and no stack frame per
//! level: a folder that lies deeper than [`LEVELS`] is first moved up to the top.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::{Dir, OwningIter, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat2};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Number of levels that are open at once, with two descriptors each.
const LEVELS: usize = 16;

/// Removes the folder and everything in it. Does nothing if there is no such folder.
///
/// Continues after a failure, so that as little as possible is left, and returns the first one.
///
/// # Errors
/// The path is not a folder, something in it can't be removed, or a file system is mounted in it.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    Ok(remove_folder_at(AT_FDCWD, &name)?)
}

/// Removes a folder by its name in the folder `parent`, as [`remove_folder`] does.
pub(crate) fn remove_folder_at(parent: impl AsFd, name: &CStr) -> Result<(), Errno> {
    loop {
        // The path to the folder may lead over mounts; only what is in it may not.
        let top = match open(&parent, name, ResolveFlag::empty()) {
            Err(Errno::ENOENT) => return Ok(()),
            other => other?,
        };
        let mut walk = Walk { levels: Vec::new(), moved: 0, failure: None };
        walk.run(top)?;
        // Reading a folder may miss what was moved there in the meantime (readdir(3)), so the next walk looks for it.
        match (walk.moved, walk.failure) {
            (0, None) => return or_gone(unlinkat(&parent, name, UnlinkatFlags::RemoveDir)),
            (0, Some(failure)) => return Err(failure),
            _ => {}
        }
    }
}

/// One walk through a folder.
struct Walk {
    /// The open folders, from the top to the one that is being emptied.
    levels: Vec<Level>,
    /// Number of folders that were moved to the top.
    moved: u32,
    /// The first failure.
    failure: Option<Errno>,
}

/// A folder that is being emptied.
struct Level {
    /// Its name in the level above.
    name: CString,
    folder: OwnedFd,
    entries: OwningIter,
}

impl Walk {
    /// Removes everything in the folder that can be removed.
    fn run(&mut self, top: OwnedFd) -> Result<(), Errno> {
        self.enter(CString::default(), top)?;
        while let Some(level) = self.levels.last_mut() {
            let step = match level.entries.next() {
                Some(Ok(entry)) if matches!(entry.file_name().to_bytes(), b"." | b"..") => Ok(()),
                Some(Ok(entry)) => self.remove(entry.file_name(), entry.file_type()),
                Some(Err(errno)) => self.leave().and(Err(errno)),
                None => self.leave(),
            };
            self.failure = self.failure.or(step.err());
        }
        Ok(())
    }

    fn enter(&mut self, name: CString, folder: OwnedFd) -> Result<(), Errno> {
        let copy = folder.try_clone().map_err(|_| Errno::EMFILE)?;
        self.levels.push(Level { name, folder, entries: Dir::from_fd(copy)?.into_iter() });
        Ok(())
    }

    /// Removes a file of the last level. A folder is entered, or moved to the top if the walk is too deep.
    fn remove(&mut self, name: &CStr, kind: Option<Type>) -> Result<(), Errno> {
        let (Some(top), Some(last)) = (self.levels.first(), self.levels.last()) else { return Ok(()) };
        if kind != Some(Type::Directory) {
            match or_gone(unlinkat(&last.folder, name, UnlinkatFlags::NoRemoveDir)) {
                // Some file systems do not say in a listing what an entry is (readdir(3)).
                Err(Errno::EISDIR) => {}
                other => return other,
            }
        }
        if self.levels.len() == LEVELS {
            move_up(&last.folder, name, &top.folder)?;
            self.moved += 1;
            return Ok(());
        }
        match open(&last.folder, name, ResolveFlag::RESOLVE_NO_XDEV) {
            Err(Errno::ENOENT) => Ok(()),
            folder => self.enter(name.to_owned(), folder?),
        }
    }

    /// Removes the last level, which has been emptied, from the one above. The top stays.
    fn leave(&mut self) -> Result<(), Errno> {
        let (Some(level), Some(above)) = (self.levels.pop(), self.levels.last()) else { return Ok(()) };
        match or_gone(unlinkat(&above.folder, level.name.as_c_str(), UnlinkatFlags::RemoveDir)) {
            // Something in it could not be removed, and that failure is the one to report.
            Err(Errno::ENOTEMPTY) if self.failure.is_some() => Ok(()),
            other => other,
        }
    }
}

/// Opens a folder for reading, and no link to one.
fn open(parent: impl AsFd, name: &CStr, resolve: ResolveFlag) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat2(parent, name, OpenHow::new().flags(flags).resolve(resolve))
}

/// Moves a folder to `top`, under a name that is free there.
fn move_up(from: impl AsFd, name: &CStr, top: impl AsFd) -> Result<(), Errno> {
    loop {
        let new = format!("removed-{:016x}", rand::random::<u64>());
        match renameat2(&from, name, &top, new.as_str(), RenameFlags::RENAME_NOREPLACE) {
            Err(Errno::EEXIST) => {}
            other => return other,
        }
    }
}

/// Takes it for a success that something is gone already.
fn or_gone(result: Result<(), Errno>) -> Result<(), Errno> {
    if result == Err(Errno::ENOENT) { Ok(()) } else { result }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::sys::stat::{Mode, mkdirat};

    use super::*;

    /// Creates a folder that is `depth` levels deep, with a file at each hundredth.
    fn chain(top: &Path, depth: u32) {
        fs::create_dir(top).expect("a temporary folder");
        let mut at: OwnedFd = fs::File::open(top).expect("it exists").into();
        for level in 0..depth {
            mkdirat(&at, c"d", Mode::S_IRWXU).expect("a folder");
            if level % 100 == 0 {
                drop(nix::fcntl::openat(&at, c"f", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRWXU).expect("a file"));
            }
            at = open(&at, c"d", ResolveFlag::empty()).expect("it exists");
        }
    }

    #[test]
    fn hundred_thousand_levels_are_removed_with_a_small_stack() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        let top = dir.path().join("top");
        chain(&top, 100_000);
        let remove = move || remove_folder(&top).map(|()| top);
        let removed = std::thread::Builder::new().stack_size(64 << 10).spawn(remove).expect("a thread").join();
        let top = removed.expect("the stack suffices").expect("the folder can be removed");
        assert!(!top.exists());
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let outside = dir.path().join("outside");
        fs::create_dir_all(outside.join("kept")).expect("a folder");
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("a/b")).expect("a folder");
        symlink(&outside, top.join("a/b/link")).expect("a link");
        symlink("/nowhere", top.join("dangling")).expect("a link");
        symlink(&top, dir.path().join("to-top")).expect("a link");
        assert!(remove_folder(&dir.path().join("to-top")).is_err(), "the path itself is a link");
        remove_folder(&top).expect("removed");
        assert!(!top.exists() && outside.join("kept").exists());
        remove_folder(&top).expect("nothing to remove");
    }

    #[test]
    fn folder_whose_mode_forbids_everything_is_removed() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("work/work")).expect("a folder");
        fs::set_permissions(top.join("work"), fs::Permissions::from_mode(0o000)).expect("its mode");
        remove_folder(&top).expect("removed");
    }

    #[test]
    fn mounted_file_system_is_an_error_and_stays_while_the_rest_is_removed() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (top, outside) = (dir.path().join("top"), dir.path().join("outside"));
        for name in ["top/a/mounted", "top/z/more", "outside/kept"] {
            fs::create_dir_all(dir.path().join(name)).expect("a folder");
        }
        let mounted = top.join("a/mounted");
        mount(Some(&outside), &mounted, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("a bind mount");
        let result = remove_folder(&top);
        umount2(&mounted, MntFlags::MNT_DETACH).expect("it was mounted");
        assert_eq!(result.expect_err("something is mounted").raw_os_error(), Some(Errno::EXDEV as i32));
        assert!(outside.join("kept").exists() && top.join("a").exists() && !top.join("z").exists());
        remove_folder(&top).expect("nothing is mounted any more");
    }
}
