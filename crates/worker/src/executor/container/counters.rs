//! Reads what the container of a task has used: CPU and memory from its control groups, and requests from a counter that
//! it serves in the text format of Prometheus (prometheus.io, "Exposition formats").

use flota_api::model::Measured;
use flota_runtime::ContainerState;

use super::check;
use super::supervisor::{Place, blocking};
use crate::executor::Counters;

/// Reads the counters; `None` if the container does not run.
pub(super) async fn read(place: Place, measured: &Measured) -> Option<Counters> {
    let read = blocking(&place, |place| {
        let state = ContainerState::load(&place.paths.run_folder(&place.task)).ok().flatten()?;
        let usage = state.is_alive().then(|| place.paths.cgroups(&place.task).usage())?;
        Some(Counters { cpu_nanos: usage.cpu_nanos, memory_bytes: usage.memory_bytes, requests: None })
    });
    let counters = read.await.ok().flatten()?;
    let Some(counter) = &measured.requests else { return Some(counters) };
    let body = check::fetch(&place.paths.run_folder(&place.task), counter.port, &counter.path).await;
    let requests = body.ok().and_then(|body| total(&String::from_utf8_lossy(&body), &counter.metric));
    Some(Counters { requests, ..counters })
}

/// Returns the sum of a metric's values for all labels; `None` if the text has none.
fn total(text: &str, metric: &str) -> Option<u64> {
    let value = |line: &str| -> Option<f64> {
        let rest = line.trim_start().strip_prefix(metric)?;
        // A label's value may hold any character, also a brace, but none of its quotes ends a line of labels.
        let rest = match rest.strip_prefix('{') {
            Some(labels) => &labels[labels.rfind('}')? + 1..],
            None => rest,
        };
        // What follows is a longer name.
        let rest = rest.strip_prefix([' ', '\t'])?;
        rest.split_whitespace().next()?.parse().ok().filter(|it: &f64| it.is_finite() && *it >= 0.0)
    };
    let values: Vec<f64> = text.lines().filter_map(value).collect();
    // The sum is of whole requests, and the conversion holds it within its bounds.
    (!values.is_empty()).then(|| values.iter().sum::<f64>().round() as u64)
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
        assert_eq!(total(text, "http_requests_total"), Some(2030));
        assert_eq!(total(text, "http_requests"), None);
        assert_eq!(total("", "x"), None);
        assert_eq!(total("x +Inf\nx", "x"), None);
    }
}
