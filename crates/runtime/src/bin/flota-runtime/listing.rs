//! The verbs that print: states, lists, processes, and an example configuration.

use std::path::Path;
use std::process::Command;

use flota_runtime::oci::{self, Status};
use flota_runtime::{Container, RunError};
use serde::Serialize;

use crate::arguments::{Format, Id, List, Ps, SpecFile};

/// One container in runc's format: the specification's state with additional fields.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    oci_version: &'a str,
    id: &'a str,
    pid: i32,
    status: Status,
    bundle: &'a Path,
    rootfs: &'a Path,
    created: &'a str,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: &'a std::collections::BTreeMap<String, String>,
    owner: String,
}

fn row(container: &Container) -> Row<'_> {
    let status = container.status();
    Row {
        oci_version: &container.oci_version,
        id: &container.id,
        pid: if status == Status::Stopped { 0 } else { container.pid },
        status,
        bundle: &container.bundle,
        rootfs: &container.rootfs,
        created: &container.created,
        annotations: &container.annotations,
        owner: owner(container.owner),
    }
}

fn owner(uid: u32) -> String {
    let table = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let uid = uid.to_string();
    let found = table.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|it| it.get(2) == Some(&&*uid));
    found.map_or(uid.clone(), |it| it[0].to_owned())
}

fn print_json(value: &impl Serialize, indent: bool) {
    let text = if indent { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    println!("{}", text.unwrap_or_default());
}

pub(crate) fn state(root: &Path, it: &Id) -> Result<i32, RunError> {
    let container = Container::load(root, &it.id)?;
    print_json(&row(&container), true);
    Ok(0)
}

pub(crate) fn list(root: &Path, it: &List) -> Result<i32, RunError> {
    let containers = Container::list(root)?;
    let rows: Vec<Row<'_>> = containers.iter().map(row).collect();
    if it.quiet {
        rows.iter().for_each(|row| println!("{}", row.id));
    } else if it.format == Format::Json {
        print_json(&rows, false);
    } else {
        table(&rows);
    }
    Ok(0)
}

fn table(rows: &[Row<'_>]) {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let cells = |row: &Row<'_>| {
        let bundle = row.bundle.display().to_string();
        let id = row.id.to_owned();
        [id, row.pid.to_string(), row.status.to_string(), bundle, row.created.to_owned(), row.owner.clone()]
    };
    let all: Vec<[String; 6]> = std::iter::once(head).chain(rows.iter().map(cells)).collect();
    let width = |column: usize| all.iter().map(|row| row[column].len()).max().unwrap_or(0).max(11) + 1;
    let widths: Vec<usize> = (0..6).map(width).collect();
    for row in &all {
        let line: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", line.trim_end());
    }
}

pub(crate) fn ps(root: &Path, it: &Ps) -> Result<i32, RunError> {
    let container = Container::load(root, &it.id)?;
    let processes = container.processes()?;
    if it.format == Format::Json {
        print_json(&processes, false);
        return Ok(0);
    }
    let options = if it.options.is_empty() { vec!["-ef".to_owned()] } else { it.options.clone() };
    let output = Command::new("ps").args(&options).output();
    let output = output.map_err(|error| RunError { text: format!("failed to run ps: {error}"), code: None })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let column = head.split_whitespace().position(|it| it == "PID");
    let none = || RunError { text: "failed to list processes: ps prints no column PID".into(), code: None };
    let column = column.ok_or_else(none)?;
    println!("{head}");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|it| it.parse().ok());
        if pid.is_some_and(|pid| processes.contains(&pid)) {
            println!("{line}");
        }
    }
    Ok(0)
}

pub(crate) fn spec(it: &SpecFile) -> Result<i32, RunError> {
    let path = it.bundle.join("config.json");
    let ids = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let mut spec = if it.rootless { oci::rootless(ids.0, ids.1) } else { oci::template() };
    // As in runc: on v1, programs expect to see the machine's groups.
    if let Some(linux) = spec.linux.as_mut().filter(|_| !std::path::Path::new("/sys/fs/cgroup/cgroup.procs").exists()) {
        linux.namespaces.retain(|it| it.kind != oci::NamespaceKind::Cgroup);
    }
    let failed =
        |error: std::io::Error| RunError { text: format!("failed to write {}: {}", path.display(), error), code: None };
    let mut text = serde_json::to_vec_pretty(&spec).map_err(|error| failed(error.into()))?;
    text.push(b'\n');
    let mut file = std::fs::File::create_new(&path).map_err(failed)?;
    std::io::Write::write_all(&mut file, &text).map_err(failed)?;
    Ok(0)
}

pub(crate) fn features() -> Result<i32, RunError> {
    print_json(&flota_runtime::features(), true);
    Ok(0)
}
