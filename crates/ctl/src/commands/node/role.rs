//! `ctl node promote` and `demote`, and the warnings about the number of managers.

use clap::ValueEnum;

use flota_api::model;
use flota_api::proto::control::{ChangeRoleRequest, Filter, ListRequest};
use flota_api::proto::types;
use flota_api::reason::Reason;

use super::{get_row, list};
use crate::client::{Client, request_id};
use crate::error::{named, reason};
use crate::printer;
use crate::progress::{self, WaitOptions};

/// A role, as a flag names it.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Role {
    Worker,
    Manager,
}

impl From<Role> for model::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Worker => Self::Worker,
            Role::Manager => Self::Manager,
        }
    }
}

/// Gives nodes a role one after the other, and waits for each until it has taken it, because the next change is safe only
/// then.
pub(super) async fn run(
    client: &Client,
    names: &[String],
    role: model::Role,
    wait: &WaitOptions,
) -> anyhow::Result<()> {
    named(names)?;
    for name in names {
        change(client, name, role).await?;
        let what = if role == model::Role::Manager { "promotion" } else { "demotion" };
        progress::until(wait, what, || async move {
            let row = match get_row(client, name).await {
                Err(error) if role == model::Role::Worker && is_no_manager(&error) => return Ok(None),
                row => row?,
            };
            Ok(row.role_change.map(|change| format!("{name} is {} ({change})", row.node.role)))
        })
        .await?;
        printer::line(name);
    }
    match advise(client).await {
        Err(error) if role == model::Role::Worker && is_no_manager(&error) => Ok(()),
        advised => advised,
    }
}

/// Whether no node that `ctl` can ask is a manager. After a demotion this is expected if the demoted node is the only one.
fn is_no_manager(error: &anyhow::Error) -> bool {
    reason(error) == Some(Reason::NotAManager)
}

/// Gives a node a role. Returns before it has taken it.
pub(super) async fn change(client: &Client, name: &str, role: model::Role) -> anyhow::Result<()> {
    let role = types::Role::from(role).into();
    let request = ChangeRoleRequest { request_id: request_id(), node: name.to_owned(), role };
    client.change(request, |mut control, request| async move { control.change_role(request).await }).await?;
    Ok(())
}

/// Returns the number of managers.
pub(super) async fn managers(client: &Client) -> anyhow::Result<usize> {
    let filters = vec![Filter { key: "role".into(), value: model::Role::Manager.to_string() }];
    Ok(list(client, ListRequest { filters, ..ListRequest::default() }).await?.nodes.len())
}

/// Warns if the number of managers is a bad one.
pub(super) async fn advise(client: &Client) -> anyhow::Result<()> {
    printer::warnings(&Vec::from_iter(advice(managers(client).await?)));
    Ok(())
}

/// Returns a warning about this number of managers; `None` if it is a good one.
fn advice(managers: usize) -> Option<String> {
    let lost = |managers: usize| (managers.max(1) - 1) / 2;
    match managers {
        0 => None,
        1 => Some("there is 1 manager: without it, nothing can be changed; 3 can lose one".into()),
        2 => Some("there are 2 managers: without either, nothing can be changed; 3 can lose one".into()),
        even if even % 2 == 0 => Some(format!(
            "there are {even} managers, which can lose {}, as many as {} can: an odd number is better",
            lost(even),
            even - 1
        )),
        many if many > 7 => Some(format!("there are {many} managers: more than 7 make each change slower")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_number_of_managers_too_few_and_too_many_are_warned_of() {
        let advised: Vec<usize> = (0..12).filter(|count| advice(*count).is_some()).collect();
        assert_eq!(advised, [1, 2, 4, 6, 8, 9, 10, 11]);
        let of_four = advice(4).expect("it is even");
        assert_eq!(of_four, "there are 4 managers, which can lose 1, as many as 3 can: an odd number is better");
    }
}
