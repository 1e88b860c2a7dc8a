//! Nodes whose clocks are off: the cluster says so, and no delay depends on them.

use flota_api::proto::types::RestartPolicy;
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::script::{Script, script, spec};
use flota_worker::{FakeFailure, FakeProgram};

use super::{Seen, node, seen, tasks_of};

/// Sets the clock of a worker's machine: it is ahead of the leader's by so many milliseconds.
fn set_clock(it: &mut Script, worker: usize, ahead: i64) {
    let leader = it.leader();
    let cluster = it.cluster();
    let (own, leaders) = (cluster.workers[worker].clock.now().0, cluster.managers[leader].clock.now().0);
    cluster.workers[worker].clock.step(ahead + leaders.cast_signed() - own.cast_signed());
}

/// The clock of a worker's node is shown to be off by so many seconds.
fn offset_is(worker: usize, seconds: std::ops::RangeInclusive<i64>) -> impl Fn(&SimCluster) -> Seen {
    move |cluster| {
        let offset = node(cluster, worker)?.clock_offset;
        seen(seconds.contains(&offset.0), offset)
    }
}

#[test]
fn node_whose_clock_is_off_is_shown_until_it_is_right_again() {
    script(2, |it| {
        set_clock(it, 0, -3_000_000);
        set_clock(it, 1, 0);
        it.wait("its clock is shown", 3_000, offset_is(0, -3_002..=-2_998));
        it.wait("the other one is right", 3_000, offset_is(1, 0..=0));
        set_clock(it, 0, 0);
        it.wait("it is right again", 3_000, offset_is(0, 0..=0));
    });
}

#[test]
fn node_whose_clock_is_behind_fails_as_often_as_one_whose_clock_is_right() {
    let restarts = |ahead| {
        let (sender, counted) = std::sync::mpsc::channel();
        script(1, move |it| {
            set_clock(it, 0, ahead);
            let program =
                FakeProgram { start_failure: Some(FakeFailure::always("no such file")), ..FakeProgram::default() };
            it.cluster().workers[0].machine.set_program("bad", program);
            let mut bad = spec("bad", 1);
            bad.restart = bad.restart.map(|policy| RestartPolicy { delay_ms: 2_000, ..policy });
            it.create(it.leader(), bad).unwrap();
            it.pass(20_000);
            let tasks = tasks_of(it.cluster(), "bad").unwrap();
            sender.send(tasks.iter().map(|task| task.restarts()).max().unwrap()).unwrap();
        });
        counted.recv().unwrap()
    };
    let right = restarts(0);
    assert!((2..=5).contains(&right), "{right}");
    assert_eq!(restarts(-3_000_000), right, "50 minutes behind");
    assert_eq!(restarts(3_000_000), right, "50 minutes ahead");
}
