//! Every metric of a node, with its unit in its name. All are read when they are asked for: nothing is counted for
//! their sake but what the parts count themselves.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::observed::{Observed, ObservedManager, ObservedWorker};

/// Returns the page in the text format of OpenMetrics.
pub(super) fn page(observed: &Observed) -> String {
    let mut registry = Registry::with_prefix("flota");
    registry.register_collector(Box::new(Page(observed.clone())));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("a String takes everything");
    text
}

#[derive(Debug)]
struct Page(Observed);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Observed { node_id, cluster_id, hostname, role, manager, worker, is_locked: _ } = &self.0;
        let mut out = Out(&mut encoder);
        let labels = [
            ("version", flota_api::VERSION),
            ("node", node_id),
            ("cluster", cluster_id),
            ("hostname", hostname),
            ("role", role),
        ];
        out.gauges("node", "The node and its program; always 1.", [(labels.to_vec(), 1.0)])?;
        if let Some(manager) = manager {
            of_manager(manager, &mut out)?;
        }
        worker.as_ref().map_or(Ok(()), |worker| of_worker(worker, &mut out))
    }
}

fn of_manager(it: &ObservedManager, out: &mut Out<'_, '_>) -> fmt::Result {
    let seconds = |micros: u64| micros as f64 / 1e6;
    out.gauge("raft_is_leader", "Whether this manager leads.", f64::from(u8::from(it.is_leader)))?;
    out.gauge("raft_has_leader", "Whether this manager knows a leader.", f64::from(u8::from(it.has_leader)))?;
    out.gauge("raft_term", "The term that this manager knows.", it.term as f64)?;
    out.gauge("raft_applied_index", "Index of the last entry that was applied here.", it.applied_index as f64)?;
    let members =
        [("voter", it.voters), ("learner", it.learners)].map(|(kind, count)| (vec![("kind", kind)], count as f64));
    out.gauges("raft_members", "Managers in the membership that this one knows.", members)?;
    if let Some(age) = it.age {
        let help = "Time since this manager last knew that it had every committed entry.";
        out.gauge("raft_age_seconds", help, age.as_secs_f64())?;
    }
    out.counter("raft_log_syncs", "Calls of fdatasync(2) for the log.", it.log.syncs as f64)?;
    out.counter("raft_log_sync_seconds", "Time in fdatasync(2) for the log.", seconds(it.log.sync_micros))?;
    let longest = seconds(it.log.longest_sync_micros);
    out.gauge("raft_log_longest_sync_seconds", "The longest fdatasync(2) for the log.", longest)?;
    out.counter("raft_log_entries", "Entries that were written to the log.", it.log.entries as f64)?;
    out.counter("raft_log_bytes", "Bytes that were written to the log.", it.log.bytes as f64)?;
    out.gauges("store_objects", "Objects in the store.", labelled("kind", &it.objects))?;
    let digest = vec![("digest", it.digest.as_str())];
    let help =
        "Digest of the tables after the entry with the applied index. Managers with the same index have the same one.";
    out.gauges("store_digest", help, [(digest, it.applied_index as f64)])?;
    out.gauges("tasks", "Tasks in the store by their state.", labelled("state", &it.tasks))?;
    out.gauges("nodes", "Nodes in the store by their state.", labelled("state", &it.nodes))?;
    out.gauge("sessions", "Workers that have a session with this manager.", it.sessions as f64)?;
    let help = "Tasks that were told to stop although nodes had not confirmed that they send them no more connections.";
    out.counter("unconfirmed_stops", help, it.unconfirmed_stops as f64)?;
    out.counter(
        "control_loop_passes",
        "Passes of the control loops since this daemon started.",
        it.loops.passes as f64,
    )?;
    out.counter("control_loop_proposals", "Changes that the control loops have proposed.", it.loops.proposals as f64)?;
    let help = "Proposals of the control loops that met another change and were planned again.";
    out.counter("control_loop_conflicts", help, it.loops.conflicts as f64)?;
    let Some(newest) = it.newest_backup else { return Ok(()) };
    let help = "When the newest scheduled backup was written, as the time since 1970; 0 if there is none yet.";
    out.gauge("backup_newest_timestamp_seconds", help, (newest.0 / 1_000) as f64)
}

fn of_worker(it: &ObservedWorker, out: &mut Out<'_, '_>) -> fmt::Result {
    let is_connected = f64::from(u8::from(it.lost.is_none()));
    out.gauge("worker_has_session", "Whether this node has a session with the leader.", is_connected)?;
    let lost = it.lost.unwrap_or_default().as_secs_f64();
    out.gauge("worker_lost_seconds", "Time since this node had a session with the leader; 0 if it has one.", lost)?;
    out.gauge("worker_tasks", "Tasks of this node that have not ended.", it.tasks as f64)?;
    out.gauge("worker_images", "Images that are complete on this node.", it.images as f64)?;
    let starts = it.starts;
    out.counter("container_starts", "Containers that were started on this node.", starts.starts as f64)?;
    out.counter("container_start_failures", "Starts of containers that failed.", starts.failures as f64)?;
    let help = "Time that starts of containers took, without what is prepared before.";
    out.counter("container_start_seconds", help, starts.micros as f64 / 1e6)?;
    let help = "When the node's certificate expires, as the time since 1970. It is renewed long before.";
    out.gauge("certificate_expiry_timestamp_seconds", help, (it.certificate_expires_at.0 / 1_000) as f64)
}

/// The values of a metric with one label.
fn labelled<'a>(label: &'static str, counts: &'a BTreeMap<&'static str, usize>) -> Vec<(Labels<'a>, f64)> {
    counts.iter().map(|(value, count)| (vec![(label, *value)], *count as f64)).collect()
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Writes metrics.
struct Out<'a, 'e>(&'a mut DescriptorEncoder<'e>);

impl Out<'_, '_> {
    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.0.encode_descriptor(name, help, None, gauge.metric_type())?)
    }

    fn counter(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(self.0.encode_descriptor(name, help, None, counter.metric_type())?)
    }

    fn gauges<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'l>, f64)>,
    ) -> fmt::Result {
        let kind = ConstGauge::new(0.0).metric_type();
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in values {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use flota_api::version::Timestamp;
    use flota_manager::LoopStatistics;
    use flota_raft_store::raft::LogStatistics;
    use flota_worker::StartStatistics;

    fn observed() -> Observed {
        let log =
            LogStatistics { syncs: 3, entries: 5, bytes: 700, sync_micros: 2_500_000, longest_sync_micros: 1_000 };
        let manager = ObservedManager {
            is_leader: true,
            has_leader: true,
            term: 4,
            applied_index: 17,
            digest: "00ff".into(),
            age: Some(Duration::from_millis(250)),
            voters: 3,
            learners: 0,
            log,
            objects: [("node", 3), ("task", 2)].into(),
            tasks: [("running", 2)].into(),
            nodes: [("ready", 3)].into(),
            sessions: 3,
            unconfirmed_stops: 2,
            loops: LoopStatistics { passes: 9, proposals: 8, conflicts: 1 },
            newest_backup: Some(Timestamp(1_700_000_000_000)),
        };
        Observed {
            node_id: "n".into(),
            cluster_id: "c".into(),
            hostname: "m\"1".into(),
            role: "manager".into(),
            manager: Some(manager),
            worker: Some(ObservedWorker {
                lost: None,
                tasks: 2,
                images: 1,
                starts: StartStatistics { starts: 4, failures: 1, micros: 80_000 },
                certificate_expires_at: Timestamp(1_800_000_000_000),
            }),
            is_locked: false,
        }
    }

    #[test]
    fn the_dashboard_asks_for_metrics_that_there_are() {
        let (text, dashboard) = (page(&observed()), include_str!("../../../../deploy/grafana/flota.json"));
        let is_name = |it: char| it.is_ascii_lowercase() || it == '_';
        let names = dashboard.match_indices("flota_").map(|(at, _)| {
            let end = dashboard[at..].find(|it| !is_name(it)).expect("the file goes on");
            &dashboard[at..at + end]
        });
        let names: BTreeSet<&str> = names.collect();
        assert!(names.len() > 10, "{names:?}");
        for name in names {
            let is_it = |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
            assert!(text.lines().any(is_it), "{name} is not in {text}");
        }
    }

    #[test]
    fn each_metric_has_its_help_its_type_and_its_value() {
        let text = page(&observed());
        for line in [
            "# TYPE flota_raft_log_syncs counter",
            "flota_raft_log_syncs_total 3.0",
            "flota_raft_log_sync_seconds_total 2.5",
            "flota_raft_is_leader 1.0",
            "flota_raft_age_seconds 0.25",
            "flota_raft_members{kind=\"voter\"} 3.0",
            "flota_store_objects{kind=\"task\"} 2.0",
            "flota_store_digest{digest=\"00ff\"} 17.0",
            "flota_tasks{state=\"running\"} 2.0",
            "flota_control_loop_passes_total 9.0",
            "flota_worker_has_session 1.0",
            "flota_worker_tasks 2.0",
            "flota_container_starts_total 4.0",
            "flota_container_start_failures_total 1.0",
            "flota_container_start_seconds_total 0.08",
            "flota_certificate_expiry_timestamp_seconds 1800000000.0",
            "flota_backup_newest_timestamp_seconds 1700000000.0",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is not in {text}");
        }
        assert!(text.contains("hostname=\"m\\\"1\""), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
        let helps = text.lines().filter(|line| line.starts_with("# HELP ")).count();
        let types = text.lines().filter(|line| line.starts_with("# TYPE ")).count();
        assert_eq!(helps, types);
    }

    #[test]
    fn a_node_without_a_cluster_has_a_page_too() {
        let text = page(&Observed { manager: None, worker: None, ..observed() });
        assert!(
            text.contains("flota_node{") && !text.contains("flota_raft") && !text.contains("flota_worker"),
            "{text}"
        );
    }
}
