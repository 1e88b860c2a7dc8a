//! Runs the check of a container's health once: a program in the container, or a request to it. Dropping the future
//! ends the check with everything that it has started. Requests that read a page of a container go the same way.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream as StdStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, body::Incoming, header};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::unix::pipe;
use tokio::net::{TcpSocket, TcpStream};

use flota_api::model::{HealthSpec, HealthTest};
use flota_image::Healthcheck;
use flota_network::Namespace;
use flota_runtime::{ContainerClient, ContainerState, ExecProcess, ExecSpec};

use crate::executor::{Cause, CheckEnd};

/// Bytes of a check's output that are kept, as in Docker. A program that writes more is read to its end.
const OUTPUT_BOUND: usize = 4 << 10;
/// Bytes of a page that are read, and of a line of it.
const PAGE_BOUND: usize = 4 << 20;
const LINE_BOUND: usize = 16 << 10;
/// Size of the buffer for output in bytes.
const BUFFER: usize = 16 << 10;
/// Exit code of a process whose end can't be learned, as in Docker.
const EXEC_FAILED: i32 = 125;

/// Returns what the image says of its health check. One that this build does not know is none.
pub(super) fn of_image(image: &Healthcheck) -> HealthSpec {
    let test = HealthTest::from_words(&image.test).unwrap_or_else(|error| {
        tracing::warn!(error, "the image has a health check of an unknown kind");
        None
    });
    let duration = |nanos: u64| (nanos > 0).then(|| Duration::from_nanos(nanos));
    HealthSpec {
        test,
        interval: duration(image.interval),
        timeout: duration(image.timeout),
        start_period: duration(image.start_period),
        start_interval: duration(image.start_interval),
        retries: std::num::NonZeroU32::new(image.retries),
    }
}

/// Runs the test once in the container with this folder. A test that can't be run has failed.
pub(super) async fn check(folder: PathBuf, test: HealthTest) -> CheckEnd {
    let end = match test {
        HealthTest::None => Ok(CheckEnd::default()),
        HealthTest::Command(words) => run(&folder, words).await,
        HealthTest::Shell(line) => run(&folder, vec!["/bin/sh".into(), "-c".into(), line]).await,
        HealthTest::Http { port, path } => request(&folder, port, &path).await,
        HealthTest::Tcp { port } => connect(&folder, port).await.map(|_| CheckEnd::default()),
    };
    end.unwrap_or_else(|error| CheckEnd { exit_code: 1, output: flota_api::text::with_causes(&*error) })
}

/// Runs a program in the container.
async fn run(folder: &Path, argv: Vec<String>) -> Result<CheckEnd, Cause> {
    let client = ContainerClient::connect(folder)?;
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let descriptors = vec![OwnedFd::from(File::open("/dev/null")?), writer.try_clone()?, writer];
    let spec = ExecSpec { argv, env: Vec::new(), cwd: String::new(), user: String::new(), tty: false, contained: true };
    // The supervisor bounds the time of a start.
    let process = tokio::task::spawn_blocking(move || client.exec(&spec, descriptors)).await?;
    let process = process.map_err(|error| error.text)?;
    let mut output = Output { pipe: pipe::Receiver::from_owned_fd(reader)?, kept: Vec::new() };
    let exit_code = output.read_until(exit_code(process)).await;
    Ok(CheckEnd { exit_code, output: output.text() })
}

/// Waits until the process has ended.
#[expect(deprecated, reason = "it is unsound for types that change their descriptor, and this one never does")]
pub(crate) async fn exit_code(process: ExecProcess) -> i32 {
    // Without its descriptor the end of the process can't be observed, and dropping it kills the process.
    let Ok(process) = AsyncFd::with_interest(process, Interest::READABLE) else { return EXEC_FAILED };
    process.async_io(Interest::READABLE, ExecProcess::exit_code).await.unwrap_or(EXEC_FAILED)
}

/// The output of a program, of which the beginning is kept.
struct Output {
    pipe: pipe::Receiver,
    kept: Vec<u8>,
}

impl Output {
    /// Reads until the program has ended, and then what it has left in the pipe.
    async fn read_until(&mut self, end: impl Future<Output = i32>) -> i32 {
        tokio::pin!(end);
        let (mut buffer, mut is_open) = (vec![0; BUFFER], true);
        let code = loop {
            tokio::select! {
                biased;
                code = &mut end => break code,
                read = self.pipe.read(&mut buffer), if is_open => match read {
                    Ok(count @ 1..) => self.keep(&buffer[..count]),
                    Ok(0) | Err(_) => is_open = false,
                },
            }
        };
        while self.kept.len() < OUTPUT_BOUND
            && let Ok(count @ 1..) = self.pipe.try_read(&mut buffer)
        {
            self.keep(&buffer[..count]);
        }
        code
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = OUTPUT_BOUND - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}

/// Sends a GET request to the container, and returns what it stands for as a check.
async fn request(folder: &Path, port: u16, path: &str) -> Result<CheckEnd, Cause> {
    get(folder, port, path, async |response| Ok(outcome(response).await)).await
}

/// Reads the lines of a page of the container. Of a page that is too large, only the first are read; a line that is too long is
/// cut.
///
/// # Errors
/// The container does not answer, or with another status than 200, or the page breaks off.
pub(super) async fn read_lines(folder: &Path, port: u16, path: &str, mut each: impl FnMut(&str)) -> Result<(), Cause> {
    let read = async |response: Response<Incoming>| {
        if response.status() != StatusCode::OK {
            return Err(response.status().to_string().into());
        }
        let (mut body, mut line, mut size) = (response.into_body(), Vec::new(), 0);
        while let Some(frame) = body.frame().await.transpose()?
            && size < PAGE_BOUND
        {
            let data = frame.into_data().unwrap_or_default();
            size += data.len();
            for part in data.split_inclusive(|byte| *byte == b'\n') {
                let room = LINE_BOUND - line.len();
                line.extend_from_slice(&part[..part.len().min(room)]);
                if part.ends_with(b"\n") {
                    each(&String::from_utf8_lossy(&line));
                    line.clear();
                }
            }
        }
        each(&String::from_utf8_lossy(&line));
        Ok(())
    };
    get(folder, port, path, read).await
}

/// Sends a GET request to the container, and takes what is wanted of its response.
async fn get<T>(
    folder: &Path,
    port: u16,
    path: &str,
    take: impl AsyncFnOnce(Response<Incoming>) -> Result<T, Cause>,
) -> Result<T, Cause> {
    let stream = connect(folder, port).await?;
    let request = Request::get(path)
        .header(header::HOST, format!("localhost:{port}"))
        .header(header::USER_AGENT, "flota-health-check")
        .body(Empty::<bytes::Bytes>::new())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async { take(sender.send_request(request).await?).await };
    // A connection that ends may have brought all that the exchange needs; if not, the exchange has the reason.
    let driven = async {
        drop(connection.await);
        std::future::pending().await
    };
    tokio::select! {
        end = exchange => end,
        never = driven => never,
    }
}

/// Returns the result that a response stands for, with the beginning of its body if it is a failure.
async fn outcome(response: Response<Incoming>) -> CheckEnd {
    let status = response.status();
    let success = (StatusCode::OK..StatusCode::BAD_REQUEST).contains(&status);
    let (mut output, mut body) = (status.to_string().into_bytes(), response.into_body());
    if !success {
        output.extend_from_slice(b": ");
        while output.len() < OUTPUT_BOUND
            && let Some(Ok(frame)) = body.frame().await
        {
            output.extend(frame.data_ref().into_iter().flatten().copied());
        }
        output.truncate(OUTPUT_BOUND);
    }
    CheckEnd { exit_code: i32::from(!success), output: String::from_utf8_lossy(&output).into_owned() }
}

/// Connects to a port in the network namespace of the container.
async fn connect(folder: &Path, port: u16) -> Result<TcpStream, Cause> {
    let folder = folder.to_owned();
    let made = tokio::task::spawn_blocking(move || socket_inside(&folder)).await??;
    // A socket stays in the namespace in which it was made.
    let socket = TcpSocket::from_std_stream(StdStream::from(made));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    socket.connect(address).await.map_err(|error| format!("failed to connect to port {port}: {error}").into())
}

/// Makes a socket in the network namespace of the container.
fn socket_inside(folder: &Path) -> Result<OwnedFd, Cause> {
    let state = ContainerState::load(folder)?.filter(ContainerState::is_alive).ok_or("the container does not run")?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(Namespace::of(state.pid).enter(|| Ok(socket(AddressFamily::Inet, SockType::Stream, flags, None)))??)
}
