//! What holds at every moment of a service whose number of tasks follows their load: the number is within its bounds, and it
//! changes in the direction of the load alone. A load that is not known, because a node is cut off or the leader is new,
//! changes nothing.

use std::collections::BTreeMap;

use flota_api::id::ServiceId;
use flota_api::model::{ScaleDecision, Service};
use flota_raft_store::View;

use super::user::SCALED;
use super::user::scaled::SteadyLoad;
use super::violation::{Kind, Violation};

/// The decisions that were seen.
#[derive(Default)]
pub(super) struct ScaleInvariants {
    decisions: BTreeMap<ServiceId, Vec<ScaleDecision>>,
}

impl ScaleInvariants {
    /// Checks all services that are scaled by their load.
    pub(super) fn check_tables(&mut self, view: &View) -> Result<(), Violation> {
        for (name, load) in SCALED {
            let Some(service) = view.service_by_name(name) else { continue };
            let Some(policy) = &service.spec.scale else { continue };
            let seen = self.decisions.entry(service.id.clone()).or_default();
            for decision in service.scale.decisions.iter().filter(|it| !seen.contains(it)) {
                let is_right = match load {
                    SteadyLoad::Low => decision.to < decision.from,
                    SteadyLoad::Right => false,
                    SteadyLoad::High => decision.to > decision.from,
                };
                if !is_right || policy.bounded(decision.to) != decision.to {
                    let text = format!("the load of {name} is {load:?}, and it was decided: {decision:?}");
                    return Err(Kind::WrongScale.because(text));
                }
            }
            seen.clone_from(&service.scale.decisions);
            check_bounds(service)?;
        }
        Ok(())
    }
}

fn check_bounds(service: &Service) -> Result<(), Violation> {
    let replicas = service.replicas().unwrap_or_default();
    let is_within = service.spec.scale.as_ref().is_none_or(|policy| policy.bounded(replicas) == replicas);
    if !is_within {
        let text = format!("{} is to have {replicas} tasks, which is out of bounds", service.spec.name);
        return Err(Kind::WrongScale.because(text));
    }
    Ok(())
}

/// Whether the number of tasks has followed the load as far as it can.
pub(super) fn converged(service: &Service) -> Result<(), String> {
    let name = service.spec.name.as_str();
    let load = SCALED.into_iter().find(|(scaled, _)| *scaled == name).map(|(_, load)| load);
    let (Some(load), Some(policy), Some(replicas)) = (load, &service.spec.scale, service.replicas()) else {
        return Ok(());
    };
    let expected = match load {
        SteadyLoad::Low => policy.min.get(),
        SteadyLoad::Right => replicas,
        SteadyLoad::High => policy.max.get(),
    };
    if replicas != expected {
        return Err(format!("{name} is to have {replicas} tasks, and its load asks for {expected}"));
    }
    Ok(())
}
