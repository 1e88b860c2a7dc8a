//! From a file to a stack: reads, parses and converts it. Errors name the file, the line and the key.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use flota_api::model::{StackSpec, StackValue};

use crate::convert::{self, Context};
use crate::faults::convert_all;
use crate::interpolate::interpolate;
use crate::tree::{self, Fault};

const FILE_BOUND: u64 = 16 << 20;

/// Why a stack file is refused.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file can't be read.
    #[error("failed to read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is too large.
    #[error("{path} has more than {FILE_BOUND} bytes", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a stack file, or has keys or values that are not understood. It is written as one line for each.
    #[error("{}", lines(path, defects))]
    Content {
        /// The file.
        path: PathBuf,
        /// All that is wrong and does not follow from something else that is, in the order of the lines.
        defects: Vec<Defect>,
    },
}

/// What is wrong with a stack file.
#[derive(Debug)]
pub struct Defect {
    /// The line, from 1.
    pub line: usize,
    /// The key, such as `services.web.image`; empty for the whole file.
    pub key: String,
    /// What is wrong.
    pub why: String,
}

fn lines(path: &Path, defects: &[Defect]) -> String {
    let line = |Defect { line, key, why }: &Defect| {
        let colon = if key.is_empty() { "" } else { ": " };
        format!("{}:{line}: {key}{colon}{why}", path.display())
    };
    defects.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Reads a stack from a file; `-` stands for standard input, and the current folder. `name` becomes the stack's name and the
/// prefix of its services' names. Variables have the values of this process's environment, and paths in the file
/// begin at its folder. Also returns the secrets and configs that the file declares.
///
/// # Errors
/// The file can't be read, has more than 16 MiB, or has keys or values that are not understood.
pub fn load(path: &Path, name: &str) -> Result<(StackSpec, Vec<StackValue>), LoadError> {
    let read = |source| LoadError::Read { path: path.to_owned(), source };
    let bytes = read_bounded(path).map_err(read)?;
    if bytes.len() as u64 > FILE_BOUND {
        return Err(LoadError::TooLarge { path: path.to_owned() });
    }
    let text = String::from_utf8(bytes).map_err(|error| read(std::io::Error::other(error)))?;
    let defect = |Fault { line, key, why, .. }| Defect { line, key, why };
    let content = |faults: Vec<Fault>| LoadError::Content {
        path: path.to_owned(),
        defects: faults.into_iter().map(defect).collect(),
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let context = Context { environment: &|name| std::env::var(name).ok(), folder };
    let mut document = tree::parse(&text).map_err(|fault| content(vec![fault]))?;
    interpolate(&mut document, context.environment);
    convert_all(document, |document| convert::stack(name, document, &context)).map_err(content)
}

/// Returns what is in the file, or its beginning, which is longer than a file may be.
fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match path == Path::new("-") {
        true => std::io::stdin().lock().take(FILE_BOUND + 1).read_to_end(&mut bytes)?,
        false => File::open(path)?.take(FILE_BOUND + 1).read_to_end(&mut bytes)?,
    };
    Ok(bytes)
}

/// Parses a text as if it were a file in the present folder, for tests.
#[cfg(test)]
pub(crate) fn parse(text: &str, name: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<StackSpec, Fault> {
    let mut document = tree::parse(text)?;
    interpolate(&mut document, environment);
    convert::stack(name, &document, &Context { environment, folder: Path::new("") }).map(|(stack, _)| stack)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::time::Duration;

    use flota_api::constraint::{Constraint, NodeProperty};
    use flota_api::model::{OnPartition, PlacementStrategy, RestartCondition, ServiceMode};
    use flota_api::model::{StackSpec, UpdateOrder};

    use super::*;

    const FILE: &str = r#"
x-logging: &unused { driver: json-file }
x-base: &base
  image: whoami
  labels: { team: shop, empty: }
services:
  web:
    <<: *base
    x-note: extensions are ignored
    command: serve "two words"
    environment:
      NODE: "{{.Node.Hostname}}"
      PORT: 8080
      USER:
    deploy:
      replicas: 3
      labels: [bare, a=b]
      resources:
        limits: { cpus: 0.5, memory: 64M, pids: 20 }
        reservations: { cpus: "0.1" }
      restart_policy: { condition: on-failure, delay: 2s }
      x-flota-on-partition: stop:1m
      x-flota-on-node-loss: keep
      x-flota-priority: -5
      update_config: { order: start-first }
      rollback_config: { parallelism: 0 }
      placement:
        constraints: [node.role==worker]
        preferences: [{ spread: node.labels.zone }]
        max_replicas_per_node: 2
        x-flota-anti-affinity: [web2, other_db]
        x-flota-affinity: [cache]
        x-flota-strategy: binpack
  web2: { image: b, platform: linux/aarch64/v8, deploy: { placement: { constraints: [node.role==worker] } } }
"#;

    fn parsed(text: &str) -> Result<StackSpec, String> {
        let environment = |name: &str| (name == "USER").then(|| "ada".to_owned());
        parse(text, "shop", &environment).map_err(|fault| format!("{}: {}: {}", fault.line, fault.key, fault.why))
    }

    #[test]
    fn a_stack_file_becomes_specs() {
        let stack = parsed(FILE).expect("a good file");
        let [web, web2] = stack.services.as_slice() else { panic!("two services") };
        assert_eq!((web.name.as_str(), web.image.as_str(), web.mode.replicas()), ("shop_web", "whoami", Some(3)));
        assert_eq!(web.command, ["serve", "two words"]);
        assert_eq!(web.env, ["NODE={{.Node.Hostname}}", "PORT=8080", "USER=ada"]);
        let labels = [&web.labels, &web.container_labels]
            .map(|labels| labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" "));
        assert_eq!(labels, ["a=b bare=", "empty= team=shop"]);
        let limits = [web.limits.nano_cpus, web.limits.memory_bytes, web.limits.pids].map(|it| it.map(NonZeroU64::get));
        assert_eq!(limits, [Some(500_000_000), Some(64 << 20), Some(20)]);
        assert_eq!(web.reservations.nano_cpus, 100_000_000);
        let parallelism = [web.update, web.rollback].map(|it| it.parallelism.map(NonZeroU64::get));
        assert_eq!((web.update.order, web.rollback.order), (UpdateOrder::StartFirst, UpdateOrder::StopFirst));
        assert_eq!(parallelism, [Some(1), None]);
        assert_eq!(web.constraints, [Constraint::parse("node.role==worker").expect("it is good")]);
        assert_eq!(web.spread_over, [NodeProperty::parse("node.labels.zone").expect("it is good")]);
        let constraints = ["node.role==worker", "node.platform.os==linux", "node.platform.arch==arm64"];
        assert_eq!(web2.constraints, constraints.map(|it| Constraint::parse(it).expect("it is good")));
        assert_eq!(web.max_replicas_per_node, NonZeroU64::new(2));
        assert_eq!(
            (web.affinity.join(" "), web.anti_affinity.join(" ")),
            ("cache".into(), "shop_web2 other_db".into())
        );
        assert_eq!((web.strategy, web.priority), (PlacementStrategy::Binpack, -5));
        assert_eq!((web.on_partition, web.keep_on_node_loss), (OnPartition::Stop(Duration::from_secs(60)), true));
    }

    #[test]
    fn variables_of_the_environment_are_put_into_values_wherever_they_are_used() {
        let file = "x-unused: $NONE\nx-env: &env { OWNER: $USER }\n\
            services:\n  web:\n    image: web:${TAG:-1}\n    environment: { <<: *env, PRICE: 5$$, NAME: \"${USER}-$$USER\" }\n    \
            command: [\"${USER}\", \"${NONE:-}\"]\n    deploy: { replicas: \"${COUNT-2}\" }\n";
        let stack = parsed(file).expect("a good file");
        let web = &stack.services[0];
        assert_eq!((web.image.as_str(), web.mode.replicas()), ("web:1", Some(2)));
        assert_eq!(web.env, ["NAME=ada-$USER", "OWNER=ada", "PRICE=5$"]);
        assert_eq!(web.command, ["ada", ""]);
    }

    #[test]
    fn an_extension_of_ours_that_is_misspelt_is_an_error() {
        let deploy = |key: &str| format!("services: {{ web: {{ image: a, deploy: {{ {key}: 1 }} }} }}");
        assert!(parsed(&deploy("x-flota-afinity")).is_err_and(|it| it.contains("x-flota-afinity")));
        assert!(parsed(&deploy("x-others")).is_ok());
        let high = "services: { web: { image: a, deploy: { x-flota-priority: high } } }";
        assert!(parsed(high).is_err_and(|it| it.ends_with("x-flota-priority: `high` is not a whole number")));
    }

    #[test]
    fn a_service_may_have_a_task_on_each_node() {
        let file = |deploy: &str| format!("services: {{ web: {{ image: a, deploy: {{ {deploy} }} }} }}");
        for (deploy, mode) in [
            ("mode: global", ServiceMode::Global {}),
            ("mode: replicated", ServiceMode::Replicated { replicas: 1 }),
            ("mode: replicated, replicas: 2", ServiceMode::Replicated { replicas: 2 }),
            ("mode: global-job", ServiceMode::GlobalJob {}),
            (
                "mode: replicated-job, replicas: 5, x-flota-max-concurrent: 2",
                ServiceMode::ReplicatedJob { completions: 5, max_concurrent: NonZeroU64::new(2) },
            ),
        ] {
            let spec = parsed(&file(deploy)).expect("a good file").services[0].clone();
            assert_eq!(spec.mode, mode);
            let condition = if mode.is_job() { RestartCondition::OnFailure } else { RestartCondition::Any };
            assert_eq!(spec.restart.condition, condition, "a job that has ended well is done");
        }
    }

    #[test]
    fn faults_name_their_line_and_key_and_what_is_allowed() {
        let web = |keys: &str| format!("services:\n  web:\n    image: a\n    {keys}\n");
        for (text, expected) in [
            ("services: {}".to_owned(), "1: : the file has no services"),
            (String::new(), "1: : the file has no services"),
            ("services: 1".to_owned(), "1: services: a map is needed, not a text"),
            ("services:\n  web: { command: x }".to_owned(), "2: services.web: the key `image` is missing"),
            (
                web("storage_opt: { size: 1g }"),
                "4: services.web.storage_opt: this key is not supported; the keys that are supported here: ",
            ),
            (web("") + "  web: {}", "5: services.web: the key is there twice, first in line 2"),
            (web("command:\n      a: b"), "4: services.web.command: a text or a list is needed, not a map"),
            (web("user: [root]"), "4: services.web.user: a text is needed, not a list"),
            (web("init: maybe"), "4: services.web.init: `maybe` is neither true nor false"),
            (web("environment: { FOO: }"), "4: services.web.environment.FOO: `FOO` has no value, and the environment"),
            (web("environment: [ A=1, FOO ]"), "4: services.web.environment[1]: `FOO` has no value, and the environ"),
            (
                web("working_dir: /$HOME"),
                "4: services.web.working_dir: `/$HOME`: the environment of ctl has no variable",
            ),
            (web("deploy: { replicas: \"${USER}\" }"), "4: services.web.deploy.replicas: `ada` is not a whole number"),
            (
                web("deploy:\n      resources:\n        limits:\n          memory: x"),
                "7: services.web.deploy.resources.limits.memory: `x` is not a size",
            ),
            (web("deploy: { mode: daemon }"), "4: services.web.deploy.mode: `daemon` is none of replicated"),
            (
                web("deploy: { mode: global, replicas: 2 }"),
                "4: services.web.deploy.replicas: a service of the mode global has a task on each node",
            ),
            (web("deploy: { replicas: -1 }"), "4: services.web.deploy.replicas: `-1` is not a whole number from 0"),
            (web("platform: arm64"), "4: services.web.platform: `arm64` is not a platform such as linux/arm64"),
            (
                web("platform: linux/arm/v7"),
                "4: services.web.platform: nodes can't be chosen by a variant, such as v7; leave it out",
            ),
            (
                web("deploy: { placement: { constraints: [x] } }"),
                "4: services.web.deploy.placement.constraints[0]: `x`:",
            ),
            (web("x-y: 1\n    z: 2"), "5: services.web.z: this key is not supported"),
        ] {
            let error = parsed(&text).expect_err(&text);
            assert!(error.starts_with(expected), "{text}\n{error}");
        }
    }

    #[test]
    fn an_error_begins_with_the_file_and_the_line() {
        let folder = std::env::temp_dir();
        let path = folder.join(format!("flota-stack-{}.yml", std::process::id()));
        std::fs::write(&path, "services:\n  web: 1\n").expect("a temporary file");
        let error = load(&path, "s").expect_err("it is not a service").to_string();
        assert_eq!(error, format!("{}:2: services.web: a map is needed, not a text", path.display()));
        std::fs::write(&path, "services: { web: { image: a, user: [x], init: maybe2 } }\nnetwork: 1")
            .expect("the same");
        let error = load(&path, "s").expect_err("it has two defects").to_string();
        let lines: Vec<_> =
            error.lines().map(|line| line.rsplit_once(".yml:").expect("the file comes first").1).collect();
        assert_eq!(lines.len(), 2, "{error}");
        assert!(lines[0].starts_with("1: services.web.user: ") && lines[1].starts_with("2: network: "), "{error}");
        std::fs::remove_file(path).expect("its own file");
    }
}
