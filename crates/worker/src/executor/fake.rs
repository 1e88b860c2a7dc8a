//! An executor that simulates containers on a [`FakeMachine`], by tokio's clock. One is created for each start of a
//! daemon; the machine persists.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use flota_api::clock::Clock;
use flota_api::id::TaskId;
use flota_api::model::{Assignment, HealthCheck, HealthSpec, HealthTest, Measured, ServiceSpec};
use flota_runtime::ExitStatus;
use nix::libc::{SIGKILL, SIGTERM};

use super::machine::Act;
use super::{
    Cause, CheckEnd, Control, Counters, Draft, Executor, ExecutorError, FakeMachine, FakeProgram, Found, NodeCounters,
    PrepareStep, Running,
};

/// Runs tasks on a [`FakeMachine`].
#[derive(Clone, Debug)]
pub struct FakeExecutor {
    machine: FakeMachine,
    clock: Clock,
}

impl FakeExecutor {
    /// Creates an executor for a daemon on this machine; `clock` provides the times at which containers end.
    pub fn new(machine: FakeMachine, clock: Clock) -> Self {
        Self { machine, clock }
    }
}

fn exit_status(clock: &Clock, (at, code): (Instant, i32)) -> ExitStatus {
    let ago = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
    ExitStatus { code, out_of_memory: None, at: clock.now().0.saturating_sub(ago) }
}

/// Sleeps for a time. Returns at once if it is zero, where tokio's timer would take up to a millisecond.
async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

/// Simulates the fetching of an image.
#[derive(Debug)]
struct FakeImage(FakeMachine);

impl PrepareStep for FakeImage {
    fn name(&self) -> &'static str {
        "image"
    }

    fn prepare<'a>(&'a self, task: &'a Assignment, draft: &'a mut Draft) -> BoxFuture<'a, Result<(), ExecutorError>> {
        Box::pin(async move {
            let program = self.0.program(task);
            self.0.prepare(task.task_id.as_str(), self.name(), FakeProgram::default());
            pause(program.prepare_delay).await;
            if let Some(error) = self.0.failure(task.task_id.as_str(), Act::Prepare, program.prepare_failure) {
                return Err(ExecutorError::Unfetched(error.into()));
            }
            let source = task.image.as_ref().map(|image| image.digest.clone());
            let digest = source.or_else(|| draft.digest.take());
            draft.digest = Some(digest.unwrap_or_else(|| format!("digest of {}", task.spec.image)));
            Ok(())
        })
    }

    fn undo<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>> {
        self.0.undo(task.as_str(), self.name());
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Simulates the data of volumes.
#[derive(Debug)]
struct FakeVolumes(FakeMachine);

impl PrepareStep for FakeVolumes {
    fn name(&self) -> &'static str {
        "volumes"
    }

    fn prepare<'a>(&'a self, task: &'a Assignment, _: &'a mut Draft) -> BoxFuture<'a, Result<(), ExecutorError>> {
        let missing = task.spec.volumes().find(|name| !task.volumes.iter().any(|it| it.name == *name));
        let made = match missing {
            Some(name) => Err(ExecutorError::Final(format!("volume `{name}` was removed").into())),
            None => {
                self.0.use_volumes(task.task_id.as_str(), &task.volumes);
                Ok(())
            }
        };
        Box::pin(std::future::ready(made))
    }

    fn undo<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>> {
        self.0.leave_volumes(task.as_str());
        Box::pin(std::future::ready(Ok(())))
    }
}

/// The step that provides the folder of a container.
const CONTAINER: &str = "container";

/// Simulates the folder of a container.
#[derive(Debug)]
struct FakeContainer(FakeMachine);

impl PrepareStep for FakeContainer {
    fn name(&self) -> &'static str {
        CONTAINER
    }

    fn prepare<'a>(&'a self, task: &'a Assignment, _: &'a mut Draft) -> BoxFuture<'a, Result<(), ExecutorError>> {
        let program = self.0.program(task);
        self.0.prepare(task.task_id.as_str(), self.name(), program);
        Box::pin(std::future::ready(Ok(())))
    }

    /// Kills a running container, as on a real machine.
    fn undo<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            pause(self.0.undo_delay(task.as_str(), self.name())).await;
            if let Some(error) = self.0.undo(task.as_str(), self.name()) {
                return Err(error.into());
            }
            self.0.kill_all(task.as_str());
            self.0.clean(task.as_str());
            Ok(())
        })
    }
}

/// The container that a task started last.
#[derive(Debug)]
struct FakeControl {
    machine: FakeMachine,
    task: TaskId,
}

impl Control for FakeControl {
    fn signal(&self, signal: i32) -> io::Result<()> {
        let task = self.task.as_str();
        if let Some(error) = self.machine.signal_failure(task) {
            return Err(io::Error::other(error));
        }
        if signal == SIGKILL {
            self.machine.kill(task);
        } else {
            self.machine.stop(task);
        }
        Ok(())
    }
}

impl FakeExecutor {
    fn running(&self, task: &TaskId, age: Duration) -> Running {
        let (machine, clock, waited) = (self.machine.clone(), self.clock.clone(), task.clone());
        let end = async move { exit_status(&clock, machine.wait(waited.as_str()).await) };
        let control = FakeControl { machine: self.machine.clone(), task: task.clone() };
        Running { age, end: Box::pin(end), control: Box::new(control) }
    }

    async fn start_container(&self, assignment: &Assignment) -> Result<Running, ExecutorError> {
        let (task, service) = (assignment.task_id.as_str(), assignment.service_name.as_str());
        let program = self.machine.program(assignment);
        pause(program.start_delay).await;
        if let Some(error) = self.machine.failure(task, Act::Start, program.start_failure.clone()) {
            let passes = program.start_failure.as_ref().is_some_and(|failure| failure.times.is_some());
            let kind = if passes { ExecutorError::Transient } else { ExecutorError::Final };
            return Err(kind(error.into()));
        }
        self.machine.start(task, service, assignment.slot, &program);
        pause(program.answer_delay).await;
        Ok(self.running(&assignment.task_id, Duration::ZERO))
    }
}

impl Executor for FakeExecutor {
    fn leftovers(&self) -> BoxFuture<'_, BTreeSet<TaskId>> {
        Box::pin(std::future::ready(self.machine.tasks().into_iter().map(Into::into).collect()))
    }

    fn accept(&self, _: &Assignment) {}

    fn renew_values(&self, _: &Assignment, _: &dyn Control) -> io::Result<()> {
        Ok(())
    }

    fn steps(&self) -> Vec<Arc<dyn PrepareStep>> {
        let machine = || self.machine.clone();
        vec![Arc::new(FakeImage(machine())), Arc::new(FakeVolumes(machine())), Arc::new(FakeContainer(machine()))]
    }

    fn start<'a>(&'a self, assignment: &'a Assignment, _: &'a Draft) -> BoxFuture<'a, Result<Running, ExecutorError>> {
        Box::pin(self.start_container(assignment))
    }

    fn find<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, io::Result<Option<Found>>> {
        let runs = self.machine.started(task.as_str()).map(|since| Found::Runs(self.running(task, since.elapsed())));
        let ended = || Some(Found::Ended(exit_status(&self.clock, self.machine.ended(task.as_str())?)));
        Box::pin(std::future::ready(Ok(runs.or_else(ended))))
    }

    fn stop_signal<'a>(&'a self, _: &'a ServiceSpec, _: Option<&'a str>) -> BoxFuture<'a, i32> {
        Box::pin(std::future::ready(SIGTERM))
    }

    fn health_check<'a>(&'a self, spec: &'a ServiceSpec, _: Option<&'a str>) -> BoxFuture<'a, Option<HealthCheck>> {
        let check = spec.healthcheck.check(&HealthSpec::default());
        Box::pin(std::future::ready(check.filter(|_| self.machine.is_checked())))
    }

    fn check_health(&self, task: &TaskId, _: &HealthTest) -> BoxFuture<'static, CheckEnd> {
        let (machine, task) = (self.machine.clone(), task.clone());
        Box::pin(async move {
            match machine.is_healthy(task.as_str()) {
                None => std::future::pending().await,
                Some(true) => CheckEnd::default(),
                Some(false) => CheckEnd { exit_code: 1, output: "the program is not well".into() },
            }
        })
    }

    fn counters<'a>(&'a self, task: &'a TaskId, _: &'a Measured) -> BoxFuture<'a, Option<Counters>> {
        Box::pin(std::future::ready(self.machine.counters(task.as_str())))
    }

    fn node_counters(&self) -> Option<NodeCounters> {
        Some(self.machine.node_counters())
    }

    fn kill_all<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>> {
        self.machine.kill_all(task.as_str());
        Box::pin(std::future::ready(Ok(())))
    }

    fn flush<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, ()> {
        Box::pin(async move { pause(self.machine.flush_delay(task.as_str(), CONTAINER)).await })
    }

    fn release(&self, _task: &TaskId) {}

    fn remove<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>> {
        if !self.machine.tasks().contains(task.as_str()) {
            self.machine.forget(task.as_str());
        }
        Box::pin(std::future::ready(Ok(())))
    }
}
