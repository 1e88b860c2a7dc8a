//! `ctl service update` changes the spec of a service; with one of three flags it decides on the update instead.

use anyhow::Context;
use clap::Args;

use flota_api::constraint::{Constraint, NodeProperty};
use flota_api::model::{self, ServiceSpec};
use flota_api::proto::control::PauseUpdateRequest;

use super::history::{self, Rollback};
use super::{Replacing, change, resolve_image};
use crate::client::{Client, request_id};
use crate::commands::affinity_flags::AffinityRemovals;
use crate::commands::dependency_flags::DependencyRemovals;
use crate::commands::mount_flags::MountRemovals;
use crate::commands::network;
use crate::commands::network_flags::NetworkRemovals;
use crate::commands::privilege_flags::PrivilegeRemovals;
use crate::commands::scale_flags::ScaleRemoval;
use crate::commands::setting_flags::SettingRemovals;
use crate::commands::spec_flags::SpecFlags;
use crate::commands::value_flags::ValueRemovals;
use crate::error;
use crate::parse;
use crate::printer;
use crate::progress::{self, Awaited, WaitOptions};

/// The flags, and groups of flags, that change the spec.
const CHANGES: [&str; 30] = [
    "BasicFlags",
    "ScheduleFlags",
    "EnvFlags",
    "SettingFlags",
    "SettingRemovals",
    "PrivilegeFlags",
    "NetworkFlags",
    "MountFlags",
    "ValueFlags",
    "AffinityFlags",
    "ScaleFlags",
    "HealthFlags",
    "UpdateFlags",
    "RollbackFlags",
    "DependencyFlags",
    "DependencyRemovals",
    "PrivilegeRemovals",
    "NetworkRemovals",
    "MountRemovals",
    "ValueRemovals",
    "AffinityRemovals",
    "ScaleRemoval",
    "image",
    "no_resolve_image",
    "args",
    "env_rm",
    "label_rm",
    "constraint_rm",
    "placement_pref_rm",
    "force",
];

#[derive(Debug, Args)]
pub(crate) struct Update {
    #[command(flatten)]
    flags: Box<SpecFlags>,
    /// Image to run from now on; a name stands for what its registry has now, also if the service has it already
    #[arg(long)]
    image: Option<String>,
    /// Do not ask the registry for the image's digest; each node then asks by itself
    #[arg(long)]
    no_resolve_image: bool,
    /// Arguments of the program, split into words as by a shell
    #[arg(long)]
    args: Option<String>,
    /// Variable to remove
    #[arg(long, value_name = "NAME")]
    env_rm: Vec<String>,
    /// Label to remove
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Constraint to remove
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_rm: Vec<String>,
    /// Preference to remove
    #[arg(long, value_name = "PREFERENCE", value_parser = parse::preference)]
    placement_pref_rm: Vec<NodeProperty>,
    #[command(flatten)]
    removals: PrivilegeRemovals,
    #[command(flatten)]
    setting_removals: SettingRemovals,
    #[command(flatten)]
    network_removals: Box<NetworkRemovals>,
    #[command(flatten)]
    mount_removals: MountRemovals,
    #[command(flatten)]
    value_removals: ValueRemovals,
    #[command(flatten)]
    affinity_removals: AffinityRemovals,
    #[command(flatten)]
    scale_removal: ScaleRemoval,
    #[command(flatten)]
    dependency_removals: DependencyRemovals,
    /// Replace the tasks even if nothing has changed
    #[arg(long)]
    force: bool,
    /// Pause the update or rollback that is in progress, and change nothing else
    #[arg(long, conflicts_with_all = CHANGES, conflicts_with_all = ["resume", "rollback"])]
    pause: bool,
    /// Continue the update or rollback that is paused, and change nothing else
    #[arg(long, conflicts_with_all = CHANGES, conflicts_with = "rollback")]
    resume: bool,
    /// Bring the service back to the spec before, as `ctl service rollback` does
    #[arg(long, conflicts_with_all = CHANGES)]
    rollback: bool,
    #[command(flatten)]
    wait: WaitOptions,
    /// Service: name, id, or beginning of an id
    service: String,
}

pub(super) async fn run(update: Update, client: &Client) -> anyhow::Result<()> {
    let Update { pause, resume, rollback, wait, service, .. } = &update;
    match (pause, resume, rollback) {
        (true, ..) => set_paused(client, service, true).await.map(drop),
        (_, true, _) => {
            let service = set_paused(client, service, false).await?;
            // Whoever continues a rollback wants it to be done.
            let begins_update = !service.update.is_rollback();
            let target = Awaited { id: service.id.to_string(), name: service.spec.name.clone(), begins_update };
            progress::service(client, &target, wait).await
        }
        (_, _, true) => history::roll_back(Rollback::to_last(service.clone(), wait.clone()), client).await,
        (false, false, false) => change_spec(&update, client).await,
    }
}

async fn set_paused(client: &Client, name: &str, paused: bool) -> anyhow::Result<model::Service> {
    let request = PauseUpdateRequest { request_id: request_id(), service: name.to_owned(), paused };
    let changed = client.change(request, |mut control, request| async move { control.pause_update(request).await });
    let service = changed.await?.try_into()?;
    printer::line(name);
    Ok(service)
}

async fn change_spec(update: &Update, client: &Client) -> anyhow::Result<()> {
    // A spec names networks by their ids.
    let mut left = Vec::new();
    for name in update.network_removals.networks() {
        left.push(network::id(client, name).await?);
    }
    let resolve_image = resolve_image(update.image.is_some(), update.no_resolve_image);
    let replacing = Replacing { resolve_image, sets_replicas: update.flags.sets_replicas() };
    let target = change(client, &update.service, replacing, |spec| update.apply(spec, &left)).await?;
    progress::service(client, &target, &update.wait).await
}

impl Update {
    /// Changes the spec as the flags say. `left` are the ids of the networks to leave.
    fn apply(&self, spec: &mut ServiceSpec, left: &[String]) -> anyhow::Result<()> {
        spec.env.retain(|it| !self.env_rm.iter().any(|name| it.split('=').next() == Some(name)));
        spec.labels.retain(|key, _| !self.label_rm.contains(key));
        let mut failed = Vec::new();
        for text in &self.constraint_rm {
            match Constraint::parse(text).with_context(|| format!("--constraint-rm {text}")) {
                Ok(removed) => spec.constraints.retain(|it| *it != removed),
                Err(error) => failed.push(Err(error)),
            }
        }
        spec.spread_over.retain(|it| !self.placement_pref_rm.contains(it));
        if let Some(image) = &self.image {
            spec.image.clone_from(image);
        }
        if let Some(args) = &self.args {
            match parse::words(args).context("--args") {
                Ok(words) => spec.command = words,
                Err(error) => failed.push(Err(error)),
            }
        }
        spec.force += u64::from(self.force);
        self.scale_removal.apply(spec);
        let removals = [
            self.removals.apply(spec),
            self.setting_removals.apply(spec),
            self.network_removals.apply(spec, left),
            self.mount_removals.apply(spec),
            self.value_removals.apply(spec),
            self.affinity_removals.apply(spec),
            self.dependency_removals.apply(spec),
        ];
        failed.extend(removals.into_iter().map(|it| it.map_err(Into::into)));
        failed.push(self.flags.apply(spec));
        error::all_of_spec(error::all(failed), spec)
    }

    /// Fails with everything that is wrong with the flags for the spec that they change.
    pub(super) async fn judged(&self, client: &Client) -> anyhow::Result<()> {
        let Ok(service) = super::get(client, &self.service).await else { return Ok(()) };
        let mut spec = service.spec.as_ref().clone();
        self.apply(&mut spec, &[])?;
        error::judged(Ok(()), &spec)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use crate::cli::Cli;

    #[test]
    fn a_decision_on_an_update_goes_with_no_flag_that_changes_the_spec() {
        let ctl = Cli::command();
        let update = ["service", "update"].iter().try_fold(&ctl, |command, name| command.find_subcommand(name));
        let update = update.expect("there is such a command");
        let decisions = ["pause", "resume", "rollback"];
        for decision in update.get_arguments().filter(|it| decisions.contains(&it.get_id().as_str())) {
            let refused = update.get_arg_conflicts_with(decision);
            let is_refused = |id: &str| refused.iter().any(|it| it.get_id() == id);
            let accepted = update.get_arguments().map(|it| it.get_id().as_str());
            let accepted = accepted.filter(|it| !is_refused(it) && !decisions.contains(it)).collect::<Vec<_>>();
            assert_eq!(accepted, ["detach", "timeout", "service"], "{}", decision.get_id());
        }
        for words in ["--pause --resume", "--pause --rollback", "--rollback --resume", "--rollback --update-order=x"] {
            use clap::Parser;
            let words = ["ctl", "service", "update", "web"].into_iter().chain(words.split(' '));
            Cli::try_parse_from(words).expect_err("they exclude each other");
        }
    }
}
