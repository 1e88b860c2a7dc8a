//! `ctl system …` manages this machine.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use flota_api::proto::control::Empty;
use flota_api::proto::node::{LogStatistics, NodeInfo, StopTasksRequest};
use flota_api::proto::types::Role;

use crate::client::{Client, failure};
use crate::printer::{self, Format, line};

/// Longest wait for the cluster's settings from the leader. Without an answer, what the node itself knows is still printed.
const CLUSTER_WAIT: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(crate) enum System {
    /// Print this node, and statistics of its manager's store
    Info {
        /// Format to print: table (lines for people) or json (an object)
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Stop every task on this machine before it goes down (called by systemd)
    StopTasks,
}

pub(crate) async fn run(verb: System, client: &Client) -> anyhow::Result<()> {
    match verb {
        System::Info { format } => {
            let info = client.info().await?;
            let limit = task_history_limit(client, &info).await;
            match format {
                Format::Table => {
                    lines(&info).iter().for_each(|it| line(it));
                    limit.iter().for_each(|limit| line(&format!("task history limit: {limit}")));
                }
                Format::Json => {
                    let mut object = object(&info);
                    limit.iter().for_each(|limit| object["taskHistoryLimit"] = json!(limit));
                    printer::json(&object);
                }
            }
        }
        System::StopTasks => drop(client.node().await?.stop_tasks(StopTasksRequest {}).await.map_err(failure)?),
    }
    Ok(())
}

/// Returns how many tasks of each slot the cluster keeps; `None` if this node is not a manager, or no leader answers.
async fn task_history_limit(client: &Client, info: &NodeInfo) -> Option<u64> {
    info.store.as_ref()?;
    let cluster = client.read(Empty {}, |mut control, request| async move { control.get_cluster(request).await });
    Some(tokio::time::timeout(CLUSTER_WAIT, cluster).await.ok()?.ok()?.task_history_limit)
}

fn role(info: &NodeInfo) -> &'static str {
    if info.role == i32::from(Role::Manager) { "manager" } else { "worker" }
}

fn lines(info: &NodeInfo) -> Vec<String> {
    let mut lines = vec![format!("hostname: {}", info.hostname), format!("version: {}", info.version)];
    if info.locked {
        lines.push("cluster: this manager is locked (`ctl swarm unlock`)".into());
        return lines;
    }
    if info.cluster_id.is_empty() {
        lines.push("cluster: none (`ctl swarm init` or `ctl swarm join`)".into());
        return lines;
    }
    lines.push(format!("cluster: {}", info.cluster_id));
    lines.push(format!("node: {} ({})", info.node_id, role(info)));
    lines.push(format!("address: {}", info.address));
    let Some(store) = &info.store else { return lines };
    lines.push(format!("applied index: {}", store.applied_index));
    if !store.tables_digest.is_empty() {
        lines.push(format!("tables digest: {}", store.tables_digest));
    }
    if let Some(log) = &store.log {
        let LogStatistics { syncs, entries_synced, bytes_synced, sync_total_us, sync_max_us } = log;
        lines.push(format!("log: {entries_synced} entries of {bytes_synced} bytes in {syncs} syncs"));
        let mean = sync_total_us.checked_div(*syncs).unwrap_or(0);
        lines.push(format!("log sync: {mean} us on average, {sync_max_us} us at most"));
    }
    lines
}

/// Returns the node's description as JSON, without the values that are unknown.
fn object(info: &NodeInfo) -> Value {
    let mut object = json!({ "hostname": info.hostname, "version": info.version });
    if info.locked {
        object["locked"] = json!(true);
    }
    if !info.cluster_id.is_empty() {
        object["clusterId"] = json!(info.cluster_id);
        object["nodeId"] = json!(info.node_id);
        object["role"] = json!(role(info));
        object["address"] = json!(info.address);
    }
    let Some(store) = &info.store else { return object };
    object["appliedIndex"] = json!(store.applied_index);
    if !store.tables_digest.is_empty() {
        object["tablesDigest"] = json!(store.tables_digest);
    }
    if let Some(log) = &store.log {
        object["log"] = json!({
            "syncs": log.syncs, "entriesSynced": log.entries_synced, "bytesSynced": log.bytes_synced,
            "syncTotalUs": log.sync_total_us, "syncMaxUs": log.sync_max_us,
        });
    }
    object
}

#[cfg(test)]
mod tests {
    use flota_api::proto::node::StoreStatistics;

    use super::*;

    #[test]
    fn a_node_without_a_cluster_shows_nothing_of_one() {
        let info = NodeInfo { hostname: "a".into(), version: "1".into(), ..NodeInfo::default() };
        assert_eq!(object(&info), json!({ "hostname": "a", "version": "1" }));
        assert_eq!(
            lines(&info).last().map(String::as_str),
            Some("cluster: none (`ctl swarm init` or `ctl swarm join`)")
        );
    }

    #[test]
    fn a_manager_shows_its_store_as_far_as_it_is_known() {
        let log =
            LogStatistics { syncs: 2, entries_synced: 5, bytes_synced: 700, sync_total_us: 500, sync_max_us: 400 };
        let mut store = StoreStatistics { applied_index: 9, tables_digest: "ab".into(), log: Some(log) };
        let info = |store| NodeInfo { cluster_id: "c".into(), store: Some(store), ..NodeInfo::default() };
        let shown = object(&info(store.clone()));
        assert_eq!((&shown["appliedIndex"], &shown["tablesDigest"]), (&json!(9), &json!("ab")));
        let log = json!({ "syncs": 2, "entriesSynced": 5, "bytesSynced": 700, "syncTotalUs": 500, "syncMaxUs": 400 });
        assert_eq!(shown["log"], log);
        assert_eq!(
            lines(&info(store.clone())).last().map(String::as_str),
            Some("log sync: 250 us on average, 400 us at most")
        );
        (store.tables_digest, store.log) = (String::new(), None);
        assert_eq!(lines(&info(store.clone())).last().map(String::as_str), Some("applied index: 9"));
        assert!(object(&info(store)).get("tablesDigest").is_none());
    }
}
