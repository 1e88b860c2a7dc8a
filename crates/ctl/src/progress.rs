//! Waits until a service or an image is as its spec asks, and shows the progress: on a terminal one line that changes,
//! elsewhere one line for each change.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::bail;
use flota_api::proto::control::{HangingTask, ServiceProgress, WatchImageRequest, WatchServiceRequest};
use flota_api::text::printable;
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
    let (mut line, mut last) = (ProgressLine::new(), ServiceProgress::default());
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

fn show_service(name: &str, progress: &ServiceProgress, line: &mut ProgressLine) -> anyhow::Result<ControlFlow<()>> {
    if progress.removed {
        line.show(format!("{name}: removed"));
        return Ok(ControlFlow::Break(()));
    }
    if let Some(reason) = progress.update.as_ref().and_then(|it| it.reason.as_ref()).filter(|_| progress.update.as_ref().is_some_and(|it| it.phase == 2)) {
        bail!("service {name}: the update is paused: {reason}");
    }
    // A known obstacle is reported at once. The wait continues, because the obstacle may be removed.
    for (reason, text) in grouped(progress.hanging.iter().filter(|task| task.stuck)) {
        line.note(&reason, &text);
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

fn hangs(name: &str, last: &ServiceProgress, timeout: Duration) -> anyhow::Error {
    let waited = timeout.as_secs_f64();
    let what = match (last.desired, last.outdated) {
        (0, _) => format!("{} tasks are left", last.running),
        (desired, 0) => format!("{} of {desired} tasks run", last.running),
        (desired, left) => {
            format!("the update is not done: {} of {desired} tasks run, {left} are still to be replaced", last.running)
        }
    };
    let reasons: String = grouped(last.hanging.iter()).map(|(_, it)| format!("\n  {}", printable(&it))).collect();
    anyhow::anyhow!("service {name}: {what} after {waited:.0} s{reasons}")
}

/// Returns a text for all tasks that are in one state for one reason, with the reason, such as
/// `web.1 and 2 more are pending: no node fits`.
fn grouped<'a>(hanging: impl Iterator<Item = &'a HangingTask>) -> impl Iterator<Item = (String, String)> {
    let mut groups: BTreeMap<(&str, &str), (&str, usize)> = BTreeMap::new();
    for task in hanging {
        groups.entry((&task.state, &task.reason)).or_insert((&task.name, 0)).1 += 1;
    }
    let text = |((state, reason), (first, count)): ((&str, &str), (&str, usize))| {
        let tasks = match count {
            1 => format!("{first} is {state}"),
            _ => format!("{first} and {} more are {state}", count - 1),
        };
        let text = if reason.is_empty() { tasks } else { format!("{tasks}: {reason}") };
        (reason.to_owned(), text)
    };
    groups.into_iter().map(text).collect::<Vec<_>>().into_iter()
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

    fn hanging(name: &str, reason: &str, stuck: bool) -> HangingTask {
        HangingTask { name: name.into(), state: "pending".into(), reason: reason.into(), stuck }
    }

    #[test]
    fn what_is_in_the_way_is_said_once_and_the_wait_goes_on() {
        let mut line = ProgressLine { terminal: false, last: String::new(), noted: BTreeSet::new() };
        let tasks = [hanging("web.1", "no node fits", true), hanging("web.2", "pulling", false)];
        let progress = ServiceProgress { desired: 2, hanging: tasks.into(), ..ServiceProgress::default() };
        for _ in 0..2 {
            assert!(show_service("web", &progress, &mut line).expect("no error").is_continue());
            assert_eq!(line.noted, BTreeSet::from(["no node fits".to_owned()]));
        }
    }

    #[test]
    fn a_wait_that_takes_too_long_says_what_it_waited_for() {
        let timeout = Duration::from_secs(300);
        let text = |progress: &ServiceProgress| hangs("web", progress, timeout).to_string();
        let tasks = ["web.1", "web.2"].map(|name| hanging(name, "no node fits\x1b[2J", true));
        let mut progress = ServiceProgress { running: 1, desired: 3, hanging: tasks.into(), ..Default::default() };
        let reasons = "\n  web.1 and 1 more are pending: no node fits\\u001b[2J";
        assert_eq!(text(&progress), format!("service web: 1 of 3 tasks run after 300 s{reasons}"));
        progress.outdated = 2;
        progress.hanging = vec![HangingTask { state: "ready".into(), ..hanging("web.1", "it is next", false) }];
        let update = "the update is not done: 1 of 3 tasks run, 2 are still to be replaced";
        assert_eq!(text(&progress), format!("service web: {update} after 300 s\n  web.1 is ready: it is next"));
        let removed = ServiceProgress { running: 2, ..ServiceProgress::default() };
        assert_eq!(text(&removed), "service web: 2 tasks are left after 300 s");
    }

    #[tokio::test]
    async fn ctrl_c_ends_the_waiting_at_once_with_130() {
        let interrupted = interruptible(pending(), ready(())).await.expect_err("it is interrupted");
        assert_eq!(crate::error::code(&interrupted), 130);
        interruptible(ready(Ok(())), pending::<()>()).await.expect("the work has ended by itself");
    }
}
