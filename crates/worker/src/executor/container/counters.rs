//! Reads what the container of a task has used: CPU and memory from its control groups, and requests from a counter that
//! it serves in the text format of Prometheus (prometheus.io, "Exposition formats").

use std::time::Duration;

use flota_api::model::Measured;
use flota_network::SocketThread;
use flota_runtime::ContainerState;

use super::requests;
use super::supervisor::{Place, blocking};
use crate::executor::Counters;

/// Longest time for which a page of a task is read.
const WAIT: Duration = Duration::from_secs(3);

/// Reads the counters; `None` if the container does not run.
pub(super) async fn read(sockets: &SocketThread, place: Place, measured: &Measured) -> Option<Counters> {
    let read = blocking(&place, |place| {
        let state = ContainerState::load(&place.paths.run_folder(&place.task)).ok().flatten()?;
        let usage = state.is_alive().then(|| place.paths.cgroups(&place.task).usage())?;
        Some(Counters { cpu_nanos: usage.cpu_nanos, memory_bytes: usage.memory_bytes, requests: None })
    });
    let counters = read.await.ok().flatten()?;
    let Some(counter) = &measured.requests else { return Some(counters) };
    let (folder, mut total) = (place.paths.run_folder(&place.task), Total::default());
    let page =
        requests::read_lines((sockets, &folder), counter.port, &counter.path, |line| total.add(line, &counter.metric));
    let read = tokio::time::timeout(WAIT, page).await.unwrap_or_else(|_| Err("it takes too long".into()));
    if let Err(error) = &read {
        tracing::debug!(task.id = %place.task, %counter, error, "the requests of a task can't be counted");
    }
    Some(Counters { requests: read.ok().and_then(|()| total.requests()), ..counters })
}

/// The sum of a metric's values for all labels.
#[derive(Debug, Default)]
struct Total(Option<f64>);

impl Total {
    /// Adds the value of a line, if it is one of the metric.
    fn add(&mut self, line: &str, metric: &str) {
        if let Some(value) = value(line, metric) {
            *self.0.get_or_insert_default() += value;
        }
    }

    /// Returns the sum in whole requests; `None` if there was no value.
    fn requests(&self) -> Option<u64> {
        // The conversion holds the sum within its bounds.
        self.0.map(|sum| sum.round() as u64)
    }
}

/// Returns the value of the metric that a line has.
fn value(line: &str, metric: &str) -> Option<f64> {
    let rest = line.trim_start().strip_prefix(metric)?;
    // A label's value may hold any character, also a brace, but none follows the one that ends the labels.
    let rest = match rest.strip_prefix('{') {
        Some(labels) => &labels[labels.rfind('}')? + 1..],
        None => rest,
    };
    // Something else that follows is a longer name.
    let rest = rest.strip_prefix([' ', '\t'])?;
    rest.split_whitespace().next()?.parse().ok().filter(|it: &f64| it.is_finite() && *it >= 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_a_metric_are_added_for_all_labels() {
        let text = concat!(
            "# HELP http_requests_total All requests.\n",
            "# TYPE http_requests_total counter\n",
            "http_requests_total{method=\"get\",code=\"200\"} 1027 1395066363000\n",
            "http_requests_total{path=\"/a}b{ 5\"}\t3\n",
            "http_requests_total 1e3\n",
            "http_requests_total_more 77\n",
            "http_requests_total{broken 5\n",
            "http_requests_total NaN\n",
            "http_requests_total -4\n",
            "other 1\n",
        );
        let total = |text: &str, metric: &str| {
            let mut total = Total::default();
            text.lines().for_each(|line| total.add(line, metric));
            total.requests()
        };
        assert_eq!(total(text, "http_requests_total"), Some(2030));
        assert_eq!(total(text, "http_requests"), None);
        assert_eq!(total("", "x"), None);
        assert_eq!(total("x +Inf\nx", "x"), None);
    }
}
