//! `ctl task …`, and the rows of tasks that `service ps` prints too.

use clap::Subcommand;
use serde_json::{Value, json};

use flota_api::model;
use flota_api::naming::task_name;
use flota_api::proto::control::{RemoveRequest, TaskRow};

use crate::client::{Client, request_id};
use crate::commands::logs::{self, Logs};
use crate::error::named;
use crate::pick::pick;
use crate::printer::{self, ListOptions};
use crate::progress::{self, WaitOptions};

#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Every task
    Ls(ListOptions),
    /// Everything about tasks
    Inspect {
        tasks: Vec<String>,
        /// A page for people
        #[arg(long)]
        pretty: bool,
    },
    /// What a task has written
    Logs(Logs),
    /// Stop a task: its slot gets a new one
    Rm {
        tasks: Vec<String>,
        /// One replica less instead
        #[arg(long)]
        shrink: bool,
        #[command(flatten)]
        wait: WaitOptions,
    },
}

pub(crate) async fn run(verb: Task, client: impl Fn(bool) -> anyhow::Result<Client>) -> anyhow::Result<()> {
    match verb {
        Task::Ls(options) => print(&list(&client(options.stale)?, &options).await?, &options),
        Task::Inspect { tasks, pretty } => {
            named(&tasks)?;
            let all = list(&client(false)?, &ListOptions::default()).await?;
            let mut found = Vec::new();
            for name in tasks {
                // Of a slot's tasks the one that counts, else the newest.
                let in_slot = all.iter().filter(|it| it.name() == name);
                let row = match in_slot.max_by_key(|it| (it.task.is_live(), it.task.meta.order())) {
                    Some(row) => row,
                    None => pick("task", &name, all.iter().collect(), |it| it.task.id.to_string(), |it| it.name())?,
                };
                found.push(serde_json::to_value(&row.task)?);
            }
            printer::objects(found, pretty);
            Ok(())
        }
        Task::Logs(it) => logs::run(it, false, &client(false)?).await,
        Task::Rm { tasks, shrink, wait } => {
            named(&tasks)?;
            let client = client(false)?;
            let mut stopping = Vec::new();
            for name in tasks {
                let all = list(&client, &ListOptions::default()).await?;
                let live = all.iter().filter(|it| it.name() == name && it.task.is_live());
                stopping.extend(live.map(|it| it.task.id.clone()));
                let request = RemoveRequest { request_id: request_id(), name: name.clone(), force: false, shrink };
                client
                    .change(request, |mut control, request| async move { control.remove_task(request).await })
                    .await?;
                printer::line(&name);
            }
            let (client, stopping) = (&client, &stopping);
            progress::until(&wait, "tasks", || async move {
                let rows = list(client, &ListOptions::default()).await?;
                let left = rows.iter().filter(|it| stopping.contains(&it.task.id));
                let left: Vec<String> = left.filter(|it| !it.task.status.state.is_terminal()).map(Row::name).collect();
                Ok((!left.is_empty()).then(|| format!("{} not stopped yet", left.join(", "))))
            })
            .await
        }
    }
}

/// A task with what users call the things it names.
pub(crate) struct Row {
    pub(crate) task: model::Task,
    pub(crate) service: String,
    node: String,
    image: String,
    restarts: u64,
    doubt: String,
}

impl Row {
    /// For tests: a task of the service `web`.
    #[cfg(test)]
    pub(crate) fn of(task: model::Task) -> Self {
        let (node, image, doubt) = Default::default();
        Self { task, service: "web".into(), node, image, restarts: 0, doubt }
    }

    fn parse(row: TaskRow) -> anyhow::Result<Self> {
        let task = row.task.ok_or_else(|| anyhow::anyhow!("the manager's answer lacks a task"))?;
        Ok(Self {
            task: task.try_into()?,
            service: row.service_name,
            node: row.node_name,
            image: row.image,
            restarts: row.restarts,
            doubt: row.doubt,
        })
    }

    pub(crate) fn name(&self) -> String {
        task_name(&self.service, self.task.slot)
    }

    /// Why it is not as wanted.
    fn error(&self) -> String {
        match (&self.doubt, &self.task.pending_reason) {
            (doubt, _) if !doubt.is_empty() => doubt.clone(),
            (_, Some(reason)) => reason.to_string(),
            _ => self.task.status.error.clone(),
        }
    }

    fn json(&self) -> Value {
        let task = &self.task;
        json!({
            "id": task.id, "name": self.name(), "service": self.service, "slot": task.slot, "node": self.node,
            "image": self.image, "desiredState": task.desired_state, "state": task.status.state, "health": Value::Null,
            "paused": task.paused, "attempt": task.status.attempt, "restarts": self.restarts,
            "exitCode": task.status.exit_code, "error": self.error(), "addresses": [],
            "createdAt": task.meta.created_at, "updatedAt": task.meta.updated_at,
        })
    }
}

/// Every task that passes the filters: those that count first, by name.
pub(crate) async fn list(client: &Client, options: &ListOptions) -> anyhow::Result<Vec<Row>> {
    let keys = [
        "id",
        "name",
        "service",
        "slot",
        "node",
        "image",
        "desiredState",
        "state",
        "paused",
        "attempt",
        "restarts",
        "exitCode",
        "error",
    ];
    options.check(&keys)?;
    let tasks = client
        .list(
            |mut control, request| async move { control.list_tasks(request).await },
            |whole, page| whole.tasks.extend(page.tasks),
        )
        .await?;
    options.say_age(tasks.header);
    let mut rows = tasks.tasks.into_iter().map(Row::parse).collect::<anyhow::Result<Vec<_>>>()?;
    rows.retain(|row| options.passes(&row.json()));
    rows.sort_by(|left, right| {
        let key = |row: &Row| (row.service.clone(), row.task.slot, std::cmp::Reverse(row.task.meta.order()));
        key(left).cmp(&key(right))
    });
    Ok(rows)
}

pub(crate) fn print(rows: &[Row], options: &ListOptions) -> anyhow::Result<()> {
    let cells = |row: &Row| {
        let task = &row.task;
        let exit = task.status.exit_code.map(|code| code.to_string()).unwrap_or_default();
        vec![
            printer::short_id(task.id.as_str(), options),
            row.name(),
            row.image.clone(),
            row.node.clone(),
            task.desired_state.to_string(),
            task.status.state.to_string(),
            row.restarts.to_string(),
            exit,
            row.error(),
        ]
    };
    let rows = rows.iter().map(|row| (row.json(), cells(row))).collect();
    printer::rows(options, &["ID", "NAME", "IMAGE", "NODE", "DESIRED", "STATE", "RESTARTS", "EXIT", "ERROR"], rows);
    Ok(())
}
