//! The conformance suite of [`Executor`], run against each implementation. For containers it only tests what needs
//! neither the kernel nor a program; tests on real clusters start containers.

use std::sync::Arc;

use futures::FutureExt;

use flota_api::clock::Clock;
use flota_api::model::{Assignment, ImageSource, NetworkUpdate, Role, ServiceSpec};
use flota_api::seal::Sealer;
use flota_identity::Dialer;
use flota_image::{ImageStore, Registries};
use flota_network::SocketThread;
use flota_runtime::Program;

use super::{
    ContainerExecutor, ContainerOptions, Executor, ExecutorError, FakeExecutor, FakeFailure, FakeMachine, FakeProgram,
    Prepared, TaskPaths, remove_task,
};
use crate::disk_thread::DiskThread;
use crate::images::Images;
use crate::networks::fake_kernel::FakeKernel;
use crate::networks::{NetworkRecord, Networks, NodeNetworks as _};
use crate::reporter::Reporter;
use crate::test_cluster::TestCluster;
use crate::translate::NodeNames;
use crate::volumes::Volumes;

/// The id of the task that every test uses.
const TASK: &str = "0123456789abcdefghijklmno";

/// A cause for the executor under test to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lacks {
    Nothing,
    Image,
    /// Containers can't be started.
    Start,
}

/// An executor, and a task for it.
struct Bench {
    executor: Arc<dyn Executor>,
    assignment: Assignment,
    /// Keeps the executor's files until the bench is dropped.
    _dir: Option<tempfile::TempDir>,
}

impl Bench {
    fn fake(lacks: Lacks) -> Self {
        let machine = FakeMachine::new("m");
        let failure = |of: Lacks| (lacks == of).then(|| FakeFailure::always("it can't be done"));
        machine.set_default_program(FakeProgram {
            prepare_failure: failure(Lacks::Image),
            start_failure: failure(Lacks::Start),
            ..FakeProgram::default()
        });
        let assignment = Assignment { task_id: TASK.into(), ..Assignment::default() };
        Self { executor: Arc::new(FakeExecutor::new(machine, Clock::system())), assignment, _dir: None }
    }

    /// Returns an executor that can never start a container, because it has no runtime.
    fn containers(lacks: Lacks) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&dir.path().join("images"), true).unwrap();
        let program = [b"\x7fELF".as_slice(), &[0; 60]].concat();
        let digest = match lacks {
            Lacks::Image => format!("sha256:{}", "0".repeat(64)),
            _ => flota_image::pack(&store, "program", &program).unwrap().digest,
        };
        let dialer = Dialer::new(TestCluster::new().credentials(Role::Worker));
        let record = NetworkRecord::new(dir.path(), Sealer::new(&[7; 32]), Arc::new(DiskThread::start().unwrap()));
        let networks = Networks::start(FakeKernel::default(), record).unwrap();
        networks.begin();
        networks.update(NetworkUpdate { full: true, ..NetworkUpdate::default() });
        let executor = ContainerExecutor::new(ContainerOptions {
            networks,
            sockets: SocketThread::start().unwrap(),
            node: NodeNames { id: "n".into(), hostname: "w1".into() },
            volumes: Volumes::new(dir.path().join("volumes"), store.clone()),
            images: Images::new(store, dialer, Registries::default(), Reporter::default(), Clock::system()),
            runtime: Arc::new(Program::open(dir.path().join("no-runtime"))),
            paths: TaskPaths {
                data_dir: dir.path().join("data"),
                run_dir: dir.path().join("run"),
                hierarchies: Vec::new(),
                cgroup_parent: "flota".into(),
            },
            offers: Arc::default(),
            overlay: true,
            app_armor: None,
            clock: Clock::system(),
        });
        let image = Some(ImageSource { digest, ..ImageSource::default() });
        let assignment = Assignment { task_id: TASK.into(), image, ..Assignment::default() };
        executor.accept(&assignment);
        Self { executor: Arc::new(executor), assignment, _dir: Some(dir) }
    }

    fn preparation(&self) -> Prepared {
        Prepared::unknown(&self.assignment.task_id, self.executor.steps())
    }

    async fn prepare(&self) -> (Prepared, Result<(), ExecutorError>) {
        let mut prepared = self.preparation();
        let done = prepared.complete(&self.assignment, None).await;
        (prepared, done)
    }

    /// Removes the task and asserts that nothing is left of it.
    async fn remove(&self) {
        let left = remove_task(&*self.executor, &self.assignment.task_id).await;
        assert!(left.is_empty(), "{left:?}");
        assert!(self.executor.leftovers().await.is_empty());
    }

    /// Asserts that the task has neither a container nor the exit status of one.
    async fn assert_no_container(&self) {
        let found = self.executor.find(&self.assignment.task_id).await;
        assert!(found.as_ref().is_ok_and(Option::is_none), "{found:?}");
    }
}

/// Generates a test of each function for each executor.
macro_rules! conformance {
    ($($lacks:ident $name:ident)*) => {
        mod fake {
            $( #[tokio::test] async fn $name() { super::$name(super::Bench::fake(super::Lacks::$lacks)).await } )*
        }
        mod containers {
            $( #[tokio::test] async fn $name() { super::$name(super::Bench::containers(super::Lacks::$lacks)).await } )*
        }
    };
}

conformance! {
    Nothing nothing_is_known_of_a_task_that_was_never_here
    Nothing what_is_prepared_is_found_and_removed_whole
    Nothing what_an_earlier_daemon_prepared_is_removed_whole
    Nothing a_preparation_can_be_repeated
    Nothing a_preparation_that_is_dropped_leaves_nothing
    Image an_image_that_no_node_has_is_worth_another_try
    Start a_container_that_can_not_start_leaves_nothing
}

async fn nothing_is_known_of_a_task_that_was_never_here(bench: Bench) {
    let task = &bench.assignment.task_id;
    bench.assert_no_container().await;
    assert_eq!(bench.executor.stop_signal(&ServiceSpec::default(), None).await, nix::libc::SIGTERM);
    bench.executor.kill_all(task).await.unwrap();
    assert!(bench.executor.leftovers().await.is_empty());
    bench.remove().await;
}

async fn what_is_prepared_is_found_and_removed_whole(bench: Bench) {
    let (mut prepared, done) = bench.prepare().await;
    done.unwrap();
    assert!(prepared.is_complete() && prepared.digest().is_some());
    bench.assert_no_container().await;
    assert!(bench.executor.leftovers().await.contains(&bench.assignment.task_id));
    let left = prepared.undo().await;
    assert!(left.is_empty(), "{left:?}");
    bench.remove().await;
}

async fn what_an_earlier_daemon_prepared_is_removed_whole(bench: Bench) {
    let (prepared, done) = bench.prepare().await;
    done.unwrap();
    drop(prepared);
    bench.remove().await;
}

async fn a_preparation_can_be_repeated(bench: Bench) {
    let (prepared, done) = bench.prepare().await;
    done.unwrap();
    drop(prepared);
    let (mut again, done) = bench.prepare().await;
    done.unwrap();
    again.complete(&bench.assignment, None).await.unwrap();
    bench.remove().await;
}

async fn a_preparation_that_is_dropped_leaves_nothing(bench: Bench) {
    let mut prepared = bench.preparation();
    prepared.undo().await;
    drop(prepared.complete(&bench.assignment, None).now_or_never());
    let left = prepared.undo().await;
    assert!(left.is_empty(), "{left:?}");
    bench.remove().await;
}

async fn an_image_that_no_node_has_is_worth_another_try(bench: Bench) {
    let (mut prepared, done) = bench.prepare().await;
    assert!(matches!(done, Err(ExecutorError::Transient(_) | ExecutorError::Unfetched(_))), "{done:?}");
    assert!(!prepared.is_complete());
    let left = prepared.undo().await;
    assert!(left.is_empty(), "{left:?}");
    bench.remove().await;
}

async fn a_container_that_can_not_start_leaves_nothing(bench: Bench) {
    let (mut prepared, done) = bench.prepare().await;
    done.unwrap();
    let started = bench.executor.start(&bench.assignment, &prepared.take_draft()).await;
    assert!(started.is_err(), "{started:?}");
    assert!(!prepared.is_complete(), "what was prepared serves one start");
    bench.assert_no_container().await;
    let left = prepared.undo().await;
    assert!(left.is_empty(), "{left:?}");
    bench.remove().await;
}
