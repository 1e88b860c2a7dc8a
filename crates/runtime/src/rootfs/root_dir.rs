//! A container's root as a descriptor, relative to which all paths are opened.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::stat::{Mode, mkdirat};

use crate::error::{Act, StepError};
use crate::syscall::files::{BENEATH, IN_ROOT, NO_LINKS, open_at};

/// Largest number of parts of a path, above that of any useful path within PATH_MAX.
const PARTS: usize = 1024;

/// Largest number of links in a path, the same as the kernel's (path_resolution(7)).
const LINKS: usize = 40;

pub(crate) struct RootDir(OwnedFd);

/// Returns the named parts of a path.
fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    let part = |it: Component<'_>| match it {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    };
    path.components().filter_map(part)
}

impl AsFd for RootDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl RootDir {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    pub(crate) fn open(path: &Path) -> Result<Self, StepError> {
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
        nix::fcntl::open(path, flags, Mode::empty()).act(|| format!("open the root `{}`", path.display())).map(Self)
    }

    /// Opens a path as a process sees it whose root this is.
    pub(crate) fn find(&self, path: &Path, flags: i32) -> Result<OwnedFd, Errno> {
        open_at(self.as_fd(), path, flags, 0, IN_ROOT)
    }

    /// Opens a path below this root. Fails with ELOOP if any part of the path is a link.
    pub(crate) fn find_without_links(&self, path: &Path, flags: i32) -> Result<OwnedFd, Errno> {
        open_at(self.as_fd(), path, flags, 0, NO_LINKS)
    }

    /// Opens a path below this root, relative to it. Fails with EXDEV if a link on the way is absolute or leads above the
    /// root, even if a process whose root this is would find something there.
    pub(crate) fn find_beneath(&self, path: &Path, flags: i32) -> Result<OwnedFd, Errno> {
        open_at(self.as_fd(), path, flags, 0, BENEATH)
    }

    /// Opens a folder, and creates it and its parents if they are missing.
    pub(crate) fn make_folder(&self, path: &Path) -> Result<OwnedFd, Errno> {
        match self.find(path, libc::O_PATH | libc::O_DIRECTORY) {
            Err(Errno::ENOENT) => {}
            found => return found,
        }
        // From the first missing part on there can only be dangling links. Whatever another process creates in the
        // meantime, openat2 resolves it inside the root.
        let mut parts: VecDeque<OsString> = names(path).collect();
        let mut so_far = PathBuf::from("/");
        for _ in 0..PARTS {
            let Some(name) = parts.pop_front() else {
                return self.find(&so_far, libc::O_PATH | libc::O_DIRECTORY);
            };
            if name == ".." {
                so_far.pop();
                continue;
            }
            let next = so_far.join(&name);
            if self.find(&next, libc::O_PATH).err() == Some(Errno::ENOENT) {
                let parent = self.find(&so_far, libc::O_PATH | libc::O_DIRECTORY)?;
                match mkdirat(&parent, name.as_os_str(), Mode::from_bits_truncate(0o755)) {
                    Ok(()) => {}
                    Err(Errno::EEXIST) => {
                        // A dangling link: its target is created.
                        let link = PathBuf::from(readlinkat(&parent, name.as_os_str())?);
                        if link.is_absolute() {
                            so_far = PathBuf::from("/");
                        }
                        for name in names(&link).collect::<Vec<_>>().into_iter().rev() {
                            parts.push_front(name);
                        }
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            so_far = next;
        }
        Err(Errno::ELOOP)
    }

    /// Opens a file to mount on, and creates it empty if it is missing.
    pub(crate) fn make_file(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let mut path = path.to_owned();
        for _ in 0..LINKS {
            match self.find(&path, libc::O_PATH) {
                Err(Errno::ENOENT) => {}
                found => return found,
            }
            let (parent, name) = self.make_parent(&path)?;
            let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY;
            match open_at(parent.as_fd(), Path::new(name), flags, 0o644, IN_ROOT) {
                Ok(_) => return open_at(parent.as_fd(), Path::new(name), libc::O_PATH | libc::O_NOFOLLOW, 0, NO_LINKS),
                Err(Errno::EEXIST) => {}
                Err(error) => return Err(error),
            }
            // A dangling link: its target is created.
            match readlinkat(&parent, name) {
                Ok(link) => path = path.parent().unwrap_or(Path::new("/")).join(link),
                // Another process created the file in the meantime.
                Err(Errno::EINVAL) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::ELOOP)
    }

    /// Opens the parent folder of a path, which is created if missing, and returns it with the last part.
    pub(crate) fn make_parent<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a std::ffi::OsStr), Errno> {
        let name = path.file_name().ok_or(Errno::EINVAL)?;
        let parent = self.make_folder(path.parent().unwrap_or(Path::new("/")))?;
        Ok((parent, name))
    }
}
