//! Autoscaling: the number of tasks follows what they use, at the leader that there is.

use flota_api::proto::control::{RemoveTaskRequest, UpdateServiceRequest};
use flota_api::proto::specs::{ScalePolicy, ServiceSpec};
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::script::{Script, script, spec};
use flota_worker::FakeProgram;

use super::services::set_program;
use super::{Seen, seen, tasks_of};

/// Between two and six tasks that are to use half a CPU each.
fn scaled() -> ServiceSpec {
    let scale =
        ScalePolicy { min: 2, max: 6, nano_cpus: 500_000_000, down_window_ms: 60_000, ..ScalePolicy::default() };
    ServiceSpec { scale: Some(scale), ..spec("web", 1) }
}

/// Lets each task use so many hundredths of a CPU.
fn load(it: &mut Script, hundredths: u64) {
    set_program(it, "web", &FakeProgram { nano_cpus: hundredths * 10_000_000, ..FakeProgram::default() });
}

fn serving(cluster: &SimCluster) -> Result<usize, String> {
    Ok(tasks_of(cluster, "web")?.iter().filter(|task| task.is_serving()).count())
}

fn serve(count: usize) -> impl Fn(&SimCluster) -> Seen {
    move |cluster| {
        let serving = serving(cluster)?;
        seen(serving == count, serving)
    }
}

/// The decisions that the service remembers, as `from>to`.
fn decisions(it: &mut Script) -> Vec<String> {
    let view = it.cluster().view().expect("a manager leads");
    let service = view.service_by_name("web").expect("it is there");
    assert_eq!(service.spec.mode.replicas(), Some(1), "the system never changes a spec");
    service.scale.decisions.iter().map(|it| format!("{}>{}", it.from, it.to)).collect()
}

#[test]
fn the_number_of_tasks_rises_with_the_load_at_once_and_falls_after_a_window() {
    script(2, |it| {
        load(it, 50);
        it.create(it.leader(), scaled()).unwrap();
        it.wait("it has the least number of tasks", 10_000, serve(2));
        it.pass(60_000);
        assert_eq!(decisions(it), [""; 0], "the load is as it should be");
        load(it, 80);
        it.wait("all of the load has room", 200_000, serve(6));
        assert_eq!(decisions(it), ["2>4", "4>6"], "each look at the same load asks for more, until there are no more");
        load(it, 1);
        let took = it.wait("few are enough", 300_000, serve(2));
        assert!(took >= 60_000, "the window of a minute was not waited for: {took} ms");
        let decisions = decisions(it);
        // Part of the first window was measured under the load, so it may take two steps.
        assert!(decisions.last().is_some_and(|it| it.ends_with(">2")) && decisions.len() <= 4, "{decisions:?}");
        it.converge();
    });
}

#[test]
fn a_new_leader_goes_on_and_stops_nothing_before_it_has_watched_for_a_window() {
    script(2, |it| {
        load(it, 80);
        it.create(it.leader(), scaled()).unwrap();
        it.wait("there are as many as may be", 200_000, serve(6));
        load(it, 1);
        // Most of the window has passed.
        it.pass(45_000);
        let leader = it.leader();
        it.cluster().crash_manager(leader, true);
        it.wait("another manager leads", 20_000, move |cluster| {
            let other = cluster.leader();
            seen(other.is_some_and(|it| it != leader), other)
        });
        let took = it.wait("few are enough", 300_000, serve(2));
        assert!(took >= 55_000, "the new leader has not watched for a minute: {took} ms");
    });
}

#[test]
fn what_a_user_sets_takes_the_place_of_what_the_load_has_led_to() {
    script(2, |it| {
        load(it, 80);
        it.create(it.leader(), scaled()).unwrap();
        it.wait("there are as many as may be", 200_000, serve(6));
        load(it, 50);
        let remove = |it: &mut Script, request_id: &str| {
            let name = tasks_of(it.cluster(), "web").unwrap()[0].id.to_string();
            let request = RemoveTaskRequest { request_id: request_id.into(), name, shrink: true };
            it.request(it.leader(), |mut client| async move { client.remove_task(request).await })
        };
        remove(it, "one less").unwrap();
        it.wait("one is gone", 20_000, serve(5));
        it.pass(30_000);
        assert_eq!(serving(it.cluster()), Ok(5), "the load does not ask for another number");
        let outside = it.update(it.leader(), "too many", ServiceSpec { replicas: 9, ..scaled() }).unwrap_err();
        assert!(outside.message().contains("9 is outside of the bounds of autoscaling, 2 to 6"), "{outside}");
        it.update(it.leader(), "three", ServiceSpec { replicas: 3, ..scaled() }).unwrap();
        it.wait("there are three", 20_000, serve(3));
        load(it, 80);
        it.wait("the load goes on from there", 200_000, serve(6));
        load(it, 50);
        let spec = Some(ServiceSpec { replicas: 3, ..scaled() });
        let service = "web".into();
        let again = UpdateServiceRequest { service, spec, sets_replicas: true, ..UpdateServiceRequest::default() };
        it.request(it.leader(), |mut client| async move { client.update_service(again).await }).unwrap();
        it.wait("there are three again, as the user has said", 20_000, serve(3));
        it.update(it.leader(), "no more", ServiceSpec { scale: None, replicas: 4, ..scaled() }).unwrap();
        load(it, 90);
        it.wait("there are four", 20_000, serve(4));
        it.pass(60_000);
        assert_eq!(serving(it.cluster()), Ok(4), "nothing scales it any more");
    });
}
