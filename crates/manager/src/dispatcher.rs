//! The workers' sessions with the leader: which nodes are alive, which tasks each of them runs, and the reports on
//! them.
//!
//! `server.rs` runs a session through its steps: `registration.rs`, `assignment_stream.rs` with the pure
//! `assignments.rs` and `networks.rs` at the pace of `pace.rs`, and the reports in `reports.rs`, `status_sink.rs` and
//! `image_report.rs`. `mailbox.rs` has what a worker has not read yet. `sessions.rs` tracks which nodes are connected,
//! `liveness.rs` which nodes are alive, `concerns.rs` wakes the sessions that a change concerns, `programmed.rs` knows
//! which nodes have carried it out, and `clocks.rs` records how far the clocks of
//! nodes are off.

mod assignment_stream;
mod assignments;
mod clocks;
mod concerns;
mod image_report;
mod liveness;
mod mailbox;
mod networks;
mod pace;
mod programmed;
mod registration;
mod reports;
mod server;
mod sessions;
mod status_sink;
mod volume_report;

use tokio_util::sync::CancellationToken;

use flota_api::proto::dispatcher::dispatcher_server::DispatcherServer;

use liveness::Liveness;
use status_sink::StatusSink;

use crate::replica::Replica;
use crate::usage::Usage;

pub(crate) use programmed::Programmed;
pub(crate) use reports::bounded_health;
pub use server::DispatcherService;
pub(crate) use sessions::Sessions;

/// The dispatcher of a manager: its sessions, and the liveness of their nodes. Clones are the same dispatcher.
#[derive(Clone, Debug)]
pub(crate) struct Dispatcher {
    replica: Replica,
    sessions: Sessions,
    liveness: Liveness,
    programmed: Programmed,
    usage: Usage,
    sink: StatusSink,
}

impl Dispatcher {
    /// Starts the dispatcher. Its background work ends when its last clone is dropped.
    pub(crate) fn start(replica: Replica) -> Self {
        let sink = StatusSink::start(replica.proposer());
        let (sessions, liveness) = (Sessions::default(), Liveness::default());
        Self { replica, sessions, liveness, programmed: Programmed::default(), usage: Usage::default(), sink }
    }

    /// Returns the sessions, for sending to a worker or ending its session.
    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Returns how far the nodes have carried out the changes of their networks.
    pub(crate) fn programmed(&self) -> &Programmed {
        &self.programmed
    }

    /// Returns what the tasks use of services that are scaled by their load.
    pub(crate) fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Returns the service on which workers open their sessions.
    pub(crate) fn server(&self) -> DispatcherServer<DispatcherService> {
        let Self { replica, sessions, liveness, programmed, usage, sink } = self.clone();
        DispatcherService { replica, sessions, liveness, programmed, usage, sink }.into_server()
    }

    /// Resets the state of an earlier term before the sessions of a new term begin.
    pub(crate) fn begin_term(&self) {
        self.liveness.begin(&self.replica.store.view());
        self.usage.begin();
    }

    /// Writes the state of nodes to the store as liveness changes, and wakes the sessions that changes of the store
    /// concern, until leadership ends.
    pub(crate) async fn run(self, scope: CancellationToken) {
        let Self { replica, sessions, liveness, programmed, .. } = self;
        tokio::join!(
            liveness::judge_nodes(&replica, &sessions, &liveness, scope.clone()),
            concerns::wake_concerned(&replica, &sessions, &programmed, scope),
        );
    }
}
