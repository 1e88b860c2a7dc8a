//! Sessions between nodes and the leader: how they begin, how they are missed, and what the leader makes of their end.

use std::time::Duration;

use flota_api::model::{NodeState, NodeStateReason as Reason};
use flota_api::proto::dispatcher::manager_message::Message as FromManager;
use flota_api::proto::dispatcher::worker_message::Message as ToManager;
use flota_api::proto::dispatcher::{Leaving, NotLeader, Register, StatusBatch, TaskReport};
use flota_api::proto::specs::ServiceSpec;
use flota_api::proto::types::{NodeDescription, TaskState as WireState, TaskStatus};
use flota_api::state::TaskState;
use flota_raft_store::raft::DiskFaults;
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::manual::no_streams;
use flota_tests::sim::script::{Script, script, spec};

use super::{Seen, another_leads, containers, manual, node, node_is, seen, tasks_are, tasks_of};

#[test]
fn node_that_asks_a_follower_is_told_who_leads() {
    script(1, |it| {
        let leader = it.leader();
        let address = it.cluster().managers[leader].host.address();
        let session = it.manual(0, (leader + 1) % 3, &[], no_streams);
        let redirect = FromManager::NotLeader(NotLeader { address });
        it.wait("the follower names the leader", 1_000, move |_| session.was_sent(|message| *message == redirect));
    });
}

#[test]
fn worker_that_knows_a_follower_alone_is_led_to_the_leader_by_it() {
    script(1, |it| {
        let follower = (it.leader() + 1) % 3;
        // The follower closes the session while the worker sends its first heartbeat, or before, or after.
        let took: Vec<u64> = (0..20)
            .map(|_| {
                it.cluster().crash_worker(0, false);
                it.wait("it is missed", 3_000, node_is(0, NodeState::Unknown));
                it.cluster().know_only(0, follower);
                it.cluster().start_worker(0);
                it.wait("it is in session with the leader", 1_000, node_is(0, NodeState::Ready))
            })
            .collect();
        // Without that it asks once more, after a pause.
        assert!(took.iter().all(|millis| *millis < 100), "it did not hear who leads: {took:?}");
    });
}

#[test]
fn session_in_another_nodes_name_is_refused() {
    script(2, |it| {
        let leader = it.leader();
        let register = Register { node_id: it.cluster().workers[1].node_id.to_string(), ..Register::default() };
        let session = it.manual_as(0, leader, register, no_streams);
        it.wait("the session is refused", 1_000, move |_| match session.end()? {
            Err(status) => seen(status.code() == tonic::Code::PermissionDenied, status),
            Ok(()) => Err("the manager closed it".into()),
        });
    });
}

#[test]
fn session_moves_to_the_next_leader_before_its_node_is_missed() {
    script(2, |it| {
        it.create(it.leader(), spec("web", 2)).unwrap();
        it.converge();
        let old = it.leader();
        it.cluster().crash_manager(old, true);
        it.wait("another manager leads", 5_000, another_leads(old));
        // As long as it takes to find out that a node is away.
        for _ in 0..100 {
            it.pass(50);
            for worker in 0..2 {
                assert_ne!(node(it.cluster(), worker).unwrap().state, NodeState::Down);
            }
        }
        it.wait("both nodes are ready", 100, |cluster| {
            node_is(0, NodeState::Ready)(cluster)?;
            node_is(1, NodeState::Ready)(cluster)
        });
    });
}

/// The leader takes a worker's node for this, and says why.
fn node_is_because(worker: usize, state: NodeState, reason: Reason) -> impl Fn(&SimCluster) -> Seen {
    move |cluster| {
        let node = node(cluster, worker)?;
        seen(node.state == state && node.state_reason == Some(reason), (node.state, node.state_reason))
    }
}

#[test]
fn node_whose_heartbeats_stop_is_doubted_before_it_is_down() {
    script(2, |it| {
        let session = manual(it, 0, no_streams);
        session.stop_beats();
        let doubted = it.wait("it is doubted", 3_000, node_is_because(0, NodeState::Unknown, Reason::MissedHeartbeat));
        assert!(doubted >= 500, "one beat may be late: doubted after {doubted} ms");
        let down = it.wait("it is down", 4_000, node_is_because(0, NodeState::Down, Reason::HeartbeatsStopped));
        assert!(doubted + down <= 4_500, "three beats were missed: down after {} ms", doubted + down);
    });
}

#[test]
fn node_whose_session_breaks_is_doubted_at_once_and_down_when_it_does_not_come_back() {
    script(2, |it| {
        it.cluster().crash_worker(0, false);
        it.wait("it is doubted", 200, node_is_because(0, NodeState::Unknown, Reason::SessionBroke));
        it.wait("it is down", 4_500, node_is_because(0, NodeState::Down, Reason::SessionBroke));
        it.cluster().start_worker(0);
        it.wait("it is ready", 5_000, node_is(0, NodeState::Ready));
    });
}

#[test]
fn machine_that_shuts_down_is_down_at_once_and_its_tasks_run_elsewhere() {
    script(2, |it| {
        let session = manual(it, 0, no_streams);
        it.create(it.leader(), spec("web", 2)).unwrap();
        it.wait("one task runs on the other node", 5_000, containers(1, 1));
        session.send(ToManager::Leaving(Leaving { machine: true }));
        // Heartbeats continue until the session is closed, so nothing but the message can have said so.
        it.wait("it is down", 200, node_is_because(0, NodeState::Down, Reason::ShutDown));
        it.wait("both tasks run on the other node", 5_000, containers(1, 2));
    });
}

#[test]
fn daemon_that_restarts_keeps_its_tasks_for_a_minute() {
    script(2, |it| {
        let session = manual(it, 0, no_streams);
        it.create(it.leader(), spec("web", 2)).unwrap();
        it.wait("one task runs on the other node", 5_000, containers(1, 1));
        session.send(ToManager::Leaving(Leaving { machine: false }));
        it.wait("the reason is known", 200, node_is_because(0, NodeState::Unknown, Reason::Restarting));
        it.pass(50_000);
        assert_eq!(it.cluster().workers[1].machine.running().len(), 1, "nothing moves meanwhile");
        it.wait("it is down", 11_000, node_is_because(0, NodeState::Down, Reason::DidNotReturn));
        it.wait("both tasks run on the other node", 5_000, containers(1, 2));
    });
}

#[test]
fn killed_daemon_of_a_worker_finds_its_tasks_again() {
    script(1, |it| {
        let leader = it.leader();
        it.create(leader, spec("web", 3)).unwrap();
        it.converge();
        let before = it.picture();
        it.cluster().crash_worker(0, false);
        it.pass(500);
        assert_eq!(it.picture(), before, "containers run on without the daemon");
        it.cluster().start_worker(0);
        it.pass(5_000);
        it.converge();
        assert_eq!(it.picture(), before);
    });
}

#[test]
fn node_that_does_not_read_its_messages_loses_its_session() {
    script(1, |it| {
        let session = manual(it, 0, no_streams);
        session.stop_reading();
        // More than its connection takes.
        for number in 0..10 {
            let env = vec![format!("TEXT={}", "x".repeat(200 << 10))];
            it.create(it.leader(), ServiceSpec { env, ..spec(&format!("s{number}"), 1) }).unwrap();
        }
        it.wait("its session ends", 25_000, node_is_because(0, NodeState::Unknown, Reason::SessionBroke));
    });
}

#[test]
fn session_outlives_a_quorum_that_is_slow_to_write() {
    script(2, |it| {
        let session = manual(it, 0, no_streams);
        it.create(it.leader(), spec("web", 2)).unwrap();
        it.wait("its task runs", 5_000, tasks_are("web", 2, TaskState::Running));
        let own = it.cluster().workers[0].node_id.clone();
        let tasks = tasks_of(it.cluster(), "web").unwrap();
        let task_id = tasks.iter().find(|task| task.is_on(&own)).unwrap().id.to_string();
        let leader = it.leader();
        let delay_followers = |it: &mut Script, delay: Duration| {
            for number in (0..3).filter(|number| *number != leader) {
                it.cluster().managers[number].disk.set_faults(DiskFaults { delay, ..DiskFaults::default() });
            }
        };
        delay_followers(it, Duration::from_millis(400));
        let status = TaskStatus { attempt: 1, state: WireState::Failed.into(), ..TaskStatus::default() };
        let reports = vec![TaskReport { task_id, status: Some(status) }];
        session.send(ToManager::Statuses(StatusBatch { sequence: 1_000, reports, ..StatusBatch::default() }));
        let described = |hostname: &str| NodeDescription { hostname: hostname.into(), ..NodeDescription::default() };
        for hostname in ["renamed", "not a name", "renamed-again"] {
            session.send(ToManager::Description(described(hostname)));
        }
        // Heartbeats are answered while the writes before them wait.
        it.pass(6_000);
        let end = session.end();
        assert!(end.is_err(), "the session continues: {end:?}");
        delay_followers(it, Duration::ZERO);
        it.wait("its reports are taken", 30_000, |_| {
            session.was_sent(|message| matches!(message, FromManager::StatusAck(ack) if ack.sequence == 1_000))
        });
        it.wait("its newest description is taken", 30_000, |cluster| {
            let hostname = node(cluster, 0)?.description.hostname.clone();
            seen(hostname == "renamed-again", hostname)
        });
        session.send(ToManager::Description(described("not a name")));
        it.pass(2_000);
        let end = session.end();
        assert!(end.is_err(), "the session continues: {end:?}");
    });
}
