//! Exec, logs, forwarded connections, checks of networks and the health of tasks: opens the stream that the leader
//! requested, and copies data between it and the task. Flow control extends from the user's terminal to the process: a
//! process whose output is not read is blocked. This is the gRPC edge of `Streams.Data`; the requests themselves come
//! from `session.rs`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use flota_api::defaults::MESSAGE_BOUND;
use flota_api::id::TaskId;
use flota_api::model::{LogRange, StreamKind, StreamRequest};
use flota_api::proto::streams::frame::Frame as F;
use flota_api::proto::streams::streams_client::StreamsClient;
use flota_api::proto::streams::{Frame, LogLine};
use flota_runtime::LogReader;

use crate::executor::ContainerExecutor;
use crate::health::HealthBoard;
use crate::messages::OpenStream;

mod check;
mod descriptor;
mod exec;
mod forward;

use check::check;
use exec::exec;
use forward::forward;

/// Pause between two reads of a followed log.
const FOLLOW: Duration = Duration::from_millis(100);
const QUEUE: usize = 32;
/// Largest number of lines that are read from a log at once.
const LINES: usize = 256;

type Outbox = mpsc::Sender<Frame>;

async fn send(outbox: &Outbox, frame: F) -> Result<(), Gone> {
    outbox.send(Frame { frame: Some(frame) }).await.map_err(|_| Gone)
}

/// The user's side has closed the stream.
struct Gone;

/// Time that the leader has to close its side after the end of this one.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

/// Serves one stream that the leader requested; returns when the stream has ended.
pub(crate) async fn open(executor: Arc<ContainerExecutor>, board: HealthBoard, channel: Channel, open: OpenStream) {
    let (outbox, frames) = mpsc::channel(QUEUE);
    if send(&outbox, F::Accept(open.id)).await.is_err() {
        return;
    }
    let mut client = StreamsClient::new(channel).max_decoding_message_size(MESSAGE_BOUND);
    let mut inbox = match client.data(ReceiverStream::new(frames)).await {
        Ok(response) => response.into_inner(),
        Err(status) => {
            tracing::debug!(error = status.message(), "failed to open a stream");
            return;
        }
    };
    match open.request {
        Some(StreamRequest { task, kind }) => serve((&executor, &board), &task, kind, &mut inbox, &outbox).await,
        None => drop(send(&outbox, F::Error("this node does not know this request".into())).await),
    }
    // Dropping the inbox now would reset the stream and lose data that is still in flight to the leader.
    drop(outbox);
    let closed = async { while let Ok(Some(_)) = inbox.message().await {} };
    let _ = tokio::time::timeout(CLOSE_WAIT, closed).await;
}

async fn serve(
    (executor, board): (&ContainerExecutor, &HealthBoard),
    task: &TaskId,
    kind: StreamKind,
    inbox: &mut Streaming<Frame>,
    outbox: &Outbox,
) {
    match kind {
        StreamKind::Exec(program) => exec(executor, task, program, inbox, outbox).await,
        StreamKind::Logs(range) => {
            tokio::select! {
                result = logs(executor, task, range, outbox) => drop(result),
                // The user sends nothing, so the end of the inbox means that the user has left.
                _ = inbox.message() => {}
            }
        }
        StreamKind::Check(request) => check(executor, request, outbox).await,
        StreamKind::Health => {
            let health = board.of(task).map(|health| F::Health((&health).into()));
            let answer = health.unwrap_or_else(|| F::Error("its container has not been checked yet".into()));
            drop(send(outbox, answer).await);
        }
        StreamKind::Forward(port) => forward(executor, task, port, inbox, outbox).await,
    }
}

async fn logs(executor: &ContainerExecutor, task: &TaskId, range: LogRange, outbox: &Outbox) -> Result<(), Gone> {
    let name = executor.name(task);
    if executor.has_no_log(task) {
        let why = format!("the output of {name} is not kept: its service has the log driver `none`");
        return send(outbox, F::Error(why)).await;
    }
    let mut reader = LogReader::open(&executor.paths.log(task));
    let mut tail = range.tail.map(|tail| usize::try_from(tail).unwrap_or(usize::MAX));
    loop {
        // A tail is resolved at the first read: the whole log is read, and its last lines are kept.
        let last = tail.take();
        let read = tokio::task::spawn_blocking(move || {
            let lines = read_lines(&mut reader, last);
            (reader, lines)
        });
        let Ok((back, lines)) = read.await else { return Ok(()) };
        reader = back;
        let lines = match lines {
            Ok(lines) => lines,
            Err(error) => {
                send(outbox, F::Error(format!("failed to read the log: {error}"))).await?;
                return Ok(());
            }
        };
        let caught_up = lines.is_empty();
        for line in lines {
            let line = LogLine {
                task_id: task.to_string(),
                task_name: name.clone(),
                node_name: executor.node.hostname.clone(),
                number: line.number,
                at: line.at,
                stream: line.stream,
                line: line.text.into(),
            };
            send(outbox, F::Log(line)).await?;
        }
        match (caught_up, range.follow) {
            (true, false) => return Ok(()),
            (true, true) => tokio::time::sleep(FOLLOW).await,
            (false, _) => {}
        }
    }
}

/// Returns lines that were written since the last call; with `last`, the last lines of the whole log.
fn read_lines(reader: &mut LogReader, last: Option<usize>) -> std::io::Result<VecDeque<flota_runtime::LogLine>> {
    let mut lines = VecDeque::new();
    while last.is_some() || lines.len() < LINES {
        let Some(line) = reader.next_line()? else { break };
        lines.push_back(line);
        while last.is_some_and(|last| lines.len() > last) {
            lines.pop_front();
        }
    }
    Ok(lines)
}
