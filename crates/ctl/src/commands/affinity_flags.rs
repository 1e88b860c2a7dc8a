//! The flags of `ctl service create` and `update` for how the tasks are placed with regard to others, and
//! how important they are.

use clap::Args;

use flota_api::model::{PlacementStrategy, ServiceSpec};

use crate::error::Usage;

/// The flags that `create` and `update` share.
#[derive(Debug, Default, Args)]
pub(crate) struct AffinityFlags {
    /// Service beside whose tasks the tasks run, on the same nodes; may be repeated
    #[arg(long, visible_alias = "affinity-add", value_name = "SERVICE")]
    affinity: Vec<String>,
    /// Service whose tasks never run on the same nodes; may be repeated
    #[arg(long, visible_alias = "anti-affinity-add", value_name = "SERVICE")]
    anti_affinity: Vec<String>,
    /// Strategy to choose among the nodes that fit: spread (few tasks), binpack (little free) or least-used (little in use)
    #[arg(long, value_name = "STRATEGY")]
    placement_strategy: Option<PlacementStrategy>,
    /// Priority, from -1000 to 1000: if there is no room for the tasks, some of a lower priority are stopped (default: 0)
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    priority: Option<i32>,
}

/// The flags that only `update` has.
#[derive(Debug, Default, Args)]
pub(crate) struct AffinityRemovals {
    /// Service beside which the tasks need not run any more
    #[arg(long, value_name = "SERVICE")]
    affinity_rm: Vec<String>,
    /// Service from which the tasks need not keep apart any more
    #[arg(long, value_name = "SERVICE")]
    anti_affinity_rm: Vec<String>,
}

impl AffinityFlags {
    /// Sets the given flags in the spec and leaves the rest as it is.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) {
        let add = |names: &mut Vec<String>, given: &[String]| {
            for name in given {
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
        };
        add(&mut spec.affinity, &self.affinity);
        add(&mut spec.anti_affinity, &self.anti_affinity);
        if let Some(strategy) = self.placement_strategy {
            spec.strategy = strategy;
        }
        spec.priority = self.priority.unwrap_or(spec.priority);
    }
}

impl AffinityRemovals {
    /// Removes the named services from the spec.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), Usage> {
        let remove = |flag: &str, names: &mut Vec<String>, given: &[String]| {
            if let Some(name) = given.iter().find(|name| !names.contains(name)) {
                return Err(Usage(format!("--{flag} {name}: the service does not name it")));
            }
            names.retain(|name| !given.contains(name));
            Ok(())
        };
        remove("affinity-rm", &mut spec.affinity, &self.affinity_rm)?;
        remove("anti-affinity-rm", &mut spec.anti_affinity, &self.anti_affinity_rm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Update {
        #[command(flatten)]
        flags: AffinityFlags,
        #[command(flatten)]
        removals: AffinityRemovals,
    }

    fn updated(spec: &ServiceSpec, flags: &str) -> Result<ServiceSpec, String> {
        let words = ["ctl"].into_iter().chain(flags.split_whitespace());
        let update = Update::try_parse_from(words).map_err(|error| error.to_string())?;
        let mut spec = spec.clone();
        update.removals.apply(&mut spec).map_err(|error| error.to_string())?;
        update.flags.apply(&mut spec);
        Ok(spec)
    }

    #[test]
    fn services_are_added_once_and_removed_by_name() {
        let spec =
            updated(&ServiceSpec::default(), "--affinity cache --affinity cache --anti-affinity db").expect("good");
        assert_eq!((spec.affinity.join(" "), spec.anti_affinity.join(" ")), ("cache".into(), "db".into()));
        let spec =
            updated(&spec, "--affinity-rm cache --affinity-add disk --placement-strategy binpack").expect("good");
        assert_eq!((spec.affinity.join(" "), spec.strategy), ("disk".into(), PlacementStrategy::Binpack));
        let important = updated(&spec, "--priority 7").expect("good");
        assert_eq!((spec.priority, important.priority), (0, 7));
        assert_eq!(updated(&important, "--priority -3").expect("good").priority, -3);
        assert_eq!(updated(&important, "--affinity web").expect("good").priority, 7, "it is left as it is");
        assert!(updated(&spec, "--anti-affinity-rm disk").is_err(), "it is in the other list");
        assert!(
            updated(&spec, "--placement-strategy random")
                .is_err_and(|it| it.contains("none of spread, binpack and least-used"))
        );
    }
}
