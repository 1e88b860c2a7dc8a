//! Runs a process in a container for a user, and copies data between the two. No thread waits: pipes, the terminal and
//! the end of the process are polled.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use flota_api::id::TaskId;
use flota_api::model::{Program, TerminalSize};
use flota_api::proto::streams::Frame;
use flota_api::proto::streams::frame::Frame as F;
use flota_runtime::{ExecProcess, ExecSpec, RunError};

use super::descriptor::Descriptor;
use super::{Gone, Outbox, send};
use crate::executor::{ContainerExecutor, exit_code};

/// Exit code if the process could not be started for a reason that is not its program, as in Docker.
const EXEC_FAILED: i32 = 125;
/// Size of the buffer for output in bytes.
const BUFFER: usize = 32 << 10;
/// Time after the end of the process in which output of processes that it has left behind is still copied.
const SETTLE: Duration = Duration::from_millis(200);
/// Largest amount of output that is still copied after that time, more than a pipe holds.
const REST_BOUND: usize = 1 << 20;

/// Starts the process, and serves it until it has ended or the user has left.
pub(super) async fn exec(
    executor: &ContainerExecutor,
    task: &TaskId,
    program: Program,
    inbox: &mut Streaming<Frame>,
    outbox: &Outbox,
) {
    match start(executor, task, program).await {
        // The process does not outlive the stream.
        Ok((process, io)) => run(process, io, inbox, outbox).await,
        Err(error) => {
            // An error of this send means that the user has left.
            let _ = send(outbox, F::Error(error.text)).await;
            let _ = send(outbox, F::ExitCode(error.code.unwrap_or(EXEC_FAILED))).await;
        }
    }
}

/// Why a process was not started.
struct NotStarted {
    text: String,
    /// The exit code of a shell in this case, if the program itself is the cause.
    code: Option<i32>,
}

impl NotStarted {
    fn new(text: impl ToString) -> Self {
        Self { text: text.to_string(), code: None }
    }
}

impl From<io::Error> for NotStarted {
    fn from(error: io::Error) -> Self {
        Self::new(format!("failed to connect the process: {error}"))
    }
}

impl From<RunError> for NotStarted {
    fn from(error: RunError) -> Self {
        Self { text: error.text, code: error.code }
    }
}

/// The worker's ends of the process's standard descriptors.
struct Io {
    stdin: Option<Descriptor>,
    stdout: Descriptor,
    stderr: Option<Descriptor>,
    terminal: Option<Descriptor>,
}

async fn start(executor: &ContainerExecutor, task: &TaskId, program: Program) -> Result<(ExecProcess, Io), NotStarted> {
    let client = executor.client(task).map_err(|_| NotStarted::new("the task's container does not run"))?;
    let spec = ExecSpec {
        argv: program.command,
        env: program.env,
        cwd: program.working_dir,
        user: program.user,
        tty: program.terminal.is_some(),
        contained: false,
    };
    // The supervisor bounds the time of a start.
    let run = |theirs: Vec<OwnedFd>| async move {
        let started = tokio::task::spawn_blocking(move || client.exec(&spec, theirs)).await;
        started.map_err(NotStarted::new)?.map_err(NotStarted::from)
    };
    if let Some(size) = program.terminal {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let process = run(vec![theirs.into()]).await?;
        // The runtime sends the terminal before the process runs, so this does not block.
        let master = flota_runtime::process::receive_terminal(&ours.into()).map_err(NotStarted::new)?;
        resize(&master, size);
        let terminal = Descriptor::new(master)?;
        let (stdin, stdout) = (Some(terminal.clone()), terminal.clone());
        return Ok((process, Io { stdin, stdout, stderr: None, terminal: Some(terminal) }));
    }
    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(io::Error::from);
    let ((in_read, in_write), (out_read, out_write), (err_read, err_write)) = (pipe()?, pipe()?, pipe()?);
    let process = run(vec![in_read, out_write, err_write]).await?;
    let stdin = if program.stdin { Some(Descriptor::new(in_write)?) } else { None };
    let (stdout, stderr) = (Descriptor::new(out_read)?, Some(Descriptor::new(err_read)?));
    Ok((process, Io { stdin, stdout, stderr, terminal: None }))
}

fn resize(terminal: &OwnedFd, size: TerminalSize) {
    let short = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    flota_runtime::process::resize_terminal(terminal, short(size.rows), short(size.columns));
}

async fn run(process: ExecProcess, io: Io, inbox: &mut Streaming<Frame>, outbox: &Outbox) {
    let Io { stdin, stdout, stderr, terminal } = io;
    let ended = CancellationToken::new();
    let code = async {
        let code = exit_code(process).await;
        ended.cancel();
        code
    };
    let stderr = async {
        match &stderr {
            Some(stderr) => pump(stderr, outbox, F::Stderr, &ended).await,
            None => Ok(()),
        }
    };
    let served = async { tokio::join!(code, pump(&stdout, outbox, F::Stdout, &ended), stderr) };
    tokio::select! {
        (code, ..) = served => drop(send(outbox, F::ExitCode(code)).await),
        // The user has left. A process that reads no input holds up `feed`, so the other direction is watched as well.
        () = feed(inbox, stdin, terminal) => {}
        () = outbox.closed() => {}
    }
}

/// Copies output until its end. Other processes may keep the descriptor open for ever, so that this also ends shortly
/// after the process has.
async fn pump(
    from: &Descriptor,
    outbox: &Outbox,
    frame: fn(bytes::Bytes) -> F,
    ended: &CancellationToken,
) -> Result<(), Gone> {
    let mut buffer = vec![0; BUFFER];
    let settled = async {
        ended.cancelled().await;
        tokio::time::sleep(SETTLE).await;
    };
    tokio::pin!(settled);
    loop {
        let read = tokio::select! {
            biased;
            () = &mut settled => break,
            read = from.read(&mut buffer) => read,
        };
        // A terminal that no process has open fails with EIO, which marks its end.
        match read {
            Ok(0) | Err(_) => return Ok(()),
            Ok(count) => send(outbox, frame(bytes::Bytes::copy_from_slice(&buffer[..count]))).await?,
        }
    }
    let mut copied = 0;
    while let Ok(count @ 1..) = from.read_now(&mut buffer) {
        send(outbox, frame(bytes::Bytes::copy_from_slice(&buffer[..count]))).await?;
        copied += count;
        if copied > REST_BOUND {
            break;
        }
    }
    Ok(())
}

/// Copies the user's input to the process until the user's side ends.
async fn feed(inbox: &mut Streaming<Frame>, mut stdin: Option<Descriptor>, terminal: Option<Descriptor>) {
    while let Ok(Some(frame)) = inbox.message().await {
        match (frame.frame, &stdin) {
            (Some(F::Stdin(bytes)), Some(file)) => {
                let written = file.write_all(&bytes).await;
                if written.is_err() {
                    stdin = None;
                }
            }
            (Some(F::StdinClosed(_)), _) if terminal.is_none() => stdin = None,
            (Some(F::Resize(size)), _) => {
                if let Some(terminal) = &terminal {
                    resize(terminal.as_owned(), TerminalSize { rows: size.rows, columns: size.columns });
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tokio::sync::mpsc;

    use super::*;

    /// Returns a pipe's reading end, its writing end, and the two ends of an outbox.
    fn pipe() -> (Descriptor, std::io::PipeWriter, Outbox, mpsc::Receiver<Frame>) {
        let (reader, writer) = std::io::pipe().unwrap();
        let (outbox, frames) = mpsc::channel(4);
        (Descriptor::new(reader.into()).unwrap(), writer, outbox, frames)
    }

    /// Returns the output that was sent.
    async fn sent(mut frames: mpsc::Receiver<Frame>) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(Frame { frame: Some(F::Stdout(bytes)) }) = frames.recv().await {
            all.extend_from_slice(&bytes);
        }
        all
    }

    #[tokio::test]
    async fn output_ends_with_its_process_although_another_one_holds_the_pipe() {
        let (from, mut writer, outbox, frames) = pipe();
        let ended = CancellationToken::new();
        let content = vec![b'x'; 60_000];
        writer.write_all(&content).unwrap();
        ended.cancel();
        let copied = async {
            let done = pump(&from, &outbox, F::Stdout, &ended).await;
            drop(outbox);
            done.is_ok()
        };
        let (done, all) = tokio::join!(copied, sent(frames));
        assert!(done && all == content, "{} bytes", all.len());
        drop(writer);
    }

    #[tokio::test]
    async fn a_process_that_writes_on_and_on_after_the_end_is_not_waited_for() {
        let (from, mut writer, outbox, frames) = pipe();
        let chatty = std::thread::spawn(move || while writer.write_all(&[b'x'; 4_096]).is_ok() {});
        let ended = CancellationToken::new();
        ended.cancel();
        let copied = async {
            let _ = pump(&from, &outbox, F::Stdout, &ended).await;
            drop((from, outbox));
        };
        tokio::join!(copied, sent(frames));
        chatty.join().unwrap();
    }

    #[tokio::test]
    async fn waiting_for_output_takes_no_thread() {
        let pipes: Vec<_> = (0..300).map(|_| pipe()).collect();
        let ended = CancellationToken::new();
        let all = pipes.iter().map(|(from, _, outbox, _)| pump(from, outbox, F::Stdout, &ended));
        let idle = futures::future::join_all(all);
        tokio::pin!(idle);
        assert!(futures::poll!(&mut idle).is_pending());
        let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
        assert!(threads < 200, "{threads} threads");
    }

    #[tokio::test]
    async fn all_input_is_written_however_slowly_it_is_read() {
        let (reader, writer) = std::io::pipe().unwrap();
        let (reader, writer) = (Descriptor::new(reader.into()).unwrap(), Descriptor::new(writer.into()).unwrap());
        let content: Vec<u8> = (0..300_000u32).map(|it| u8::try_from(it % 251).unwrap()).collect();
        let written = async {
            let done = writer.write_all(&content).await;
            drop(writer);
            done
        };
        let read = async {
            let (mut all, mut buffer) = (Vec::new(), [0; 1_000]);
            while let Ok(count @ 1..) = reader.read(&mut buffer).await {
                all.extend_from_slice(&buffer[..count]);
            }
            all
        };
        let (done, all) = tokio::join!(written, read);
        assert!(done.is_ok() && all == content);
    }
}
