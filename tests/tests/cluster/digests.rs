//! Managers whose tables differ from those of the others: how they are found, and what they do then.

use flota_api::proto::control::UpdateServiceRequest;
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::script::{OpenRequest, Script, script, spec};

use super::{another_leads, somebody_leads};

/// Why the manager with this number has ended by itself, if it has.
fn ended(number: usize, because: &'static str) -> impl Fn(&SimCluster) -> Result<(), String> {
    move |cluster| {
        let ended = cluster.ended_managers();
        match ended.iter().find(|(ended, _)| *ended == number) {
            Some((_, why)) if why.contains(because) => Ok(()),
            _ => Err(format!("{ended:?}")),
        }
    }
}

#[test]
fn manager_whose_tables_differ_stops_and_its_folder_is_refused() {
    script(1, |it| {
        let leader = it.leader();
        it.create(leader, spec("web", 1)).unwrap();
        it.converge();
        let wrong = (leader + 1) % 3;
        it.spoil_tables(wrong);
        it.create(leader, spec("other", 1)).unwrap();
        it.pass(500);
        // The next leader compares, whichever manager it is.
        it.cluster().crash_manager(leader, false);
        it.cluster().start_manager(leader);
        it.wait("the manager with the wrong tables stops", 30_000, ended(wrong, "has stopped"));
        it.cluster().crash_manager(wrong, false);
        it.cluster().start_manager(wrong);
        it.wait("it does not come back as it was", 5_000, ended(wrong, "differed from those of the other managers"));
        it.wait("a manager leads", 5_000, somebody_leads);
        let leader = it.leader();
        it.create(leader, spec("db", 1)).unwrap();
        assert!(it.cluster().view().unwrap().stack("spoiled").is_none());
    });
}

/// Begins to update a service a thousand times through the leader, so that the leader compares the tables without losing
/// its leadership.
fn begin_a_thousand_updates(it: &mut Script) -> OpenRequest<()> {
    it.begin(it.leader(), |mut client| async move {
        for number in 0..1_000 {
            let mut spec = spec("web", 0);
            spec.env = vec![format!("NUMBER={number}")];
            let (request_id, service) = (format!("update {number}"), "web".into());
            let request =
                UpdateServiceRequest { request_id, service, spec: Some(spec), ..UpdateServiceRequest::default() };
            client.update_service(request).await?;
        }
        Ok(())
    })
}

#[test]
fn follower_whose_tables_differ_is_found_within_a_thousand_entries() {
    script(1, |it| {
        let leader = it.leader();
        let wrong = (leader + 1) % 3;
        it.create(leader, spec("web", 0)).unwrap();
        it.spoil_tables(wrong);
        let updates = begin_a_thousand_updates(it);
        it.wait("the manager with the wrong tables stops", 120_000, ended(wrong, "has stopped"));
        drop(it.end(updates));
        assert_eq!(it.leader(), leader, "it went on leading");
    });
}

#[test]
fn leader_whose_tables_differ_finds_out_and_stops_and_another_leads() {
    script(1, |it| {
        let wrong = it.leader();
        it.create(wrong, spec("web", 0)).unwrap();
        it.spoil_tables(wrong);
        let updates = begin_a_thousand_updates(it);
        it.wait("the leader with the wrong tables stops", 120_000, ended(wrong, "has stopped"));
        drop(it.end(updates));
        it.cluster().crash_manager(wrong, false);
        it.wait("another manager leads", 5_000, another_leads(wrong));
        it.create(it.leader(), spec("db", 0)).unwrap();
        assert!(it.cluster().view().unwrap().stack("spoiled").is_none());
        it.cluster().start_manager(wrong);
        it.wait("it does not come back as it was", 5_000, ended(wrong, "differed from those of the other managers"));
    });
}
