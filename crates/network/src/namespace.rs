//! A network namespace that lives as long as a file that it is bound to.

use std::fs::File;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Why the network is not as wanted.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The machine would not.
    #[error("failed to {act}")]
    Io {
        /// What was done.
        act: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("failed to {act}: {source}")]
    Netlink {
        /// What was asked.
        act: String,
        /// What it said.
        #[source]
        source: rtnetlink::Error,
    },
    /// There is no such link.
    #[error("there is no link `{0}`")]
    NoLink(String),
}

pub(crate) fn io(act: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let act = act.into();
    move |source| NetworkError::Io { act, source }
}

/// A namespace by its file.
#[derive(Clone, Debug)]
pub struct Namespace {
    path: PathBuf,
}

impl Namespace {
    /// The one that is bound to this file.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// That of a process.
    pub fn of(pid: i32) -> Self {
        Self { path: format!("/proc/{pid}/ns/net").into() }
    }

    /// Makes a new one, bound to `path`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn make(path: &Path) -> Result<Self, NetworkError> {
        let target = path.to_owned();
        let made = std::thread::spawn(move || {
            File::create(&target)?;
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(())
        });
        made.join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread broke off")))
            .map_err(io("make a network namespace"))?;
        Ok(Self::at(path))
    }

    /// Lets go of it: it ends when no process is in it. Does nothing where there is none.
    pub fn remove(path: &Path) {
        while umount2(path, MntFlags::MNT_DETACH).is_ok() {}
        let _ = std::fs::remove_file(path);
    }

    /// Opens it.
    pub(crate) fn open(&self) -> Result<File, NetworkError> {
        File::open(&self.path).map_err(io(format!("open the network namespace {}", self.path.display())))
    }

    /// Runs `work` inside it, with a netlink connection.
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
        done.join().unwrap_or_else(|_| Err(io("work in a network namespace")(io::Error::other("the thread broke off"))))
    }
}
