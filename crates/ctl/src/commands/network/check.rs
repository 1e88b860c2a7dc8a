//! `ctl network check` probes the ways between the nodes of a network, and `ctl network inspect` shows what their balancers
//! have: both are reports of the nodes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use flota_api::proto::control::{CheckNetworkRequest, CheckedNetwork};
use flota_api::proto::streams::{LayerFailure, NetworkReport, PeerReport};

use crate::client::Client;
use crate::printer::{self, Format, RowOptions};

/// Asks the nodes of a network for their reports.
async fn ask(client: &Client, name: String, probe: bool) -> anyhow::Result<CheckedNetwork> {
    let request = CheckNetworkRequest { name, probe };
    // It changes nothing, but a node that does not answer takes as long as a change may.
    client.change(request, |mut control, request| async move { control.check_network(request).await }).await
}

/// Prints a row for each pair of nodes, and fails if something fails between any.
pub(super) async fn check(client: &Client, name: String, format: Format) -> anyhow::Result<()> {
    let checked = ask(client, name.clone(), true).await?;
    let rows = rows(checked);
    let (count, failing) = (rows.len(), rows.iter().filter(|row| !row.failures.is_empty()).count());
    let printed = rows.into_iter().map(CheckRow::print).collect();
    let options = RowOptions { format, no_trunc: true, ..RowOptions::default() };
    printer::rows(&options, &["FROM", "TO", "ROUND TRIP", "RESULT"], printed);
    if failing > 0 {
        anyhow::bail!("{failing} of {count} checks of `{name}` fail");
    }
    Ok(())
}

/// Returns what the balancer of each node has, by the node's hostname.
pub(super) async fn balancers(client: &Client, name: String) -> anyhow::Result<BTreeMap<String, Value>> {
    let nodes = ask(client, name, false).await?.nodes.into_iter();
    Ok(nodes.map(|it| (it.hostname, it.report.map_or_else(|| json!({ "error": it.error }), balancer))).collect())
}

fn balancer(report: NetworkReport) -> Value {
    let it = report.balancer.unwrap_or_default();
    json!({
        "kind": it.kind, "virtualIps": it.virtual_ips, "backends": it.backends, "differences": it.differences,
    })
}

/// The way from one node to another, or a node itself.
#[derive(Debug, PartialEq)]
struct CheckRow {
    from: String,
    /// `None` for what concerns the node alone.
    to: Option<String>,
    round_trip_us: Option<u64>,
    /// The failures, each with its layer if it is known.
    failures: Vec<(Option<String>, String)>,
}

/// Returns a row for each way, and for each node of which there is more to say.
fn rows(checked: CheckedNetwork) -> Vec<CheckRow> {
    let names: BTreeMap<String, String> = checked.nodes.iter().map(|it| (it.id.clone(), it.hostname.clone())).collect();
    let mut rows = Vec::new();
    for node in checked.nodes {
        let from = node.hostname;
        let own = |failures| CheckRow { from: from.clone(), to: None, round_trip_us: None, failures };
        let Some(report) = node.report else {
            rows.push(own(vec![(None, node.error)]));
            continue;
        };
        let differences = report.balancer.unwrap_or_default().differences;
        if !differences.is_empty() {
            rows.push(own(differences.into_iter().map(|it| (Some("balancer".into()), it)).collect()));
        }
        if report.unprobed > 0 {
            rows.push(own(vec![(None, format!("{} more nodes were not probed", report.unprobed))]));
        }
        for PeerReport { node, round_trip_us, failures } in report.peers {
            let to = names.get(&node).cloned().unwrap_or(node);
            let failures = failures.into_iter().map(|LayerFailure { layer, why }| (Some(layer), why)).collect();
            rows.push(CheckRow { from: from.clone(), to: Some(to), round_trip_us, failures });
        }
    }
    rows.sort_by(|left, right| (&left.from, &left.to).cmp(&(&right.from, &right.to)));
    rows
}

impl CheckRow {
    fn print(self) -> (Value, Vec<String>) {
        let millis = self.round_trip_us.map(|it| it as f64 / 1_000.0);
        let failure = |(layer, why): &(Option<String>, String)| json!({ "layer": layer, "why": why });
        let value = json!({
            "from": self.from, "to": self.to, "roundTripMs": millis,
            "failures": self.failures.iter().map(failure).collect::<Vec<_>>(),
        });
        let text = |(layer, why): &(Option<String>, String)| match layer {
            Some(layer) => format!("{layer}: {why}"),
            None => why.clone(),
        };
        let failures: Vec<String> = self.failures.iter().map(text).collect();
        let result = if failures.is_empty() { "ok".to_owned() } else { failures.join("; ") };
        let time = millis.map(|it| format!("{it:.3} ms")).unwrap_or_default();
        (value, vec![self.from, self.to.unwrap_or_default(), time, result])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::proto::control::CheckedNode;
    use flota_api::proto::streams::BalancerReport;

    #[test]
    fn each_way_has_a_row_and_so_has_a_node_that_does_not_answer() {
        let node = |id: &str, error: &str, report| CheckedNode {
            id: format!("id-{id}"),
            hostname: id.into(),
            error: error.into(),
            report,
        };
        let mtu = LayerFailure { layer: "mtu".into(), why: "too large".into() };
        let peers = vec![
            PeerReport { node: "id-w2".into(), round_trip_us: Some(70), failures: vec![mtu] },
            PeerReport { node: "id-m1".into(), round_trip_us: Some(1_500), failures: Vec::new() },
        ];
        let balancer = BalancerReport { differences: vec!["wrong".into()], ..BalancerReport::default() };
        let report = NetworkReport { balancer: Some(balancer), peers, unprobed: 2 };
        let nodes = vec![
            node("w2", "the node is down", None),
            node("m1", "", Some(NetworkReport::default())),
            node("w1", "", Some(report)),
        ];
        let printed: Vec<_> = rows(CheckedNetwork { nodes }).into_iter().map(CheckRow::print).collect();
        let cells: Vec<_> = printed.iter().map(|(_, cells)| cells.join("|")).collect();
        assert_eq!(
            cells,
            [
                "w1|||balancer: wrong",
                "w1|||2 more nodes were not probed",
                "w1|m1|1.500 ms|ok",
                "w1|w2|0.070 ms|mtu: too large",
                "w2|||the node is down",
            ]
        );
        assert_eq!(printed[3].0["failures"][0]["layer"], "mtu");
        assert_eq!(printed[4].0["to"], Value::Null);
    }
}
