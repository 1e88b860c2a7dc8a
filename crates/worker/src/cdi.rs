//! Devices by the Container Device Interface (CDI): files of vendors in `/etc/cdi` and `/run/cdi`, which say what a
//! container gets with a device besides its nodes, such as the libraries of a GPU's driver.
//!
//! `watch.rs` finds out which devices this node has, for its description. The files are read again when a container is
//! started ([`of_task`]), because they may have changed since; `translate.rs` then makes the edits.
//!
//! `file.rs` has the format of one file, `catalog.rs` joins all files, `edits.rs` changes a configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use flota_api::model::{Assignment, CdiName};

mod catalog;
mod edits;
mod file;
mod watch;
mod yaml;

use catalog::{Catalog, Missing};
pub(crate) use edits::Injection;
pub(crate) use watch::CdiWatch;

/// Why a task can't get a CDI device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CdiError {
    #[error("this node has no CDI device `{name}`{}", hint(.broken))]
    Unknown {
        name: CdiName,
        /// Files that can't be read; it may be in one of them.
        broken: BTreeMap<PathBuf, String>,
    },
    #[error("this node has two CDI devices `{name}`, in {} and in {}", .first.display(), .second.display())]
    Twice { name: CdiName, first: PathBuf, second: PathBuf },
    #[error("failed to give the CDI device `{name}`: {why}")]
    Unusable { name: CdiName, why: String },
}

fn hint(broken: &BTreeMap<PathBuf, String>) -> String {
    let shown = |(path, why): (&PathBuf, &String)| format!("; {} can't be used: {why}", path.display());
    broken.iter().next().map(shown).unwrap_or_default()
}

/// Finds the edits for the CDI devices of a task: those that its service names, and those whose names are the ids that the
/// scheduler has chosen. Reads files.
pub(crate) fn of_task(assignment: &Assignment, folders: &[PathBuf]) -> Result<Injection, CdiError> {
    let chosen = assignment.device_ids.iter().filter_map(|device| device.id.parse().ok());
    let mut names: Vec<CdiName> = Vec::new();
    for name in chosen.chain(assignment.spec.cdi_devices.iter().cloned()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut injection = Injection::default();
    if names.is_empty() {
        return Ok(injection);
    }
    let catalog = Catalog::read(folders);
    let mut files = BTreeSet::new();
    for name in names {
        let found = catalog.find(&name).map_err(|missing| match missing {
            Missing::Unknown => CdiError::Unknown { name: name.clone(), broken: catalog.broken.clone() },
            Missing::Twice(first, second) => CdiError::Twice { name: name.clone(), first, second },
        })?;
        let of_file = files.insert(found.file).then_some(found.of_file);
        for edits in of_file.into_iter().chain([found.own]) {
            injection.add(edits).map_err(|why| CdiError::Unusable { name: name.clone(), why })?;
        }
    }
    Ok(injection)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use flota_api::model::{DeviceId, ServiceSpec};
    use flota_runtime::oci::Spec;

    fn assignment(names: &[&str], ids: &[&str]) -> Assignment {
        let cdi_devices = names.iter().map(|it| it.parse().expect(it)).collect();
        let id = |it: &&str| DeviceId { kind: "gpu".into(), id: (*it).into() };
        let device_ids = ids.iter().map(id).collect();
        Assignment {
            spec: Arc::new(ServiceSpec { cdi_devices, ..ServiceSpec::default() }),
            device_ids,
            ..Assignment::default()
        }
    }

    fn env(injection: Injection) -> Vec<String> {
        let mut spec = Spec::default();
        injection.apply(&mut spec);
        spec.process.unwrap_or_default().env
    }

    #[test]
    fn a_task_gets_what_it_names_and_what_was_chosen_for_it_each_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let device = |name: &str| format!("- name: \"{name}\"\n  containerEdits:\n    env: [D{name}=1]\n");
        let text = format!(
            "cdiVersion: 0.5.0\nkind: v.com/gpu\ncontainerEdits:\n  env: [FILE=1]\ndevices:\n{}{}",
            device("0"),
            device("1")
        );
        std::fs::write(dir.path().join("gpu.yaml"), text).expect("a file");
        let folders = [dir.path().to_owned()];
        let edits = |names: &[&str], ids: &[&str]| of_task(&assignment(names, ids), &folders).map(env);
        assert_eq!(edits(&[], &["nvidia0"]), Ok(Vec::new()));
        assert_eq!(edits(&["v.com/gpu=0"], &[]), Ok(vec!["FILE=1".into(), "D0=1".into()]));
        let both = edits(&["v.com/gpu=0", "v.com/gpu=1"], &["v.com/gpu=1", "nvidia0"]);
        assert_eq!(both, Ok(vec!["FILE=1".into(), "D1=1".into(), "D0=1".into()]));

        let error =
            |names: &[&str]| of_task(&assignment(names, &[]), &folders).expect_err("it is not there").to_string();
        assert_eq!(error(&["v.com/gpu=2"]), "this node has no CDI device `v.com/gpu=2`");
        let broken = dir.path().join("broken.json");
        std::fs::write(&broken, "[").expect("a file");
        let expected = format!("this node has no CDI device `v.com/gpu=2`; {} can't be used: ", broken.display());
        assert!(error(&["v.com/gpu=2"]).starts_with(&expected));
        std::fs::copy(dir.path().join("gpu.yaml"), dir.path().join("other.yaml")).expect("a file");
        let expected = format!("in {0}/gpu.yaml and in {0}/other.yaml", dir.path().display());
        assert_eq!(error(&["v.com/gpu=0"]), format!("this node has two CDI devices `v.com/gpu=0`, {expected}"));
    }
}
