//! From a task to a container: the only file that knows both languages.

use std::path::PathBuf;

use flota_api::model::ServiceSpec;
use flota_api::naming::{task_full_name, task_name};
use flota_api::proto::dispatcher::TaskAssignment;
use flota_image::ImageConfig;
use flota_runtime::cgroup::Folder;
use flota_runtime::{ContainerSpec, Limits, Root};

/// Output that is kept of each task.
const LOG_BYTES: u64 = 20 << 20;

/// What this node adds.
#[derive(Clone, Debug)]
pub(crate) struct NodeNames {
    pub(crate) id: String,
    pub(crate) hostname: String,
}

/// Where this task's parts are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) root: Root,
    pub(crate) cgroups: Vec<Folder>,
    pub(crate) log: PathBuf,
}

/// A template that can't be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the template `{0}` is not known: .Node.ID, .Node.Hostname, .Service.ID, .Service.Name, .Task.ID, .Task.Name and .Task.Slot are"
)]
pub(crate) struct TemplateError(String);

/// The container of a task.
pub(crate) fn container(
    assignment: &TaskAssignment,
    spec: &ServiceSpec,
    config: &ImageConfig,
    node: &NodeNames,
    places: Places,
) -> Result<ContainerSpec, TemplateError> {
    let fill = |text: &str| fill(text, assignment, node);
    let entrypoint = if spec.entrypoint.is_empty() { &config.entrypoint } else { &spec.entrypoint };
    // As Docker: another entrypoint makes the image's arguments meaningless.
    let command = match (spec.command.is_empty(), spec.entrypoint.is_empty()) {
        (true, true) => config.cmd.as_slice(),
        (true, false) => &[],
        (false, _) => spec.command.as_slice(),
    };
    let env = spec.env.iter().map(|it| fill(it)).collect::<Result<Vec<_>, _>>()?;
    let hostname = match spec.hostname.as_str() {
        "" => task_name(&assignment.service_name, assignment.slot),
        given => fill(given)?,
    };
    let or = |given: &str, image: &str| if given.is_empty() { image.to_owned() } else { given.to_owned() };
    Ok(ContainerSpec {
        root: places.root,
        argv: entrypoint.iter().chain(command).cloned().collect(),
        env: config.env.iter().cloned().chain(env).collect(),
        cwd: or(&spec.working_dir, &config.working_dir),
        user: or(&spec.user, &config.user),
        // The kernel's bound (gethostname(2)).
        hostname: hostname.chars().take(64).collect(),
        limits: Limits { memory: spec.limits.memory_bytes, nano_cpus: spec.limits.nano_cpus, pids: spec.limits.pids },
        cgroups: places.cgroups,
        log: places.log,
        log_bytes: LOG_BYTES,
    })
}

/// The signal that asks the program to end: the service's, else the image's, else SIGTERM.
pub(crate) fn stop_signal(spec: &ServiceSpec, config: &ImageConfig) -> i32 {
    let given = [&spec.stop_signal, &config.stop_signal].into_iter().find(|it| !it.is_empty());
    let name = given.map_or("SIGTERM", String::as_str);
    let whole = if name.starts_with("SIG") { name.to_owned() } else { format!("SIG{name}") };
    let number = name.parse().ok().or_else(|| whole.parse::<nix::sys::signal::Signal>().ok().map(|it| it as i32));
    number.unwrap_or(nix::libc::SIGTERM)
}

/// Docker's templates, as far as they make sense here.
fn fill(text: &str, assignment: &TaskAssignment, node: &NodeNames) -> Result<String, TemplateError> {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").ok_or_else(|| TemplateError(text.to_owned()))?;
        let task_id = assignment.task_id.as_str().into();
        result.push_str(before);
        result.push_str(&match name.trim() {
            ".Node.ID" => node.id.clone(),
            ".Node.Hostname" => node.hostname.clone(),
            ".Service.ID" => assignment.service_id.clone(),
            ".Service.Name" => assignment.service_name.clone(),
            ".Task.ID" => assignment.task_id.clone(),
            ".Task.Name" => task_full_name(&assignment.service_name, assignment.slot, &task_id),
            ".Task.Slot" => assignment.slot.to_string(),
            _ => return Err(TemplateError(format!("{{{{{name}}}}}"))),
        });
        rest = after;
    }
    result.push_str(rest);
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translate(spec: &ServiceSpec, config: &ImageConfig) -> Result<ContainerSpec, TemplateError> {
        let assignment =
            TaskAssignment { task_id: "id".into(), service_name: "web".into(), slot: 2, ..Default::default() };
        let node = NodeNames { id: "n".into(), hostname: "w1".into() };
        let places = Places { root: Root::Folder("/".into()), cgroups: vec![], log: "log".into() };
        container(&assignment, spec, config, &node, places)
    }

    #[test]
    fn arguments_combine_as_docker_does() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let config = ImageConfig { entrypoint: words("e"), cmd: words("c"), ..ImageConfig::default() };
        let argv = |entrypoint: &str, command: &str| {
            let spec = ServiceSpec { entrypoint: words(entrypoint), command: words(command), ..ServiceSpec::default() };
            translate(&spec, &config).expect("no template").argv.join(" ")
        };
        assert_eq!(argv("", ""), "e c");
        assert_eq!(argv("", "x"), "e x");
        assert_eq!(argv("y", ""), "y");
        assert_eq!(argv("y", "x"), "y x");
    }

    #[test]
    fn templates_are_filled_in_and_unknown_ones_refused() {
        let env = |text: &str| ServiceSpec { env: vec![text.into()], ..ServiceSpec::default() };
        let spec = translate(&env("A={{.Task.Name}} on {{ .Node.Hostname }}"), &ImageConfig::default());
        assert_eq!(spec.map(|it| it.env), Ok(vec!["A=web.2.id on w1".to_owned()]));
        assert!(translate(&env("A={{.Secret}}"), &ImageConfig::default()).is_err());
        assert!(translate(&env("A={{.Task"), &ImageConfig::default()).is_err());
    }

    #[test]
    fn stop_signals_are_read_in_all_spellings() {
        let of = |text: &str| {
            stop_signal(&ServiceSpec { stop_signal: text.into(), ..ServiceSpec::default() }, &ImageConfig::default())
        };
        assert_eq!([of(""), of("SIGQUIT"), of("INT"), of("9")], [15, 3, 2, 9]);
    }
}
