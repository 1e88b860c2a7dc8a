//! `ctl system …`: this machine.

use clap::Subcommand;

use flota_api::proto::node::{InfoRequest, StopTasksRequest};
use flota_api::proto::types::Role;

use crate::client::{Client, failure};
use crate::printer::line;

#[derive(Debug, Subcommand)]
pub(crate) enum System {
    /// What this node is
    Info,
    /// Stop every task here, as the machine goes down (called by systemd)
    StopTasks,
}

pub(crate) async fn run(verb: System, client: &Client) -> anyhow::Result<()> {
    let mut node = client.node().await?;
    match verb {
        System::Info => {
            let info = node.info(InfoRequest {}).await.map_err(failure)?.into_inner();
            let role = if info.role == i32::from(Role::Manager) { "manager" } else { "worker" };
            line(&format!("hostname: {}\nversion: {}", info.hostname, info.version));
            match info.cluster_id.as_str() {
                "" => line("cluster: none (`ctl swarm init` or `ctl swarm join`)"),
                id => line(&format!("cluster: {id}\nnode: {} ({role})\naddress: {}", info.node_id, info.address)),
            }
        }
        System::StopTasks => drop(node.stop_tasks(StopTasksRequest {}).await.map_err(failure)?),
    }
    Ok(())
}
