//! `ctl node …` manages the machines of the cluster.

mod rebalance;
mod role;

use clap::Subcommand;
use serde_json::{Value, json};

use flota_api::model;
use flota_api::proto::control::{
    GetRequest, ListRequest, ListTasksRequest, NodeRow, Nodes, RemoveRequest, UpdateNodeRequest,
};
use flota_api::reason::Reason;
use flota_api::state::TaskState;

use crate::client::{Client, request_id};
use crate::commands::{service, task};
use crate::error::{named, reason};
use crate::parse;
use crate::printer::{self, ListOptions};
use crate::progress::{self, WaitOptions};
use role::Role;

/// Largest number of tries. A lost try means that another change won; ten in a row indicate a bug.
const TRIES: u32 = 10;

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// List the nodes
    Ls(ListOptions),
    /// Print everything about nodes
    Inspect {
        /// Nodes: name, id, or beginning of an id
        nodes: Vec<String>,
        /// Print a page for people
        #[arg(long)]
        pretty: bool,
    },
    /// Change labels, availability or role
    Update {
        /// Node: name, id, or beginning of an id
        node: String,
        /// Label to add or change, KEY=VALUE; may be repeated
        #[arg(long, value_parser = parse::label)]
        label_add: Vec<(String, String)>,
        /// Key of a label to remove; may be repeated
        #[arg(long)]
        label_rm: Vec<String>,
        /// Availability to set: active, pause or drain
        #[arg(long)]
        availability: Option<String>,
        /// Allow that the node becomes a manager by itself, in the place of one that is dead
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
        manager_candidate: Option<bool>,
        /// Role to give: worker or manager
        #[arg(long)]
        role: Option<Role>,
    },
    /// Make nodes managers, while their tasks run on
    Promote {
        /// Nodes: name, id, or beginning of an id
        nodes: Vec<String>,
        #[command(flatten)]
        wait: WaitOptions,
    },
    /// Make managers workers, while their tasks run on
    Demote {
        /// Nodes: name, id, or beginning of an id
        nodes: Vec<String>,
        #[command(flatten)]
        wait: WaitOptions,
    },
    /// Move tasks elsewhere, and take no new ones
    Drain {
        /// Nodes: name, id, or beginning of an id
        nodes: Vec<String>,
        #[command(flatten)]
        wait: WaitOptions,
    },
    /// Take tasks again
    Activate {
        /// Nodes: name, id, or beginning of an id
        nodes: Vec<String>,
    },
    /// Move tasks from nodes with many to nodes with few, such as those that have come back
    Rebalance {
        #[command(flatten)]
        wait: WaitOptions,
    },
    /// Remove workers that are down
    Rm {
        /// Nodes: name, id, or beginning of an id
        nodes: Vec<String>,
        /// Remove also a manager, or a node that is not down
        #[arg(short, long)]
        force: bool,
    },
}

pub(crate) async fn run(verb: Node, client: &Client) -> anyhow::Result<()> {
    match verb {
        Node::Ls(options) => ls(client, &options).await,
        Node::Inspect { nodes, pretty } => inspect(client, &nodes, pretty).await,
        Node::Update { node, label_add, label_rm, availability, manager_candidate, role } => {
            let change = |spec: &mut model::NodeSpec| {
                spec.labels.extend(label_add.iter().cloned());
                label_rm.iter().for_each(|label| drop(spec.labels.remove(label)));
                if let Some(text) = &availability {
                    spec.availability = availability_of(text)?;
                }
                spec.manager_candidate = manager_candidate.unwrap_or(spec.manager_candidate);
                Ok(())
            };
            // A role that is refused leaves the rest as it is.
            if let Some(role) = role {
                role::change(client, &node, role.into()).await?;
            }
            update(client, &node, change).await?;
            match role {
                Some(_) => role::advise(client).await,
                None => Ok(()),
            }
        }
        Node::Promote { nodes, wait } => role::run(client, &nodes, model::Role::Manager, &wait).await,
        Node::Demote { nodes, wait } => role::run(client, &nodes, model::Role::Worker, &wait).await,
        Node::Drain { nodes, wait } => {
            set(client, &nodes, model::Availability::Drain).await?;
            drained(client, &nodes, &wait).await
        }
        Node::Activate { nodes } => set(client, &nodes, model::Availability::Active).await,
        Node::Rebalance { wait } => rebalance::run(client, &wait).await,
        Node::Rm { nodes, force } => {
            named(&nodes)?;
            // Without it, a manager is not removed.
            let managers = if force { Some(role::managers(client).await?) } else { None };
            for name in nodes {
                let request = RemoveRequest { request_id: request_id(), name: name.clone(), force };
                client
                    .change(request, |mut control, request| async move { control.remove_node(request).await })
                    .await?;
                printer::line(&name);
            }
            match managers {
                Some(before) if role::managers(client).await? != before => role::advise(client).await,
                _ => Ok(()),
            }
        }
    }
}

fn availability_of(text: &str) -> anyhow::Result<model::Availability> {
    use model::Availability::{Active, Drain, Pause};
    let found = [Active, Pause, Drain].into_iter().find(|it| it.as_str() == text);
    found.ok_or_else(|| crate::error::Usage(format!("--availability {text}: it must be active, pause or drain")).into())
}

/// Returns the nodes that a request selects.
pub(crate) async fn list(client: &Client, request: ListRequest) -> anyhow::Result<Nodes> {
    client
        .list(
            request,
            |mut control, request| async move { control.list_nodes(request).await },
            |whole, page| whole.nodes.extend(page.nodes),
        )
        .await
}

/// A node with what only the managers know of it.
struct ListedNode {
    node: model::Node,
    leader: bool,
    role_change: Option<model::RoleChange>,
}

fn parsed(row: NodeRow) -> anyhow::Result<ListedNode> {
    let (leader, role_change) = (row.leader, row.role_change().into());
    let node = row.node.ok_or_else(|| anyhow::anyhow!("the manager's answer lacks a node"))?;
    Ok(ListedNode { node: model::Node::try_from(node)?, leader, role_change })
}

fn row(ListedNode { node, leader, role_change }: &ListedNode) -> Value {
    let mut row = json!({
        "id": node.id, "name": node.description.hostname, "role": node.role, "leader": leader, "state": node.state,
        "stateReason": node.state_reason.map_or("", model::NodeStateReason::as_str), "stateSince": node.state_since,
        "availability": node.spec.availability, "address": node.address, "version": node.description.program_version,
    });
    if let Some(change) = role_change {
        row["roleChange"] = change.as_str().into();
    }
    row
}

async fn ls(client: &Client, options: &ListOptions) -> anyhow::Result<()> {
    let nodes = list(client, options.request()).await?;
    printer::age(nodes.header);
    let mut rows = Vec::new();
    for node in nodes.nodes {
        let parsed = parsed(node)?;
        let ListedNode { node, leader, role_change } = &parsed;
        let clock = (!node.clock_offset.is_zero()).then(|| format!("its clock is {}", node.clock_offset));
        let notes: Vec<_> = node.state_reason.map(|reason| reason.to_string()).into_iter().chain(clock).collect();
        let state = match notes.as_slice() {
            [] => node.state.to_string(),
            notes => format!("{} ({})", node.state, notes.join(", ")),
        };
        let role = match role_change {
            _ if *leader => "leader".to_owned(),
            Some(change) => format!("{} ({change})", node.role),
            None => node.role.to_string(),
        };
        let cells = vec![
            printer::short_id(node.id.as_str(), &options.rows),
            node.description.hostname.clone(),
            state,
            node.spec.availability.to_string(),
            role,
            node.address.clone(),
            node.description.program_version.clone(),
        ];
        rows.push((row(&parsed), cells));
    }
    rows.sort_by(|left, right| left.1[1].cmp(&right.1[1]));
    printer::rows(&options.rows, &["ID", "NAME", "STATE", "AVAILABILITY", "ROLE", "ADDRESS", "VERSION"], rows);
    Ok(())
}

async fn get_row(client: &Client, name: &str) -> anyhow::Result<ListedNode> {
    let request = GetRequest { name: name.to_owned() };
    parsed(client.read(request, |mut control, request| async move { control.get_node(request).await }).await?)
}

async fn get(client: &Client, name: &str) -> anyhow::Result<model::Node> {
    Ok(get_row(client, name).await?.node)
}

/// Returns the tasks on a node.
async fn tasks_of(client: &Client, node: &model::Node) -> anyhow::Result<Vec<task::Row>> {
    task::list(client, ListTasksRequest { nodes: vec![node.id.to_string()], ..ListTasksRequest::default() }).await
}

async fn inspect(client: &Client, names: &[String], pretty: bool) -> anyhow::Result<()> {
    named(names)?;
    let mut nodes = Vec::new();
    for name in names {
        let node = get(client, name).await?;
        // Tasks record who holds a device, so they are only needed if the node has devices.
        let tasks = match node.description.devices.is_empty() {
            true => Vec::new(),
            false => tasks_of(client, &node).await?,
        };
        nodes.push(with_holders(&node, &tasks)?);
    }
    printer::objects(nodes, pretty);
    Ok(())
}

/// Returns the node as JSON; each of its devices names the task that holds it.
fn with_holders(node: &model::Node, tasks: &[task::Row]) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(node)?;
    for (index, device) in node.description.devices.iter().enumerate() {
        let has = |row: &&task::Row| {
            let task = &row.task;
            task.is_on(&node.id) && task.holds_resources() && task.device_ids.iter().any(|id| device.is(id))
        };
        value["description"]["devices"][index]["task"] = tasks.iter().find(has).map(task::Row::name).into();
    }
    Ok(value)
}

async fn update(
    client: &Client,
    name: &str,
    change: impl Fn(&mut model::NodeSpec) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut tries = 0;
    loop {
        let node = get(client, name).await?;
        let mut spec = node.spec.clone();
        change(&mut spec)?;
        let request = UpdateNodeRequest {
            request_id: request_id(),
            node: node.id.to_string(),
            version: node.meta.version,
            spec: Some((&spec).into()),
        };
        let updated =
            client.change(request, |mut control, request| async move { control.update_node(request).await }).await;
        tries += 1;
        match updated {
            // The node changed in the meantime. This change is made again on top of the newer version, which keeps the
            // others.
            Err(error) if tries < TRIES && reason(&error) == Some(Reason::ChangedMeanwhile) => {}
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    printer::line(name);
    Ok(())
}

/// Waits until no task runs on these nodes any more.
async fn drained(client: &Client, names: &[String], wait: &WaitOptions) -> anyhow::Result<()> {
    progress::until(wait, "drain", || async move {
        let mut left = Vec::new();
        for name in names {
            let node = get(client, name).await?;
            // A node that is down can't say that a task has ended.
            let is_left = |task: &model::Task| {
                let stops = task.desired_state.is_stopping() && node.state == model::NodeState::Down;
                !task.status.state.is_terminal() && !stops
            };
            left.extend(tasks_of(client, &node).await?.into_iter().filter(|row| is_left(&row.task)));
        }
        left.sort_by_key(|row| (row.service.clone(), row.task.slot));
        let mut tasks = Vec::new();
        for (index, row) in left.iter().enumerate() {
            let why = if index < NAMED { awaited(client, row).await? } else { None };
            tasks.push((row.name(), why));
        }
        Ok(still_there(&tasks))
    })
    .await
}

/// Returns what the task waits for before it leaves: the one that is to run elsewhere, or its service; `None` if nothing is
/// known.
async fn awaited(client: &Client, row: &task::Row) -> anyhow::Result<Option<String>> {
    let in_slot = task::in_slot(client, &row.task).await?;
    let successor = in_slot.iter().rfind(|it| it.task.id != row.task.id && it.task.node_id.is_none());
    if let Some(why) = successor.map(task::Row::error).filter(|why| !why.is_empty()) {
        return Ok(Some(why.to_owned()));
    }
    // The service may have been removed meanwhile.
    let Ok(service) = service::get(client, row.task.service_id.as_str()).await else { return Ok(None) };
    let is_prepared = |it: &task::Row| it.task.is_live() && it.task.status.state == TaskState::Ready;
    Ok(held_up(&service, &row.task, in_slot.iter().any(is_prepared)))
}

/// Returns why a service does not let a task of a drained node go; `None` if it does. `is_prepared`: another task is ready to
/// take its place.
fn held_up(service: &model::Service, task: &model::Task, is_prepared: bool) -> Option<String> {
    let (name, is_outdated) = (&service.spec.name, task.spec_version != service.spec_version);
    match (is_outdated, &service.update) {
        (true, update) if update.is_paused() => {
            Some(format!("the update of {name} is paused: `ctl service update --resume {name}` continues it"))
        }
        (true, update) if update.is_active() => Some(format!("the update of {name} has not come to it yet")),
        (false, _) if is_prepared => {
            Some(format!("the update policy of {name} lets no further task stop until others run"))
        }
        _ => None,
    }
}

/// Most tasks that are named.
const NAMED: usize = 5;

/// Says which tasks have not moved, and what their successors wait for if that is known; `None` if all have.
fn still_there(tasks: &[(String, Option<String>)]) -> Option<String> {
    let more = tasks.len().saturating_sub(NAMED);
    let named = &tasks[..tasks.len() - more];
    let names = named.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    let mut text = match (named.len(), more) {
        (0, _) => return None,
        (1, _) => format!("{names} is still there"),
        (_, 0) => format!("{names} are still there"),
        (_, more) => format!("{names} and {more} more are still there"),
    };
    for (name, why) in named.iter().filter_map(|(name, why)| Some((name, why.as_ref()?))) {
        text.push_str(&format!("; the next {name} waits: {why}"));
    }
    Some(text)
}

async fn set(client: &Client, names: &[String], availability: model::Availability) -> anyhow::Result<()> {
    named(names)?;
    for name in names {
        update(client, name, |spec| {
            spec.availability = availability;
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_that_have_not_moved_are_named() {
        let names = |count| (1..=count).map(|slot| (format!("web.{slot}"), None)).collect::<Vec<_>>();
        let cases = [
            (0, None),
            (1, Some("web.1 is still there")),
            (2, Some("web.1, web.2 are still there")),
            (7, Some("web.1, web.2, web.3, web.4, web.5 and 2 more are still there")),
        ];
        for (count, expected) in cases {
            assert_eq!(still_there(&names(count)).as_deref(), expected);
        }
        let mut two = names(2);
        two[1].1 = Some("there is no node".into());
        let expected = "web.1, web.2 are still there; the next web.2 waits: there is no node";
        assert_eq!(still_there(&two).as_deref(), Some(expected));
    }

    #[test]
    fn what_holds_up_a_task_on_a_drained_node_is_said() {
        let spec = model::ServiceSpec { name: "web".into(), ..model::ServiceSpec::default() };
        let service =
            |update| model::Service { spec: spec.clone().into(), spec_version: 2, update, ..Default::default() };
        let task = |spec_version| model::Task { spec_version, ..model::Task::default() };
        let (begun, completed) = (model::UpdateStatus::begun(1), model::UpdateStatus::default());
        let paused = begun.clone().paused("it fell".into());
        let resume = "the update of web is paused: `ctl service update --resume web` continues it";
        assert_eq!(held_up(&service(paused), &task(1), false).as_deref(), Some(resume));
        let turn = "the update of web has not come to it yet";
        assert_eq!(held_up(&service(begun), &task(1), false).as_deref(), Some(turn));
        let most = "the update policy of web lets no further task stop until others run";
        assert_eq!(held_up(&service(completed.clone()), &task(2), true).as_deref(), Some(most));
        assert_eq!(held_up(&service(completed), &task(2), false), None);
    }

    #[test]
    fn a_node_is_shown_with_who_has_its_devices() {
        let device = |id: &str| model::NodeDevice { kind: "gpu".into(), id: id.into(), paths: Vec::new() };
        let mut node = model::Node { id: "n".into(), ..model::Node::default() };
        node.description.devices = vec![device("nvidia0"), device("nvidia1"), device("nvidia2")];
        let row = |slot: u64, node: &str, id: &str, state: TaskState| {
            let status = model::TaskStatus { state, ..model::TaskStatus::default() };
            let device_ids = vec![device(id).device_id()];
            let node_id = Some(node.into());
            task::Row::of(model::Task { slot, status, node_id, device_ids, ..model::Task::default() })
        };
        let tasks = [
            row(1, "n", "nvidia0", TaskState::Failed),
            row(2, "n", "nvidia1", TaskState::Running),
            row(3, "other", "nvidia2", TaskState::Running),
        ];
        let shown = with_holders(&node, &tasks).expect("it is JSON");
        let devices = shown["description"]["devices"].as_array().expect("an array");
        let holders: Vec<_> = devices.iter().map(|it| it["task"].as_str()).collect();
        assert_eq!(holders, [None, Some("web.2"), None]);
        assert_eq!(
            (&shown["description"]["allow"]["privileged"], &devices[1]["id"]),
            (&json!(false), &json!("nvidia1"))
        );
    }
}
