//! The step that provides a task's secrets and configs as files in memory.
//!
//! All are in one file system of the kind ramfs, with a folder for each task. Its pages are never swapped and never
//! written to a disk, by any kernel. (tmpfs has the option `noswap` only since Linux 6.3.) It has no bound of its own,
//! but only the daemon writes to it, and containers see it read-only. Supervisors have copies of this node's mounts, so
//! it is one file system for all tasks: what is removed from it is gone for every copy.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use flota_api::id::TaskId;
use flota_api::model::{Assignment, SECRETS_FOLDER, TaskValue, ValueBytes, ValueKind, ValueUse, folder_of};
use flota_api::signal;
use flota_api::template::FileTemplateError;
use flota_image::remove_folder;
use flota_runtime::IdRange;

use super::ContainerError;
use crate::executor::{Cause, Control, Draft, ExecutorError, PrepareStep};
use crate::mount_point::is_mount_point;
use crate::task_ids::TaskIds;
use crate::translate::{self, NodeNames};
use crate::variables::SecretVariables;

/// Name of the file with the versions that the other files of a task have.
const VERSIONS: &str = "versions";

/// Why the secrets and configs of a task can't be provided.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ValueError {
    /// The leader has not sent it yet.
    #[error("the {0} `{1}` has not arrived from the leader yet")]
    Absent(ValueKind, String),
    /// A variable can't have these bytes.
    #[error("the {0} `{1}` can't be a variable: it is not UTF-8 text, or has a NUL byte")]
    NoText(ValueKind, String),
    /// Its templates can't be filled in.
    #[error("the templates of the {0} `{1}` can't be filled in")]
    Template(ValueKind, String, #[source] FileTemplateError),
    /// The files can't be written.
    #[error("failed to write the {0} `{1}` to memory")]
    Write(ValueKind, String, #[source] io::Error),
    /// The file system in memory can't be made.
    #[error("failed to mount a file system in memory for secrets and configs")]
    Mount(#[source] io::Error),
}

/// Provides the secrets and configs of tasks. Clones share the lock.
#[derive(Clone, Debug)]
pub(super) struct ValueStep {
    /// The folder of all tasks, at which the file system is mounted while any task has files there.
    folder: PathBuf,
    /// The ids of tasks that have their own.
    ids: TaskIds,
    /// The values that templates can use about this node.
    node: NodeNames,
    /// Held while the file system is mounted or unmounted.
    mounted: Arc<Mutex<()>>,
}

/// A file of a task: its place on this machine and in the container.
#[derive(Debug, PartialEq, Eq)]
struct ValuePlace {
    file: PathBuf,
    /// What is mounted into the container, and where: the file alone, or its whole folder, in which it can be replaced.
    mounted: (String, PathBuf),
}

fn place(folder: &Path, index: usize, path: &str) -> ValuePlace {
    match folder_of(path) {
        Some((container, rest)) => {
            let own = folder.join(if container == SECRETS_FOLDER { "secrets" } else { "configs" });
            ValuePlace { file: own.join(rest), mounted: (container.to_owned(), own) }
        }
        None => {
            let file = folder.join("files").join(index.to_string());
            ValuePlace { file: file.clone(), mounted: (path.to_owned(), file) }
        }
    }
}

/// Returns the uses of the task's spec with what the leader has sent for each.
fn uses(task: &Assignment) -> impl Iterator<Item = (usize, ValueKind, &ValueUse, &TaskValue)> {
    task.spec.values().zip(&task.values).enumerate().map(|(index, ((kind, it), value))| (index, kind, it, value))
}

/// A secret or config is bytes, which become text when templates in them are filled in.
fn filled<'a>(
    bytes: &'a ValueBytes,
    (kind, it, value): (ValueKind, &ValueUse, &TaskValue),
    (task, node): (&Assignment, &NodeNames),
) -> Result<Cow<'a, [u8]>, ValueError> {
    if !value.template {
        return Ok(Cow::Borrowed(&bytes.0));
    }
    // The manager has checked that it is text.
    let text = String::from_utf8_lossy(&bytes.0);
    let filled = translate::fill_file(&text, task, node);
    filled.map(|it| it.into_bytes().into()).map_err(|error| ValueError::Template(kind, it.source.clone(), error))
}

/// Writes a file whole, or leaves the one before it as it is.
fn write(path: &Path, bytes: &[u8], it: &ValueUse, ids: Option<IdRange>) -> io::Result<()> {
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    // No name of a secret or config begins with a dot.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = parent.join(format!(".{name}.new"));
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    let owner = |id: u32| ids.map_or(Some(id), |ids| ids.outside(id)).ok_or(io::ErrorKind::InvalidInput);
    fchown(&file, Some(owner(it.uid)?), Some(owner(it.gid)?))?;
    // After the change of the owner, which may clear bits.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(it.mode))?;
    std::fs::rename(&new, path)
}

fn versions(task: &Assignment) -> String {
    task.values.iter().map(|it| format!("{}\n", it.data)).collect()
}

impl ValueStep {
    pub(super) fn new(folder: PathBuf, ids: TaskIds, node: NodeNames) -> Self {
        Self { folder, ids, node, mounted: Arc::default() }
    }

    fn of_task(&self, task: &TaskId) -> PathBuf {
        self.folder.join(task.as_str())
    }

    /// Makes the task's folder, in a file system that an earlier daemon may have mounted.
    fn make(&self, task: &TaskId) -> io::Result<PathBuf> {
        let _mounting = self.mounted.lock().expect("no holder panics");
        fs_err::create_dir_all(&self.folder)?;
        if !is_mount_point(&self.folder)? {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("flota-values"), &self.folder, Some("ramfs"), flags, Some("mode=0700"))?;
            // A mount that is made here later must not depend on what other copies do.
            mount(None::<&str>, &self.folder, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)?;
        }
        let own = self.of_task(task);
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&own)?;
        Ok(own)
    }

    /// Writes the task's files.
    fn provide(&self, task: &Assignment, draft: &mut Draft) -> Result<(), ValueError> {
        let mut variables = Vec::new();
        let mut own = None;
        for (index, kind, it, value) in uses(task) {
            let name = || it.source.clone();
            let bytes = value.bytes.as_ref().ok_or_else(|| ValueError::Absent(kind, name()))?;
            let bytes = &*filled(bytes, (kind, it, value), (task, &self.node))?;
            if let Some(variable) = &it.env {
                let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
                let text = text.ok_or_else(|| ValueError::NoText(kind, name()))?;
                variables.push(format!("{variable}={text}"));
            }
            let Some(path) = it.path(kind) else { continue };
            if own.is_none() {
                own = Some(self.make(&task.task_id).map_err(ValueError::Mount)?);
            }
            let ValuePlace { file, mounted: (target, source) } =
                place(own.as_deref().unwrap_or(&self.folder), index, &path);
            write(&file, bytes, it, draft.ids.as_ref().map(|it| it.range))
                .map_err(|error| ValueError::Write(kind, name(), error))?;
            draft.values.insert(target, source);
        }
        if let Some(own) = own {
            std::fs::write(own.join(VERSIONS), versions(task)).map_err(ValueError::Mount)?;
        }
        draft.variables = SecretVariables(variables);
        Ok(())
    }

    /// Replaces the files whose newer versions the leader has sent, and signals the program if it runs (`control`). A daemon
    /// that ends in between leaves the record of the versions as it was, so that the next one does it again.
    ///
    /// # Errors
    /// A file can't be written, or the program not be signalled; another try may succeed.
    pub(super) fn renew(&self, task: &Assignment, control: Option<&dyn Control>) -> io::Result<()> {
        let own = self.of_task(&task.task_id);
        let record = own.join(VERSIONS);
        let before = match std::fs::read_to_string(&record) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            read => read?,
        };
        let before: Vec<&str> = before.lines().collect();
        let (mut signals, mut after) = (BTreeSet::new(), String::new());
        let ids = self.ids.of(&task.task_id)?;
        for (index, kind, it, value) in uses(task) {
            let written = before.get(index).copied().unwrap_or_default();
            match (&it.signal, it.path(kind), &value.bytes) {
                (Some(name), Some(path), Some(bytes)) if written != value.data.as_str() => {
                    let bytes = filled(bytes, (kind, it, value), (task, &self.node)).map_err(io::Error::other)?;
                    write(&place(&own, index, &path).file, &bytes, it, ids)?;
                    signals.extend(signal::number(name));
                    after += &format!("{}\n", value.data);
                }
                _ => after += &format!("{written}\n"),
            }
        }
        if signals.is_empty() {
            return Ok(());
        }
        if let Some(control) = control {
            signals.into_iter().try_for_each(|number| control.signal(number))?;
        }
        std::fs::write(record, after)
    }

    /// Removes the task's files, and the file system with the last of them.
    fn remove(&self, task: &TaskId) -> Result<(), Cause> {
        remove_folder(&self.of_task(task))?;
        let _mounting = self.mounted.lock().expect("no holder panics");
        let is_empty = std::fs::read_dir(&self.folder).is_ok_and(|mut entries| entries.next().is_none());
        if is_empty && is_mount_point(&self.folder)? {
            umount2(&self.folder, MntFlags::MNT_DETACH)?;
        }
        Ok(())
    }
}

impl PrepareStep for ValueStep {
    fn name(&self) -> &'static str {
        "secrets and configs"
    }

    fn prepare<'a>(&'a self, task: &'a Assignment, draft: &'a mut Draft) -> BoxFuture<'a, Result<(), ExecutorError>> {
        // The files are in memory, so nothing waits for a disk.
        let provided = self.provide(task, draft).map_err(|error| ContainerError::Value(error).into());
        Box::pin(std::future::ready(provided))
    }

    fn undo<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(std::future::ready(self.remove(task)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use flota_api::model::{CONFIGS_FOLDER, ServiceSpec};

    use super::*;

    #[derive(Default)]
    struct Signals(Mutex<Vec<i32>>);

    impl Control for Signals {
        fn signal(&self, signal: i32) -> io::Result<()> {
            self.0.lock().expect("no holder panics").push(signal);
            Ok(())
        }
    }

    fn node() -> NodeNames {
        NodeNames { id: "n".into(), hostname: "w1".into() }
    }

    fn value(data: &str, bytes: Option<&[u8]>) -> TaskValue {
        let bytes = bytes.map(|it| ValueBytes::from(it.to_vec()));
        TaskValue { version: 1, data: data.into(), template: false, bytes }
    }

    fn task(secrets: Vec<ValueUse>, values: Vec<TaskValue>) -> Assignment {
        let spec = Arc::new(ServiceSpec { secrets, ..ServiceSpec::default() });
        Assignment { task_id: "t".into(), spec, values, ..Assignment::default() }
    }

    #[test]
    fn files_below_the_folders_of_docker_are_mounted_with_their_folder_and_others_alone() {
        let place = |path| place(Path::new("/v/t"), 2, path);
        assert_eq!(
            place("/run/secrets/a/b"),
            ValuePlace { file: "/v/t/secrets/a/b".into(), mounted: (SECRETS_FOLDER.into(), "/v/t/secrets".into()) }
        );
        assert_eq!(place("/run/configs/x").mounted, (CONFIGS_FOLDER.into(), "/v/t/configs".into()));
        assert_eq!(
            place("/etc/x"),
            ValuePlace { file: "/v/t/files/2".into(), mounted: ("/etc/x".into(), "/v/t/files/2".into()) }
        );
    }

    #[test]
    fn a_file_is_replaced_whole_with_its_mode() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("secrets/db");
        let own = std::fs::metadata(dir.path()).expect("it is there");
        let it = ValueUse { uid: own.uid(), gid: own.gid(), mode: 0o440, ..ValueUse::of("db") };
        write(&path, b"one", &it, None).expect("it can be written");
        let open = std::fs::File::open(&path).expect("it is there");
        write(&path, b"two", &it, None).expect("it can be written again");
        assert_eq!(io::read_to_string(open).expect("it can be read"), "one", "who reads it has the old one");
        assert_eq!(std::fs::read(&path).expect("it is there"), b"two");
        assert_eq!(std::fs::metadata(&path).expect("it is there").mode() & 0o7777, 0o440);
        assert_eq!(std::fs::read_dir(dir.path().join("secrets")).expect("it is there").count(), 1);
    }

    #[test]
    fn a_file_belongs_to_an_id_of_the_task_at_first_and_in_newer_versions() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let ids = TaskIds::at(dir.path().join("ids"));
        let step = ValueStep::new(dir.path().to_owned(), ids.clone(), node());
        let it = ValueUse { uid: 7, gid: 65_535, signal: Some("HUP".into()), ..ValueUse::of("db") };
        let path = dir.path().join("t/secrets/db");
        let range = ids.take(&"t".into()).expect("most are free");
        write(&path, b"one", &it, Some(range)).expect("tests run as root");
        let owner = || std::fs::metadata(&path).map(|found| (found.uid(), found.gid())).expect("it is there");
        let expected = (range.first + 7, range.first + 65_535);
        assert_eq!(owner(), expected);
        std::fs::write(dir.path().join("t").join(VERSIONS), "d1\n").expect("it is new");
        step.renew(&task(vec![it.clone()], vec![value("d2", Some(b"two"))]), Some(&Signals::default()))
            .expect("it can be done");
        assert_eq!((std::fs::read(&path).expect("it is there"), owner()), (b"two".to_vec(), expected));
        let other = ValueUse { uid: 65_536, ..it };
        write(&path, b"x", &other, Some(range)).expect_err("the task does not have this id");
    }

    #[test]
    fn newer_versions_of_files_are_written_and_signalled_once() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let step = ValueStep::new(dir.path().to_owned(), TaskIds::at(dir.path().join("ids")), node());
        let own = std::fs::metadata(dir.path()).expect("it is there");
        let followed = ValueUse { uid: own.uid(), gid: own.gid(), signal: Some("HUP".into()), ..ValueUse::of("db") };
        let uses = || vec![followed.clone(), ValueUse { target: Some("x".into()), signal: None, ..followed.clone() }];
        let folder = dir.path().join("t");
        std::fs::create_dir(&folder).expect("it is new");
        std::fs::write(folder.join(VERSIONS), "d1\nd1\n").expect("it is new");
        let signals = Signals::default();
        let seen = |task: &Assignment| {
            step.renew(task, Some(&signals)).expect("it can be done");
            let read = |name: &str| std::fs::read_to_string(folder.join("secrets").join(name)).unwrap_or_default();
            (read("db"), read("x"), std::mem::take(&mut *signals.0.lock().expect("no holder panics")))
        };
        let none = (String::new(), String::new(), Vec::new());
        assert_eq!(seen(&task(uses(), vec![value("d1", Some(b"1")), value("d1", Some(b"1"))])), none);
        assert_eq!(seen(&task(uses(), vec![value("d2", None), value("d1", None)])), none, "the bytes are not here");
        let newer = task(uses(), vec![value("d2", Some(b"2")), value("d2", Some(b"2"))]);
        assert_eq!(seen(&newer), ("2".into(), String::new(), vec![1]));
        assert_eq!(seen(&newer), ("2".into(), String::new(), Vec::new()));
        // What comes before the program is started is there when it starts.
        let early = task(uses(), vec![value("d3", Some(b"3")), value("d2", Some(b"2"))]);
        step.renew(&early, None).expect("it can be done");
        assert_eq!(seen(&early), ("3".into(), String::new(), Vec::new()));
    }

    #[test]
    fn templates_are_filled_in_for_the_task_at_first_and_in_newer_versions() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let step = ValueStep::new(dir.path().to_owned(), TaskIds::at(dir.path().join("ids")), node());
        let own = std::fs::metadata(dir.path()).expect("it is there");
        let it = ValueUse { uid: own.uid(), gid: own.gid(), signal: Some("HUP".into()), ..ValueUse::of("db") };
        let task = |data: &str, text: &str, template| {
            let spec = ServiceSpec {
                secrets: vec![it.clone(), ValueUse { env: Some("ALL".into()), target: None, ..it.clone() }],
                env: vec!["PORT=1".into(), "PORT={{.Task.Slot}}0".into(), "GONE".into()],
                ..ServiceSpec::default()
            };
            let value = TaskValue { template, ..value(data, Some(text.as_bytes())) };
            let values = vec![value.clone(), value];
            Assignment { task_id: "t".into(), slot: 8, spec: Arc::new(spec), values, ..Assignment::default() }
        };
        let text = "{{env \"PORT\"}} on {{.Node.Hostname}}";
        let variable = |text: &str, template| {
            let uses = vec![ValueUse { env: Some("ALL".into()), target: None, ..it.clone() }];
            let mut task = task("d1", text, template);
            task.values.truncate(1);
            task.spec = Arc::new(ServiceSpec { secrets: uses, ..task.spec.as_ref().clone() });
            let mut draft = Draft::default();
            step.provide(&task, &mut draft).map(|()| draft.variables.0.clone())
        };
        assert_eq!(variable(text, true).expect("good templates"), ["ALL=80 on w1"]);
        assert_eq!(variable(text, false).expect("any text"), [format!("ALL={text}")]);
        for bad in ["{{env \"GONE\"}}", "{{env \"NONE\"}}"] {
            assert!(matches!(variable(bad, true), Err(ValueError::Template(..))), "{bad}");
        }
        // A value of a few bytes may not become one of gigabytes.
        let bomb = "{{.Task.Slot}}{{.Node.Hostname}}{{.Service.ID}}{{env \"PORT\"}}".repeat(200_000);
        assert!(matches!(variable(&bomb, true), Err(ValueError::Template(..))));

        let folder = dir.path().join("t");
        std::fs::create_dir(&folder).expect("it is new");
        std::fs::write(folder.join(VERSIONS), "d1\nd1\n").expect("it is new");
        step.renew(&task("d2", text, true), Some(&Signals::default())).expect("it can be done");
        assert_eq!(std::fs::read_to_string(folder.join("secrets/db")).expect("it is there"), "80 on w1");
    }

    #[test]
    fn variables_are_text_and_are_not_shown() {
        let step = ValueStep::new("/nonexistent".into(), TaskIds::at("/nonexistent".into()), node());
        let variable = || vec![ValueUse { env: Some("PASSWORD".into()), ..ValueUse::of("db") }];
        let provided = |bytes| {
            let mut draft = Draft::default();
            step.provide(&task(variable(), vec![value("d", bytes)]), &mut draft).map(|()| draft)
        };
        let draft = provided(Some(b"hunter2".as_slice())).expect("it is text");
        assert_eq!(draft.variables.0, ["PASSWORD=hunter2"]);
        assert!(!format!("{draft:?}").contains("hunter2"));
        assert!(matches!(provided(Some(b"a\0b")), Err(ValueError::NoText(..))));
        assert!(matches!(provided(Some(&[255])), Err(ValueError::NoText(..))));
        assert!(matches!(provided(None), Err(ValueError::Absent(..))));
    }
}
