//! The check of a network: every node with a running task in it reports what its balancer has, and probes the ways to the
//! others. The leader asks each over a stream of one of its tasks, and waits for none of them for long.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};

use flota_api::id::NodeId;
use flota_api::model::{
    LayerFailure, Network, NetworkCheck, NetworkDriver, NetworkLayer, NetworkReport, NodeState, PeerReport, StreamKind,
    Task, TaskFrame,
};
use flota_api::state::TaskState;
use flota_raft_store::Tables;

use super::super::error::ControlError;
use super::super::reference::resolve;
use super::super::{Control, Member};
use crate::streams::StreamBroker;

/// How long a node has to report. Its probes take less.
const REPORT_WAIT: Duration = Duration::from_secs(8);
/// Number of nodes that are asked at a time.
const AT_ONCE: usize = 64;

/// The result of asking a node for its report.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CheckedNode {
    /// The node.
    pub(crate) id: NodeId,
    /// Its hostname.
    pub(crate) hostname: String,
    /// The report, or why there is none.
    pub(crate) outcome: Result<NetworkReport, String>,
}

/// A node with running tasks in a network.
#[derive(Debug)]
struct Host {
    id: NodeId,
    hostname: String,
    is_down: bool,
    /// One of the tasks.
    task: Arc<Task>,
    /// Whether connections are sent to one of them.
    is_serving: bool,
}

impl<M: Member> Control<M> {
    /// Asks every node with a running task in the network for a report.
    pub(crate) async fn check_network(&self, reference: &str, probe: bool) -> Result<Vec<CheckedNode>, ControlError> {
        let view = self.proven_view().await?;
        let network = Arc::clone(resolve::<Network>(&view, reference)?);
        let check = NetworkCheck { network: network.id.clone(), probe };
        let hosts = hosts(&network, &view);
        let ask = |host: &Host| {
            let (broker, view, check) = (self.streams.clone(), view.clone(), check.clone());
            let (id, hostname, is_down, task) =
                (host.id.clone(), host.hostname.clone(), host.is_down, Arc::clone(&host.task));
            async move {
                let down = || Err("the node is down".to_owned());
                let outcome = if is_down { down() } else { report(&broker, &task, &view, check).await };
                CheckedNode { id, hostname, outcome }
            }
        };
        let asked: Vec<_> = hosts.iter().map(ask).collect();
        let mut nodes: Vec<CheckedNode> = stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
        if probe && network.spec.driver == NetworkDriver::Overlay {
            add_unknown(&mut nodes, &hosts);
        }
        nodes.sort_by(|left, right| left.hostname.cmp(&right.hostname));
        Ok(nodes)
    }
}

/// Returns the nodes with running tasks in the network.
fn hosts(network: &Network, view: &Tables) -> Vec<Host> {
    let mut hosts: BTreeMap<&NodeId, Host> = BTreeMap::new();
    for task in view.tasks_of_network(&network.id).filter(|task| task.status.state == TaskState::Running) {
        let Some(node) = view.node_of(task) else { continue };
        let host = hosts.entry(&node.id).or_insert_with(|| Host {
            id: node.id.clone(),
            hostname: node.description.hostname.clone(),
            is_down: node.state == NodeState::Down,
            task: Arc::clone(task),
            is_serving: false,
        });
        host.is_serving |= task.is_serving() && !host.is_down;
    }
    hosts.into_values().collect()
}

async fn report(
    broker: &StreamBroker,
    task: &Task,
    view: &Tables,
    check: NetworkCheck,
) -> Result<NetworkReport, String> {
    let mut worker = broker.open(task, view, StreamKind::Check(check)).await.map_err(|error| error.to_string())?;
    match tokio::time::timeout(REPORT_WAIT, worker.inbox.next()).await {
        Ok(Some(Ok(TaskFrame::Checked(report)))) => Ok(report),
        Ok(Some(Ok(TaskFrame::Error(why)))) => Err(why),
        Ok(Some(Err(broken))) => Err(broken.to_string()),
        Ok(_) => Err("the node has closed the stream".into()),
        Err(_) => Err("the node did not report in time".into()),
    }
}

/// Adds to each report the nodes that it should name and does not: their tasks are not known there.
fn add_unknown(nodes: &mut [CheckedNode], hosts: &[Host]) {
    for node in nodes {
        // A report that leaves nodes out because they are too many says so.
        let Ok(report) = &mut node.outcome else { continue };
        if report.unprobed > 0 {
            continue;
        }
        for host in hosts.iter().filter(|host| host.is_serving && host.id != node.id) {
            if report.peers.iter().any(|peer| peer.node == host.id) {
                continue;
            }
            let why = "no task is known there".to_owned();
            let failures = vec![LayerFailure { layer: NetworkLayer::Vxlan, why }];
            report.peers.push(PeerReport { node: host.id.clone(), round_trip: None, failures });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{Attachment, Node, NodeDescription, TaskStatus};
    use flota_api::object::StoreObject;
    use flota_api::state::DesiredState;

    fn host(id: &str, is_serving: bool) -> Host {
        Host { id: id.into(), hostname: id.into(), is_down: false, task: Arc::default(), is_serving }
    }

    fn checked(id: &str, peers: &[&str], unprobed: u32) -> CheckedNode {
        let peer = |it: &&str| PeerReport { node: (*it).into(), round_trip: None, failures: Vec::new() };
        let report = NetworkReport { peers: peers.iter().map(peer).collect(), unprobed, ..NetworkReport::default() };
        CheckedNode { id: id.into(), hostname: id.into(), outcome: Ok(report) }
    }

    #[test]
    fn a_node_that_does_not_know_of_the_tasks_of_another_is_named() {
        let hosts = [host("a", true), host("b", true), host("c", false)];
        let failing = |mut node: CheckedNode| {
            add_unknown(std::slice::from_mut(&mut node), &hosts);
            let peers = node.outcome.expect("it has reported").peers;
            let failing = peers.into_iter().filter(|it| !it.failures.is_empty());
            failing.map(|it| it.node.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(failing(checked("a", &["b"], 0)), Vec::<String>::new());
        assert_eq!(failing(checked("a", &[], 0)), ["b"], "nothing is sent to `c`");
        assert_eq!(failing(checked("c", &["a"], 0)), ["b"]);
        assert_eq!(failing(checked("c", &["a"], 1)), Vec::<String>::new(), "it says itself that it leaves nodes out");
    }

    #[test]
    fn nodes_with_running_tasks_are_asked() {
        let mut view = Tables::default();
        for (id, state) in [("n1", NodeState::Ready), ("n2", NodeState::Down), ("n3", NodeState::Ready)] {
            let description = NodeDescription { hostname: id.into(), ..NodeDescription::default() };
            view.put(Node { id: id.into(), state, description, ..Node::default() }.into_object());
        }
        let tasks =
            [("t1", "n1", TaskState::Running), ("t2", "n2", TaskState::Running), ("t3", "n3", TaskState::Ready)];
        for (id, node, state) in tasks {
            let attachments = vec![Attachment { network: "net".into(), addresses: vec![[10, 0, 0, 2].into()] }];
            let status = TaskStatus { state, ..TaskStatus::default() };
            let desired_state = DesiredState::Running;
            let node_id = Some(node.into());
            let task = Task { id: id.into(), node_id, attachments, status, desired_state, ..Task::default() };
            view.put(task.into_object());
        }
        let network = Network { id: "net".into(), ..Network::default() };
        let found: Vec<_> =
            hosts(&network, &view).into_iter().map(|it| (it.hostname, it.is_down, it.is_serving)).collect();
        assert_eq!(found, [("n1".to_owned(), false, true), ("n2".to_owned(), true, false)]);
    }
}
