//! Settings of a service's tasks: what `docker run` has flags for.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use flota_api::model::{Bound, LogSpec, PullPolicy, ServiceSpec, Ulimit, UlimitName};

use super::{Context, pairs};
use crate::fields::Fields;
use crate::tree::{Fault, Node, Value};
use crate::{env_file, parse, setting};

/// Reads the settings of a service.
pub(super) fn read(keys: &mut Fields<'_>, spec: &mut ServiceSpec) -> Result<(), Fault> {
    spec.read_only = keys.read("read_only", Node::flag)?.unwrap_or_default();
    spec.tty = keys.read("tty", Node::flag)?.unwrap_or_default();
    spec.shm_size = keys.read("shm_size", |it| it.parsed(parse::bytes))?.and_then(NonZeroU64::new);
    spec.ulimits = keys.read("ulimits", ulimits)?.unwrap_or_default();
    spec.sysctls = keys.read("sysctls", sysctls)?.unwrap_or_default();
    spec.groups = keys.read("group_add", Node::texts)?.unwrap_or_default();
    // As in Compose, none is the default.
    let swap = keys.read("memswap_limit", |it| it.parsed(setting::bytes_or_unlimited))?;
    spec.memory_swap = swap.filter(|it| *it != Bound::At(0));
    spec.oom_score_adj = keys.read("oom_score_adj", |it| {
        it.parsed(|text| text.parse().map_err(|_| format!("`{text}` is not a whole number")))
    })?;
    spec.log = keys.read("logging", log)?.unwrap_or_default();
    spec.pull = keys.read("pull_policy", |it| it.parsed(pull))?.unwrap_or(PullPolicy::Missing);
    Ok(())
}

fn ulimits(node: &Node) -> Result<Vec<Ulimit>, Fault> {
    let limit = |(name, node): (&String, &Node)| {
        let name: UlimitName = name.parse().map_err(|error| node.fault(format!("{error}")))?;
        let (soft, hard) = match &node.value {
            Value::Map(_) => {
                let mut keys = node.fields()?;
                let both = (keys.required("soft")?.text()?, keys.required("hard")?.text()?);
                keys.finish()?;
                both
            }
            _ => (node.text()?, node.text()?),
        };
        format!("{name}={soft}:{hard}").parse().map_err(|error| node.fault(format!("{error}")))
    };
    node.map()?.iter().map(limit).collect()
}

fn sysctls(node: &Node) -> Result<BTreeMap<String, String>, Fault> {
    pairs(node, |name, node| Err(node.fault(format!("`{name}` has no value"))))
}

fn log(node: &Node) -> Result<LogSpec, Fault> {
    let mut keys = node.fields()?;
    let mut log = LogSpec::default();
    log.driver = keys.read("driver", |it| it.parsed(setting::log_driver))?.unwrap_or(log.driver);
    for (name, value) in keys.read("options", Node::map)?.into_iter().flatten() {
        value.parsed(|text| setting::set_log_option(&mut log, name, text))?;
    }
    keys.finish()?;
    Ok(log)
}

fn pull(text: &str) -> Result<PullPolicy, String> {
    match text {
        // Compose has this name too, for older files.
        "if_not_present" => Ok(PullPolicy::Missing),
        text => text.parse(),
    }
}

/// Reads the variables of `env_file`: a file or a list of them, of which the last with each name counts. Their paths are
/// relative to the folder of the stack file.
pub(super) fn variables(node: &Node, context: &Context<'_>) -> Result<BTreeMap<String, String>, Fault> {
    let mut found = BTreeMap::new();
    let files = match &node.value {
        Value::List(files) => files.as_slice(),
        _ => std::slice::from_ref(node),
    };
    for file in files {
        let (path, is_required) = match &file.value {
            Value::Map(_) => {
                let mut keys = file.fields()?;
                let path = keys.required("path")?.text()?;
                let is_required = keys.read("required", Node::flag)?.unwrap_or(true);
                // The only format there is; without the key, Compose removes quotes.
                let raw =
                    |text: &str| if text == "raw" { Ok(()) } else { Err(format!("`{text}` is not the format raw")) };
                keys.read("format", |it| it.parsed(raw))?;
                keys.finish()?;
                (path, is_required)
            }
            _ => (file.text()?, true),
        };
        let path = context.folder.join(path);
        let variables = match env_file::read(&path, context.environment) {
            Err(env_file::EnvFileError::Read { source, .. })
                if !is_required && source.kind() == std::io::ErrorKind::NotFound =>
            {
                continue;
            }
            Err(env_file::EnvFileError::Read { source, .. }) => {
                return Err(file.fault(format!("failed to read {}: {source}", path.display())));
            }
            result => result.map_err(|error| file.fault(error.to_string()))?,
        };
        let pair = |it: String| it.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        found.extend(variables.into_iter().filter_map(pair));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use flota_api::model::{Bound, LogDriver};

    use super::*;
    use crate::load::{self, parse};

    fn web(keys: &str) -> Result<ServiceSpec, String> {
        let text = format!("services: {{ web: {{ image: a, {keys} }} }}");
        let stack = parse(&text, "shop", &|_| None).map_err(|fault| format!("{}: {}", fault.key, fault.why))?;
        Ok(stack.services.into_iter().next().expect("one service"))
    }

    #[test]
    fn settings_are_read_under_composes_names() {
        let spec =
            web("read_only: true, tty: true, shm_size: 1m, ulimits: { nofile: { soft: 1, hard: -1 }, core: 0 }, \
             sysctls: { net.core.somaxconn: 1024 }, group_add: [audio, 44], memswap_limit: -1, oom_score_adj: -500, \
             logging: { driver: json-file, options: { max-size: 10m, max-file: \"3\" } }, pull_policy: always, \
             labels: { a: b }, deploy: { labels: [c=d] }, command: \"sh -c 'a b'\"")
            .expect("good keys");
        let map = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        assert!(spec.read_only && spec.tty);
        assert_eq!(spec.shm_size.map(NonZeroU64::get), Some(1 << 20));
        let limits: Vec<Ulimit> = ["core=0", "nofile=1:-1"].map(|it| it.parse().expect("a limit")).to_vec();
        assert_eq!(spec.ulimits, limits);
        assert_eq!(spec.sysctls, map("net.core.somaxconn", "1024"));
        assert_eq!(spec.groups, ["audio", "44"]);
        assert_eq!((spec.memory_swap, spec.oom_score_adj), (Some(Bound::Unlimited), Some(-500)));
        assert_eq!((spec.log.driver, spec.log.bytes()), (LogDriver::JsonFile, Some(30 << 20)));
        assert_eq!(spec.pull, PullPolicy::Always);
        assert_eq!((spec.container_labels, spec.labels), (map("a", "b"), map("c", "d")));
        assert_eq!(spec.command, ["sh", "-c", "a b"]);
        let spec = web("sysctls: [kernel.sem=1 2 3 4], pull_policy: if_not_present").expect("good keys");
        assert_eq!((spec.sysctls, spec.pull), (map("kernel.sem", "1 2 3 4"), PullPolicy::Missing));
    }

    #[test]
    fn bad_settings_are_refused_with_their_key() {
        for (keys, expected) in [
            ("read_only: maybe", "services.web.read_only: `maybe` is neither true nor false"),
            ("shm_size: x", "services.web.shm_size: `x` is not a size"),
            ("ulimits: { as: 1 }", "services.web.ulimits.as: `as` is not a limit: they are core, cpu"),
            ("ulimits: { core: x }", "services.web.ulimits.core: `core=x:x`: a limit has the form"),
            ("ulimits: { core: { soft: 1 } }", "services.web.ulimits.core: the key `hard` is missing"),
            ("ulimits: { core: { soft: 2, hard: 1 } }", "services.web.ulimits.core: core: the soft limit is above"),
            ("sysctls: [net.core.somaxconn]", "services.web.sysctls[0]: `net.core.somaxconn` has no value"),
            ("memswap_limit: -2", "services.web.memswap_limit: `-2` is not a size"),
            ("oom_score_adj: 1.5", "services.web.oom_score_adj: `1.5` is not a whole number"),
            ("logging: { driver: syslog }", "services.web.logging.driver: the log driver `syslog` is not supported"),
            ("logging: { options: { tag: x } }", "services.web.logging.options.tag: the log option `tag` is not"),
            ("pull_policy: never", "services.web.pull_policy: `never` is neither always nor missing"),
            ("entrypoint: \"a 'b\"", "services.web.entrypoint: `a 'b` has an unclosed quote"),
            ("env_file: { path: a, format: x }", "services.web.env_file.format: `x` is not the format raw"),
            ("env_file: [/no/such]", "services.web.env_file[0]: failed to read /no/such: No such file"),
        ] {
            let error = web(keys).expect_err(expected);
            assert!(error.starts_with(expected), "{keys}: {error}");
        }
    }

    #[test]
    fn variables_of_files_come_before_the_files_own_and_the_last_counts() {
        let folder = std::env::temp_dir().join(format!("flota-env-files-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("a temporary folder");
        std::fs::write(folder.join("a.env"), "A=a\nB=a\nC=a\n").expect("a file");
        std::fs::write(folder.join("b.env"), "B=b\nC=\"b\"\n").expect("a file");
        let text = "services:\n  web:\n    image: x\n    env_file: [a.env, ./b.env, { path: no, required: false }]\n    \
                    environment: { A: mine }\n";
        let file = folder.join("stack.yml");
        std::fs::write(&file, text).expect("a file");
        let stack = load::load(&file, "shop").expect("a good file");
        assert_eq!(stack.0.services[0].env, ["A=mine", "B=b", "C=\"b\""]);
        std::fs::write(folder.join("b.env"), "B b\n").expect("a file");
        let error = load::load(&file, "shop").expect_err("a bad line").to_string();
        assert!(error.ends_with("b.env:1: `B b` is not a name of a variable"), "{error}");
        std::fs::remove_dir_all(folder).expect("its own folder");
    }
}
