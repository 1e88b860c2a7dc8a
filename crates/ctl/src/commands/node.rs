//! `ctl node …`

use clap::Subcommand;
use serde_json::{Value, json};

use flota_api::model;
use flota_api::proto::control::{NodeRow, RemoveRequest, UpdateNodeRequest};

use crate::client::{Client, request_id};
use crate::error::Failed;
use crate::parse;
use crate::printer::{self, ListOptions};

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Every machine
    Ls(ListOptions),
    /// Everything about machines
    Inspect { nodes: Vec<String> },
    /// Change labels or availability
    Update {
        node: String,
        #[arg(long, value_parser = parse::label)]
        label_add: Vec<(String, String)>,
        #[arg(long)]
        label_rm: Vec<String>,
        /// active, pause or drain
        #[arg(long)]
        availability: Option<String>,
    },
    /// Move its tasks elsewhere, and take no more
    Drain { nodes: Vec<String> },
    /// Take tasks again
    Activate { nodes: Vec<String> },
    /// Remove machines that are down
    Rm {
        nodes: Vec<String>,
        /// Also one that is not down
        #[arg(short, long)]
        force: bool,
    },
}

pub(crate) async fn run(verb: Node, client: impl Fn(bool) -> anyhow::Result<Client>) -> anyhow::Result<()> {
    match verb {
        Node::Ls(options) => ls(&client(options.stale)?, &options).await,
        Node::Inspect { nodes } => inspect(&client(false)?, &nodes).await,
        Node::Update { node, label_add, label_rm, availability } => {
            let change = |spec: &mut model::NodeSpec| {
                spec.labels.extend(label_add.iter().cloned());
                label_rm.iter().for_each(|label| drop(spec.labels.remove(label)));
                if let Some(text) = &availability {
                    spec.availability = availability_of(text)?;
                }
                Ok(())
            };
            update(&client(false)?, &node, change).await
        }
        Node::Drain { nodes } => set(&client(false)?, &nodes, model::Availability::Drain).await,
        Node::Activate { nodes } => set(&client(false)?, &nodes, model::Availability::Active).await,
        Node::Rm { nodes, force } => {
            let client = client(false)?;
            for name in nodes {
                let request = RemoveRequest { request_id: request_id(), name: name.clone(), force, shrink: false };
                client
                    .control(|mut control| {
                        let request = request.clone();
                        async move { control.remove_node(request).await }
                    })
                    .await?;
                printer::line(&name);
            }
            Ok(())
        }
    }
}

fn availability_of(text: &str) -> anyhow::Result<model::Availability> {
    use model::Availability::{Active, Drain, Pause};
    let found = [Active, Pause, Drain].into_iter().find(|it| it.as_str() == text);
    found.ok_or_else(|| crate::error::Usage(format!("--availability {text}: it is active, pause or drain")).into())
}

pub(crate) async fn list(client: &Client) -> anyhow::Result<flota_api::proto::control::Nodes> {
    client
        .control(|mut control| {
            let request = client.list();
            async move { control.list_nodes(request).await }
        })
        .await
}

fn parsed(row: NodeRow) -> anyhow::Result<(model::Node, bool)> {
    let node = row.node.ok_or_else(|| anyhow::anyhow!("the manager's answer lacks a node"))?;
    Ok((model::Node::try_from(node)?, row.leader))
}

fn row(node: &model::Node, leader: bool) -> Value {
    json!({
        "id": node.id, "name": node.description.hostname, "role": node.role, "leader": leader, "state": node.state,
        "stateReason": node.state_reason, "stateSince": node.state_since, "availability": node.spec.availability,
        "address": node.address, "version": node.description.program_version,
    })
}

async fn ls(client: &Client, options: &ListOptions) -> anyhow::Result<()> {
    let keys = ["id", "name", "role", "leader", "state", "stateReason", "availability", "address", "version"];
    options.check(&keys)?;
    let nodes = list(client).await?;
    options.say_age(nodes.header);
    let mut rows = Vec::new();
    for node in nodes.nodes {
        let (node, leader) = parsed(node)?;
        let value = row(&node, leader);
        if options.passes(&value) {
            let state = match node.state_reason.as_str() {
                "" => node.state.to_string(),
                reason => format!("{} ({reason})", node.state),
            };
            let role = if leader { "leader".to_owned() } else { node.role.to_string() };
            let cells = vec![
                printer::short_id(node.id.as_str(), options),
                node.description.hostname.clone(),
                state,
                node.spec.availability.to_string(),
                role,
                node.address.clone(),
                node.description.program_version.clone(),
            ];
            rows.push((value, cells));
        }
    }
    rows.sort_by(|left, right| left.1[1].cmp(&right.1[1]));
    printer::rows(options, &["ID", "NAME", "STATE", "AVAILABILITY", "ROLE", "ADDRESS", "VERSION"], rows);
    Ok(())
}

async fn find(client: &Client, name: &str) -> anyhow::Result<(model::Node, bool)> {
    let all: Vec<_> = list(client).await?.nodes.into_iter().map(parsed).collect::<Result<_, _>>()?;
    let matches = |it: &&(model::Node, bool)| it.0.id.as_str() == name || it.0.description.hostname == name;
    let prefix = |it: &&(model::Node, bool)| name.len() >= 3 && it.0.id.as_str().starts_with(name);
    let found = all.iter().find(matches).or_else(|| all.iter().find(prefix)).cloned();
    found.ok_or_else(|| Failed(tonic::Status::not_found(format!("there is no node `{name}`"))).into())
}

async fn inspect(client: &Client, names: &[String]) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for name in names {
        found.push(serde_json::to_value(find(client, name).await?.0)?);
    }
    printer::json(&Value::Array(found));
    Ok(())
}

async fn update(
    client: &Client,
    name: &str,
    change: impl FnOnce(&mut model::NodeSpec) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (node, _) = find(client, name).await?;
    let mut spec = node.spec.clone();
    change(&mut spec)?;
    // Without a version: heartbeats and the like raise it, and only the spec is changed here.
    let request = UpdateNodeRequest {
        request_id: request_id(),
        node: node.id.to_string(),
        version: 0,
        spec: Some((&spec).into()),
    };
    client
        .control(|mut control| {
            let request = request.clone();
            async move { control.update_node(request).await }
        })
        .await?;
    printer::line(name);
    Ok(())
}

async fn set(client: &Client, names: &[String], availability: model::Availability) -> anyhow::Result<()> {
    for name in names {
        update(client, name, |spec| {
            spec.availability = availability;
            Ok(())
        })
        .await?;
    }
    Ok(())
}
