//! Waits until a service or an image is as its spec asks, and shows the progress: on a terminal one line that changes,
//! elsewhere one line for each change.

mod service;

use std::collections::BTreeSet;
use std::future::Future;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::Duration;

use flota_api::proto::control::WatchImageRequest;
use flota_api::text::printable;
use tokio::time::Instant;

use crate::client::Client;
use crate::error::{Interrupted, is_unreachable};

pub(crate) use service::{Awaited, service, services};

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
struct ProgressLine {
    terminal: bool,
    last: String,
    /// The notes that were printed, by their reasons.
    noted: BTreeSet<String>,
}

impl ProgressLine {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), last: String::new(), noted: BTreeSet::new() }
    }

    fn show(&mut self, text: String) {
        if text == self.last {
            return;
        }
        let mut out = std::io::stderr();
        let text = printable(&text).into_owned();
        let _ = if self.terminal { write!(out, "\r\x1b[K{text}") } else { writeln!(out, "{text}") };
        let _ = out.flush();
        self.last = text;
    }

    /// Prints a text above the line, once for each reason.
    fn note(&mut self, reason: &str, text: &str) {
        if self.noted.insert(reason.to_owned()) {
            let clear = if self.terminal { "\r\x1b[K" } else { "" };
            let _ = writeln!(std::io::stderr(), "{clear}{}", printable(text));
            self.last.clear();
        }
    }

    fn end(self) {
        if self.terminal && !self.last.is_empty() {
            let _ = writeln!(std::io::stderr());
        }
    }
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
    let mut line = ProgressLine::new();
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

/// Waits until enough nodes hold the image.
pub(crate) async fn image(client: &Client, reference: &str, digest: &str, timeout: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + timeout;
    let mut line = ProgressLine::new();
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
