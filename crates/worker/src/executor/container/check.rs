//! Runs the check of a container's health once: a program in the container, or a request to it. Dropping the future
//! ends the check with everything that it has started.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::{Response, StatusCode, body::Incoming};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::unix::pipe;

use flota_api::model::{HealthCheck, HealthSpec, HealthTest};
use flota_image::Healthcheck;
use flota_network::SocketThread;
use flota_runtime::{ContainerClient, ExecProcess, ExecSpec};

use super::requests::{self, Container};
use crate::executor::{Cause, CheckEnd};

/// Bytes of a check's output that are kept, as in Docker. A program that writes more is read to its end.
const OUTPUT_BOUND: usize = 4 << 10;
/// Size of the buffer for output in bytes.
const BUFFER: usize = 16 << 10;
/// Exit code of a process whose end can't be learned, as in Docker.
const EXEC_FAILED: i32 = 125;

/// Returns the health check that the image asks for. A check of a kind that this build does not know is logged and left out.
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
    .within_bounds()
}

/// Returns the check with the image's shell for a command line, if the image names one.
pub(super) fn with_shell(check: HealthCheck, shell: Vec<String>) -> HealthCheck {
    match check.test {
        HealthTest::Shell(line) if !shell.is_empty() => {
            HealthCheck { test: HealthTest::Command(shell.into_iter().chain([line]).collect()), ..check }
        }
        _ => check,
    }
}

/// Runs the test once in the container with this folder. A test that can't be run has failed.
pub(super) async fn check(sockets: SocketThread, folder: PathBuf, test: HealthTest) -> CheckEnd {
    let end = match test {
        HealthTest::None => Ok(CheckEnd::default()),
        HealthTest::Command(words) => run(&folder, words).await,
        HealthTest::Shell(line) => run(&folder, vec!["/bin/sh".into(), "-c".into(), line]).await,
        HealthTest::Http { port, path } => request((&sockets, &folder), port, &path).await,
        HealthTest::Tcp { port } => requests::connect((&sockets, &folder), port).await.map(|_| CheckEnd::default()),
    };
    end.unwrap_or_else(|error| CheckEnd { exit_code: 1, output: flota_api::text::with_causes(&*error) })
}

/// Runs a program in the container.
async fn run(folder: &Path, argv: Vec<String>) -> Result<CheckEnd, Cause> {
    let client = ContainerClient::connect(folder)?;
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // A pipe without a writer has nothing to read. The program could change the mode of the machine's /dev/null.
    let (empty, _) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let descriptors = vec![empty, writer.try_clone()?, writer];
    let spec = ExecSpec { argv, env: Vec::new(), cwd: String::new(), user: String::new(), tty: false, contained: true };
    // The supervisor bounds the time of a start.
    let process = client.exec_later(&spec, descriptors).map_err(|error| error.text)?;
    let mut output = Output { pipe: pipe::Receiver::from_owned_fd(reader)?, kept: Vec::new() };
    let exit_code = output.read_until(ended(process)).await?;
    Ok(CheckEnd { exit_code, output: output.text() })
}

/// Waits until the process has ended, and returns its exit code.
pub(crate) async fn exit_code(process: ExecProcess) -> i32 {
    // Dropping a process whose end can't be observed kills it.
    ended(process).await.unwrap_or(EXEC_FAILED)
}

#[expect(deprecated, reason = "it is unsound for types that change their descriptor, and this one never does")]
async fn ended(process: ExecProcess) -> std::io::Result<i32> {
    let process = AsyncFd::with_interest(process, Interest::READABLE)?;
    process.async_io(Interest::READABLE, ExecProcess::exit_code).await
}

/// The output of a program, of which the beginning is kept.
struct Output {
    pipe: pipe::Receiver,
    kept: Vec<u8>,
}

impl Output {
    /// Reads until the program has ended, and then what it has left in the pipe.
    async fn read_until<T>(&mut self, end: impl Future<Output = T>) -> T {
        tokio::pin!(end);
        let (mut buffer, mut is_open) = (vec![0; BUFFER], true);
        let end = loop {
            tokio::select! {
                biased;
                end = &mut end => break end,
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
        end
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = OUTPUT_BOUND - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}

/// Sends a GET request to the container, and returns the result of the check.
async fn request(container: Container<'_>, port: u16, path: &str) -> Result<CheckEnd, Cause> {
    requests::get(container, (port, path), "flota-health-check", async |response| Ok(outcome(response).await)).await
}

/// Returns the result of a check with this response, with the beginning of its body if it is a failure.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_runs_in_the_shell_of_the_image() {
        let with = |test: HealthTest, shell: &[&str]| {
            let spec = HealthSpec { test: Some(test), ..HealthSpec::default() };
            let check = spec.check(&HealthSpec::default()).expect("it has a test");
            with_shell(check, shell.iter().map(ToString::to_string).collect()).test
        };
        let (line, words) = (HealthTest::Shell("up".into()), HealthTest::Command(vec!["up".into()]));
        let of_image = HealthTest::Command(["/bin/bash", "-c", "up"].map(str::to_owned).to_vec());
        assert_eq!(with(line.clone(), &["/bin/bash", "-c"]), of_image);
        assert_eq!(with(line.clone(), &[]), line);
        assert_eq!(with(words.clone(), &["/bin/bash", "-c"]), words);
    }
}
