//! The flags of `ctl service create` and `update` for secrets and configs.

use clap::Args;

use flota_api::model::{ServiceSpec, ValueKind, ValueUse};
use flota_stack::value;

use crate::error::Usage;

/// The flags that `create` and `update` share.
#[derive(Debug, Default, Args)]
pub(crate) struct ValueFlags {
    /// Secret to use, NAME or source=NAME[,target=PATH,env=VARIABLE,version=N,on-update=signal:SIGNAL]…; may be repeated
    #[arg(long, visible_alias = "secret-add", value_name = "SECRET", value_parser = parse_secret)]
    secret: Vec<ValueUse>,
    /// Config to use, as --secret; may be repeated
    #[arg(long, visible_alias = "config-add", value_name = "CONFIG", value_parser = parse_config)]
    config: Vec<ValueUse>,
}

/// The flags that only `update` has.
#[derive(Debug, Default, Args)]
pub(crate) struct ValueRemovals {
    /// Secret that the service uses no more, by its name; may be repeated
    #[arg(long, value_name = "SECRET")]
    secret_rm: Vec<String>,
    /// Config that the service uses no more, by its name; may be repeated
    #[arg(long, value_name = "CONFIG")]
    config_rm: Vec<String>,
}

fn parse_secret(text: &str) -> Result<ValueUse, Usage> {
    value::value(text, ValueKind::Secret).map_err(Usage)
}

fn parse_config(text: &str) -> Result<ValueUse, Usage> {
    value::value(text, ValueKind::Config).map_err(Usage)
}

impl ValueFlags {
    /// Sets the given flags in the spec and leaves the rest as it is. One with the same file and variable is replaced.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) {
        let set = |uses: &mut Vec<ValueUse>, given: &[ValueUse], kind: ValueKind| {
            uses.retain(|old| !given.iter().any(|new| new.path(kind) == old.path(kind) && new.env == old.env));
            uses.extend(given.iter().cloned());
        };
        set(&mut spec.secrets, &self.secret, ValueKind::Secret);
        set(&mut spec.configs, &self.config, ValueKind::Config);
    }
}

impl ValueRemovals {
    /// Removes the named items from the spec.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), Usage> {
        for (uses, removed, kind) in [
            (&mut spec.secrets, &self.secret_rm, ValueKind::Secret),
            (&mut spec.configs, &self.config_rm, ValueKind::Config),
        ] {
            for name in removed {
                if !uses.iter().any(|it| it.source == *name) {
                    return Err(Usage(format!("--{kind}-rm {name}: the service does not use it")));
                }
            }
            uses.retain(|it| !removed.contains(&it.source));
        }
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
        flags: ValueFlags,
        #[command(flatten)]
        removals: ValueRemovals,
    }

    #[test]
    fn secrets_are_added_replaced_and_removed() {
        let updated = |spec: &ServiceSpec, flags: &str| -> Result<ServiceSpec, String> {
            let words = ["ctl"].into_iter().chain(flags.split_whitespace());
            let update = Update::try_parse_from(words).map_err(|error| error.to_string())?;
            let mut spec = spec.clone();
            update.removals.apply(&mut spec).map_err(|error| error.to_string())?;
            update.flags.apply(&mut spec);
            Ok(spec)
        };
        let shown =
            |uses: &[ValueUse]| uses.iter().map(|it| format!("{}:{:o} ", it.source, it.mode)).collect::<String>();
        let first =
            updated(&ServiceSpec::default(), "--secret db --secret source=db,env=DB --config cf").expect("good");
        assert_eq!((shown(&first.secrets), shown(&first.configs)), ("db:444 db:444 ".into(), "cf:444 ".into()));
        let second = updated(&first, "--secret-add db,mode=400 --config-rm cf").expect("good");
        assert_eq!((shown(&second.secrets), shown(&second.configs)), ("db:444 db:400 ".into(), String::new()));
        let error = updated(&second, "--config-rm cf").expect_err("it is gone");
        assert_eq!(error, "--config-rm cf: the service does not use it");
        assert!(updated(&second, "--secret source=x,target=/a/../b").is_err());
    }
}
