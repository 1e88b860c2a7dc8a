//! The choice of the manager that is asked, and of when the next one is: the managers are tried in order, in rounds
//! with growing pauses in between, until one gives a final answer or the time is up.
//!
//! A try that failed may have been carried out all the same. Callers therefore send the same request id with every
//! try, and send anything that has no id (the frames of an exec) only after a try has succeeded.

use std::error::Error as _;
use std::future::Future;
use std::io;
use std::time::Duration;

use flota_api::reason::Reason;
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};

use super::connection::{Connection, ManagerAddress, unavailable};

const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The time limits of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Total time for a request that changes something.
    pub(crate) change: Duration,
    /// Total time for a request that only reads.
    pub(crate) read: Duration,
    /// Time for one manager in the first round, while others are left; it doubles in each following round.
    pub(crate) patience: Duration,
    /// Pause between the first two rounds; it doubles after each following one.
    pub(crate) pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            change: Duration::from_secs(15),
            read: Duration::from_secs(5),
            patience: Duration::from_millis(1_500),
            pause: Duration::from_millis(50),
        }
    }
}

/// One manager that is tried.
pub(super) struct Attempt {
    pub(super) connection: Connection,
    target: ManagerAddress,
    patience: Duration,
}

impl Attempt {
    /// Waits for an answer for as long as this manager has.
    pub(super) async fn answer<T>(&self, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        match timeout(self.patience, work).await {
            Err(_) => Err(silent(&self.target)),
            Ok(Err(status)) if is_lost(&status) => {
                let cause = self.connection.end().unwrap_or_else(|| io::Error::other(status));
                Err(lost(&self.target, cause))
            }
            Ok(answer) => answer,
        }
    }
}

/// The consequence of a failed attempt for the request.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The request was judged; every other manager would give the same answer.
    Final,
    /// This node does not answer such a request, and waiting does not change that; the others may.
    Others,
    /// Another manager, or this one later, may answer.
    TryNext,
}

impl Verdict {
    fn of(status: &Status) -> Self {
        match status.code() {
            _ if matches!(Reason::of(status), Some(Reason::NotAManager | Reason::Locked)) => Self::Others,
            Code::Unavailable => Self::TryNext,
            _ if is_lost(status) => Self::TryNext,
            _ => Self::Final,
        }
    }
}

/// Returns whether the connection broke, as opposed to a refusal by the manager. A status that tonic makes of a broken
/// connection has a source, and one that was received has none. A stream that ends without a status is `Unknown`,
/// which no manager sends.
pub(super) fn is_lost(status: &Status) -> bool {
    match status.code() {
        Code::Unknown | Code::Cancelled => true,
        Code::Internal | Code::Unavailable => status.source().is_some(),
        _ => false,
    }
}

/// Asks one manager after the other until one gives a final answer, for at most `bound`.
pub(super) async fn request<T, F: Future<Output = Result<T, Status>>>(
    targets: &[ManagerAddress],
    limits: &Limits,
    bound: Duration,
    attempt: impl Fn(Attempt) -> F,
) -> Result<T, Status> {
    let until = Instant::now() + bound;
    let mut candidates: Vec<&ManagerAddress> = targets.iter().collect();
    let mut best: Option<Status> = None;
    let (mut patience, mut pause) = (limits.patience, limits.pause);
    loop {
        let mut someone_listens = false;
        for target in candidates.clone() {
            let left = until.saturating_duration_since(Instant::now());
            let patience = if candidates.len() > 1 { patience.min(left) } else { left };
            let status = match request_one(target, patience, &attempt).await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            match Verdict::of(&status) {
                Verdict::Final => return Err(status),
                Verdict::Others if candidates.len() == 1 => return Err(status),
                Verdict::Others => candidates.retain(|it| !std::ptr::eq(*it, target)),
                Verdict::TryNext => {
                    someone_listens |= !nobody_listens(&status) && !is_foreign(&status);
                    best = Some(more_telling(best, status));
                }
            }
        }
        if !someone_listens || Instant::now() + pause >= until {
            return Err(best.unwrap_or_else(|| Status::unavailable("no manager is known")));
        }
        tokio::time::sleep(pause).await;
        (patience, pause) = (patience * 2, LONGEST_PAUSE.min(pause * 2));
    }
}

async fn request_one<T, F: Future<Output = Result<T, Status>>>(
    target: &ManagerAddress,
    patience: Duration,
    attempt: impl Fn(Attempt) -> F,
) -> Result<T, Status> {
    let connection = timeout(patience, Connection::open(target)).await.unwrap_or_else(|_| Err(silent(target)))?;
    attempt(Attempt { connection, target: target.clone(), patience }).await
}

/// Chooses the status to report: an answer from a manager tells more than a failed connection to another.
fn more_telling(before: Option<Status>, status: Status) -> Status {
    match before {
        Some(before) if before.source().is_none() && status.source().is_some() => before,
        _ => status,
    }
}

fn silent(target: &ManagerAddress) -> Status {
    let text = format!("{target} does not answer: there may be no quorum");
    unavailable(text, io::ErrorKind::TimedOut.into())
}

fn lost(target: &ManagerAddress, cause: io::Error) -> Status {
    let text = format!("the connection to {target} broke before the answer came");
    unavailable(text, cause)
}

/// Returns whether this user and the manager are of different clusters, or know different CAs of one.
pub(super) fn is_foreign(status: &Status) -> bool {
    io_error(status).is_some_and(flota_identity::is_of_another_cluster)
}

/// Returns whether no daemon can answer later, because its socket does not exist or is not accessible to this user.
pub(super) fn nobody_listens(status: &Status) -> bool {
    matches!(io_error(status).map(io::Error::kind), Some(io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied))
}

fn io_error(status: &Status) -> Option<&io::Error> {
    status.source()?.downcast_ref()
}
