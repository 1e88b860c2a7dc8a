//! Streams between a user and a task's node, joined by the leader. The node's side is the test's, because nothing here
//! runs a container.

use flota_api::model::{NodeState, Role};
use flota_api::proto::control::control_client::ControlClient;
use flota_api::proto::dispatcher::OpenStream;
use flota_api::proto::streams::frame::Frame as F;
use flota_api::proto::streams::streams_client::StreamsClient;
use flota_api::proto::streams::{ExecRequest, ForwardRequest, Frame, LogLine, LogsRequest};
use flota_api::reason::Reason;
use flota_api::state::TaskState;
use flota_identity::Peer;
use flota_tests::sim::manual::no_streams;
use flota_tests::sim::script::{Script, script, spec};
use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::{containers, manual, node_is, tasks_are, tasks_of};

fn frame(frame: F) -> Frame {
    Frame { frame: Some(frame) }
}

/// Sends `frames` behind the acceptance of a stream, and stays until the leader closes it. Returns how that ended.
async fn answer(leader: Channel, id: String, frames: Vec<F>) -> Result<(), Status> {
    let mut mine = vec![frame(F::Accept(id))];
    mine.extend(frames.into_iter().map(frame));
    // The node's side ends with its frames; the user's may stay open.
    let mut theirs = StreamsClient::new(leader).data(futures::stream::iter(mine)).await?.into_inner();
    while theirs.message().await?.is_some() {}
    Ok(())
}

/// Plays a program that greets and ends with 42, and a log of one line.
fn programs(leader: Channel, open: OpenStream) -> BoxFuture<'static, ()> {
    let frames = match open.request.and_then(|frame| frame.frame) {
        Some(F::Exec(exec)) => {
            vec![F::Stdout(exec.command.join(" ").into()), F::Stderr("oops".into()), F::ExitCode(42)]
        }
        Some(F::Logs(logs)) => {
            vec![F::Log(LogLine { task_id: logs.task, stream: 1, line: "hello".into(), ..LogLine::default() })]
        }
        _ => Vec::new(),
    };
    Box::pin(async move { drop(answer(leader, open.id, frames).await) })
}

/// Opens a stream with this frame as a user and returns its frames, until the stream ends.
fn open(it: &mut Script, manager: usize, request: F) -> (Vec<F>, Option<Status>) {
    let answered = it.request(manager, |mut client| async move { Ok(collect(&mut client, request).await) });
    answered.unwrap()
}

async fn collect(client: &mut ControlClient<Channel>, request: F) -> (Vec<F>, Option<Status>) {
    // The user's side stays open, as a terminal does.
    let requests = futures::stream::once(async { frame(request) }).chain(futures::stream::pending());
    let mut frames = Vec::new();
    let mut answers = match client.open_stream(requests).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return (frames, Some(status)),
    };
    loop {
        match answers.message().await {
            Ok(Some(answer)) => frames.extend(answer.frame),
            Ok(None) => return (frames, None),
            Err(status) => return (frames, Some(status)),
        }
    }
}

fn exec(task: &str) -> F {
    F::Exec(ExecRequest { task: task.into(), command: vec!["say".into(), "hello".into()], ..ExecRequest::default() })
}

fn logs(service: &str) -> F {
    F::Logs(LogsRequest { service: service.into(), ..LogsRequest::default() })
}

/// The service `web` has one task on each of two nodes, of which the first is the test's.
fn web(it: &mut Script) {
    it.create(it.leader(), spec("web", 2)).unwrap();
    it.wait("one task runs on the other node", 5_000, containers(1, 1));
    it.wait("both are known to run", 5_000, tasks_are("web", 2, TaskState::Running));
}

/// The name of the task of `web` on the node of this worker.
fn task_on(it: &mut Script, worker: usize) -> String {
    let node = it.cluster().workers[worker].node_id.clone();
    let tasks = tasks_of(it.cluster(), "web").unwrap();
    let task = tasks.iter().find(|task| task.is_on(&node)).unwrap();
    format!("web.{}", task.slot)
}

#[test]
fn exec_reaches_the_tasks_node_through_any_manager_and_brings_back_output_and_exit_code() {
    script(2, |it| {
        let _session = manual(it, 0, programs);
        web(it);
        let task = task_on(it, 0);
        for manager in 0..3 {
            let (frames, end) = open(it, manager, exec(&task));
            assert!(end.is_none(), "{end:?}");
            assert_eq!(frames, [F::Stdout("say hello".into()), F::Stderr("oops".into()), F::ExitCode(42)]);
        }
    });
}

#[test]
fn exec_says_within_seconds_that_a_node_does_not_open_the_stream() {
    script(2, |it| {
        let leader = it.leader();
        let _session = manual(it, 0, no_streams);
        web(it);
        let (task, begun) = (task_on(it, 0), it.cluster().world.now());
        let (frames, end) = open(it, leader, exec(&task));
        assert_eq!(frames, []);
        let end = end.expect("it is refused");
        assert!(end.message().contains("did not open the stream in time"), "{end}");
        assert!(it.cluster().world.now() - begun < 4_000);
    });
}

#[test]
fn logs_of_a_service_come_from_each_node_and_a_silent_one_is_named() {
    script(2, |it| {
        let leader = it.leader();
        let _session = manual(it, 0, programs);
        web(it);
        // The agent of the other node has fakes beside it, which open no stream.
        let (frames, end) = open(it, leader, logs("web"));
        assert!(end.is_none(), "{end:?}");
        let lines = frames.iter().filter(|it| matches!(it, F::Log(line) if line.line == "hello"));
        assert_eq!(lines.count(), 1, "{frames:?}");
        let named = frames.iter().filter(|it| matches!(it, F::Error(error) if error.contains("w2")));
        assert_eq!((named.count(), frames.len()), (1, 2), "{frames:?}");
    });
}

#[test]
fn stream_breaks_with_a_reason_when_the_node_is_lost() {
    /// Accepts, and never says anything.
    fn silent(leader: Channel, open: OpenStream) -> BoxFuture<'static, ()> {
        let mine = futures::stream::iter([frame(F::Accept(open.id))]).chain(futures::stream::pending());
        Box::pin(async move {
            let _answers = StreamsClient::new(leader).data(mine).await;
            std::future::pending::<()>().await;
        })
    }
    script(2, |it| {
        let leader = it.leader();
        let _session = manual(it, 0, silent);
        web(it);
        let task = task_on(it, 0);
        let asked = it.begin(leader, |mut client| async move { Ok(collect(&mut client, exec(&task)).await) });
        it.pass(1_000);
        it.cluster().crash_worker(0, false);
        it.pass(1_000);
        let (_, end) = it.end(asked).expect("the stream has ended").unwrap();
        assert!(end.is_some_and(|end| end.message().contains("the node went away")));
    });
}

fn forward(task: &str, port: u32, turn: u64) -> F {
    F::Forward(ForwardRequest { task: task.into(), port, turn })
}

/// Plays a task whose port 7 returns what it gets, whose port 9 sends without end, and which has no other ports.
fn ports(leader: Channel, open: OpenStream) -> BoxFuture<'static, ()> {
    let Some(F::Forward(request)) = open.request.clone().and_then(|frame| frame.frame) else {
        return programs(leader, open);
    };
    let (outbox, mine) = mpsc::channel(1);
    Box::pin(async move {
        let _ = outbox.send(frame(F::Accept(open.id))).await;
        let Ok(theirs) = StreamsClient::new(leader).data(ReceiverStream::new(mine)).await else { return };
        let mut theirs = theirs.into_inner();
        match request.port {
            7 => {
                let _ = outbox.send(frame(F::Connected(true))).await;
                while let Ok(Some(piece)) = theirs.message().await {
                    let _ = outbox.send(piece).await;
                }
            }
            9 => {
                let _ = outbox.send(frame(F::Connected(true))).await;
                while outbox.send(frame(F::Data(vec![0; 16 << 10].into()))).await.is_ok() {}
            }
            port => {
                let _ = outbox.send(frame(F::Error(format!("nothing listens on port {port}")))).await;
            }
        }
        // The frames that were sent arrive before the stream ends.
        drop(outbox);
        while let Ok(Some(_)) = theirs.message().await {}
    })
}

/// Opens a forwarded connection, sends `question` and ends the direction to the task. Returns the frames that arrive
/// until the task ends the other direction.
fn forward_question(it: &mut Script, manager: usize, request: F) -> Result<Vec<F>, Status> {
    it.request(manager, |mut client| async move {
        let question = [request, F::Data("question".into()), F::DataEnd(true)].map(frame);
        let requests = futures::stream::iter(question).chain(futures::stream::pending());
        let mut answers = client.open_stream(requests).await?.into_inner();
        let mut frames = Vec::new();
        while let Some(answer) = answers.message().await? {
            frames.extend(answer.frame);
            if frames.contains(&F::DataEnd(true)) {
                break;
            }
        }
        Ok(frames)
    })
}

#[test]
fn a_forwarded_connection_ends_in_each_direction_by_itself_through_any_manager() {
    script(2, |it| {
        let _session = manual(it, 0, ports);
        web(it);
        let task = task_on(it, 0);
        for manager in 0..3 {
            let answered = forward_question(it, manager, forward(&task, 7, 0)).unwrap();
            assert_eq!(answered, [F::Data("question".into()), F::DataEnd(true)]);
        }
    });
}

#[test]
fn a_connection_to_a_service_goes_to_another_task_when_one_does_not_answer() {
    script(2, |it| {
        // The agent of the other node has fakes beside it, which open no stream.
        let _session = manual(it, 0, ports);
        web(it);
        for turn in 0..2 {
            let answered = forward_question(it, it.leader(), forward("web", 7, turn)).unwrap();
            assert_eq!(answered, [F::Data("question".into()), F::DataEnd(true)]);
        }
    });
}

#[test]
fn a_connection_that_can_not_be_forwarded_is_refused_with_the_reason() {
    script(2, |it| {
        let _session = manual(it, 0, ports);
        web(it);
        let (leader, task) = (it.leader(), task_on(it, 0));
        for (request, reason, text) in [
            (forward(&task, 81, 0), Reason::TaskUnreachable, format!("task {task}: nothing listens on port 81")),
            (forward(&task, 0, 0), Reason::Invalid, "port: it is 1 to 65535".to_owned()),
            (forward(&task, 65_536, 0), Reason::Invalid, "port: it is 1 to 65535".to_owned()),
            (forward("none", 7, 0), Reason::NotFound, "there is no task `none`".to_owned()),
        ] {
            let refused = forward_question(it, leader, request).unwrap_err();
            assert_eq!((Reason::of(&refused), refused.message()), (Some(reason), text.as_str()));
        }
    });
}

#[test]
fn users_who_do_not_read_hold_up_neither_others_nor_the_session_of_the_node() {
    script(2, |it| {
        let leader = it.leader();
        let _session = manual(it, 0, ports);
        web(it);
        let (task, endless) = (task_on(it, 0), forward(&task_on(it, 0), 9, 0));
        let ended = it.request(leader, |mut client| async move {
            let mut unread = Vec::new();
            for _ in 0..10 {
                let request = futures::stream::iter([frame(endless.clone())]).chain(futures::stream::pending());
                unread.push(client.open_stream(request).await?);
            }
            let mut ended = Vec::new();
            // These take some seconds, in which the ten have filled all that they may.
            for _ in 0..100 {
                ended.extend(collect(&mut client, exec(&task)).await.0.pop());
            }
            Ok(ended)
        });
        assert_eq!(ended.unwrap(), vec![F::ExitCode(42); 100]);
        assert_eq!(node_is(0, NodeState::Ready)(it.cluster()), Ok(()));
    });
}

#[test]
fn data_stream_whose_first_frame_does_not_come_is_closed() {
    script(1, |it| {
        let worker = &it.cluster().workers[0];
        let (id, address) = (worker.node_id.clone(), worker.host.address().parse().unwrap());
        let peer = Peer::Node { id, role: Role::Worker, address, key: String::new() };
        let late = it.request_as(peer, it.leader(), |channel| async move {
            StreamsClient::new(channel).data(futures::stream::pending::<Frame>()).await.map(drop)
        });
        assert_eq!(late.unwrap_err().code(), Code::DeadlineExceeded);
    });
}
