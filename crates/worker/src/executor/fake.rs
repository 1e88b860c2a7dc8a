//! An executor without containers: it plays them on a [`FakeMachine`], by tokio's clock. One is made for each start of
//! a daemon; the machine stays.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use flota_api::clock::Clock;
use flota_api::model::ServiceSpec;
use flota_api::proto::dispatcher::TaskAssignment;
use flota_runtime::ExitStatus;

use super::{Executor, ExecutorError, FakeMachine, Prepared, Running};

/// What a program was told to fail with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct FakeError(String);

/// Runs tasks on a [`FakeMachine`].
#[derive(Clone, Debug)]
pub struct FakeExecutor {
    machine: FakeMachine,
    clock: Clock,
}

impl FakeExecutor {
    /// For a daemon on this machine; `clock` tells when a container ended.
    pub fn new(machine: FakeMachine, clock: Clock) -> Self {
        Self { machine, clock }
    }

    fn status(&self, (at, code): (Instant, i32)) -> ExitStatus {
        let ago = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        ExitStatus { code, out_of_memory: false, at: self.clock.now().0.saturating_sub(ago) }
    }
}

/// Sleeps; not at all for no time, where tokio's timer would take up to a millisecond.
async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

impl Executor for FakeExecutor {
    fn sweep(&self, known: &BTreeSet<String>) {
        for task in self.machine.tasks().iter().filter(|task| !known.contains(*task)) {
            self.machine.kill(task);
            self.machine.clean(task);
        }
    }

    fn accept(&self, _: &TaskAssignment) {}

    fn prepare<'a>(
        &'a self,
        assignment: &'a TaskAssignment,
        pinned: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Prepared, ExecutorError>> {
        Box::pin(async move {
            let program = self.machine.program(&assignment.service_name, &assignment.task_id);
            pause(program.prepare_delay).await;
            if let Some(why) = program.prepare_error {
                return Err(ExecutorError::Transient(Box::new(FakeError(why))));
            }
            let source = assignment.image.as_ref().map(|image| image.digest.clone());
            let image = || assignment.spec.as_ref().map(|spec| format!("digest of {}", spec.image)).unwrap_or_default();
            let digest = source.or_else(|| pinned.map(str::to_owned)).unwrap_or_else(image);
            Ok(Prepared { digest, ..Prepared::default() })
        })
    }

    fn start<'a>(
        &'a self,
        assignment: &'a TaskAssignment,
        _: &'a ServiceSpec,
        _: Prepared,
    ) -> BoxFuture<'a, Result<(), ExecutorError>> {
        Box::pin(async move {
            let program = self.machine.program(&assignment.service_name, &assignment.task_id);
            pause(program.start_delay).await;
            if let Some(why) = program.start_error {
                return Err(ExecutorError::Final(Box::new(FakeError(why))));
            }
            self.machine.start(&assignment.task_id, &assignment.service_name, assignment.slot, &program);
            pause(program.answer_delay).await;
            Ok(())
        })
    }

    fn attach<'a>(&'a self, task: &'a str) -> Option<Running<'a>> {
        let age = self.machine.started(task)?.elapsed();
        Some(Running { age, end: Box::pin(async move { self.status(self.machine.wait(task).await) }) })
    }

    fn ended(&self, task: &str) -> Option<ExitStatus> {
        self.machine.ended(task).map(|end| self.status(end))
    }

    fn stop(&self, task: &str, _: &ServiceSpec, _: Option<&str>) {
        self.machine.stop(task);
    }

    fn kill(&self, task: &str) {
        self.machine.kill(task);
    }

    fn clean<'a>(&'a self, task: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move { self.machine.clean(task) })
    }

    fn remove<'a>(&'a self, task: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            self.machine.kill(task);
            self.machine.clean(task);
        })
    }
}
