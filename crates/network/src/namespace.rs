//! Network namespaces, named by a file: a bind mount that keeps them alive (network_namespaces(7)), or a process's.

use std::fs::File;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// An I/O error.
    #[error("failed to {act}")]
    Io {
        /// What was attempted, as a phrase.
        act: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("failed to {act}")]
    Netlink {
        /// What was attempted, as a phrase.
        act: String,
        /// The kernel's answer.
        #[source]
        source: rtnetlink::Error,
    },
    /// No link has this name.
    #[error("there is no link `{0}`")]
    NoLink(String),
}

pub(crate) fn io(act: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let act = act.into();
    move |source| NetworkError::Io { act, source }
}

/// A network namespace, named by its file.
#[derive(Clone, Debug)]
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

    /// Creates a namespace and binds it to the file `path`, which is created.
    ///
    /// # Errors
    /// The file can't be created, or the kernel refuses.
    pub fn make(path: &Path) -> Result<Self, NetworkError> {
        let target = path.to_owned();
        let made = std::thread::spawn(move || {
            File::create(&target)?;
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(())
        });
        made.join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
            .map_err(io("create a network namespace"))?;
        Ok(Self::at(path))
    }

    /// Unbinds the namespace and removes its file. The namespace ends when no process is in it any more. Does nothing if
    /// there is none.
    pub fn remove(path: &Path) {
        while umount2(path, MntFlags::MNT_DETACH).is_ok() {}
        let _ = std::fs::remove_file(path);
    }

    /// Opens the namespace's file, which keeps the namespace alive as well.
    pub(crate) fn open(&self) -> Result<File, NetworkError> {
        File::open(&self.path).map_err(io(format!("open the network namespace {}", self.path.display())))
    }

    /// Runs `work` in the namespace with a netlink connection, on a thread of its own.
    pub(crate) fn run<T, F>(
        &self,
        work: impl FnOnce(rtnetlink::Handle) -> F + Send + 'static,
    ) -> Result<T, NetworkError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, NetworkError>>,
    {
        let file = self.open()?;
        let done = std::thread::spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from).map_err(io("enter a network namespace"))?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(io("start a netlink connection"))?.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().map_err(io("open a netlink connection"))?;
                tokio::spawn(connection);
                work(handle).await
            })
        });
        done.join().unwrap_or_else(|_| Err(io("work in a network namespace")(io::Error::other("the thread panicked"))))
    }
}
