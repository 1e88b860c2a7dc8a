//! Waits until a service or an image is as its spec asks, and shows the progress: on a terminal one line that changes,
//! elsewhere one line for each change.

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::bail;
use flota_api::proto::control::{ServiceProgress, WatchImageRequest, WatchServiceRequest};
use tokio::time::Instant;

use crate::client::Client;
use crate::error::{Interrupted, is_unreachable};

/// The flags of commands that wait for a change to take effect.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WaitOptions {
    /// Return at once, without waiting for the change
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Longest time to wait
    #[arg(long, default_value = "5m", value_parser = crate::parse::duration)]
    pub(crate) timeout: std::time::Duration,
}

/// A line that is overwritten when it changes.
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

/// Waits until the service matches its spec or, if it was removed, until all its tasks are gone.
pub(crate) async fn service(client: &Client, id: &str, name: &str, wait: &WaitOptions) -> anyhow::Result<()> {
    if wait.detach {
        return Ok(());
    }
    interruptible(wait_for_service(client, id, name, wait), tokio::signal::ctrl_c()).await
}

/// Waits for `work`. Ctrl-C ends only the wait.
async fn interruptible<I>(
    work: impl Future<Output = anyhow::Result<()>>,
    interrupt: impl Future<Output = I>,
) -> anyhow::Result<()> {
    tokio::select! {
        result = work => result,
        _ = interrupt => Err(Interrupted.into()),
    }
}

async fn wait_for_service(client: &Client, id: &str, name: &str, wait: &WaitOptions) -> anyhow::Result<()> {
    let until = Instant::now() + wait.timeout;
    let (mut line, mut last) = (Line::new(), ServiceProgress::default());
    let watch = client.watch(
        WatchServiceRequest { service: id.to_owned() },
        |mut control, request| async move { control.watch_service(request).await },
        |progress| {
            last = progress;
            show_service(name, &last, &mut line)
        },
    );
    let ended = tokio::time::timeout_at(until, watch).await;
    line.end();
    ended.unwrap_or_else(|_| Err(hangs(name, &last, wait.timeout)))
}

fn show_service(name: &str, progress: &ServiceProgress, line: &mut Line) -> anyhow::Result<ControlFlow<()>> {
    if progress.removed {
        line.show(format!("{name}: removed"));
        return Ok(ControlFlow::Break(()));
    }
    if !progress.update_paused.is_empty() {
        bail!("service {name}: the update is paused: {}", progress.update_paused);
    }
    // A service that was removed has no desired number of tasks.
    line.show(match progress.desired {
        0 if progress.running > 0 => format!("{name}: {} tasks are left", progress.running),
        desired => format!("{name}: {}/{desired} running", progress.running),
    });
    Ok(if progress.converged { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
}

/// Waits for all services, given as id and name, within one timeout.
pub(crate) async fn services(client: &Client, all: &[(String, String)], wait: &WaitOptions) -> anyhow::Result<()> {
    let until = Instant::now() + wait.timeout;
    for (id, name) in all {
        let timeout = until.saturating_duration_since(Instant::now());
        service(client, id, name, &WaitOptions { timeout, detach: wait.detach }).await?;
    }
    Ok(())
}

/// Waits until `left` returns `None`. After the timeout, the error begins with `what`.
pub(crate) async fn until<F: Future<Output = anyhow::Result<Option<String>>>>(
    wait: &WaitOptions,
    what: &str,
    left: impl Fn() -> F,
) -> anyhow::Result<()> {
    if wait.detach {
        return Ok(());
    }
    interruptible(wait_until(wait, what, left), tokio::signal::ctrl_c()).await
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
            Err(error) if is_unreachable(&error) && Instant::now() < until => {}
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

/// Waits until enough nodes hold the image.
pub(crate) async fn image(client: &Client, reference: &str, digest: &str, timeout: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + timeout;
    let mut line = Line::new();
    let watch = client.watch(
        WatchImageRequest { image: reference.to_owned(), digest: digest.to_owned() },
        |mut control, request| async move { control.watch_image(request).await },
        |progress| {
            if progress.wanted > 0 {
                let holders = progress.holders.min(progress.wanted);
                line.show(format!("{reference}: on {holders} of {} nodes", progress.wanted));
            }
            Ok(if progress.converged { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        },
    );
    let ended = tokio::time::timeout_at(until, watch).await;
    line.end();
    ended.unwrap_or_else(|_| Err(anyhow::anyhow!("the image {reference} is not on enough nodes after {timeout:?}")))
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn ctrl_c_ends_the_waiting_at_once_with_130() {
        let interrupted = interruptible(pending(), ready(())).await.expect_err("it is interrupted");
        assert_eq!(crate::error::code(&interrupted), 130);
        interruptible(ready(Ok(())), pending::<()>()).await.expect("the work has ended by itself");
    }
}
