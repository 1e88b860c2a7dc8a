//! Measures what the control loops of a leader cost by themselves, with the tables of a large cluster and without the
//! cluster. `flota-simulate --loops` prints the figures.

use std::time::Duration;

use flota_api::model::{Cluster, Node, NodeState, Role, Service, ServiceMode, ServiceSpec, Task, TaskStatus};
use flota_api::object::{Object, StoreObject};
use flota_api::resources::Resources;
use flota_api::state::TaskState;
use flota_api::version::{Meta, Timestamp};
use flota_manager::Loops;
use flota_raft_store::{Action, Event, Tables};

use super::system::thread_cpu;

/// Number of services, among which the tasks are divided.
const SERVICES: u64 = 20;

/// Number of tasks on the node that is lost.
const ON_LOST_NODE: u64 = 200;

/// The time at which everything happens, long after every object was made.
const NOW: Timestamp = Timestamp(10_000_000);

/// CPU times.
#[derive(Clone, Copy, Debug)]
pub struct LoopCosts {
    /// All loops look at every object of a cluster that needs no change, and that rebalances by itself.
    pub full_pass: Duration,
    /// All loops, after the label of a node has changed to which a service is bound: its tasks there move.
    pub label: Duration,
    /// All loops, from the loss of a node with [`ON_LOST_NODE`] tasks until each has a new one on another node.
    pub lost_node: Duration,
}

/// Returns the CPU time in which the scheduler alone places so many tasks of twenty services on so many nodes.
///
/// # Panics
/// A task has no node afterwards.
pub fn schedule(nodes: u64, tasks: u64) -> Duration {
    let mut waiting = Lab::new(cluster(nodes, tasks, false, |_| None));
    let mut scheduler = Loops::scheduler(&waiting.tables);
    waiting.settle(&mut scheduler);
    assert!(waiting.tables.tasks().all(|task| task.node_id.is_some()), "there is room for every task");
    waiting.taken
}

/// Measures a cluster with so many nodes and tasks, a multiple of both twenty and the nodes.
///
/// # Panics
/// The loops leave something to do.
pub fn measure(nodes: u64, tasks: u64) -> LoopCosts {
    let change = |tables: &Tables, number: u64, change: &dyn Fn(&mut Node)| {
        let old = tables.node(node_id(number).as_str()).expect("it is there").as_ref().clone();
        let mut new = old.clone();
        change(&mut new);
        (old.into_object(), new.into_object())
    };

    // A service has as many tasks on one node as on any other, so that nothing can be made more even.
    let even = |number: u64| Some((number / SERVICES + number) % nodes);
    let mut running = Lab::new(cluster(nodes, tasks, true, even));
    let mut loops = Loops::all(&running.tables);
    running.settle(&mut loops);
    let full_pass = std::mem::take(&mut running.taken);
    assert_eq!(running.tables.tasks().count() as u64, tasks, "nothing was to do");
    let label = change(&running.tables, 1, &|node| drop(node.spec.labels.insert("disk".into(), "slow".into())));
    running.happen(label, &mut loops);
    let label = running.taken;
    assert!(running.tables.tasks().count() as u64 > tasks, "a task has to move");

    // The first node has as many tasks as are lost with it; the others have the same number each.
    let uneven = |number: u64| Some(if number < ON_LOST_NODE { 0 } else { 1 + number % (nodes - 1) });
    let mut losing = Lab::new(cluster(nodes, tasks, false, uneven));
    let mut loops = Loops::all(&losing.tables);
    losing.settle(&mut loops);
    losing.taken = Duration::ZERO;
    let lost = change(&losing.tables, 0, &|node| node.state = NodeState::Down);
    losing.happen(lost, &mut loops);
    let placed = losing.tables.tasks().filter(|task| task.is_live() && !task.is_on(&node_id(0).as_str().into()));
    assert!(placed.filter(|task| task.node_id.is_some()).count() as u64 >= tasks, "every lost task has a new one");
    LoopCosts { full_pass, label, lost_node: losing.taken }
}

fn node_id(number: u64) -> String {
    format!("node-{number:06}")
}

/// A cluster with tasks that run on these nodes, or wait.
fn cluster(nodes: u64, tasks: u64, auto_rebalance: bool, home: impl Fn(u64) -> Option<u64>) -> Tables {
    let mut tables = Tables::default();
    tables.put(Cluster { id: "cluster".into(), auto_rebalance, ..Cluster::default() }.into_object());
    for number in 0..nodes {
        let mut node = Node { id: node_id(number).as_str().into(), state: NodeState::Ready, ..Node::default() };
        node.role = Role::Worker;
        node.description.resources = Resources { nano_cpus: 80_000_000_000, memory_bytes: 160 << 30 };
        tables.put(node.into_object());
    }
    for number in 0..SERVICES {
        let mode = ServiceMode::Replicated { replicas: tasks / SERVICES };
        let mut spec = ServiceSpec { name: format!("service-{number}"), mode, ..ServiceSpec::default() };
        if number == 0 {
            let constraint = flota_api::constraint::Constraint::parse("node.labels.disk!=slow");
            spec.constraints = vec![constraint.expect("it is a constraint")];
        }
        let id = format!("service-{number}").as_str().into();
        let service =
            Service { id, spec: spec.into(), spec_version: 1, spec_set_at: Some(Timestamp(1)), ..Service::default() };
        tables.put(service.into_object());
    }
    for number in 0..tasks {
        let home = home(number).map(|it| node_id(it).as_str().into());
        let state = if home.is_some() { TaskState::Running } else { TaskState::Pending };
        let served_at = home.is_some().then_some(Timestamp(1));
        let task = Task {
            id: format!("task-{number:08}").as_str().into(),
            meta: Meta { created: 1, ..Meta::default() },
            service_id: format!("service-{}", number % SERVICES).as_str().into(),
            spec_version: 1,
            slot: number / SERVICES + 1,
            node_id: home,
            status: TaskStatus { state, ..TaskStatus::default() },
            prepared_at: served_at,
            served_at,
            ..Task::default()
        };
        tables.put(task.into_object());
    }
    tables
}

/// Tables, and the CPU time that loops have taken over them.
struct Lab {
    tables: Tables,
    /// The version of the next change.
    version: u64,
    taken: Duration,
}

impl Lab {
    fn new(tables: Tables) -> Self {
        Self { tables, version: 2, taken: Duration::ZERO }
    }

    /// Replaces an object, and lets the loops do what follows.
    fn happen(&mut self, (old, new): (Object, Object), loops: &mut Loops) {
        self.tables.put(new.clone());
        self.notice(&Event::Updated { old, new }, loops);
        self.settle(loops);
    }

    fn notice(&mut self, event: &Event, loops: &mut Loops) {
        let before = thread_cpu();
        loops.notice(event, &self.tables);
        self.taken += thread_cpu() - before;
    }

    /// Plans until nothing is left to do.
    fn settle(&mut self, loops: &mut Loops) {
        loop {
            let before = thread_cpu();
            let transactions = loops.pass(&self.tables, NOW);
            self.taken += thread_cpu() - before;
            if transactions.is_empty() {
                return;
            }
            for action in transactions.into_iter().flat_map(|transaction| transaction.actions) {
                let event = match action {
                    Action::Create(mut object) => {
                        // As the store does: the order of a slot's tasks follows from it.
                        (object.meta_mut().created, self.version) = (self.version, self.version + 1);
                        self.tables.put(object.clone());
                        Event::Created(object)
                    }
                    Action::Update(new) => match self.tables.replace(new.clone()) {
                        Some(old) => Event::Updated { old, new },
                        None => Event::Created(new),
                    },
                    Action::Remove(kind, id) => match self.tables.remove(kind, id) {
                        Some(object) => Event::Removed(object),
                        None => continue,
                    },
                    _ => continue,
                };
                self.notice(&event, loops);
            }
        }
    }
}
