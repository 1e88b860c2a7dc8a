//! Ring 3: what a cluster does when one thing happens to it. Real managers and agents in one process, over a simulated
//! network, disks, clocks and machines; docs/testing.md says how to write such a test. One file for each theme; a part of
//! the test program `simulation`, because each program more is linked for seconds.
//!
//! The conditions that the files share are here.

mod ca;
mod certificates;
mod clocks;
mod cron;
mod dependencies;
mod digests;
mod events;
mod global;
mod health;
mod images;
mod jobs;
mod leader_clocks;
mod leadership;
mod membership;
mod moves;
mod networks;
mod nodes;
mod pins;
mod roles;
mod scaling;
mod services;
mod sessions;
mod streams;
mod updates;
mod usage;
mod users;
mod volumes;

use flota_api::model::{Node, NodeState, Task};
use flota_api::proto::dispatcher::manager_message::Message as FromManager;
use flota_api::state::TaskState;
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::manual::{ManualNode, Streams};
use flota_tests::sim::script::Script;

/// The state of a condition: `Err` with what is seen as long as it does not hold.
type Seen = Result<(), String>;

fn seen(holds: bool, what: impl std::fmt::Debug) -> Seen {
    if holds { Ok(()) } else { Err(format!("{what:?}")) }
}

/// Another manager than this one leads.
fn another_leads(not: usize) -> impl Fn(&SimCluster) -> Seen {
    move |cluster| {
        let leader = cluster.leader();
        seen(leader.is_some_and(|leader| leader != not), leader)
    }
}

fn somebody_leads(cluster: &SimCluster) -> Seen {
    seen(cluster.leader().is_some(), "no manager leads")
}

/// Puts a manual node into the place of a worker, and waits until it is in session with the leader.
fn manual(it: &mut Script, worker: usize, streams: Streams) -> ManualNode {
    let node = it.manual(worker, it.leader(), &[], streams);
    it.wait("the manual node is in session", 5_000, |_| {
        node.was_sent(|message| matches!(message, FromManager::Registered(_)))
    });
    node
}

/// The leader's object of a worker's node.
fn node(cluster: &SimCluster, worker: usize) -> Result<Node, String> {
    let view = cluster.view().ok_or("no manager leads")?;
    let node = view.node(&cluster.workers[worker].node_id).ok_or("there is no such node")?;
    Ok(node.as_ref().clone())
}

/// The leader takes a worker's node for this.
fn node_is(worker: usize, state: NodeState) -> impl Fn(&SimCluster) -> Seen {
    move |cluster| {
        let node = node(cluster, worker)?;
        seen(node.state == state, (node.state, node.state_reason))
    }
}

/// So many containers run on a worker's machine.
fn containers(worker: usize, count: usize) -> impl Fn(&SimCluster) -> Seen {
    move |cluster| {
        let running = cluster.workers[worker].machine.running();
        seen(running.len() == count, running)
    }
}

/// The leader's objects of a service's tasks.
fn tasks_of(cluster: &SimCluster, service: &str) -> Result<Vec<Task>, String> {
    let view = cluster.view().ok_or("no manager leads")?;
    let service = view.service_by_name(service).ok_or("there is no such service")?;
    Ok(view.tasks_of_service(&service.id).map(|task| task.as_ref().clone()).collect())
}

/// So many tasks of a service are in this state, as the leader knows.
fn tasks_are(service: &'static str, count: usize, state: TaskState) -> impl Fn(&SimCluster) -> Seen {
    move |cluster| {
        let tasks = tasks_of(cluster, service)?;
        let is = |task: &&Task| task.status.state == state;
        seen(tasks.iter().filter(is).count() == count, tasks.iter().map(|task| task.status.state).collect::<Vec<_>>())
    }
}

/// Raft ids of those that vote and of those that do not, as the leader knows them.
fn members(cluster: &SimCluster) -> Result<(Vec<u64>, Vec<u64>), String> {
    let leader = cluster.leader().and_then(|number| cluster.managers[number].manager()).ok_or("no manager leads")?;
    if leader.raft().is_changing() {
        return Err("the set changes".into());
    }
    let (votes, learns): (Vec<_>, Vec<_>) = leader.raft().members().into_iter().partition(|member| member.votes);
    let ids = |members: Vec<flota_raft_store::raft::Member>| members.iter().map(|member| member.id).collect();
    Ok((ids(votes), ids(learns)))
}

/// Whether exactly these managers vote and none only learns.
fn voters(expected: &'static [u64]) -> impl Fn(&SimCluster) -> Seen {
    move |cluster| {
        let members = members(cluster)?;
        seen(members.0 == expected && members.1.is_empty(), members)
    }
}
