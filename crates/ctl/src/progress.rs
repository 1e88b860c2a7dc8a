//! Follows a service or an image until it is as wanted: a line that changes on a terminal, one line for each change
//! elsewhere.

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::bail;
use flota_api::proto::control::{ServiceProgress, WatchImageRequest, WatchServiceRequest};
use tokio::time::Instant;

use crate::client::Client;
use crate::error::Failed;
use crate::printer;

/// Waiting for a change to take effect.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WaitOptions {
    /// Return at once
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Wait for this long at most
    #[arg(long, default_value = "5m", value_parser = crate::parse::duration)]
    pub(crate) timeout: std::time::Duration,
}

/// A line that is written over while it changes.
struct Line {
    terminal: bool,
    last: String,
}

impl Line {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), last: String::new() }
    }

    fn show(&mut self, text: String) {
        if text == self.last {
            return;
        }
        let mut out = std::io::stderr();
        let _ = if self.terminal { write!(out, "\r\x1b[K{text}") } else { writeln!(out, "{text}") };
        let _ = out.flush();
        self.last = text;
    }

    fn end(self) {
        if self.terminal && !self.last.is_empty() {
            let _ = writeln!(std::io::stderr());
        }
    }
}

fn passing(error: &anyhow::Error) -> bool {
    crate::error::code(error) == crate::error::UNREACHABLE
}

/// Until the service has what its spec asks for, or (removed) nothing is left of it.
pub(crate) async fn service(client: &Client, id: &str, name: &str, wait: &WaitOptions) -> anyhow::Result<()> {
    if wait.detach {
        return Ok(());
    }
    interruptible(wait_for_service(client, id, name, wait)).await
}

/// Ctrl-C ends the waiting, and says that it ends no more than that.
async fn interruptible(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::select! {
        result = work => result,
        _ = tokio::signal::ctrl_c() => {
            printer::say("\ninterrupted: what was asked for goes on in the background");
            #[expect(clippy::exit, reason = "as the signal itself would have ended it")]
            std::process::exit(130);
        }
    }
}

async fn wait_for_service(client: &Client, id: &str, name: &str, wait: &WaitOptions) -> anyhow::Result<()> {
    let until = Instant::now() + wait.timeout;
    let mut line = Line::new();
    let mut last = ServiceProgress::default();
    let result = loop {
        match tokio::time::timeout_at(until, follow(client, id, name, &mut line, &mut last)).await {
            Ok(Ok(())) => break Ok(()),
            // The leader may have gone: the next one knows as much.
            Ok(Err(error)) if passing(&error) && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(Err(error)) => break Err(error),
            Err(_) => break Err(hangs(name, &last, wait.timeout)),
        }
    };
    line.end();
    result
}

/// All of them (id and name), within one time.
pub(crate) async fn services(client: &Client, all: &[(String, String)], wait: &WaitOptions) -> anyhow::Result<()> {
    let until = Instant::now() + wait.timeout;
    for (id, name) in all {
        let timeout = until.saturating_duration_since(Instant::now());
        service(client, id, name, &WaitOptions { timeout, detach: wait.detach }).await?;
    }
    Ok(())
}

/// Until `done` says so; `what` is said when it does not in time.
pub(crate) async fn until<F: Future<Output = anyhow::Result<Option<String>>>>(
    wait: &WaitOptions,
    what: &str,
    left: impl Fn() -> F,
) -> anyhow::Result<()> {
    if wait.detach {
        return Ok(());
    }
    interruptible(wait_until(wait, what, left)).await
}

async fn wait_until<F: Future<Output = anyhow::Result<Option<String>>>>(
    wait: &WaitOptions,
    what: &str,
    left: impl Fn() -> F,
) -> anyhow::Result<()> {
    let until = Instant::now() + wait.timeout;
    let mut line = Line::new();
    let result = loop {
        match left().await {
            Ok(None) => break Ok(()),
            Ok(Some(left)) if Instant::now() >= until => {
                break Err(anyhow::anyhow!("{what}: not done after {:?}: {left}", wait.timeout));
            }
            Ok(Some(left)) => line.show(format!("{what}: {left}")),
            Err(error) if passing(&error) && Instant::now() < until => {}
            Err(error) => break Err(error),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    line.end();
    result
}

fn hangs(name: &str, last: &ServiceProgress, timeout: Duration) -> anyhow::Error {
    let reasons: String = last.hanging.iter().map(|it| format!("\n  {it}")).collect();
    let waited = timeout.as_secs_f64();
    anyhow::anyhow!("service {name}: {} of {} tasks run after {waited:.0} s{reasons}", last.running, last.desired)
}

async fn follow(
    client: &Client,
    id: &str,
    name: &str,
    line: &mut Line,
    last: &mut ServiceProgress,
) -> anyhow::Result<()> {
    let request = WatchServiceRequest { service: id.to_owned() };
    let mut stream = client
        .control(|mut control| {
            let request = request.clone();
            async move { control.watch_service(request).await }
        })
        .await?;
    while let Some(progress) = stream.message().await.map_err(|status| anyhow::Error::new(Failed(status)))? {
        *last = progress;
        if last.removed {
            line.show(format!("{name}: removed"));
            return Ok(());
        }
        if !last.update_paused.is_empty() {
            bail!("service {name}: the update is paused: {}", last.update_paused);
        }
        // A service that is gone has no number of tasks any more.
        line.show(match last.desired {
            0 if last.running > 0 => format!("{name}: {} tasks are left", last.running),
            desired => format!("{name}: {}/{desired} running", last.running),
        });
        if last.converged {
            return Ok(());
        }
    }
    bail!(Failed(tonic::Status::unavailable("the manager ended the stream")))
}

/// Until the image lies on as many nodes as it shall.
pub(crate) async fn image(client: &Client, reference: &str, digest: &str, timeout: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + timeout;
    let mut line = Line::new();
    let result = loop {
        let request = WatchImageRequest { image: reference.to_owned(), digest: digest.to_owned() };
        let watch = async {
            let mut stream = client
                .control(|mut control| {
                    let request = request.clone();
                    async move { control.watch_image(request).await }
                })
                .await?;
            while let Some(progress) = stream.message().await.map_err(|status| anyhow::Error::new(Failed(status)))? {
                if progress.wanted > 0 {
                    let holders = progress.holders.min(progress.wanted);
                    line.show(format!("{reference}: on {holders} of {} nodes", progress.wanted));
                }
                if progress.converged {
                    return Ok(());
                }
            }
            bail!(Failed(tonic::Status::unavailable("the manager ended the stream")))
        };
        match tokio::time::timeout_at(until, watch).await {
            Ok(Err(error)) if passing(&error) && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(result) => break result,
            Err(_) => break Err(anyhow::anyhow!("the image {reference} is not on enough nodes after {timeout:?}")),
        }
    };
    line.end();
    result
}
