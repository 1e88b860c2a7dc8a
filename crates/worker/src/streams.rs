//! Exec and logs: opens the connection that the leader requested, and copies data between it and the task. Flow
//! control extends from the user's terminal to the process: a process whose output is not read is blocked. This is the
//! gRPC edge of `Streams.Data`; the requests themselves come from `session.rs`.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use flota_api::defaults::MESSAGE_BOUND;
use flota_api::proto::streams::frame::Frame as F;
use flota_api::proto::streams::streams_client::StreamsClient;
use flota_api::proto::streams::{Frame, LogLine};
use flota_runtime::{ExecSpec, LogReader, NOT_EXECUTABLE, RunError};

use crate::executor::ContainerExecutor;
use crate::messages::{ExecRequest, LogsRequest, OpenStream, StreamRequest, TerminalSize};

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
pub(crate) async fn open(executor: Arc<ContainerExecutor>, channel: Channel, open: OpenStream) {
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
        StreamRequest::Exec(request) => exec(&executor, request, &mut inbox, &outbox).await,
        StreamRequest::Logs(request) => {
            tokio::select! {
                result = logs(&executor, request, &outbox) => drop(result),
                // The user sends nothing, so the end of the inbox means that the user has left.
                _ = inbox.message() => {}
            }
        }
        StreamRequest::Unknown => drop(send(&outbox, F::Error("this node does not know this request".into())).await),
    }
    // Dropping the inbox now would reset the stream and lose data that is still in flight to the leader.
    drop(outbox);
    let closed = async { while let Ok(Some(_)) = inbox.message().await {} };
    let _ = tokio::time::timeout(CLOSE_WAIT, closed).await;
}

async fn logs(executor: &ContainerExecutor, request: LogsRequest, outbox: &Outbox) -> Result<(), Gone> {
    let name = executor.name(&request.task);
    let mut reader = LogReader::open(&executor.paths.log(&request.task));
    let mut tail = request.tail;
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
                task_id: request.task.to_string(),
                task_name: name.clone(),
                node_name: executor.node.hostname.clone(),
                number: line.number,
                at: line.at,
                stream: line.stream,
                line: line.text.into(),
            };
            send(outbox, F::Log(line)).await?;
        }
        match (caught_up, request.follow) {
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

async fn exec(executor: &ContainerExecutor, request: ExecRequest, inbox: &mut Streaming<Frame>, outbox: &Outbox) {
    let failed = match start(executor, &request).await {
        Ok((process, io)) => {
            let killer = process.killer();
            let ended = tokio::task::spawn_blocking(move || process.wait());
            run(io, ended, inbox, outbox).await;
            // The process does not outlive the stream.
            drop(killer);
            return;
        }
        Err(error) => error,
    };
    // An error of this send means that the user has left.
    let _ = send(outbox, F::Error(failed.text)).await;
    let _ = send(outbox, F::ExitCode(failed.code.unwrap_or(NOT_EXECUTABLE))).await;
}

/// Why a process was not started.
struct NotStarted {
    text: String,
    /// The exit code of a shell in this case, if the program itself is the cause.
    code: Option<i32>,
}

impl From<String> for NotStarted {
    fn from(text: String) -> Self {
        Self { text, code: None }
    }
}

impl From<RunError> for NotStarted {
    fn from(error: RunError) -> Self {
        Self { text: error.text, code: error.code }
    }
}

/// The worker's ends of the process's standard descriptors.
struct Io {
    stdin: Option<tokio::fs::File>,
    stdout: tokio::fs::File,
    stderr: Option<tokio::fs::File>,
    terminal: Option<OwnedFd>,
}

fn file(descriptor: OwnedFd) -> tokio::fs::File {
    tokio::fs::File::from_std(descriptor.into())
}

async fn start(
    executor: &ContainerExecutor,
    request: &ExecRequest,
) -> Result<(flota_runtime::ExecProcess, Io), NotStarted> {
    let kernel = |error: nix::Error| format!("failed to make a pipe: {}", error.desc());
    let client = executor.client(&request.task).map_err(|_| "the task's container does not run".to_owned())?;
    let spec = ExecSpec {
        argv: request.command.clone(),
        env: request.env.clone(),
        cwd: request.working_dir.clone(),
        user: request.user.clone(),
        tty: request.terminal.is_some(),
    };
    let run = |theirs: Vec<OwnedFd>| async move {
        let started = tokio::task::spawn_blocking(move || client.exec(&spec, theirs)).await;
        started.map_err(|error| error.to_string())?.map_err(NotStarted::from)
    };
    if let Some(size) = request.terminal {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(|error| error.to_string())?;
        let process = run(vec![theirs.into()]).await?;
        // The runtime sends the terminal before the process runs, so this does not block.
        let master = flota_runtime::process::receive_terminal(&ours.into()).map_err(|error| error.to_string())?;
        resize(&master, size);
        let copy = || master.try_clone().map(file).map_err(|error| error.to_string());
        let io = Io { stdin: Some(copy()?), stdout: copy()?, stderr: None, terminal: Some(master) };
        return Ok((process, io));
    }
    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(kernel);
    let ((in_read, in_write), (out_read, out_write), (err_read, err_write)) = (pipe()?, pipe()?, pipe()?);
    let process = run(vec![in_read, out_write, err_write]).await?;
    let stdin = request.stdin.then(|| file(in_write));
    Ok((process, Io { stdin, stdout: file(out_read), stderr: Some(file(err_read)), terminal: None }))
}

fn resize(terminal: &OwnedFd, size: TerminalSize) {
    let short = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    flota_runtime::process::resize_terminal(terminal, short(size.rows), short(size.columns));
}

async fn run(io: Io, ended: tokio::task::JoinHandle<i32>, inbox: &mut Streaming<Frame>, outbox: &Outbox) {
    let Io { stdin, stdout, stderr, terminal } = io;
    let output = async {
        let (out, err) = (pump(stdout, outbox, F::Stdout), async {
            match stderr {
                Some(stderr) => pump(stderr, outbox, F::Stderr).await,
                None => Ok(()),
            }
        });
        let (out, err) = tokio::join!(out, err);
        out.and(err)
    };
    let input = feed(inbox, stdin, terminal);
    let finish = async {
        let code = ended.await.unwrap_or(137);
        (code,)
    };
    tokio::pin!(output, input, finish);
    let (mut code, mut output_done) = (None, false);
    while code.is_none() || !output_done {
        tokio::select! {
            result = &mut output, if !output_done => {
                output_done = true;
                if result.is_err() { return }
            }
            (ended,) = &mut finish, if code.is_none() => code = Some(ended),
            // The user has left.
            () = &mut input => return,
        }
    }
    let _ = send(outbox, F::ExitCode(code.unwrap_or(137))).await;
}

async fn pump(mut from: impl AsyncRead + Unpin, outbox: &Outbox, frame: fn(bytes::Bytes) -> F) -> Result<(), Gone> {
    let mut buffer = vec![0; 32 << 10];
    loop {
        // A terminal that no process has open fails with EIO, which marks its end.
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return Ok(()),
            Ok(count) => send(outbox, frame(bytes::Bytes::copy_from_slice(&buffer[..count]))).await?,
        }
    }
}

/// Copies the user's input to the process until the user's side ends.
async fn feed(inbox: &mut Streaming<Frame>, mut stdin: Option<tokio::fs::File>, terminal: Option<OwnedFd>) {
    while let Ok(Some(frame)) = inbox.message().await {
        match (frame.frame, &mut stdin) {
            (Some(F::Stdin(bytes)), Some(file)) => {
                let written = match file.write_all(&bytes).await {
                    Ok(()) => file.flush().await,
                    Err(error) => Err(error),
                };
                stdin = written.is_ok().then_some(stdin).flatten();
            }
            (Some(F::StdinClosed(_)), _) if terminal.is_none() => stdin = None,
            (Some(F::Resize(size)), _) => {
                if let Some(terminal) = &terminal {
                    resize(terminal, TerminalSize { rows: size.rows, columns: size.columns });
                }
            }
            _ => {}
        }
    }
}
