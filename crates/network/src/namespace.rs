//! Network namespaces, named by a file: a bind mount that keeps them alive (network_namespaces(7)), or a process's.
//!
//! Work in a namespace runs on a thread of its own, so the caller's thread never changes namespaces. A socket stays bound
//! to the namespace in which it was opened: a caller that works in one often opens a socket there once and keeps it, and
//! one that opens many sockets has a `SocketThread`.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, statfs};

use crate::error::{NetworkError, io};

/// The file system of namespace files (`NSFS_MAGIC`, linux/magic.h).
const NAMESPACE_FILES: FsType = FsType(0x6e73_6673);

/// A network namespace, named by its file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Namespace {
    path: PathBuf,
}

impl Namespace {
    /// Returns the namespace whose file is `path`. Does not check that it exists.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Returns the namespace of a process.
    pub fn of(pid: i32) -> Self {
        Self { path: format!("/proc/{pid}/ns/net").into() }
    }

    /// Returns the namespace of this process.
    pub fn own() -> Self {
        Self { path: "/proc/self/ns/net".into() }
    }

    /// The namespace's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file exists and is a namespace.
    pub fn exists(&self) -> bool {
        statfs(&self.path).is_ok_and(|found| found.filesystem_type() == NAMESPACE_FILES)
    }

    /// Returns the namespace at the file `path`. Creates it if there is none, together with the folders above it. A file
    /// that a crash has left without a namespace gets one.
    ///
    /// # Errors
    /// The file can't be created, or the kernel refuses.
    pub fn make(path: &Path) -> Result<Self, NetworkError> {
        let namespace = Self::at(path);
        if !namespace.exists() {
            let created = std::thread::scope(|scope| {
                let thread = scope.spawn(|| {
                    if let Some(folder) = path.parent() {
                        std::fs::create_dir_all(folder)?;
                    }
                    File::create(path)?;
                    unshare(CloneFlags::CLONE_NEWNET)?;
                    mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
                    Ok(())
                });
                thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
            });
            created.map_err(io(format!("create the network namespace {}", path.display())))?;
        }
        Ok(namespace)
    }

    /// Unbinds the namespace and removes its file. The namespace ends when no process, socket or mount of another mount
    /// namespace holds it any more. Does nothing if there is none.
    ///
    /// # Errors
    /// The file is busy for another reason than the mount.
    pub fn remove(path: &Path) -> Result<(), NetworkError> {
        while umount2(path, MntFlags::MNT_DETACH).is_ok() {}
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(io(format!("remove the network namespace {}", path.display()))(error))
            }
            _ => Ok(()),
        }
    }

    /// Opens the namespace's file. The descriptor keeps the namespace alive.
    ///
    /// # Errors
    /// There is no such file.
    pub fn open(&self) -> Result<File, NetworkError> {
        File::open(&self.path).map_err(io(format!("open the network namespace {}", self.path.display())))
    }

    /// Runs `work` in the namespace, on a thread of its own, and returns its result.
    ///
    /// # Errors
    /// There is no such namespace, this process may not enter it, or `work` failed.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T, NetworkError> + Send) -> Result<T, NetworkError> {
        let file = self.open()?;
        let act = || io(format!("enter the network namespace {}", self.path.display()));
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from).map_err(act())?;
                work()
            });
            thread.join().unwrap_or_else(|_| Err(act()(io::Error::other("the thread panicked"))))
        })
    }

    /// Sets kernel parameters of the namespace (sysctl), each named by its path below /proc/sys. Skips the ones that the
    /// kernel does not have: a kernel without IPv6 needs no setting of IPv6. Returns what has been changed, as phrases.
    ///
    /// # Errors
    /// The kernel refuses a value, or /proc/sys is read-only.
    pub fn set(&self, parameters: &[(&str, &str)]) -> Result<Vec<String>, NetworkError> {
        self.enter(|| set_here(parameters))
    }
}

/// Does the same as [`Namespace::set`], in the namespace of this thread.
pub(crate) fn set_here(parameters: &[(&str, &str)]) -> Result<Vec<String>, NetworkError> {
    let mut changes = Vec::new();
    for (name, value) in parameters {
        let path = Path::new("/proc/sys").join(name);
        let act = format!("set the kernel parameter {name} to {value}");
        match std::fs::read_to_string(&path) {
            Ok(found) if found.trim() == *value => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            _ => {
                std::fs::write(&path, value).map_err(io(act.clone()))?;
                changes.push(act);
            }
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_made_once_and_removed_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("below").join("one");
        let inode = |namespace: &Namespace| nix::sys::stat::stat(namespace.path()).expect("it exists").st_ino;
        let made = Namespace::make(&path).expect("tests run as root");
        assert_eq!(
            inode(&Namespace::make(&path).expect("it exists")),
            inode(&made),
            "the second call finds the first's"
        );
        let parameters = [("net/ipv4/ip_forward", "1"), ("net/none/of/this", "1")];
        let changes = made.set(&parameters).expect("an unknown parameter is skipped");
        assert_eq!(changes, ["set the kernel parameter net/ipv4/ip_forward to 1"]);
        assert!(made.set(&parameters).expect("it is set").is_empty(), "nothing is left to change");
        let read = made.enter(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").map_err(io("read")));
        assert_eq!(read.expect("it is readable").trim(), "1");
        made.set(&[("net/ipv4/ip_forward", "no number")]).expect_err("the kernel refuses the value");
        Namespace::remove(&path).expect("it is removed");
        Namespace::remove(&path).expect("there is nothing to remove");
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_a_crash_left_without_a_namespace_gets_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("one");
        std::fs::write(&path, "").expect("a file");
        assert!(!Namespace::at(&path).exists());
        Namespace::at(&path).enter(|| Ok(())).expect_err("no namespace");
        assert!(Namespace::make(&path).expect("tests run as root").exists());
        Namespace::remove(&path).expect("it is removed");
    }
}
