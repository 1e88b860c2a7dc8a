//! `ctl node rebalance` moves tasks from nodes with many tasks to nodes with few.

use std::cell::Cell;

use flota_api::defaults::REBALANCE_LIMIT;
use flota_api::proto::control::{ClusterInfo, Empty, RebalanceRequest};
use flota_api::proto::objects::Rebalance;

use crate::client::{Client, request_id};
use crate::printer;
use crate::progress::{self, WaitOptions};

/// Begins a rebalance and waits until it has ended.
pub(super) async fn run(client: &Client, wait: &WaitOptions) -> anyhow::Result<()> {
    let request = RebalanceRequest { request_id: request_id() };
    let begun = client.change(request, |mut control, request| async move { control.rebalance(request).await }).await?;
    let last = Cell::new(rebalance_of(&begun)?);
    progress::until(wait, "rebalance", || async {
        let read = client.read(Empty {}, |mut control, request| async move { control.get_cluster(request).await });
        last.set(rebalance_of(&read.await?)?);
        let told = last.get();
        Ok(told.ended_at.is_none().then(|| moved(told.moved, "been told to move")))
    })
    .await?;
    let Rebalance { moved: tasks, begun_at, ended_at } = last.get();
    let limit = u64::try_from(REBALANCE_LIMIT.as_millis()).unwrap_or(u64::MAX);
    match ended_at {
        Some(ended_at) if tasks == 0 && ended_at.saturating_sub(begun_at) >= limit => {
            anyhow::bail!("no task was moved within an hour: updates and other moves were under way all the time")
        }
        Some(_) if tasks == 0 => printer::line("Nothing to move: no node has too many tasks."),
        Some(_) => printer::line(&format!("{}.", moved(tasks, "moved"))),
        None => printer::line("Tasks move."),
    }
    Ok(())
}

fn rebalance_of(info: &ClusterInfo) -> anyhow::Result<Rebalance> {
    info.rebalance.ok_or_else(|| anyhow::anyhow!("the manager's answer lacks the rebalance: it is of an older version"))
}

fn moved(tasks: u64, what: &str) -> String {
    if tasks == 1 { format!("1 task has {what}") } else { format!("{tasks} tasks have {what}") }
}
