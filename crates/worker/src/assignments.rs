//! A set of assignments as it comes over the wire: in parts, with each spec once, by the leader's clock. And which set
//! was the newest.

use std::sync::Arc;
use std::time::Duration;

use flota_api::proto::dispatcher::Assignments;
use flota_api::version::Timestamp;

use crate::worker_state::{NEWEST, WorkerState};

/// Clocks that differ by less are taken for equal: a wait is then as exact as it can be.
const SAME_CLOCK: Duration = Duration::from_secs(1);
/// A set has no more parts than a machine can have tasks.
const TASKS_BOUND: usize = 100_000;

/// A set that can't be acted on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadSet {
    /// A task whose spec did not come along.
    #[error("the manager's assignments name the task {0}, but not its spec")]
    Spec(String),
    /// More than can be.
    #[error("the manager's assignments name more than {TASKS_BOUND} tasks")]
    TooMany,
}

/// What was here of a set, with one more part that came at `now`; and whether more parts follow.
pub(crate) fn join(
    before: Option<Assignments>,
    mut part: Assignments,
    now: Timestamp,
) -> Result<(Assignments, bool), BadSet> {
    let specs = std::mem::take(&mut part.specs);
    for task in &mut part.tasks {
        let spec = specs.iter().find(|it| it.service_id == task.service_id && it.spec_version == task.spec_version);
        task.spec = Some(spec.and_then(|it| it.spec.clone()).ok_or_else(|| BadSet::Spec(task.task_id.clone()))?);
        task.not_before = by_own_clock(task.not_before, Timestamp(part.now), now);
    }
    let more = part.more;
    let Some(mut whole) = before else { return Ok((part, more)) };
    whole.tasks.append(&mut part.tasks);
    whole.removed_tasks.append(&mut part.removed_tasks);
    whole.images.append(&mut part.images);
    whole.dropped_images.append(&mut part.dropped_images);
    if whole.tasks.len() > TASKS_BOUND { Err(BadSet::TooMany) } else { Ok((whole, more)) }
}

/// A time of the leader's as a time here; zero stays zero.
fn by_own_clock(at: u64, theirs: Timestamp, own: Timestamp) -> u64 {
    if at == 0 || theirs.until(own).max(own.until(theirs)) < SAME_CLOCK {
        return at;
    }
    (own.0 + at).saturating_sub(theirs.0)
}

/// The newest (epoch, version) that was acted on, kept on disk: an older set is refused also after a restart.
#[derive(Debug)]
pub(crate) struct Newest {
    state: Arc<dyn WorkerState>,
    known: (u64, u64),
}

impl Newest {
    pub(crate) fn load(state: Arc<dyn WorkerState>) -> Self {
        let text = state.read(NEWEST).unwrap_or_default();
        let mut numbers = text.split_whitespace().map_while(|it| it.parse().ok());
        let known = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        Self { state, known }
    }

    pub(crate) fn get(&self) -> (u64, u64) {
        self.known
    }

    pub(crate) fn set(&mut self, newest: (u64, u64)) {
        if newest == self.known {
            return;
        }
        self.known = newest;
        if let Err(error) = self.state.write(NEWEST, &format!("{} {}\n", newest.0, newest.1)) {
            tracing::warn!(%error, "which assignments were the newest could not be kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker_state::FileState;
    use flota_api::proto::dispatcher::{AssignedSpec, TaskAssignment};

    const NOW: Timestamp = Timestamp(1_000_000);

    fn part(ids: &[&str], more: bool) -> Assignments {
        let task = |id: &&str| TaskAssignment { task_id: (*id).into(), service_id: "s".into(), ..Default::default() };
        let spec = AssignedSpec { service_id: "s".into(), spec: Some(Default::default()), ..Default::default() };
        Assignments { tasks: ids.iter().map(task).collect(), specs: vec![spec], more, ..Default::default() }
    }

    #[test]
    fn parts_become_one_set_with_every_spec_in_its_place() {
        let (half, more) = join(None, part(&["a"], true), NOW).expect("a good part");
        assert!(more);
        let (whole, more) = join(Some(half), part(&["b"], false), NOW).expect("a good part");
        assert!(!more);
        assert_eq!(whole.tasks.iter().map(|it| it.task_id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(whole.tasks.iter().all(|task| task.spec.is_some()));
        let lacks = Assignments { specs: Vec::new(), ..part(&["a"], false) };
        assert!(matches!(join(None, lacks, NOW), Err(BadSet::Spec(task)) if task == "a"));
    }

    #[test]
    fn times_are_by_this_machines_clock() {
        let (own, behind) = (NOW, Timestamp(700_000));
        assert_eq!(by_own_clock(0, behind, own), 0, "no time stays none");
        assert_eq!(by_own_clock(700_500, behind, own), 1_000_500, "half a second from now, whatever the clocks say");
        assert_eq!(by_own_clock(1_000_500, Timestamp(1_000_200), own), 1_000_500);
    }

    #[test]
    fn the_newest_set_outlives_the_daemon() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let load = || Newest::load(Arc::new(FileState::new(dir.path())));
        assert_eq!(load().get(), (0, 0));
        load().set((2, 77));
        assert_eq!(load().get(), (2, 77));
    }
}
