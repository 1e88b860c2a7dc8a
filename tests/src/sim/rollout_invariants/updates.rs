//! What holds of the updates of a service, by what its policy and its users say: one that is paused begins with no slot and
//! takes no task, and too many failures have the consequence that the policy has for them, which fewer have not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flota_api::id::{NodeId, TaskId};
use flota_api::model::{FailureAction, Service, Task, UpdatePhase};
use flota_api::state::DesiredState;

use crate::sim::violation::{Kind, Violation};

/// What was seen of a service.
pub(super) struct UpdateSeen {
    service: Arc<Service>,
    /// The tasks of earlier specs that served.
    old: BTreeSet<TaskId>,
    /// All tasks.
    known: BTreeSet<TaskId>,
}

impl UpdateSeen {
    /// Returns what there is now.
    pub(super) fn of(service: &Arc<Service>, slots: &BTreeMap<u64, Vec<&Arc<Task>>>) -> Self {
        let tasks = || slots.values().flatten();
        let is_old = |task: &&&Arc<Task>| task.is_serving() && task.spec_version != service.spec_version;
        Self {
            service: Arc::clone(service),
            old: tasks().filter(is_old).map(|task| task.id.clone()).collect(),
            known: tasks().map(|task| task.id.clone()).collect(),
        }
    }

    /// Checks what has become of it. `lost` has the nodes that were lost not long ago.
    pub(super) fn check(
        &self,
        service: &Service,
        slots: &BTreeMap<u64, Vec<&Arc<Task>>>,
        lost: &BTreeSet<NodeId>,
    ) -> Result<(), Violation> {
        self.check_verdict(service).map_err(|text| Kind::WrongUpdate.because(text))?;
        let was_paused = self.is_same(service) && self.service.update.is_paused() && service.update.is_paused();
        if was_paused && !service.spec.stopped {
            self.check_pause(slots, service, lost).map_err(|text| Kind::WrongUpdate.because(text))?;
        }
        Ok(())
    }

    /// Whether no user has begun another update, or let this one go on.
    fn is_same(&self, service: &Service) -> bool {
        let same = |it: &Service| (it.spec_version, it.spec_set_at, it.update.started_at, it.update.is_rollback());
        same(&self.service) == same(service)
    }

    /// What follows from failures is what the policy says.
    fn check_verdict(&self, service: &Service) -> Result<(), String> {
        let (old, new) = (&self.service.update, &service.update);
        let name = &service.spec.name;
        if self.is_same(service) && self.service.replicas() == service.replicas() {
            let policy = if new.is_rollback() { &service.spec.rollback } else { &service.spec.update };
            let tasks = usize::try_from(service.replicas().unwrap_or_default()).unwrap_or(usize::MAX);
            let is_tolerated = policy.tolerates(new.failed_slots.len(), tasks);
            if !new.failed_slots.is_subset(&old.failed_slots) && !is_tolerated && new.is_active() {
                return Err(format!("the update of {name} goes on although too much has failed: {service:?}"));
            }
            let by_user = new.reason.as_deref().is_some_and(|reason| reason.contains("a user"));
            if old.is_active() && new.is_paused() && is_tolerated && !by_user {
                return Err(format!(
                    "the update of {name} is paused, and its policy tolerates what has failed: {service:?}"
                ));
            }
        }
        let is_taken_back = new.phase == UpdatePhase::RollingBack && new.rollback_cause.is_some() && !old.is_rollback();
        if is_taken_back && service.spec.update.failure_action != FailureAction::Rollback {
            return Err(format!("the update of {name} is taken back, and its policy does not say so: {service:?}"));
        }
        Ok(())
    }

    /// A paused update begins with no slot, and stops no task that serves.
    fn check_pause(
        &self,
        slots: &BTreeMap<u64, Vec<&Arc<Task>>>,
        service: &Service,
        lost: &BTreeSet<NodeId>,
    ) -> Result<(), String> {
        let is_lost = |task: &Task| task.node_id.as_ref().is_some_and(|node| lost.contains(node));
        for tasks in slots.values() {
            let Some(old) = tasks.iter().find(|task| self.old.contains(&task.id)) else { continue };
            // It has moved to another node with its own spec, which has nothing to do with the update.
            let moves = |it: &Task| it.replaces.as_ref() == Some(&old.id) && it.spec_version == old.spec_version;
            let is_moved = tasks.iter().any(|it| moves(it) && it.served_at.is_some());
            // The update before this one had begun with the slot, and its task has come to serve.
            let came_before = |it: &Task| it.spec_version != service.spec_version && self.known.contains(&it.id);
            let is_overtaken =
                tasks.iter().any(|it| it.id != old.id && came_before(it) && it.is_live() && it.served_at.is_some());
            if is_lost(old) || is_moved || is_overtaken || old.preempted_by.is_some() {
                continue;
            }
            let present = tasks.iter().filter(|task| task.spec_version == service.spec_version);
            let is_begun = present.clone().any(|it| self.known.contains(&it.id) && (it.is_live() || is_lost(it)));
            let mut new = present.filter(|task| task.is_live());
            let has_served = new.clone().any(|it| it.served_at.is_some());
            // With the order start-first, the old task serves until the new one does, which may have failed since.
            if old.desired_state == DesiredState::Shutdown && !has_served {
                return Err(format!(
                    "the update of {} is paused, and stops {old:?} of {tasks:?}: {:?}",
                    service.spec.name, service.update
                ));
            }
            // The new task of a slot that was begun with may move to another node, or be lost and replaced.
            if let Some(new) = new.next().filter(|_| old.is_serving() && !is_begun) {
                return Err(format!("the update of {} is paused, and begins with {new:?}", service.spec.name));
            }
        }
        Ok(())
    }
}
