//! Ends a container: asks its program to stop, kills it after its grace period, and kills everything in its control
//! groups if even that does not end it. Whatever fails on the way is tried again until the container has ended.

use std::time::Duration;

use flota_api::id::TaskId;
use flota_runtime::ExitStatus;
use nix::libc::SIGKILL;

use crate::executor::{Control, Executor, Running};

/// Pause between two tries to send a signal.
const SIGNAL_RETRY: Duration = Duration::from_millis(100);
/// Time after SIGKILL before the control groups are killed. The supervisor does the same after five seconds.
const KILL_WAIT: Duration = Duration::from_secs(10);
/// Time for the end of a container to be reported after its control groups are empty.
const END_WAIT: Duration = Duration::from_secs(5);

/// Ends a container and waits for its end. Returns `None` if its supervisor does not report the end.
pub(crate) async fn stop(
    executor: &dyn Executor,
    task: &TaskId,
    running: &mut Running,
    signal: i32,
    grace: Duration,
) -> Option<ExitStatus> {
    let Running { end, control, .. } = running;
    tokio::select! {
        status = &mut *end => return Some(status),
        () = end_all(executor, task, &**control, signal, grace) => {}
    }
    tokio::time::timeout(END_WAIT, end).await.ok()
}

/// Returns when no process of the container is left although its end was not reported.
async fn end_all(executor: &dyn Executor, task: &TaskId, control: &dyn Control, signal: i32, grace: Duration) {
    // A signal that was sent arrives. It is not repeated, because many programs take a second one as a request to drop
    // everything.
    let send_once = async |signal| {
        send(task, control, signal).await;
        std::future::pending::<()>().await;
    };
    let _ = tokio::time::timeout(grace, send_once(signal)).await;
    loop {
        let _ = tokio::time::timeout(KILL_WAIT, send_once(SIGKILL)).await;
        tracing::error!(task.id = %task, "a container does not end after SIGKILL; killing everything in its control groups");
        match executor.kill_all(task).await {
            Ok(()) => return,
            Err(error) => tracing::error!(task.id = %task, %error, "failed to kill the control groups of a container"),
        }
    }
}

/// Sends a signal; tries until it is sent.
async fn send(task: &TaskId, control: &dyn Control, signal: i32) {
    let mut is_first = true;
    while let Err(error) = control.signal(signal) {
        if std::mem::take(&mut is_first) {
            tracing::warn!(task.id = %task, signal, %error, "failed to signal a container; trying again");
        }
        tokio::time::sleep(SIGNAL_RETRY).await;
    }
}
