//! `ctl service logs` and `ctl task logs`.

use clap::Args;

use flota_api::proto::streams::LogsRequest;
use flota_api::proto::streams::frame::Frame as F;
use flota_api::version::Timestamp;

use crate::client::{Client, failure};
use crate::printer;

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Service or task
    name: String,
    /// Go on as it is written
    #[arg(short, long)]
    follow: bool,
    /// Only so many lines of each task, from the end
    #[arg(short = 'n', long)]
    tail: Option<u64>,
    /// When each line was written
    #[arg(short, long)]
    timestamps: bool,
    /// Lines alone, without the task's name
    #[arg(long)]
    raw: bool,
}

pub(crate) async fn run(logs: Logs, service: bool, client: &Client) -> anyhow::Result<()> {
    let (service, task) = if service { (logs.name.clone(), String::new()) } else { (String::new(), logs.name.clone()) };
    let request =
        LogsRequest { task, service, follow: logs.follow, tail: logs.tail.unwrap_or(0), tail_set: logs.tail.is_some() };
    let (sender, mut answers) = client.stream(F::Logs(request)).await?;
    let mut missing = 0;
    while let Some(frame) = answers.message().await.map_err(failure)? {
        match frame.frame {
            Some(F::Log(line)) => {
                let mut out = Vec::new();
                if logs.timestamps {
                    out.extend_from_slice(format!("{} ", Timestamp(line.at)).as_bytes());
                }
                if !logs.raw {
                    out.extend_from_slice(format!("{}@{} | ", line.task_name, line.node_name).as_bytes());
                }
                out.extend_from_slice(&line.line);
                out.push(b'\n');
                printer::bytes(line.stream, &out);
            }
            Some(F::Error(error)) => {
                missing += 1;
                printer::say(&format!("warning: {error}"));
            }
            _ => {}
        }
    }
    drop(sender);
    anyhow::ensure!(missing == 0, "the logs of {missing} tasks could not be read");
    Ok(())
}
