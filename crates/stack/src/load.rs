//! From a file to a stack: reads, parses and converts it. Errors name the file and the place in it.

use std::path::{Path, PathBuf};

use flota_api::model::StackSpec;

use crate::convert;
use crate::schema::Document;

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
    /// The file is not a stack file, or has a key or value that is not understood.
    #[error("{path}: {why}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        why: String,
    },
}

/// Reads a stack from a file. `name` becomes the stack's name and the prefix of its services' names.
///
/// # Errors
/// The file can't be read, has more than 16 MiB, or has a key or value that is not understood.
pub fn load(path: &Path, name: &str) -> Result<StackSpec, LoadError> {
    let read = |source| LoadError::Read { path: path.to_owned(), source };
    let content = |why: String| LoadError::Content { path: path.to_owned(), why };
    if std::fs::metadata(path).map_err(read)?.len() > FILE_BOUND {
        return Err(content(format!("the file has more than {FILE_BOUND} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(read)?;
    parse(&text, name).map_err(content)
}

pub(crate) fn parse(text: &str, name: &str) -> Result<StackSpec, String> {
    let document: Document = serde_yaml_ng::from_str(text).map_err(|error| explain(&error))?;
    if document.services.is_empty() {
        return Err("the file has no services".into());
    }
    let service = |(key, service): (String, _)| {
        convert::service(name, &key, service).map_err(|why| format!("services.{key}.{why}"))
    };
    Ok(StackSpec {
        name: name.to_owned(),
        services: document.services.into_iter().map(service).collect::<Result<_, _>>()?,
    })
}

/// The parser's error, except that a key of the Compose specification is not called unknown.
fn explain(error: &serde_yaml_ng::Error) -> String {
    let text = error.to_string();
    let unsupported = ["networks", "ports", "volumes", "secrets", "configs", "healthcheck", "depends_on", "expose"];
    match unsupported.iter().find(|key| text.contains(&format!("unknown field `{key}`"))) {
        Some(key) => {
            let place =
                error.location().map(|it| format!(" at line {} column {}", it.line(), it.column())).unwrap_or_default();
            format!("the key `{key}` is not supported yet{place}")
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use flota_api::constraint::Constraint;

    use super::parse;

    const FILE: &str = r#"
services:
  web:
    image: whoami
    command: serve "two words"
    environment:
      NODE: "{{.Node.Hostname}}"
      PORT: 8080
    deploy:
      replicas: 3
      resources:
        limits: { cpus: 0.5, memory: 64M, pids: 20 }
        reservations: { cpus: "0.1" }
      restart_policy: { condition: on-failure, delay: 2s }
      placement: { constraints: [node.role==worker] }
"#;

    #[test]
    fn a_stack_file_becomes_specs() {
        let stack = parse(FILE, "shop").expect("a good file");
        let [web] = stack.services.as_slice() else { panic!("one service") };
        assert_eq!((web.name.as_str(), web.mode.wanted_tasks()), ("shop_web", 3));
        assert_eq!(web.command, ["serve", "two words"]);
        assert_eq!(web.env, ["NODE={{.Node.Hostname}}", "PORT=8080"]);
        let limits = [web.limits.nano_cpus, web.limits.memory_bytes, web.limits.pids].map(|it| it.map(NonZeroU64::get));
        assert_eq!(limits, [Some(500_000_000), Some(64 << 20), Some(20)]);
        assert_eq!(web.reservations.nano_cpus, 100_000_000);
        assert_eq!(web.constraints, [Constraint::parse("node.role==worker").expect("it is good")]);
    }

    #[test]
    fn unknown_keys_and_values_are_errors_with_their_place() {
        let error = |text: &str| parse(text, "s").expect_err("refused");
        assert!(
            error("services: { web: { image: a, ports: [80] } }").starts_with("the key `ports` is not supported yet")
        );
        assert!(error("services: { web: { image: a, colour: red } }").contains("unknown field `colour`"));
        assert_eq!(error("services: {}"), "the file has no services");
        assert!(
            error("services: { web: { image: a, deploy: { resources: { limits: { memory: x } } } } }")
                .starts_with("services.web.deploy.resources.limits.memory: `x` is not a size")
        );
        assert!(error("services: { web: { command: x } }").contains("missing field `image`"));
        let constrained = "services: { web: { image: a, deploy: { placement: { constraints: [x] } } } }";
        assert!(error(constrained).starts_with("services.web.deploy.placement.constraints[0]: `x`:"));
        assert!(error("services: 1").contains("line 1"), "{}", error("services: 1"));
    }
}
