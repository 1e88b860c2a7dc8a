//! Removes the secrets and configs of a stack that was removed, once no task uses them any more: until then a task that is
//! being stopped may be started again, and would lack them.

use std::time::Duration;

use flota_api::id::StackId;
use flota_api::model::{PinnedValue, StoredConfig, StoredSecret, StoredValue};
use flota_api::object::{Kind, Object};
use flota_raft_store::{Event, Tables};

use crate::control_loop::{ControlLoop, Key};
use crate::plan::{Plan, PlanContext};

/// Pause before another try, if there were too many other changes.
const RETRY: Duration = Duration::from_secs(1);

/// The control loop; its keys are ids of secrets and configs.
#[derive(Debug, Default)]
pub(crate) struct StackValues;

impl ControlLoop for StackValues {
    fn name(&self) -> &'static str {
        "stack-values"
    }

    fn all(&self, view: &Tables) -> Vec<Key> {
        of_stacks(view, |stack| view.stack(stack.as_str()).is_none())
    }

    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<Key> {
        match event {
            Event::Removed(Object::Stack(stack)) => of_stacks(view, |it| *it == stack.id),
            Event::Removed(Object::Service(service)) => service.values.iter().map(key_of).collect(),
            Event::Updated { old: Object::Service(service), .. } => service.values.iter().map(key_of).collect(),
            Event::Removed(Object::Task(task)) => task.values.iter().map(key_of).collect(),
            Event::Updated { old: Object::Task(old), new: Object::Task(new) }
                if old.status.state.is_terminal() != new.status.state.is_terminal() =>
            {
                new.values.iter().map(key_of).collect()
            }
            _ => Vec::new(),
        }
    }

    fn plan(&mut self, key: &Key, view: &Tables, cx: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        match (view.get::<StoredSecret>(key.id), view.get::<StoredConfig>(key.id)) {
            (Some(secret), _) => remove_left(Kind::StoredSecret, secret, view, &mut plan, cx),
            (_, Some(config)) => remove_left(Kind::StoredConfig, config, view, &mut plan, cx),
            _ => {}
        }
        plan
    }
}

fn key_of(pin: &PinnedValue) -> Key {
    Key::of(&pin.value)
}

/// The keys of the secrets and configs that belong to such a stack.
fn of_stacks(view: &Tables, is_such: impl Fn(&StackId) -> bool) -> Vec<Key> {
    let secrets = view.all::<StoredSecret>().filter(|it| it.stack_id.as_ref().is_some_and(&is_such));
    let configs = view.all::<StoredConfig>().filter(|it| it.stack_id.as_ref().is_some_and(&is_such));
    secrets.map(|it| Key::of(&it.id)).chain(configs.map(|it| Key::of(&it.id))).collect()
}

/// Removes a secret or config with all its versions, if its stack is gone and nothing uses it. A service that begins to use it
/// changes its version, so a removal that was planned before fails with a conflict.
fn remove_left<K>(kind: Kind, value: &StoredValue<K>, view: &Tables, plan: &mut Plan, cx: &PlanContext) {
    let is_left = value.stack_id.as_ref().is_some_and(|stack| view.stack(stack.as_str()).is_none());
    let uses = |pins: &[PinnedValue]| pins.iter().any(|pin| pin.value == value.id);
    let is_used = || {
        view.services().any(|it| uses(&it.values))
            || view.tasks().any(|task| !task.status.state.is_terminal() && uses(&task.values))
    };
    if !is_left || is_used() {
        return;
    }
    // It goes with all its versions, or not yet.
    if cx.room > value.versions.len() {
        for version in &value.versions {
            plan.remove(Kind::ValueData, &version.data);
        }
        plan.remove(kind, &value.id);
    } else {
        plan.retry_at(cx.now + RETRY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{Service, Stack, Task, TaskStatus, ValueVersion};
    use flota_api::object::StoreObject;
    use flota_api::state::TaskState;
    use flota_api::version::Timestamp;

    use crate::plan::Change;

    fn pin() -> PinnedValue {
        PinnedValue { value: "x".into(), version: 1, data: "d".into() }
    }

    fn task(state: TaskState) -> Object {
        let status = TaskStatus { state, ..TaskStatus::default() };
        Task { id: "t".into(), status, values: vec![pin()], ..Task::default() }.into_object()
    }

    /// Returns what is removed if the store has the secret of the stack `k`, and these objects.
    fn removed(objects: Vec<Object>) -> Vec<String> {
        let mut view = Tables::default();
        let versions = vec![ValueVersion { number: 1, size: 1, data: "d".into() }];
        let stack_id = Some("k".into());
        view.put(StoredSecret { id: "x".into(), stack_id, versions, ..StoredSecret::default() }.into_object());
        objects.into_iter().for_each(|object| view.put(object));
        let plan = StackValues.plan(&Key::of("x"), &view, &mut PlanContext::at(Timestamp::default()));
        let id = |change: &Change| match change {
            Change::Remove(_, id) => id.to_string(),
            other => panic!("{other:?}"),
        };
        plan.changes.iter().map(id).collect()
    }

    #[test]
    fn what_a_removed_stack_leaves_goes_with_the_last_task_that_uses_it() {
        let stack = Stack { id: "k".into(), ..Stack::default() }.into_object();
        let none: [&str; 0] = [];
        assert_eq!(removed(vec![stack]), none, "the stack is there");
        assert_eq!(removed(vec![task(TaskState::Running)]), none, "a task may need it until it has ended");
        let other = Service { id: "s".into(), values: vec![pin()], ..Service::default() };
        assert_eq!(removed(vec![other.into_object()]), none, "another service has begun to use it");
        assert_eq!(removed(vec![task(TaskState::Shutdown)]), ["d", "x"]);
        assert_eq!(removed(Vec::new()), ["d", "x"]);
    }

    #[test]
    fn the_end_of_whatever_used_it_is_looked_at() {
        let mut view = Tables::default();
        view.put(StoredSecret { id: "x".into(), stack_id: Some("k".into()), ..StoredSecret::default() }.into_object());
        let stack = Stack { id: "k".into(), ..Stack::default() }.into_object();
        let [old, new] = [TaskState::Running, TaskState::Shutdown].map(task);
        let service = Service { id: "s".into(), values: vec![pin()], ..Service::default() }.into_object();
        let events = [Event::Removed(stack), Event::Updated { old, new }, Event::Removed(service)];
        for event in events {
            assert_eq!(StackValues.dirtied_by(&event, &view), [Key::of("x")], "{event:?}");
        }
        assert_eq!(StackValues.all(&view), [Key::of("x")]);
    }
}
