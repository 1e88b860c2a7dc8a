//! One session for each worker, with the leader: which nodes live, what each of them has to run, and what became of it.
//!
//! A session's life is in `server.rs`; its steps are apart from it: `registration.rs`, `assignment_stream.rs` with the pure
//! `assignments.rs`, and the reports in `status_sink.rs` and `image_report.rs`. `sessions.rs` says who is connected,
//! `liveness.rs` who is alive.

mod assignment_stream;
mod assignments;
mod image_report;
mod liveness;
mod registration;
mod server;
mod sessions;
mod status_sink;

use tokio_util::sync::CancellationToken;

use flota_api::proto::dispatcher::dispatcher_server::DispatcherServer;

use liveness::Liveness;
use status_sink::StatusSink;

use crate::replica::Replica;

pub use server::DispatcherService;
pub(crate) use sessions::Sessions;

/// The dispatcher of a manager: its sessions, and the liveness of the nodes behind them. Clones are the same dispatcher.
#[derive(Clone, Debug)]
pub(crate) struct Dispatcher {
    replica: Replica,
    sessions: Sessions,
    liveness: Liveness,
    sink: StatusSink,
}

impl Dispatcher {
    /// Starts the dispatcher; its background work ends with its last clone.
    pub(crate) fn start(replica: Replica) -> Self {
        let sink = StatusSink::start(replica.proposer());
        Self { replica, sessions: Sessions::default(), liveness: Liveness::default(), sink }
    }

    /// Returns the sessions, for those who send to a worker or end its session.
    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Returns the service that workers open their sessions with.
    pub(crate) fn server(&self) -> DispatcherServer<DispatcherService> {
        let Self { replica, sessions, liveness, sink } = self.clone();
        DispatcherService { replica, sessions, liveness, sink }.into_server()
    }

    /// Forgets what an earlier term has left, before a new term's sessions begin.
    pub(crate) fn begin_term(&self) {
        self.liveness.begin(&self.replica.store.view());
    }

    /// Keeps the state of the nodes in the store as liveness has it, until leadership ends.
    pub(crate) async fn run(self, scope: CancellationToken) {
        let Self { replica, sessions, liveness, .. } = self;
        liveness::judge_nodes(&replica, &sessions, &liveness, scope).await;
    }
}
