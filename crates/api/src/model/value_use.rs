//! How the tasks of a service use secrets and configs: as files in memory, or as variables.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use serde::Serialize;

use super::mount::{Mount, MountSource, TmpfsMount};
use super::text_or_empty;
use super::value::{ValueBytes, ValueKind};
use crate::id::{ValueDataId, ValueId};
use crate::resources::number_or_zero;
use crate::{naming, signal};

/// Folder of secrets in a container.
pub const SECRETS_FOLDER: &str = "/run/secrets";
/// Folder in a container for configs that are replaced while the task runs.
pub const CONFIGS_FOLDER: &str = "/run/configs";
/// Mode of a file whose mode is not given, as in Docker.
const MODE: u32 = 0o444;
/// The bits of a mode that a file can have.
const MODE_BITS: u32 = 0o777;

/// A secret or config that a service uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ValueUse {
    /// Name of the secret or config.
    pub source: String,
    /// Path of the file; a relative one is below the folder of secrets, or below the root for configs. If `None`, it is the
    /// name, unless the value is a variable.
    #[serde(serialize_with = "text_or_empty")]
    pub target: Option<String>,
    /// Name of the variable that has the value.
    #[serde(serialize_with = "text_or_empty")]
    pub env: Option<String>,
    /// Owner of the file.
    pub uid: u32,
    /// Group of the file.
    pub gid: u32,
    /// Mode of the file.
    pub mode: u32,
    /// The version to use; `None` for the newest one when the spec is set, and later ones as they come.
    #[serde(serialize_with = "number_or_zero")]
    pub version: Option<NonZeroU64>,
    /// The signal that the program gets after the file was replaced by a newer version. If `None`, the tasks are replaced
    /// instead.
    #[serde(serialize_with = "text_or_empty")]
    pub signal: Option<String>,
}

impl ValueUse {
    /// Returns the use of a secret or config as a file with the default name, owner and mode.
    pub fn of(source: impl Into<String>) -> Self {
        let source = source.into();
        Self { source, target: None, env: None, uid: 0, gid: 0, mode: MODE, version: None, signal: None }
    }

    /// Returns the path of the file in the container; `None` if there is none.
    pub fn path(&self, kind: ValueKind) -> Option<String> {
        let target = match &self.target {
            Some(target) => target,
            None if self.env.is_some() => return None,
            None => &self.source,
        };
        Some(match kind {
            _ if target.starts_with('/') => target.clone(),
            ValueKind::Secret => format!("{SECRETS_FOLDER}/{target}"),
            ValueKind::Config => format!("/{target}"),
        })
    }

    /// Returns whether its tasks are replaced when there is a newer version.
    pub fn rolls(&self) -> bool {
        self.version.is_none() && self.signal.is_none()
    }

    /// Returns what is wrong with it, with the field.
    pub fn violations(&self, kind: ValueKind) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let path = self.path(kind);
        if let Err(error) = naming::check(&self.source) {
            found.push(("source", error.to_string()));
        } else if let Some(path) = &path {
            // Where nothing can be mounted, no file can be.
            let source = MountSource::Tmpfs(TmpfsMount::default());
            let mount = Mount { target: path.clone(), read_only: true, source };
            found.extend(mount.violations().into_iter().map(|(_, why)| ("target", why)));
            if [SECRETS_FOLDER, CONFIGS_FOLDER].contains(&path.as_str()) {
                found.push(("target", format!("`{path}` is a folder")));
            }
        }
        let is_name = |name: &str| {
            name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
                && name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit())
        };
        if let Some(name) = self.env.as_ref().filter(|name| !is_name(name)) {
            let shown = name.escape_debug();
            found.push(("env", format!("`{shown}`: the name of a variable has letters, digits and `_`")));
        }
        if self.mode & !MODE_BITS != 0 {
            found.push(("mode", format!("{:o} is not a mode such as 440", self.mode)));
        }
        if let Some(name) = &self.signal {
            let folder = path.as_deref().and_then(folder_of);
            if signal::number(name).is_none() {
                found.push(("on_update", format!("`{}` is not a signal", name.escape_debug())));
            } else if self.version.is_some() {
                found.push(("on_update", "a version is given, which is never replaced".into()));
            } else if self.env.is_some() {
                found.push(("on_update", "the variables of a program can't be replaced while it runs".into()));
            } else if folder.is_none() {
                let why = "a file that is replaced while the task runs is in /run/secrets or /run/configs: \
                           target=/run/configs/NAME";
                found.push(("on_update", why.into()));
            }
        }
        found
    }
}

/// Returns the folder of secrets or configs that a path is in, and the rest of the path.
pub fn folder_of(path: &str) -> Option<(&'static str, &str)> {
    [SECRETS_FOLDER, CONFIGS_FOLDER]
        .into_iter()
        .find_map(|folder| Some((folder, path.strip_prefix(folder)?.strip_prefix('/')?)))
}

/// Returns what is wrong with the uses together, each with its index: two files at one path, a file where another one
/// needs a folder, and a variable that is there twice.
pub fn clashes<'a>(uses: impl Iterator<Item = (ValueKind, &'a ValueUse)>) -> Vec<(usize, &'static str, String)> {
    let (mut paths, mut variables) = (BTreeMap::new(), BTreeMap::new());
    let mut found = Vec::new();
    for (index, (kind, it)) in uses.enumerate() {
        if let Some(path) = it.path(kind) {
            let inner = format!("{path}/");
            let other = paths.keys().find(|other: &&String| {
                **other == path || other.starts_with(&inner) || path.starts_with(&format!("{other}/"))
            });
            match other {
                Some(other) if *other == path => found.push((index, "target", format!("`{path}` is there twice"))),
                Some(other) => found.push((index, "target", format!("`{path}` and `{other}` can't both be files"))),
                None => drop(paths.insert(path, index)),
            }
        }
        if let Some(name) = &it.env
            && variables.insert(name, index).is_some()
        {
            found.push((index, "env", format!("the variable `{name}` is there twice")));
        }
    }
    found
}

/// The version of a secret or config that a spec stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PinnedValue {
    /// The secret or config.
    pub value: ValueId,
    /// Number of the version.
    pub version: u64,
    /// The object that has its bytes.
    #[serde(skip)]
    pub data: ValueDataId,
}

/// A secret or config as a task gets it, in the order of [`super::ServiceSpec::values`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskValue {
    /// Number of the version.
    pub version: u64,
    /// Identifies the bytes.
    pub data: ValueDataId,
    /// Whether templates in the bytes are filled in for the task.
    pub template: bool,
    /// The bytes. They are in memory only: `None` after the daemon has started, until the leader has sent them.
    pub bytes: Option<ValueBytes>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use ValueKind::{Config, Secret};

    fn at(target: &str) -> ValueUse {
        ValueUse { target: Some(target.into()), ..ValueUse::of("db") }
    }

    #[test]
    fn files_are_where_docker_has_them() {
        let variable = || ValueUse { env: Some("PASSWORD".into()), ..ValueUse::of("db") };
        let both = ValueUse { target: Some("x".into()), ..variable() };
        for (it, secret, config) in [
            (ValueUse::of("db"), Some("/run/secrets/db"), Some("/db")),
            (at("a/b"), Some("/run/secrets/a/b"), Some("/a/b")),
            (at("/etc/db"), Some("/etc/db"), Some("/etc/db")),
            (variable(), None, None),
            (both, Some("/run/secrets/x"), Some("/x")),
        ] {
            assert_eq!((it.path(Secret).as_deref(), it.path(Config).as_deref()), (secret, config), "{it:?}");
        }
    }

    #[test]
    fn what_can_not_be_done_is_named() {
        let signalled = |it: ValueUse| ValueUse { signal: Some("HUP".into()), ..it };
        let version = NonZeroU64::new(2);
        for (it, kind, expected) in [
            (ValueUse::of("db"), Secret, ""),
            (at("../x"), Secret, "target"),
            (at("/a/../b"), Config, "target"),
            (at("/proc/x"), Config, "target"),
            (at("/run/secrets"), Config, "target"),
            (at(""), Secret, "target"),
            (ValueUse::of("a\nb"), Secret, "source"),
            (ValueUse { mode: 0o4755, ..ValueUse::of("db") }, Secret, "mode"),
            (ValueUse { env: Some("A=B".into()), ..ValueUse::of("db") }, Secret, "env"),
            (ValueUse { env: Some("1A".into()), ..ValueUse::of("db") }, Secret, "env"),
            (ValueUse { env: Some(String::new()), ..ValueUse::of("db") }, Secret, "env"),
            (signalled(ValueUse::of("db")), Secret, ""),
            (signalled(ValueUse::of("db")), Config, "on_update"),
            (signalled(at("/run/configs/db")), Config, ""),
            (signalled(ValueUse { version, ..ValueUse::of("db") }), Secret, "on_update"),
            (ValueUse { signal: Some("WRONG".into()), ..ValueUse::of("db") }, Secret, "on_update"),
        ] {
            let fields: Vec<_> = it.violations(kind).into_iter().map(|(field, _)| field).collect();
            assert_eq!(fields.join(" "), expected, "{it:?}");
        }
    }

    #[test]
    fn two_values_never_have_one_path_or_variable() {
        let found = |uses: &[(ValueKind, ValueUse)]| {
            let all = clashes(uses.iter().map(|(kind, it)| (*kind, it)));
            all.into_iter().map(|(index, field, _)| format!("{index} {field}")).collect::<Vec<_>>().join(", ")
        };
        let variable = || ValueUse { env: Some("A".into()), ..ValueUse::of("db") };
        assert_eq!(found(&[(Secret, at("x")), (Config, at("/x")), (Secret, variable())]), "");
        assert_eq!(found(&[(Secret, at("x")), (Config, at("/run/secrets/x"))]), "1 target");
        assert_eq!(found(&[(Config, at("/a")), (Config, at("/a/b"))]), "1 target");
        assert_eq!(found(&[(Config, at("/a/b")), (Config, at("/a"))]), "1 target");
        assert_eq!(found(&[(Secret, variable()), (Config, variable())]), "1 env");
    }
}
