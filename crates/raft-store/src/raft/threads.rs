//! The threads on which a manager's Raft runs.

use std::io;

/// Threads on which the Raft core, its log and its disk work run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// Threads of their own, so that neither other load nor a large snapshot delays a heartbeat.
    Own,
    /// Tasks of the caller's runtime, one step after another, for simulations.
    Current,
}

impl Threads {
    /// Runs work that reads or writes much, without delaying messages.
    ///
    /// # Errors
    /// The work failed or panicked.
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
