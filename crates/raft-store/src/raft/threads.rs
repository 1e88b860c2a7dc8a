//! On which threads a manager's Raft works.

use std::io;

/// Where the Raft core, its log and its disk work run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// On threads of their own: neither a user's load nor a large snapshot delays a heartbeat.
    Own,
    /// All of it in tasks of the caller's runtime, one step after the other: for simulations.
    Current,
}

impl Threads {
    /// Does work that reads or writes much, where it delays no message.
    ///
    /// # Errors
    /// What the work says, or that it panicked.
    pub(super) async fn blocking<T: Send + 'static>(
        self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        match self {
            Self::Own => tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?,
            Self::Current => work(),
        }
    }
}
