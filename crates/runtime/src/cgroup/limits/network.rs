//! `linux.resources.network`: packet classes and priorities, for two controllers that only v1 has.

use super::{Controller, Write, only_v1};
use crate::error::StepError;
use crate::oci::Network;

const CLASS: &str = "network.classID";
const PRIORITIES: &str = "network.priorities";

/// The part of the controller `net_cls`.
pub(super) struct Class<'a>(pub(super) &'a Network);

/// The part of the controller `net_prio`.
pub(super) struct Priorities<'a>(pub(super) &'a Network);

impl Class<'_> {
    fn asked(&self) -> Option<u32> {
        self.0.class_id.filter(|id| *id != 0)
    }
}

impl Controller for Class<'_> {
    fn name(&self, _v2: bool) -> &'static str {
        "net_cls"
    }

    fn v1(&self) -> Result<Vec<Write>, StepError> {
        Ok(self.asked().map(|id| Write::new(CLASS, "net_cls.classid", id)).into_iter().collect())
    }

    fn v2(&self, _now: &dyn Fn(&str) -> Option<u64>) -> Result<Vec<Write>, StepError> {
        only_v1(CLASS, self.asked().is_some())?;
        Ok(Vec::new())
    }
}

impl Controller for Priorities<'_> {
    fn name(&self, _v2: bool) -> &'static str {
        "net_prio"
    }

    fn v1(&self) -> Result<Vec<Write>, StepError> {
        let value = |it: &crate::oci::InterfacePriority| format!("{} {}", it.name, it.priority);
        Ok(self.0.priorities.iter().map(|it| Write::new(PRIORITIES, "net_prio.ifpriomap", value(it))).collect())
    }

    fn v2(&self, _now: &dyn Fn(&str) -> Option<u64>) -> Result<Vec<Write>, StepError> {
        only_v1(PRIORITIES, !self.0.priorities.is_empty())?;
        Ok(Vec::new())
    }
}
