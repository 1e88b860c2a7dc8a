//! Sets of assignments: assembles them from the parts that arrive, converts their times to this machine's clock, and
//! tracks the newest set.

use std::sync::Arc;
use std::time::Duration;

use flota_api::id::ValueDataId;
use flota_api::model::VALUE_BOUND;
use flota_api::version::Timestamp;

use crate::messages::{AssignmentSet, Part, SetVersion};
use crate::worker_state::{EPOCH, NEWEST, SETTLED, WorkerState};

/// Clocks that differ by less are treated as equal, so that rounding does not delay a task.
const SAME_CLOCK: Duration = Duration::from_secs(1);
/// Largest number of tasks in a set; no machine can run more.
const TASKS_BOUND: usize = 100_000;

/// A set has too many tasks.
#[derive(Debug, thiserror::Error)]
#[error("the manager's assignments name more than {TASKS_BOUND} tasks")]
pub(crate) struct TooManyTasks;

impl AssignmentSet {
    /// Adds the next bytes of a secret or config. What is longer than any can be is not kept.
    pub(crate) fn add_chunk(&mut self, id: ValueDataId, bytes: &[u8]) {
        let known = self.values.entry(id).or_default();
        let room = VALUE_BOUND.saturating_sub(known.0.len()).min(bytes.len());
        *known = [&known.0, &bytes[..room]].concat().into();
    }

    /// Gives the tasks of the whole set their secrets and configs.
    fn hand_out(&mut self) {
        for value in self.tasks.iter_mut().flat_map(|task| &mut task.values) {
            value.bytes = self.values.get(&value.data).cloned();
        }
        self.values.clear();
    }
}

/// The parts of an incomplete set.
#[derive(Debug, Default)]
pub(crate) struct Parts(Option<AssignmentSet>);

impl Parts {
    /// Adds a part that arrived at `now`. Returns the set when its last part has arrived.
    pub(crate) fn join(&mut self, part: Part, now: Timestamp) -> Result<Option<AssignmentSet>, TooManyTasks> {
        let Part { mut set, more, sent_at } = part;
        for task in &mut set.tasks {
            task.not_before = task.not_before.map(|at| by_own_clock(at, sent_at, now));
            task.restarts.times.iter_mut().for_each(|at| *at = by_own_clock(*at, sent_at, now));
        }
        let mut whole = match self.0.take() {
            None => set,
            Some(mut before) => {
                before.tasks.append(&mut set.tasks);
                before.refused.append(&mut set.refused);
                before.removed.append(&mut set.removed);
                before.images.append(&mut set.images);
                before.dropped_images.append(&mut set.dropped_images);
                before.dropped_volumes.append(&mut set.dropped_volumes);
                for (id, bytes) in std::mem::take(&mut set.values) {
                    before.add_chunk(id, &bytes.0);
                }
                before
            }
        };
        if whole.tasks.len() > TASKS_BOUND {
            return Err(TooManyTasks);
        }
        if more {
            self.0 = Some(whole);
            return Ok(None);
        }
        whole.hand_out();
        Ok(Some(whole))
    }
}

/// Converts a time by the leader's clock to one by this machine's, keeping its distance to `theirs`.
fn by_own_clock(at: Timestamp, theirs: Timestamp, own: Timestamp) -> Timestamp {
    if theirs.until(own).max(own.until(theirs)) < SAME_CLOCK {
        return at;
    }
    Timestamp((own.0 + at.0).saturating_sub(theirs.0))
}

/// The newest set that was acted on. It is kept on disk, so that an older set is refused after a restart of the
/// daemon, too.
#[derive(Debug)]
pub(crate) struct Newest {
    state: Arc<dyn WorkerState>,
    known: SetVersion,
    /// The newest epoch in which the tasks that are not named need no grace any more.
    settled: u64,
}

impl Newest {
    pub(crate) fn load(state: Arc<dyn WorkerState>) -> Self {
        let text = state.read(NEWEST).unwrap_or_default();
        let mut numbers = text.split_whitespace().map_while(|it| it.parse().ok());
        let written = SetVersion { epoch: numbers.next().unwrap_or(0), version: numbers.next().unwrap_or(0) };
        let number = |name| state.read(name).and_then(|text| text.trim().parse::<u64>().ok());
        // What is not synced may be older or empty after a power failure.
        let epoch = number(EPOCH).unwrap_or(0);
        let known = if written.epoch < epoch { SetVersion { epoch, version: 0 } } else { written };
        let settled = number(SETTLED).unwrap_or_else(|| {
            state.write(SETTLED, known.epoch.to_string());
            known.epoch
        });
        Self { state, known, settled }
    }

    pub(crate) fn get(&self) -> SetVersion {
        self.known
    }

    pub(crate) fn set(&mut self, newest: SetVersion) {
        if newest == self.known {
            return;
        }
        if newest.epoch != self.known.epoch {
            self.state.write_durably(EPOCH, newest.epoch.to_string());
        }
        self.state.write(NEWEST, format!("{} {}\n", newest.epoch, newest.version));
        self.known = newest;
    }

    /// Begins with the first full set of an epoch. If the node has followed an earlier epoch, the caller gives the tasks that
    /// are not named their grace, and calls what is returned when it is over.
    pub(crate) fn begin(&mut self, epoch: u64) -> Option<impl FnOnce() + Send + use<>> {
        let before = std::mem::replace(&mut self.settled, epoch);
        let state = Arc::clone(&self.state);
        let settle = move || state.write(SETTLED, epoch.to_string());
        match before {
            _ if before == epoch => None,
            0 => {
                settle();
                None
            }
            _ => Some(settle),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk_thread::DiskThread;
    use crate::worker_state::FileState;
    use flota_api::model::{Assignment, TaskValue};

    const NOW: Timestamp = Timestamp(1_000_000);

    fn part(task: &str, more: bool) -> Part {
        let tasks = vec![Assignment { task_id: task.into(), ..Assignment::default() }];
        Part { set: AssignmentSet { tasks, ..AssignmentSet::default() }, more, sent_at: NOW }
    }

    #[test]
    fn a_set_is_whole_when_its_last_part_is_here() {
        let mut parts = Parts::default();
        assert_eq!(parts.join(part("a", true), NOW).expect("a good part"), None);
        let whole = parts.join(part("b", false), NOW).expect("a good part").expect("the last part");
        assert_eq!(whole.tasks.iter().map(|it| it.task_id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let next = parts.join(part("c", false), NOW).expect("a good part").expect("the only part");
        assert_eq!(next.tasks.len(), 1, "nothing of the set before is left");
    }

    #[test]
    fn secrets_that_come_in_pieces_are_whole_when_the_set_is() {
        let chunk = |more, bytes: &[u8]| {
            let mut part = part("a", more);
            part.set.tasks[0].values = vec![TaskValue { version: 1, data: "d".into(), ..TaskValue::default() }];
            part.set.add_chunk("d".into(), bytes);
            part
        };
        let mut parts = Parts::default();
        assert_eq!(parts.join(chunk(true, b"hun"), NOW).expect("a good part"), None);
        let whole = parts.join(chunk(false, b"ter2"), NOW).expect("a good part").expect("the last part");
        let bytes: Vec<_> = whole.tasks.iter().flat_map(|it| &it.values).map(|it| it.bytes.clone()).collect();
        assert_eq!(bytes, vec![Some(b"hunter2".to_vec().into()); 2]);
        let mut long = AssignmentSet::default();
        long.add_chunk("d".into(), &vec![0; VALUE_BOUND]);
        long.add_chunk("d".into(), &[0; 10]);
        assert_eq!(long.values.values().map(|it| it.0.len()).collect::<Vec<_>>(), [VALUE_BOUND]);
    }

    #[test]
    fn a_set_has_a_bound() {
        let mut many = part("a", false);
        many.set.tasks = vec![Assignment::default(); TASKS_BOUND + 1];
        assert!(Parts::default().join(many, NOW).is_err());
    }

    #[test]
    fn times_are_by_this_machines_clock() {
        let at = |at, theirs| by_own_clock(Timestamp(at), Timestamp(theirs), NOW).0;
        assert_eq!(at(700_500, 700_000), 1_000_500, "half a second from now, whatever the clocks show");
        assert_eq!(at(1_000_500, 1_000_200), 1_000_500);
    }

    #[test]
    fn the_newest_set_outlives_the_daemon() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        // Each daemon has its own thread, which ends with the daemon and after its writes.
        let load = || {
            let disk = Arc::new(DiskThread::start().expect("a thread"));
            (Newest::load(Arc::new(FileState::new(dir.path(), Arc::clone(&disk)))), disk)
        };
        let (mut first, disk) = load();
        assert_eq!(first.get(), SetVersion::default());
        let newest = SetVersion { epoch: 2, version: 77 };
        first.set(newest);
        disk.drain();
        assert_eq!(load().0.get(), newest);
    }
    #[test]
    fn a_new_epoch_is_on_disk_before_anybody_acts_on_it() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let disk = Arc::new(DiskThread::start().expect("a thread"));
        let mut newest = Newest::load(Arc::new(FileState::new(dir.path(), Arc::clone(&disk))));
        newest.set(SetVersion { epoch: 1, version: 7 });
        // What is written within an epoch waits for nobody, and does not come after the next one.
        let (release, held) = std::sync::mpsc::channel::<()>();
        disk.run(move || {
            let _ = held.recv();
        });
        newest.set(SetVersion { epoch: 1, version: 8 });
        let setter = std::thread::spawn(move || {
            newest.set(SetVersion { epoch: 2, version: 1 });
            newest
        });
        std::thread::park_timeout(std::time::Duration::from_millis(50));
        assert!(!setter.is_finished(), "the disk is not there yet");
        release.send(()).expect("the job waits");
        let _newest = setter.join().expect("no panic");
        let text = |name| std::fs::read_to_string(dir.path().join(name)).expect("it is there");
        assert_eq!(text(EPOCH), "2");
        disk.drain();
        assert_eq!((text(EPOCH), text(NEWEST)), ("2".into(), "2 1\n".into()));
        // What is not synced may be empty after a power failure.
        std::fs::write(dir.path().join(NEWEST), "").expect("it is there");
        let loaded = Newest::load(Arc::new(FileState::new(dir.path(), disk)));
        assert_eq!(loaded.get(), SetVersion { epoch: 2, version: 0 });
    }

    #[test]
    fn a_daemon_that_restarts_within_the_grace_of_a_new_epoch_begins_it_anew() {
        let state = crate::worker_state::MemoryState::default();
        let load = || Newest::load(Arc::new(state.clone()));
        let follow = |newest: &mut Newest, epoch| {
            newest.set(SetVersion { epoch, version: 1 });
            newest.begin(epoch)
        };
        assert!(follow(&mut load(), 1).is_none(), "a new node has no tasks");
        assert!(follow(&mut load(), 1).is_none());
        let mut restored = load();
        assert!(follow(&mut restored, 2).is_some());
        assert!(restored.begin(2).is_none(), "it has begun");
        let settle = follow(&mut load(), 2).expect("the grace was not over");
        settle();
        assert!(follow(&mut load(), 2).is_none(), "it is over");
    }

    #[test]
    fn a_node_of_an_earlier_version_has_settled_in_its_epoch() {
        let state = crate::worker_state::MemoryState::default();
        state.write(NEWEST, "3 20\n".into());
        assert!(Newest::load(Arc::new(state.clone())).begin(3).is_none());
        assert!(Newest::load(Arc::new(state)).begin(4).is_some());
    }
}
