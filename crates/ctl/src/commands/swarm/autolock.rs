//! `ctl swarm unlock` and `ctl swarm unlock-key`: managers whose keys on disk are sealed.

use std::io::{BufRead, Read, Write};

use anyhow::{Context, bail};
use clap::Args;
use tokio::sync::oneshot;

use flota_api::proto::control::{Empty, RotateUnlockKeyRequest};
use flota_api::proto::node::UnlockRequest;
use flota_api::reason::Reason;
use flota_identity::UnlockKey;

use crate::client::{Client, failure, request_id};
use crate::error::{Refused, Usage};
use crate::printer::line;
use crate::terminal;

/// Longest line that is read as a key, in bytes.
const LINE_BOUND: u64 = 4096;

#[derive(Debug, Args)]
pub(crate) struct UnlockKeyFlags {
    /// Make a new key; managers that do not run now have to be opened with the old one
    #[arg(long)]
    rotate: bool,
    /// Print only the key
    #[arg(short, long)]
    quiet: bool,
}

/// Opens the keys of this manager with the key on standard input.
pub(super) async fn unlock(client: &Client) -> anyhow::Result<()> {
    let text = read_key().await.context("failed to read the unlock key")?;
    let key: UnlockKey = text.parse().map_err(|error| Usage(format!("{error}")))?;
    let request = UnlockRequest { unlock_key: key.to_string() };
    let node = client.node().await?.unlock(request).await.map_err(failure).context("failed to unlock")?;
    line(&format!("This manager ({}) is unlocked.", node.into_inner().node_id));
    Ok(())
}

/// Reads one line. What is typed at a terminal is not shown, and shown again after Ctrl-C.
async fn read_key() -> anyhow::Result<String> {
    let hidden = terminal::Changed::without_echo();
    if hidden.is_some() {
        let mut prompt = std::io::stderr();
        prompt.write_all(b"Unlock key: ").and_then(|()| prompt.flush())?;
    }
    let (sender, line) = oneshot::channel();
    // Nobody waits for this thread: perhaps nothing is ever typed.
    std::thread::spawn(move || sender.send(read_line()));
    let text = tokio::select! {
        text = line => text?,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    };
    if hidden.is_some() {
        std::io::stderr().write_all(b"\n")?;
    }
    Ok(text?)
}

fn read_line() -> std::io::Result<String> {
    let mut text = String::new();
    std::io::stdin().lock().take(LINE_BOUND).read_line(&mut text)?;
    Ok(text)
}

/// Prints the unlock key, which is a new one if that was asked for.
pub(super) async fn unlock_key(client: &Client, flags: &UnlockKeyFlags) -> anyhow::Result<()> {
    let key = if flags.rotate {
        let request = RotateUnlockKeyRequest { request_id: request_id() };
        client.change(request, |mut control, request| async move { control.rotate_unlock_key(request).await }).await?
    } else {
        client.read(Empty {}, |mut control, request| async move { control.get_unlock_key(request).await }).await?
    };
    if key.unlock_key.is_empty() {
        let text = "autolock is off, so there is no unlock key; `ctl swarm update --autolock` switches it on";
        return Err(Refused { reason: Reason::WrongState, text: text.into() }.into());
    }
    if flags.quiet {
        line(&key.unlock_key);
    } else {
        explain(&key.unlock_key);
    }
    Ok(())
}

/// Prints what is to be done with the key after autolock was switched on, if it is on.
pub(super) async fn explain_new(client: &Client) -> anyhow::Result<()> {
    let key =
        client.read(Empty {}, |mut control, request| async move { control.get_unlock_key(request).await }).await?;
    if !key.unlock_key.is_empty() {
        explain(&key.unlock_key);
    }
    Ok(())
}

fn explain(key: &str) {
    line("A manager that has started is locked until it gets this key:\n");
    line(&format!("    {key}\n"));
    line(
        "Run `ctl swarm unlock` there, and enter it. Keep it in a safe place outside of the cluster: without it, managers",
    );
    line(
        "that are all off at once can't be started again. `ctl swarm unlock-key` prints it as long as one of them runs.",
    );
}
