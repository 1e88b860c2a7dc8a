//! `ctl exec` runs a command in a task, on any node.

use clap::Args;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use flota_api::proto::streams::frame::Frame as F;
use flota_api::proto::streams::{ExecRequest, Frame, Resize};

use crate::client::{Client, failure};
use crate::commands::env_flags;
use crate::{printer, terminal};

/// Exit code if the command was not started and the node does not say why, as in Docker.
const CANNOT_RUN: i32 = 125;

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Task, SERVICE.SLOT, or service (for its first task that runs)
    task: String,
    /// Send standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// User to run as (default: the task's)
    #[arg(short, long, default_value = "", hide_default_value = true)]
    user: String,
    /// Folder to run in (default: the task's)
    #[arg(short, long, default_value = "", hide_default_value = true)]
    workdir: String,
    /// Variable to set, NAME=value; NAME alone takes the shell's, or removes the task's if the shell has none; may be
    /// repeated
    #[arg(short, long)]
    env: Vec<String>,
    /// Command with its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

pub(crate) async fn run(exec: Exec, client: &Client) -> anyhow::Result<u8> {
    if exec.tty && exec.interactive && !terminal::is_there() {
        anyhow::bail!(crate::error::Usage("-t with -i needs a terminal as standard input".into()));
    }
    let (rows, columns) = terminal::size();
    let request = ExecRequest {
        task: exec.task,
        command: exec.command,
        tty: exec.tty,
        stdin: exec.interactive,
        user: exec.user,
        working_dir: exec.workdir,
        env: exec.env.into_iter().map(|it| env_flags::with_value(it, &|name| std::env::var(name).ok())).collect(),
        rows,
        columns,
    };
    let (sender, mut answers) = client.stream(F::Exec(request)).await?;
    let raw = if exec.tty && exec.interactive { terminal::Changed::raw() } else { None };
    if exec.interactive {
        tokio::spawn(send_input(sender.clone()));
    }
    if exec.tty {
        tokio::spawn(send_sizes(sender.clone()));
    }
    let (mut code, mut failed) = (None, None);
    while let Some(frame) = answers.message().await.map_err(failure)? {
        match frame.frame {
            Some(F::Stdout(bytes)) => printer::bytes(1, &bytes),
            Some(F::Stderr(bytes)) => printer::bytes(2, &bytes),
            Some(F::ExitCode(value)) => code = Some(value),
            Some(F::Error(error)) => failed = Some(error),
            _ => {}
        }
    }
    drop((raw, sender));
    if let Some(error) = failed {
        printer::message(&format!("error: failed to run it: {error}"));
        code = code.or(Some(CANNOT_RUN));
    }
    let code = code.ok_or_else(|| anyhow::anyhow!("the task ended, or its node went away"))?;
    Ok(u8::try_from(code & 0xff).unwrap_or(1))
}

async fn send_input(frames: tokio::sync::mpsc::Sender<Frame>) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; 32 << 10];
    loop {
        let frame = match stdin.read(&mut buffer).await {
            Ok(0) | Err(_) => F::StdinClosed(true),
            Ok(count) => F::Stdin(buffer[..count].to_vec().into()),
        };
        let closed = matches!(frame, F::StdinClosed(_));
        if frames.send(Frame { frame: Some(frame) }).await.is_err() || closed {
            return;
        }
    }
}

async fn send_sizes(frames: tokio::sync::mpsc::Sender<Frame>) {
    let Ok(mut changed) = signal(SignalKind::window_change()) else { return };
    while changed.recv().await.is_some() {
        let (rows, columns) = terminal::size();
        if frames.send(Frame { frame: Some(F::Resize(Resize { rows, columns })) }).await.is_err() {
            return;
        }
    }
}
