//! The flags of `ctl service create` and `update` for the settings of tasks that Docker's users know from `docker run`.

use std::num::NonZeroU64;

use clap::Args;

use flota_api::model::{Bound, LogDriver, LogSpec, PullPolicy, ServiceSpec, Ulimit, UlimitName};
use flota_stack::setting;

use crate::error::Usage;
use crate::parse;

/// The flags that `create` and `update` share.
#[derive(Debug, Default, Args)]
pub(crate) struct SettingFlags {
    /// Make the root file system read-only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    read_only: Option<bool>,
    /// Run the program at a terminal
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    tty: Option<bool>,
    /// Size of /dev/shm, such as 256m; 0 means the default: 64m
    #[arg(long, value_name = "SIZE", value_parser = parse::bytes)]
    shm_size: Option<u64>,
    /// Limit of each process, NAME=SOFT[:HARD], such as nofile=1024:4096; -1 is unlimited; may be repeated
    #[arg(long, visible_alias = "ulimit-add", value_name = "LIMIT")]
    ulimit: Vec<Ulimit>,
    /// Kernel parameter of a task's own namespaces, NAME=VALUE, such as net.core.somaxconn=1024; may be repeated
    #[arg(long, visible_alias = "sysctl-add", value_name = "NAME=VALUE", value_parser = parse::assignment)]
    sysctl: Vec<(String, String)>,
    /// Further group of the program, by name in the image or by number; may be repeated
    #[arg(long, visible_alias = "group-add", value_name = "GROUP")]
    group: Vec<String>,
    /// Label of the tasks' containers, KEY=VALUE; may be repeated
    #[arg(long, visible_alias = "container-label-add", value_name = "KEY=VALUE", value_parser = parse::label)]
    container_label: Vec<(String, String)>,
    /// Memory and swap together that a task can't exceed; -1 is unlimited; 0 means the default: no swap
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse::bytes_or_unlimited)]
    memory_swap: Option<Bound>,
    /// Preference of the kernel to kill the program when memory is short, from -1000 (never) to 1000 (first)
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    oom_score_adj: Option<i32>,
    /// Log driver: json-file (the node keeps the output) or none; also forgets the options that were set before
    #[arg(long, value_name = "DRIVER", value_parser = setting::log_driver)]
    log_driver: Option<LogDriver>,
    /// Option of the log: max-size=SIZE or max-file=COUNT; an empty value removes it; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse::assignment)]
    log_opt: Vec<(String, String)>,
    /// Occasions to look the image up in its registry: missing (it is new or named) or always (each update)
    #[arg(long, value_name = "WHEN")]
    pull: Option<PullPolicy>,
}

/// The flags that only `update` has.
#[derive(Debug, Default, Args)]
pub(crate) struct SettingRemovals {
    /// Limit to remove, by its name
    #[arg(long, value_name = "NAME")]
    ulimit_rm: Vec<UlimitName>,
    /// Kernel parameter to remove
    #[arg(long, value_name = "NAME")]
    sysctl_rm: Vec<String>,
    /// Group to remove
    #[arg(long, value_name = "GROUP")]
    group_rm: Vec<String>,
    /// Label of the containers to remove
    #[arg(long, value_name = "KEY")]
    container_label_rm: Vec<String>,
}

impl SettingFlags {
    /// Sets the given flags in the spec and leaves the rest as it is.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), Usage> {
        spec.read_only = self.read_only.unwrap_or(spec.read_only);
        spec.tty = self.tty.unwrap_or(spec.tty);
        spec.shm_size = self.shm_size.map_or(spec.shm_size, NonZeroU64::new);
        if let Some(swap) = self.memory_swap {
            spec.memory_swap = Some(swap).filter(|it| *it != Bound::At(0));
        }
        spec.oom_score_adj = self.oom_score_adj.or(spec.oom_score_adj);
        spec.pull = self.pull.unwrap_or(spec.pull);
        for limit in &self.ulimit {
            spec.ulimits.retain(|it| it.name != limit.name);
            spec.ulimits.push(*limit);
        }
        spec.sysctls.extend(self.sysctl.iter().cloned());
        spec.container_labels.extend(self.container_label.iter().cloned());
        for group in &self.group {
            spec.groups.retain(|it| it != group);
            spec.groups.push(group.clone());
        }
        if let Some(driver) = self.log_driver {
            spec.log = LogSpec { driver, ..LogSpec::default() };
        }
        for (name, value) in &self.log_opt {
            let refused = |why| Usage(format!("--log-opt {name}={value}: {why}"));
            setting::set_log_option(&mut spec.log, name, value).map_err(refused)?;
        }
        Ok(())
    }
}

impl SettingRemovals {
    /// Removes the named items from the spec.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), Usage> {
        fn check(flag: &str, name: &str, is_there: bool) -> Result<(), Usage> {
            is_there.then_some(()).ok_or_else(|| Usage(format!("--{flag} {name}: the service does not have it")))
        }
        for name in &self.ulimit_rm {
            check("ulimit-rm", name.as_str(), spec.ulimits.iter().any(|it| it.name == *name))?;
        }
        for name in &self.group_rm {
            check("group-rm", name, spec.groups.contains(name))?;
        }
        for (flag, names, map) in [
            ("sysctl-rm", &self.sysctl_rm, &mut spec.sysctls),
            ("container-label-rm", &self.container_label_rm, &mut spec.container_labels),
        ] {
            for name in names {
                check(flag, name, map.contains_key(name))?;
            }
            map.retain(|name, _| !names.contains(name));
        }
        spec.ulimits.retain(|it| !self.ulimit_rm.contains(&it.name));
        spec.groups.retain(|it| !self.group_rm.contains(it));
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
        flags: SettingFlags,
        #[command(flatten)]
        removals: SettingRemovals,
    }

    fn updated(spec: &ServiceSpec, flags: &str) -> Result<ServiceSpec, String> {
        let words = ["ctl"].into_iter().chain(flags.split_whitespace());
        let update = Update::try_parse_from(words).map_err(|error| error.to_string())?;
        let mut spec = spec.clone();
        update.removals.apply(&mut spec).map_err(|error| error.to_string())?;
        update.flags.apply(&mut spec).map_err(|error| error.to_string())?;
        Ok(spec)
    }

    /// The settings as one line.
    fn shown(spec: &ServiceSpec) -> String {
        let pairs = |map: &std::collections::BTreeMap<String, String>| {
            map.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
        };
        let limit = |it: &Ulimit| format!("{}={}:{}", it.name, it.soft.number(), it.hard.number());
        let limits = spec.ulimits.iter().map(limit).collect::<Vec<_>>().join(" ");
        let shm = spec.shm_size.map_or(0, NonZeroU64::get);
        let swap = spec.memory_swap.map_or(0, Bound::number);
        let score = spec.oom_score_adj.unwrap_or_default();
        let (labels, groups) = (pairs(&spec.container_labels), spec.groups.join(" "));
        let numbers = format!("{} {} {shm} {swap} {score}", spec.read_only, spec.tty);
        format!("{numbers}|{limits}|{}|{groups}|{labels}|{} {:?}", pairs(&spec.sysctls), spec.pull, spec.log.bytes())
    }

    #[test]
    fn each_flag_changes_one_setting_and_a_removal_comes_before_an_addition() {
        let created = updated(
            &ServiceSpec::default(),
            "--read-only -t --shm-size 1k --ulimit nofile=1:2 --ulimit core=-1 --sysctl net.a=1 --sysctl net.b=2=3 \
             --group audio --group 44 --container-label a=b --container-label c --memory-swap -1 --oom-score-adj -500 \
             --log-driver json-file --log-opt max-size=1k --log-opt max-file=3 --pull always",
        )
        .unwrap_or_else(|error| panic!("{error}"));
        let all = "true true 1024 -1 -500|nofile=1:2 core=-1:-1|net.a=1 net.b=2=3|audio 44|a=b c=|always Some(3072)";
        assert_eq!(shown(&created), all);
        for (flags, expected) in [
            ("", all),
            (
                "--read-only=false --tty=false --shm-size 0 --memory-swap 0 --oom-score-adj 0 --log-driver none \
                 --pull missing --ulimit-rm core --ulimit-rm nofile --sysctl-rm net.a --sysctl-rm net.b --group-rm 44 \
                 --group-rm audio --container-label-rm a --container-label-rm c",
                "false false 0 0 0|||||missing None",
            ),
            (
                "--ulimit-add nofile=3 --sysctl-add net.a=9 --group-add audio --container-label-add c=d \
                 --memory-swap=2k --log-opt max-file=",
                "true true 1024 2048 -500|core=-1:-1 nofile=3:3|net.a=9 net.b=2=3|44 audio|a=b c=d|always Some(1024)",
            ),
            (
                "--ulimit-rm nofile --ulimit-add nofile=4 --group-rm 44 --group-add 45 --log-driver json-file",
                "true true 1024 -1 -500|core=-1:-1 nofile=4:4|net.a=1 net.b=2=3|audio 45|a=b c=|always Some(20971520)",
            ),
        ] {
            assert_eq!(shown(&updated(&created, flags).unwrap_or_else(|error| panic!("{error}"))), expected, "{flags}");
        }
    }

    #[test]
    fn bad_values_and_what_is_not_there_are_refused() {
        for (flags, expected) in [
            ("--read-only=maybe", "invalid value 'maybe'"),
            ("--shm-size x", "`x` is not a size such as"),
            ("--ulimit nofile", "a limit has the form NAME=SOFT[:HARD]"),
            ("--ulimit as=1", "`as` is not a limit: they are core, cpu"),
            ("--ulimit nofile=2:1", "nofile: the soft limit is above the hard one"),
            ("--sysctl net.a", "`net.a` does not have the form NAME=VALUE"),
            ("--container-label =x", "`=x` does not have the form KEY=VALUE"),
            ("--memory-swap -2", "`-2` is not a size such as"),
            ("--oom-score-adj x", "invalid digit found"),
            ("--log-driver syslog", "the log driver `syslog` is not supported: it is json-file or none"),
            ("--log-opt tag=x", "--log-opt tag=x: the log option `tag` is not supported"),
            ("--log-opt max-size", "`max-size` does not have the form NAME=VALUE"),
            ("--pull never", "`never` is neither always nor missing"),
            ("--ulimit-rm core", "--ulimit-rm core: the service does not have it"),
            ("--sysctl-rm net.a", "--sysctl-rm net.a: the service does not have it"),
            ("--group-rm audio", "--group-rm audio: the service does not have it"),
            ("--container-label-rm a", "--container-label-rm a: the service does not have it"),
        ] {
            let error = updated(&ServiceSpec::default(), flags).expect_err(flags);
            assert!(error.contains(expected), "{flags}: {error}");
        }
    }
}
