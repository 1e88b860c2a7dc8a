//! The flags of `ctl service create` and `update` for the services on which one depends.

use clap::Args;

use flota_api::model::{Dependency, DependencyCondition, ServiceSpec};

use crate::error::Usage;

/// The flags that `create` and `update` share.
#[derive(Debug, Default, Args)]
pub(crate) struct DependencyFlags {
    /// Service that must be there first, SERVICE[:started|healthy|completed][:optional] (default started; one that is
    /// optional is waited for only if it exists and is not stopped); may be repeated
    #[arg(long, visible_alias = "depends-on-add", value_name = "SERVICE", value_parser = dependency)]
    depends_on: Vec<Dependency>,
}

/// The flags that only `update` has.
#[derive(Debug, Default, Args)]
pub(crate) struct DependencyRemovals {
    /// Service on which it depends no longer
    #[arg(long, value_name = "SERVICE")]
    depends_on_rm: Vec<String>,
}

fn dependency(text: &str) -> Result<Dependency, Usage> {
    let (rest, required) = text.strip_suffix(":optional").map_or((text, true), |rest| (rest, false));
    let (service, condition) = rest.split_once(':').unwrap_or((rest, DependencyCondition::Started.as_str()));
    if service.is_empty() {
        return Err(Usage("the name of a service is missing".into()));
    }
    let found = DependencyCondition::ALL.iter().copied().find(|it| it.as_str() == condition);
    let condition = found.ok_or_else(|| Usage(format!("`{condition}` is none of started, healthy and completed")))?;
    Ok(Dependency { service: service.to_owned(), condition, required })
}

impl DependencyFlags {
    /// Sets the given flags in the spec and leaves the rest as it is.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) {
        for dependency in &self.depends_on {
            spec.depends_on.retain(|it| it.service != dependency.service);
            spec.depends_on.push(dependency.clone());
        }
    }
}

impl DependencyRemovals {
    /// Removes the named items from the spec.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), Usage> {
        for name in &self.depends_on_rm {
            if !spec.depends_on.iter().any(|it| it.service == *name) {
                return Err(Usage(format!("--depends-on-rm {name}: the service does not depend on it")));
            }
        }
        spec.depends_on.retain(|it| !self.depends_on_rm.contains(&it.service));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Update {
        #[command(flatten)]
        flags: DependencyFlags,
        #[command(flatten)]
        removals: DependencyRemovals,
    }

    fn updated(spec: &mut ServiceSpec, words: &str) -> Result<String, String> {
        let words = ["ctl"].into_iter().chain(words.split_whitespace());
        let update = Update::try_parse_from(words).map_err(|error| error.to_string())?;
        update.removals.apply(spec).map_err(|error| error.to_string())?;
        update.flags.apply(spec);
        let optional = |it: &Dependency| if it.required { "" } else { ":optional" };
        let shown = spec.depends_on.iter().map(|it| format!("{}:{}{}", it.service, it.condition, optional(it)));
        Ok(shown.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_later_condition_takes_the_place_of_an_earlier_one() {
        let mut spec = ServiceSpec::default();
        let words = "--depends-on db --depends-on job:completed --depends-on x:healthy";
        assert_eq!(updated(&mut spec, words), Ok("db:started job:completed x:healthy".into()));
        let words = "--depends-on-rm x --depends-on-add db:healthy";
        assert_eq!(updated(&mut spec, words), Ok("job:completed db:healthy".into()));
        let words = "--depends-on job:optional --depends-on db:started:optional";
        assert_eq!(updated(&mut spec, words), Ok("job:started:optional db:started:optional".into()));
    }

    #[test]
    fn what_can_not_be_meant_is_refused() {
        for (words, expected) in [
            ("--depends-on db:ready", "`ready` is none of started, healthy and completed"),
            ("--depends-on db:optional:healthy", "`optional:healthy` is none of started, healthy and completed"),
            ("--depends-on :healthy", "the name of a service is missing"),
            ("--depends-on-rm db", "--depends-on-rm db: the service does not depend on it"),
        ] {
            let error = updated(&mut ServiceSpec::default(), words).expect_err(words);
            assert!(error.contains(expected), "{words}: {error}");
        }
    }
}
