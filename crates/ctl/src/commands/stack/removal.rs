//! Waits until nothing is left of stacks that were removed. Their services go first; then their networks, secrets and configs,
//! each when the last task that uses it has ended.

use std::collections::{BTreeMap, BTreeSet};

use flota_api::proto::control::{Filter, GetRequest, ListRequest, ListValuesRequest};
use flota_api::proto::specs::ValueKind;
use flota_api::reason::Reason;

use crate::client::Client;
use crate::error::reason;
use crate::progress::{self, WaitOptions};

/// Waits until the networks, secrets and configs of these stacks are gone. `stacks` has the name of each stack by its id.
pub(super) async fn wait(client: &Client, stacks: &BTreeMap<String, String>, wait: &WaitOptions) -> anyhow::Result<()> {
    for (id, name) in stacks {
        progress::until(wait, &format!("stack {name}"), || left(client, id)).await?;
    }
    Ok(())
}

/// Returns what is left of a stack, in the order in which it goes; `None` if nothing is.
async fn left(client: &Client, stack: &str) -> anyhow::Result<Option<String>> {
    let of_stack = || {
        let filter = Filter { key: "stackId".into(), value: stack.to_owned() };
        ListRequest { filters: vec![filter], ..ListRequest::default() }
    };
    let networks = client
        .list(
            of_stack(),
            |mut control, request| async move { control.list_networks(request).await },
            |whole, page| whole.networks.extend(page.networks),
        )
        .await?;
    let mut lost = BTreeSet::new();
    for id in networks.networks.iter().filter_map(|row| row.network.as_ref()).map(|it| it.id.clone()) {
        lost.extend(lost_nodes(client, id).await?);
    }
    let networks = networks.networks.into_iter().filter_map(|row| Some(row.network?.spec?.name));
    let mut all = vec![("networks", networks.collect::<Vec<_>>())];
    for (what, kind) in [("secrets", ValueKind::Secret), ("configs", ValueKind::Config)] {
        let request = ListValuesRequest { kind: kind.into(), list: Some(of_stack()) };
        let values = client
            .list(
                request,
                |mut control, request| async move { control.list_values(request).await },
                |whole, page| whole.values.extend(page.values),
            )
            .await?;
        all.push((what, values.values.into_iter().filter_map(|row| Some(row.value?.spec?.name)).collect()));
    }
    Ok(described(&all, &lost.into_iter().collect::<Vec<_>>()))
}

/// Returns the hostnames of the lost nodes that have tasks in a network, which may be gone by now.
async fn lost_nodes(client: &Client, network: String) -> anyhow::Result<Vec<String>> {
    let request = GetRequest { name: network };
    let got = client.read(request, |mut control, request| async move { control.get_network(request).await }).await;
    match got {
        Ok(row) => Ok(row.endpoints.into_iter().filter(|it| it.state == "lost").map(|it| it.node).collect()),
        Err(error) if reason(&error) == Some(Reason::NotFound) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Says what is left, by its kinds, and on which lost nodes there may be tasks that use it; `None` if nothing is left.
fn described(all: &[(&str, Vec<String>)], lost: &[String]) -> Option<String> {
    let of_kind = |(what, names): &(&str, Vec<String>)| format!("{what} {}", names.join(", "));
    let left: Vec<String> = all.iter().filter(|(_, names)| !names.is_empty()).map(of_kind).collect();
    let nodes = match lost {
        [] => String::new(),
        [node] => format!("; those on {node}, which is down, end when it is back, or removed (`ctl node rm {node}`)"),
        [node, ..] => {
            let all = lost.join(", ");
            format!("; those on {all}, which are down, end when these are back, or removed (`ctl node rm {node}` …)")
        }
    };
    (!left.is_empty()).then(|| format!("{} wait for the last tasks that use them{nodes}", left.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_named_by_its_kind() {
        let all = |networks: &[&str], secrets: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
            described(&[("networks", owned(networks)), ("secrets", owned(secrets))], &[])
        };
        let both = all(&["shop_default", "shop_back"], &["shop_key"]);
        let expected = "networks shop_default, shop_back; secrets shop_key wait for the last tasks that use them";
        assert_eq!(both.as_deref(), Some(expected));
        assert_eq!(all(&[], &["a"]).as_deref(), Some("secrets a wait for the last tasks that use them"));
        assert_eq!(all(&[], &[]), None);
        let lost = |nodes: &[&str]| {
            let nodes: Vec<String> = nodes.iter().map(|it| (*it).to_owned()).collect();
            described(&[("networks", vec!["front".into()])], &nodes).expect("a network is left")
        };
        let expected = "networks front wait for the last tasks that use them; those on w1, which is down, end when it is \
                        back, or removed (`ctl node rm w1`)";
        assert_eq!(lost(&["w1"]), expected);
        assert!(lost(&["w1", "w2"]).contains("those on w1, w2, which are down"));
    }
}
