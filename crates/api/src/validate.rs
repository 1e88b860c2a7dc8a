//! The rules for the specs of services and networks by themselves: all violations, each with its field.

mod dependencies;
mod health;
mod mounts;
mod networks;
mod privileges;
mod scale;
mod settings;
mod update;
mod values;

use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::defaults::{REPLICAS_BOUND, RESTARTS_TIMED};
use crate::image_ref::ImageRef;
use crate::model::{OnPartition, RestartCondition, ServiceSpec};
use crate::{Violation, naming, template};

pub use mounts::volume_violations;
pub use networks::{meet, violations as network_violations};
pub use settings::is_of_network;

/// Smallest memory limit in bytes. The kernel refuses smaller ones, or no program can start within them.
const LEAST_MEMORY: u64 = 4 << 20;
const SPEC_BOUND: usize = 256 << 10;
/// Most levels of a spread: more groups of groups than any cluster has.
const SPREAD_BOUND: usize = 8;
/// Priorities of services, of which there are more than any cluster needs.
const PRIORITIES: RangeInclusive<i32> = -1_000..=1_000;

/// Longest time that a spec can name. A longer one is most likely a mistaken unit.
const TIME_BOUND: Duration = Duration::from_secs(30 * 24 * 3600);

/// Shortest time within which the runs of a service of the mode cron may have to begin.
const LEAST_DEADLINE: Duration = Duration::from_secs(1);

/// Returns every rule that `spec` breaks by itself. What else the cluster has may be in the way of more.
pub fn violations(spec: &ServiceSpec) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut check = |field: &str, result: Result<(), String>| {
        if let Err(why) = result {
            found.push(Violation { field: field.to_owned(), why });
        }
    };
    check("name", naming::check(&spec.name).map_err(|error| error.to_string()));
    check("image", ImageRef::parse(&spec.image).map(drop).map_err(|error| error.to_string()));
    for (index, text) in spec.env.iter().enumerate() {
        check(&format!("env[{index}]"), variable(text));
    }
    let bound =
        |value: u64, most: u64| (value <= most).then_some(()).ok_or(format!("{value} is over the bound of {most}"));
    check("replicas", bound(spec.mode.replicas().unwrap_or_default(), REPLICAS_BOUND));
    if spec.mode.is_job() && spec.restart.condition == RestartCondition::Any {
        check(
            "restart.condition",
            Err("a job is not started again once its work is done: `on-failure` or `none`".into()),
        );
    }
    let timed = spec.restart.max_attempts.filter(|_| spec.restart.window.is_some());
    if let Some(most) = timed.filter(|most| most.get() > RESTARTS_TIMED as u64) {
        check("restart.max_attempts", Err(format!("with a window, {most} is over the bound of {RESTARTS_TIMED}")));
    }
    times(spec, &mut check);
    if spec.mode.cron().is_some() && !spec.depends_on.is_empty() {
        check(
            "depends_on",
            Err("a service of the mode cron begins its runs by its schedule, and waits for no other".into()),
        );
    }
    if spec.spread_over.len() > SPREAD_BOUND {
        check("spread_over", Err(format!("{} levels are over the bound of {SPREAD_BOUND}", spec.spread_over.len())));
    }
    affinity(spec, &mut check);
    if !PRIORITIES.contains(&spec.priority) {
        let (least, most) = (PRIORITIES.start(), PRIORITIES.end());
        check("priority", Err(format!("{} is not from {least} to {most}", spec.priority)));
    }
    let texts =
        spec.entrypoint.iter().chain(&spec.command).chain(&spec.user).chain(&spec.working_dir).chain(&spec.hostname);
    check("command", texts.clone().all(|it| !it.contains('\0')).then_some(()).ok_or("it holds a NUL byte".into()));
    if let Some(hostname) = &spec.hostname {
        check("hostname", host_name(hostname));
    }
    if let Some(folder) = spec.working_dir.as_ref().filter(|it| !it.starts_with('/')) {
        check("working_dir", Err(format!("`{folder}` is not absolute")));
    }
    if let Some(memory) = spec.limits.memory_bytes.filter(|it| it.get() < LEAST_MEMORY) {
        check("limits.memory", Err(format!("{memory} bytes are less than the least, {LEAST_MEMORY}")));
    }
    let over = |limit: Option<NonZeroU64>, reserved: u64| limit.is_some_and(|limit| reserved > limit.get());
    if over(spec.limits.memory_bytes, spec.reservations.memory_bytes) {
        check("reservations.memory", Err("it is more than the limit".into()));
    }
    if over(spec.limits.nano_cpus, spec.reservations.nano_cpus) {
        check("reservations.cpus", Err("it is more than the limit".into()));
    }
    privileges::judge(spec, &mut check);
    settings::judge(spec, &mut check);
    networks::judge(spec, &mut check);
    health::judge(spec, &mut check);
    mounts::judge(spec, &mut check);
    values::judge(spec, &mut check);
    update::judge(spec, &mut check);
    dependencies::judge(spec, &mut check);
    scale::judge(spec, &mut check);
    let texts = texts.chain(&spec.env).chain(spec.labels.iter().flat_map(|(key, value)| [key, value]));
    let texts = texts.chain(privileges::texts(spec)).chain(health::texts(spec)).chain(settings::texts(spec));
    let texts = texts.chain(values::texts(spec));
    let size: usize = texts.map(String::len).sum();
    let places =
        spec.constraints.iter().map(ToString::to_string).chain(spec.spread_over.iter().map(ToString::to_string));
    let places = places.chain(spec.affinity.iter().chain(&spec.anti_affinity).cloned()).chain(scale::text(spec));
    let names = spec.depends_on.iter().map(|it| it.service.len()).sum::<usize>();
    let size =
        size + places.map(|it| it.len()).sum::<usize>() + mounts::texts(spec).map(str::len).sum::<usize>() + names;
    check("spec", (size <= SPEC_BOUND).then_some(()).ok_or(format!("{size} bytes are over the bound of {SPEC_BOUND}")));
    found
}

fn variable(text: &str) -> Result<(), String> {
    let is_named = !text.is_empty() && !text.starts_with('=') && !text.contains('\0');
    is_named.then_some(()).ok_or("it has the form NAME=value, or NAME to remove the variable")?;
    template::check(text).map_err(|error| error.to_string())
}

/// Checks a host name. What its templates stand for is known only to the worker.
fn host_name(text: &str) -> Result<(), String> {
    template::check(text).map_err(|error| error.to_string())?;
    let is_good = text.contains("{{") || naming::check(text).is_ok();
    is_good.then_some(()).ok_or_else(|| format!("`{text}` is not a host name"))
}

/// The services beside which a service runs, and those from which it keeps apart.
fn affinity(spec: &ServiceSpec, check: &mut impl FnMut(&str, Result<(), String>)) {
    for (field, names) in [("affinity", &spec.affinity), ("anti_affinity", &spec.anti_affinity)] {
        for (index, name) in names.iter().enumerate() {
            let other = if field == "affinity" { &spec.anti_affinity } else { &spec.affinity };
            let fault = match naming::check(name) {
                Err(error) => Some(error.to_string()),
                Ok(()) if *name == spec.name => {
                    Some(format!("`{name}` is the service itself: limit its tasks per node instead"))
                }
                Ok(()) if names[..index].contains(name) => Some(format!("`{name}` is there twice")),
                Ok(()) if other.contains(name) => Some(format!("`{name}` is to run both beside and apart")),
                Ok(()) => None,
            };
            check(&format!("{field}[{index}]"), fault.map_or(Ok(()), Err));
        }
    }
}

/// The times of a spec that no other rule bounds.
fn times(spec: &ServiceSpec, check: &mut impl FnMut(&str, Result<(), String>)) {
    let on_partition = match spec.on_partition {
        OnPartition::Run => Duration::ZERO,
        OnPartition::Stop(after) => after,
    };
    for (field, time) in [
        ("restart.delay", spec.restart.delay),
        ("restart.window", spec.restart.window.unwrap_or_default()),
        ("stop_grace", spec.stop_grace),
        ("on_partition", on_partition),
        ("start_deadline", spec.mode.start_deadline().unwrap_or_default()),
    ] {
        // In seconds, and never less than it is.
        let asked = time.as_secs() + u64::from(time.subsec_nanos() > 0);
        let why = || {
            format!("{asked} s are over the bound of {} s ({} h)", TIME_BOUND.as_secs(), TIME_BOUND.as_secs() / 3600)
        };
        check(field, (time <= TIME_BOUND).then_some(()).ok_or_else(why));
    }
    if spec.mode.start_deadline().is_some_and(|it| it < LEAST_DEADLINE) {
        check("start_deadline", Err("it is less than 1 s, which a change of the leader alone can take".into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::model::{Concurrency, RestartPolicy, ServiceMode};

    #[test]
    fn a_run_may_have_to_begin_within_a_second_or_a_month_and_no_other_time() {
        let why = |deadline| {
            let schedule = Arc::new("@daily".parse().expect("a good schedule"));
            let (concurrency, start_deadline) = (Concurrency::Forbid, Some(deadline));
            let mode =
                ServiceMode::Cron { schedule, concurrency, start_deadline, completions: 1, max_concurrent: None };
            let spec = ServiceSpec { name: "web".into(), image: "web".into(), ..ServiceSpec::of_mode(mode) };
            violations(&spec).iter().map(|it| format!("{}: {}", it.field, it.why)).collect::<Vec<_>>()
        };
        assert_eq!(why(Duration::from_secs(1)), [""; 0]);
        assert_eq!(why(TIME_BOUND), [""; 0]);
        let short = "start_deadline: it is less than 1 s, which a change of the leader alone can take";
        assert_eq!(why(Duration::from_millis(999)), [short]);
        let long = "start_deadline: 2592001 s are over the bound of 2592000 s (720 h)";
        for over in [Duration::from_nanos(1), Duration::from_secs(1)] {
            assert_eq!(why(TIME_BOUND + over), [long], "{over:?}");
        }
    }

    #[test]
    fn a_window_counts_a_hundred_restarts_at_most() {
        let why = |most, window| {
            let window = Some(Duration::from_secs(window)).filter(|it| !it.is_zero());
            let restart = RestartPolicy { max_attempts: NonZeroU64::new(most), window, ..RestartPolicy::default() };
            let spec = ServiceSpec { name: "web".into(), image: "web".into(), restart, ..ServiceSpec::default() };
            violations(&spec).iter().map(|it| format!("{}: {}", it.field, it.why)).collect::<Vec<_>>()
        };
        assert_eq!(why(100, 60), [""; 0]);
        assert_eq!(why(1_000, 0), [""; 0]);
        assert_eq!(why(101, 60), ["restart.max_attempts: with a window, 101 is over the bound of 100"]);
    }

    #[test]
    fn every_violation_is_named_with_its_field() {
        let good = ServiceSpec { name: "web".into(), image: "web".into(), ..ServiceSpec::default() };
        assert_eq!(violations(&good), []);
        let hostname = Some("{{.Service.Name}}-{{.Task.Slot}}".into());
        let env = vec![r#"Q={{"{{"}}x}}"#.into(), "REMOVED".into()];
        assert_eq!(violations(&ServiceSpec { hostname, env, ..good.clone() }), []);
        let mut bad = ServiceSpec {
            name: "-".into(),
            image: "Web".into(),
            env: vec!["=x".into()],
            mode: ServiceMode::Replicated { replicas: 1_000_000 },
            working_dir: Some("here".into()),
            ..good
        };
        bad.limits.memory_bytes = NonZeroU64::new(1);
        bad.reservations.memory_bytes = 2;
        bad.env.push("Q={{index .env 0}}".into());
        bad.hostname = Some("{{.Secret}}".into());
        let fields: Vec<String> = violations(&bad).into_iter().map(|it| it.field).collect();
        let expected = [
            "name",
            "image",
            "env[0]",
            "env[1]",
            "replicas",
            "hostname",
            "working_dir",
            "limits.memory",
            "reservations.memory",
        ];
        assert_eq!(fields, expected);
    }

    #[test]
    fn a_priority_has_bounds_in_both_directions() {
        let broken = |priority| {
            let spec = ServiceSpec { name: "web".into(), image: "web".into(), priority, ..ServiceSpec::default() };
            violations(&spec).into_iter().map(|it| format!("{}: {}", it.field, it.why)).collect::<Vec<_>>()
        };
        for good in [-1_000, 0, 1_000] {
            assert_eq!(broken(good), [""; 0]);
        }
        assert_eq!(broken(1_001), ["priority: 1001 is not from -1000 to 1000"]);
        assert_eq!(broken(i32::MIN), ["priority: -2147483648 is not from -1000 to 1000"]);
    }
}
