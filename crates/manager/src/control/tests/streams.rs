//! Exec, logs and forwarded connections as calls of functions. The worker is played by the test.

use std::num::NonZeroU64;

use flota_api::Malformed;
use flota_api::model::{
    Health, HealthResult, HealthState, LogLine, Output, StreamKind, StreamRequest, Task, TaskFrame, UserFrame,
};
use flota_api::proto::dispatcher::OpenStream;
use flota_api::proto::dispatcher::manager_message::Message;
use flota_api::version::Timestamp;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::dispatcher::Sessions;
use crate::streams::{BrokenStream, WorkerStream};

/// The worker `w1`, on which the first tasks of both services run.
struct Worker {
    control: Control<Alone>,
    /// The streams that the manager asks for.
    asked: BoxStream<'static, OpenStream>,
}

/// The worker's ends of a stream.
struct Ends {
    request: StreamRequest,
    to_user: mpsc::Sender<Result<TaskFrame, BrokenStream>>,
    from_user: mpsc::Receiver<UserFrame>,
}

impl Worker {
    async fn new() -> Self {
        let sessions = Sessions::default();
        let (outbox, session) = mpsc::channel(4);
        sessions.begin(&"n3".into(), outbox, &CancellationToken::new());
        let asked = ReceiverStream::new(session).map(|message| {
            let Ok(Some(Message::OpenStream(asked))) = message.map(|it| it.message) else { panic!("it is not asked") };
            asked
        });
        let streams = StreamBroker::new(sessions, Random::seeded(2));
        Self { control: Control { streams, ..cluster().await }, asked: asked.boxed() }
    }

    /// Opens the next stream that the manager asks for.
    async fn open(&mut self) -> Ends {
        let asked = self.asked.next().await.expect("the session goes on");
        let ((to_user, inbox), (outbox, from_user)) = (mpsc::channel(4), mpsc::channel(4));
        let stream = WorkerStream { inbox: ReceiverStream::new(inbox).boxed(), outbox };
        self.control.streams.accept(&asked.id, &"n3".into(), stream).expect("it is waited for");
        let request = asked.request.expect("it has one").try_into().expect("it is known");
        Ends { request, to_user, from_user }
    }
}

#[tokio::test]
async fn a_program_gets_the_users_frames_and_the_user_those_of_the_program() {
    let mut worker = Worker::new().await;
    let control = worker.control.clone();
    let (user, frames) = mpsc::channel(4);
    let program = Program { command: vec!["sh".into()], stdin: true, ..Program::default() };
    let (answers, mut ends) =
        tokio::join!(control.exec("web", program.clone(), ReceiverStream::new(frames)), worker.open());
    let mut answers = answers.expect("the task runs");
    assert_eq!(ends.request, StreamRequest { task: "t1".into(), kind: StreamKind::Exec(program) });
    user.send(Ok(UserFrame::Stdin("ls".into()))).await.expect("it is read");
    assert_eq!(ends.from_user.recv().await, Some(UserFrame::Stdin("ls".into())));
    ends.to_user.send(Ok(TaskFrame::ExitCode(3))).await.expect("it is read");
    ends.to_user.send(Err(BrokenStream::Lost("reset".into()))).await.expect("it is read");
    assert_eq!(answers.recv().await.expect("a frame").expect("it is whole"), TaskFrame::ExitCode(3));
    let broken = answers.recv().await.expect("an error");
    assert!(matches!(broken, Err(ControlError::BrokenStream(BrokenStream::Lost(_)))), "{broken:?}");
    assert!(answers.recv().await.is_none() && ends.from_user.recv().await.is_none(), "both sides have ended");
}

#[tokio::test]
async fn a_frame_of_the_user_that_can_not_be_used_ends_the_stream_with_the_reason() {
    let mut worker = Worker::new().await;
    let control = worker.control.clone();
    let malformed = stream::iter([Err(Malformed::new("frame", "is missing").into())]).chain(stream::pending());
    let (answers, mut ends) = tokio::join!(control.exec("db.1", Program::default(), malformed), worker.open());
    let refused = answers.expect("the task runs").recv().await.expect("an error");
    assert_eq!(refusal(refused), Some(Reason::Invalid));
    assert!(ends.from_user.recv().await.is_none(), "the worker is told that nobody reads");
}

#[tokio::test]
async fn a_connection_whose_first_task_has_no_session_goes_to_the_next() {
    let mut worker = Worker::new().await;
    let control = worker.control.clone();
    let port = 80.try_into().expect("it is one");
    let connect = async {
        let ends = worker.open().await;
        ends.to_user.send(Ok(TaskFrame::Connected)).await.expect("it is read");
        ends
    };
    // The task of this turn is on the node `m1`.
    let (answers, ends) = tokio::join!(control.forward("web", port, 1, stream::pending()), connect);
    assert_eq!(ends.request, StreamRequest { task: "t1".into(), kind: StreamKind::Forward(port) });
    ends.to_user.send(Ok(TaskFrame::DataEnd)).await.expect("it is read");
    let first = answers.expect("the port accepts").recv().await.expect("a frame").expect("it is whole");
    assert_eq!(first, TaskFrame::DataEnd, "the user learns of the connection by its data");
}

#[tokio::test(start_paused = true)]
async fn logs_of_a_service_name_the_task_that_can_not_be_read_and_go_on() {
    let mut worker = Worker::new().await;
    let control = worker.control.clone();
    let (source, range) = (LogSource::Service("web".into()), LogRange { follow: false, tail: Some(2) });
    let (answers, ends) = tokio::join!(control.logs(&source, range), worker.open());
    let mut answers = answers.expect("there are tasks");
    assert_eq!(ends.request, StreamRequest { task: "t1".into(), kind: StreamKind::Logs(range) });
    let unread = answers.recv().await.expect("a frame").expect("it is whole");
    assert_eq!(unread, TaskFrame::Error("task web.2 on node m1: the node does not answer".into()));
    drop(ends);
    assert!(answers.recv().await.is_none(), "the logs of both tasks have ended");
}

#[tokio::test]
async fn a_line_of_a_log_names_the_run_of_its_task() {
    let mut worker = Worker::new().await;
    let control = worker.control.clone();
    control.put(Task { run: NonZeroU64::new(7), ..task("t4", "s2", 2, "n3") }).await;
    let line = |task_name: &str| LogLine {
        task: "t4".into(),
        task_name: task_name.into(),
        node_name: "w1".into(),
        at: Timestamp(1),
        output: Output::Stdout,
        line: "done".into(),
        number: 0,
    };
    let source = LogSource::Task("t4".into());
    let (answers, ends) = tokio::join!(control.logs(&source, LogRange { follow: false, tail: None }), worker.open());
    ends.to_user.send(Ok(TaskFrame::Log(line("db.2")))).await.expect("it is read");
    let shown = answers.expect("there is one").recv().await.expect("a frame").expect("it is whole");
    assert_eq!(shown, TaskFrame::Log(line("db.2#7")));
}

#[tokio::test(start_paused = true)]
async fn a_task_is_shown_with_the_health_that_its_node_knows() {
    let mut worker = Worker::new().await;
    let control = worker.control.clone();
    let stored = Health { state: HealthState::Healthy, ..Health::default() };
    let checked = task("t9", "s1", 3, "n3");
    control
        .put(Task {
            status: TaskStatus { health: Some(Box::new(stored.clone())), ..checked.status.clone() },
            ..checked
        })
        .await;
    let results =
        |count: i32| (0..count).map(|exit_code| HealthResult { exit_code: Some(exit_code), ..HealthResult::default() });
    let known = Health { state: HealthState::Healthy, log: results(5).collect(), ..Health::default() };
    let answer = async {
        let ends = worker.open().await;
        assert_eq!(ends.request, StreamRequest { task: "t9".into(), kind: StreamKind::Health });
        ends.to_user.send(Ok(TaskFrame::Health(known.clone()))).await.expect("it is read");
    };
    let (row, ()) = tokio::join!(control.get_task("t9"), answer);
    assert_eq!(row.expect("it is there").task.status.health.as_deref(), Some(&known));
    let row = control.get_task("t9").await.expect("its node does not answer, and it is there");
    assert_eq!(row.task.status.health.as_deref(), Some(&stored));
}
