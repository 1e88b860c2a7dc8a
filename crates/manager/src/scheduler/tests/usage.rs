//! Services that ask for the node of which the least is in use.

use super::*;
use flota_api::model::{NodeUsage, PlacementStrategy};

/// The time at which is planned.
const NOW: Timestamp = Timestamp(1_000_000);

/// Places tasks that reserve this, while three nodes have reported shares in use, in thousandths, and `busy` tasks of
/// another service run on `b`, which have served since a time. Returns how many of them each node got.
fn placed(
    count: usize,
    shares: [Option<u32>; 3],
    reservations: Resources,
    (busy, served_at): (usize, Option<Timestamp>),
) -> [usize; 3] {
    let spec = ServiceSpec { strategy: PlacementStrategy::LeastUsed, reservations, ..ServiceSpec::default() };
    let mut view = Tables::default();
    view.put(service("s", spec).into_object());
    view.put(service("db", ServiceSpec::default()).into_object());
    ["a", "b", "c"].iter().for_each(|id| view.put(node(id).into_object()));
    for slot in 1..=count {
        let id = format!("p{slot}");
        view.put(Task { slot: slot as u64, ..task(&id, "s", "", TaskState::Pending) }.into_object());
    }
    for slot in 1..=busy {
        let id = format!("db{slot}");
        let task = Task { slot: slot as u64, served_at, ..task(&id, "db", "b", TaskState::Running) };
        view.put(task.into_object());
    }
    let mut cx = PlanContext::at(NOW);
    for (id, share) in ["a", "b", "c"].into_iter().zip(shares) {
        let node = share.map(|memory| NodeUsage { cpu: memory / 2, memory });
        cx.usage.record(&id.into(), Vec::new(), node);
    }
    let plan = Scheduler.plan(&Key::of("s"), &view, &mut cx);
    let on = |id: &str| {
        let is_on = |change: &&Change| matches!(change, Change::Put(Object::Task(task)) if task.is_on(&id.into()));
        plan.changes.iter().filter(is_on).count()
    };
    ["a", "b", "c"].map(on)
}

#[test]
fn tasks_go_to_the_node_of_which_the_least_is_in_use_until_others_are_like_it() {
    let shares = [Some(800), Some(100), Some(300)];
    let none = Resources::default();
    assert_eq!(placed(1, shares, none, (0, None)), [0, 1, 0]);
    assert_eq!(placed(8, shares, none, (0, None)), [0, 8, 0], "each is assumed to use a fortieth");
    assert_eq!(placed(9, shares, none, (0, None)), [0, 8, 1]);
    let quarter = Resources { nano_cpus: 0, memory_bytes: GIB };
    assert_eq!(placed(2, shares, quarter, (0, None)), [0, 1, 1], "or what it reserves");
    assert_eq!(placed(4, [Some(110), Some(100), Some(149)], none, (0, None)), [2, 1, 1], "about the same is the same");
}

#[test]
fn what_a_task_uses_that_is_not_measured_yet_is_assumed() {
    let shares = [Some(800), Some(100), Some(300)];
    let none = Resources::default();
    let long_ago = Some(Timestamp(NOW.0 - 60_000));
    let just_now = Some(Timestamp(NOW.0 - 59_000));
    assert_eq!(placed(1, shares, none, (10, None)), [0, 0, 1], "they have not served yet");
    assert_eq!(placed(1, shares, none, (10, just_now)), [0, 0, 1]);
    assert_eq!(
        placed(1, shares, none, (10, long_ago)),
        [0, 1, 0],
        "what they use is part of what the node has reported"
    );
}

#[test]
fn of_a_node_that_reports_nothing_what_its_tasks_have_reserved_counts() {
    assert_eq!(placed(1, [Some(60), None, Some(60)], Resources::default(), (3, None)), [0, 1, 0]);
}
