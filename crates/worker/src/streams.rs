//! Exec, logs, forwarded connections, checks of networks and the health of tasks: opens the stream that the leader
//! requested, and copies data between it and the task. Flow control extends from the user's terminal to the process: a
//! process whose output is not read is blocked. This is the gRPC edge of `Streams.Data`; the requests themselves come
//! from `session.rs`.

use std::path::Path;
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
/// Largest number of lines that are read from a log at once, and of bytes after which no more are.
const LINES: usize = 256;
const BYTES: usize = 1 << 20;

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
    let path = executor.paths.log(task);
    let mut reader = LogReader::open(&path);
    let mut tail = range.tail;
    loop {
        let (tail, path) = (tail.take(), path.clone());
        let read = tokio::task::spawn_blocking(move || {
            let lines = tail.map_or(Ok(0), |tail| first_line(&path, tail));
            let lines = lines.and_then(|first| read_lines(&mut reader, first));
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

/// Returns the number of the first of the last lines of a log. They are counted first and read then, because they may be more
/// than fit into memory.
fn first_line(path: &Path, tail: u64) -> std::io::Result<u64> {
    let (mut reader, mut next) = (LogReader::open(path), 0);
    while let Some(line) = reader.next_line()? {
        next = line.number + 1;
    }
    Ok(next.saturating_sub(tail))
}

/// Returns lines that were written since the last call, beginning with the one of this number.
fn read_lines(reader: &mut LogReader, first: u64) -> std::io::Result<Vec<flota_runtime::LogLine>> {
    let (mut lines, mut bytes) = (Vec::new(), 0);
    while lines.len() < LINES && bytes < BYTES {
        let Some(line) = reader.next_line()? else { break };
        if line.number >= first {
            bytes += line.text.len();
            lines.push(line);
        }
    }
    Ok(lines)
}
