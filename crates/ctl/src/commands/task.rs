//! `ctl task …` manages tasks. The rows that it prints are also used by `service ps`.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use clap::Subcommand;
use serde_json::{Value, json};

use flota_api::model::{self, HealthState};
use flota_api::naming::task_name;
use flota_api::proto::control::{Filter, GetRequest, ListHeader, ListTasksRequest, RemoveTaskRequest, TaskRow};
use flota_api::reason::Reason;
use flota_api::state::TaskState;

use crate::client::{Client, request_id};
use crate::commands::logs::{self, Logs};
use crate::error::{named, reason};
use crate::printer::{self, ListOptions};
use crate::progress::{self, WaitOptions};

#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// List the tasks
    Ls(ListOptions),
    /// Print everything about tasks
    Inspect {
        /// Tasks: SERVICE.SLOT, id, or beginning of an id
        tasks: Vec<String>,
        /// Print a page for people
        #[arg(long)]
        pretty: bool,
    },
    /// Print what a task has written
    Logs(Logs),
    /// Stop tasks; each slot gets a new one
    Rm {
        /// Tasks: SERVICE.SLOT, id, or beginning of an id
        tasks: Vec<String>,
        /// Reduce the service by one task instead
        #[arg(long)]
        shrink: bool,
        #[command(flatten)]
        wait: WaitOptions,
    },
}

pub(crate) async fn run(verb: Task, client: &Client) -> anyhow::Result<()> {
    match verb {
        Task::Ls(options) => ls(client, ListTasksRequest::default(), &options).await,
        Task::Inspect { tasks, pretty } => {
            named(&tasks)?;
            let mut found = Vec::new();
            for name in tasks {
                found.push(get(client, &name).await?.whole()?);
            }
            printer::objects(found, pretty);
            Ok(())
        }
        Task::Logs(it) => logs::run(it, false, client).await,
        Task::Rm { tasks, shrink, wait } => rm(client, &tasks, shrink, &wait).await,
    }
}

async fn get(client: &Client, name: &str) -> anyhow::Result<Row> {
    let request = GetRequest { name: name.to_owned() };
    Row::parse(client.read(request, |mut control, request| async move { control.get_task(request).await }).await?)
}

async fn rm(client: &Client, names: &[String], shrink: bool, wait: &WaitOptions) -> anyhow::Result<()> {
    named(names)?;
    let mut stopping = Vec::new();
    for name in names {
        let row = get(client, name).await?;
        // The request names the id, so a retry can't affect the slot's next task.
        let request = RemoveTaskRequest { request_id: request_id(), name: row.task.id.to_string(), shrink };
        // Removing a slot from its service removes every task in it.
        if shrink {
            stopping.extend(in_slot(client, &row.task).await?);
        } else {
            stopping.push(row);
        }
        client.change(request, |mut control, request| async move { control.remove_task(request).await }).await?;
        printer::line(name);
    }
    let stopping = &stopping;
    progress::until(wait, "tasks", || async move {
        let mut left = Vec::new();
        for row in stopping {
            match get(client, row.task.id.as_str()).await {
                Ok(now) if !now.task.status.state.is_terminal() => left.push(row.name()),
                Ok(_) => {}
                Err(error) if reason(&error) == Some(Reason::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((!left.is_empty()).then(|| format!("{} not stopped yet", left.join(", "))))
    })
    .await
}

/// Returns the live tasks in a task's slot.
pub(super) async fn in_slot(client: &Client, task: &model::Task) -> anyhow::Result<Vec<Row>> {
    let filters = vec![Filter { key: "slot".into(), value: task.slot.to_string() }];
    let services = vec![task.service_id.to_string()];
    let mut rows = list(client, ListTasksRequest { services, filters, ..ListTasksRequest::default() }).await?;
    rows.retain(|row| row.task.is_live());
    Ok(rows)
}

/// A task together with the names of the objects that it refers to.
pub(crate) struct Row {
    pub(crate) task: model::Task,
    pub(crate) service: String,
    node: String,
    image: String,
    restarts: u64,
    /// Why the task is not in its desired state; may be empty.
    error: String,
    /// `None` if the task has no check or has ended.
    health: Option<HealthState>,
    crash_loop: bool,
    /// Empty in a row of a list.
    container_labels: BTreeMap<String, String>,
}

impl Row {
    /// Returns a row for a task of the service `web`, for tests.
    #[cfg(test)]
    pub(crate) fn of(task: model::Task) -> Self {
        let (node, image, error, container_labels) = Default::default();
        Self {
            task,
            service: "web".into(),
            node,
            image,
            restarts: 0,
            error,
            health: None,
            crash_loop: false,
            container_labels,
        }
    }

    #[cfg(test)]
    pub(crate) fn with_error(self, error: &str) -> Self {
        Self { error: error.into(), ..self }
    }

    #[cfg(test)]
    pub(crate) fn in_crash_loop(self) -> Self {
        Self { crash_loop: true, ..self }
    }

    #[cfg(test)]
    pub(crate) fn with_restarts(self, restarts: u64) -> Self {
        Self { restarts, ..self }
    }

    fn parse(row: TaskRow) -> anyhow::Result<Self> {
        let health = row.health.is_some().then(|| row.health().into());
        let task = row.task.ok_or_else(|| anyhow::anyhow!("the manager's answer lacks a task"))?;
        Ok(Self {
            task: task.try_into()?,
            service: row.service_name,
            node: row.node_name,
            image: row.image,
            restarts: row.restarts,
            error: row.error,
            health,
            crash_loop: row.crash_loop,
            container_labels: row.container_labels,
        })
    }

    /// Returns the whole task as JSON, with the labels of its container, which are in the spec that it was made from.
    fn whole(self) -> anyhow::Result<Value> {
        let mut value = serde_json::to_value(self.task)?;
        value["containerLabels"] = json!(self.container_labels);
        Ok(value)
    }

    pub(crate) fn name(&self) -> String {
        task_name(&self.service, self.task.slot)
    }

    /// Returns why the task is not in its desired state; may be empty.
    pub(crate) fn error(&self) -> &str {
        &self.error
    }

    pub(crate) fn restarts(&self) -> u64 {
        self.restarts
    }

    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// Returns the digest of the task's image, if it is known.
    fn image_digest(&self) -> Option<&String> {
        self.task.image_digest.as_ref().or(self.task.status.image_digest.as_ref())
    }

    /// Returns the state as people read it, with the health of a task that runs, or why one does not.
    pub(crate) fn state(&self) -> String {
        match self.health {
            _ if self.crash_loop => format!("{} (crash loop)", self.task.status.state),
            Some(health) if self.task.status.state == TaskState::Running => format!("running ({health})"),
            _ => self.task.status.state.to_string(),
        }
    }

    fn json(&self) -> Value {
        let task = &self.task;
        let mut row = json!({
            "id": task.id, "name": self.name(), "service": self.service, "slot": task.slot, "node": self.node,
            "image": self.image, "desiredState": task.desired_state, "state": task.status.state, "health": self.health,
            "paused": task.paused, "attempt": task.status.attempt, "restarts": self.restarts,
            "exitCode": task.status.exit_code, "error": self.error,
            "addresses": task.attachments.iter().flat_map(|it| &it.addresses).collect::<Vec<_>>(),
            "createdAt": task.meta.created_at, "updatedAt": task.meta.updated_at,
        });
        // Only tasks of jobs have one.
        if let Some(run) = task.run {
            row["run"] = run.get().into();
        }
        if self.crash_loop {
            row["crashLoop"] = true.into();
        }
        row
    }
}

/// Returns the tasks that a request selects, sorted by name, and the newest first in a slot.
pub(crate) async fn list(client: &Client, request: ListTasksRequest) -> anyhow::Result<Vec<Row>> {
    Ok(listed(client, request).await?.rows)
}

/// An answer to a request for tasks.
struct Listed {
    header: Option<ListHeader>,
    /// Sorted by service and slot, the newest first in a slot.
    rows: Vec<Row>,
    /// What the services wait for because of others.
    notes: Vec<String>,
}

async fn listed(client: &Client, request: ListTasksRequest) -> anyhow::Result<Listed> {
    let tasks = client
        .list(
            request,
            |mut control, request| async move { control.list_tasks(request).await },
            |whole, page| whole.tasks.extend(page.tasks),
        )
        .await?;
    let (header, notes) = (tasks.header, tasks.notes);
    let mut rows = tasks.tasks.into_iter().map(Row::parse).collect::<anyhow::Result<Vec<_>>>()?;
    rows.sort_by_cached_key(|row| (row.service.clone(), row.task.slot, Reverse(row.task.meta.order())));
    Ok(Listed { header, rows, notes })
}

/// Prints the tasks that a request selects, filtered by the user's flags.
pub(crate) async fn ls(client: &Client, request: ListTasksRequest, options: &ListOptions) -> anyhow::Result<()> {
    let request = ListTasksRequest { stale: options.stale, filters: options.filters(), ..request };
    let Listed { header, rows, notes } = listed(client, request).await?;
    printer::age(header);
    // Only jobs have runs.
    let has_runs = rows.iter().any(|row| row.task.run.is_some());
    let cells = |row: &Row| -> Vec<String> {
        let task = &row.task;
        let exit = task.status.exit_code.map(|code| code.to_string()).unwrap_or_default();
        let run = has_runs.then(|| task.run.map(|run| run.to_string()).unwrap_or_default());
        let first = [printer::short_id(task.id.as_str(), &options.rows), row.name()];
        let rest = [
            match row.image_digest().filter(|_| options.rows.no_trunc) {
                Some(digest) if !row.image.contains('@') => format!("{}@{digest}", row.image),
                _ => row.image.clone(),
            },
            row.node.clone(),
            task.desired_state.to_string(),
            row.state(),
            row.restarts.to_string(),
            exit,
            row.error.clone(),
        ];
        first.into_iter().chain(run).chain(rest).collect()
    };
    let rows = rows.iter().map(|row| (row.json(), cells(row))).collect();
    let headers: &[&str] = match has_runs {
        true => &["ID", "NAME", "RUN", "IMAGE", "NODE", "DESIRED", "STATE", "RESTARTS", "EXIT", "ERROR"],
        false => &["ID", "NAME", "IMAGE", "NODE", "DESIRED", "STATE", "RESTARTS", "EXIT", "ERROR"],
    };
    printer::rows(&options.rows, headers, rows);
    notes.iter().for_each(|note| printer::message(&format!("note: {note}")));
    Ok(())
}
