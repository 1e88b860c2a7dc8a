//! `ctl service history` and `rollback`: the specs that a service has had, and how one of them comes back.

use clap::Args;
use serde_json::{Value, json};

use flota_api::model::{Revision, ServiceSpec};
use flota_api::proto::control::{GetRequest, RollbackServiceRequest, ServiceHistory, ServiceRevision};

use crate::client::{Client, request_id};
use crate::printer::{self, Format, RowOptions};
use crate::progress::{self, Awaited, WaitOptions};

#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// Version of the spec, as `ctl service history` lists it (default: the one that was in place before)
    #[arg(long, value_name = "VERSION")]
    to: Option<u64>,
    #[command(flatten)]
    wait: WaitOptions,
    /// Service: name, id, or beginning of an id
    service: String,
}

impl Rollback {
    /// To the spec that was in place before.
    pub(super) fn to_last(service: String, wait: WaitOptions) -> Self {
        Self { to: None, wait, service }
    }
}

#[derive(Debug, Args)]
pub(crate) struct History {
    /// Format to print: table or json
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Print whole texts, and the digests of images
    #[arg(long)]
    no_trunc: bool,
    /// Service: name, id, or beginning of an id
    service: String,
}

/// Brings a service back to an earlier spec. That is an update like any other, by the policy of that spec.
pub(super) async fn roll_back(Rollback { to, wait, service }: Rollback, client: &Client) -> anyhow::Result<()> {
    let request = RollbackServiceRequest { request_id: request_id(), service: service.clone(), version: to };
    let changed = client.change(request, |mut control, request| async move { control.rollback_service(request).await });
    let restored = changed.await?;
    let name = restored.spec.map(|spec| spec.name).unwrap_or_default();
    printer::line(&service);
    progress::service(client, &Awaited { id: restored.id, name, begins_update: true }, &wait).await
}

/// Prints the specs that a service has had, the present one first.
pub(super) async fn list(History { format, no_trunc, service }: History, client: &Client) -> anyhow::Result<()> {
    let request = GetRequest { name: service };
    let history =
        client.read(request, |mut control, request| async move { control.get_service_history(request).await });
    let rows = rows(history.await?)?;
    let rows = rows.iter().map(|row| (row.json(), row.cells(no_trunc))).collect();
    let options = RowOptions { format, no_trunc, ..RowOptions::default() };
    printer::rows(&options, &["VERSION", "IMAGE", "SET", "CHANGES"], rows);
    Ok(())
}

/// A spec that a service has had, or has.
struct HistoryRow {
    revision: Revision,
    image: String,
    is_present: bool,
    /// The settings that differ from the spec that was in place before this one.
    changes: Vec<String>,
}

/// Returns a row for each spec, the present one first.
fn rows(history: ServiceHistory) -> anyhow::Result<Vec<HistoryRow>> {
    let parse = |it: ServiceRevision| {
        let lacks = || anyhow::anyhow!("the manager's answer lacks a spec");
        let spec = ServiceSpec::try_from(it.spec.ok_or_else(lacks)?)?;
        anyhow::Ok((Revision::from(it.revision.ok_or_else(lacks)?), spec))
    };
    let all = history.revisions.into_iter().map(parse).collect::<anyhow::Result<Vec<_>>>()?;
    let row = |(index, (revision, spec)): (usize, &(Revision, ServiceSpec))| {
        let before = all.get(index + 1).map(|(before, _)| before);
        let mut changes = match all.get(index + 1) {
            Some((_, before)) => differences(before, spec)?,
            None => Vec::new(),
        };
        let is_other_image = before.is_some_and(|before| before.image_digest != revision.image_digest);
        if is_other_image && !changes.iter().any(|it| it == "image") {
            changes.insert(0, "image digest".into());
        }
        let mounts_others = before.is_some_and(|before| digests(before) != digests(revision));
        if mounts_others && !changes.iter().any(|it| it == "mounts") {
            changes.push("digests of mounted images".into());
        }
        Ok(HistoryRow { revision: revision.clone(), image: spec.image.clone(), is_present: index == 0, changes })
    };
    all.iter().enumerate().map(row).collect()
}

/// Returns the digests of the images that the tasks of a spec mount.
fn digests(revision: &Revision) -> Vec<(&str, &str)> {
    revision.mounted_images.iter().map(|it| (it.reference.as_str(), it.digest.as_str())).collect()
}

/// Returns the names of the settings that differ between two specs, the image first. The number of tasks is not one of
/// them, because it stays when an earlier spec comes back.
fn differences(before: &ServiceSpec, after: &ServiceSpec) -> anyhow::Result<Vec<String>> {
    let plain = |spec: &ServiceSpec| {
        let spec = ServiceSpec { mode: Default::default(), stopped: false, ..spec.clone() };
        serde_json::to_value(spec)
    };
    let (before, after) = (plain(before)?, plain(after)?);
    let fields = after.as_object().into_iter().flatten();
    let differing = fields.filter(|(name, value)| before.get(name.as_str()) != Some(*value));
    let mut names: Vec<String> = differing.map(|(name, _)| words(name)).collect();
    names.sort_by_key(|name| (name != "image", name.clone()));
    Ok(names)
}

/// Writes the name of a field, such as `stopGrace`, as words.
fn words(field: &str) -> String {
    let split = |it: char| if it.is_ascii_uppercase() { format!(" {}", it.to_ascii_lowercase()) } else { it.into() };
    field.chars().map(split).collect()
}

impl HistoryRow {
    fn json(&self) -> Value {
        json!({
            "version": self.revision.version, "present": self.is_present, "image": self.image,
            "imageDigest": self.revision.image_digest, "setAt": self.revision.set_at, "changes": self.changes,
        })
    }

    fn cells(&self, with_digest: bool) -> Vec<String> {
        let version = self.revision.version;
        vec![
            if self.is_present { format!("{version} (present)") } else { version.to_string() },
            match self.revision.image_digest.as_ref().filter(|_| with_digest) {
                Some(digest) if !self.image.contains('@') => format!("{}@{digest}", self.image),
                _ => self.image.clone(),
            },
            self.revision.set_at.map(|it| it.to_string()).unwrap_or_default(),
            self.changes.join(", "),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flota_api::model::{PinnedImage, ServiceMode};
    use flota_api::version::Timestamp;

    use super::*;

    fn revision(version: u64, digest: &str, set_at: u64, spec: &ServiceSpec) -> ServiceRevision {
        let revision = Revision {
            version,
            image_digest: Some(digest.into()),
            set_at: (set_at > 0).then_some(Timestamp(set_at)),
            ..Revision::default()
        };
        ServiceRevision { revision: Some((&revision).into()), spec: Some(spec.into()) }
    }

    #[test]
    fn each_spec_says_what_differs_from_the_one_before_it() {
        let first = ServiceSpec { name: "web".into(), image: "web:1".into(), ..ServiceSpec::default() };
        let second = ServiceSpec { image: "web:2".into(), env: vec!["A=1".into()], ..first.clone() };
        let mode = ServiceMode::Replicated { replicas: 5 };
        let third = ServiceSpec { mode, stop_grace: Duration::from_secs(1), force: 1, ..second.clone() };
        let history = |revisions| ServiceHistory { revisions };
        let found = rows(history(vec![
            revision(4, "d3", 5_000, &ServiceSpec { stopped: true, ..third.clone() }),
            revision(3, "d2", 3_000, &third),
            revision(2, "d2", 2_000, &second),
            revision(1, "d1", 0, &first),
        ]));
        let found = found.expect("a history");
        let cells = found.iter().map(|row| row.cells(false).join("|")).collect::<Vec<_>>();
        let expected = [
            "4 (present)|web:2|1970-01-01T00:00:05.000Z|image digest",
            "3|web:2|1970-01-01T00:00:03.000Z|force, stop grace",
            "2|web:2|1970-01-01T00:00:02.000Z|image, env",
            "1|web:1||",
        ];
        assert_eq!(cells, expected);
        assert_eq!(found[0].cells(true)[1], "web:2@d3");
        // A reference in the mounts stands for another image.
        let mounting = |version, digest: &str| {
            let mounted = PinnedImage { reference: "data".into(), digest: digest.into(), ..PinnedImage::default() };
            let revision = Revision { version, mounted_images: vec![mounted], ..Revision::default() };
            ServiceRevision { revision: Some((&revision).into()), spec: Some((&first).into()) }
        };
        let moved = rows(history(vec![mounting(2, "d2"), mounting(1, "d1")])).expect("a history");
        assert_eq!(moved[0].changes, ["digests of mounted images"]);
        let expected = json!({
            "version": 1, "present": false, "image": "web:1", "imageDigest": "d1", "setAt": null, "changes": [],
        });
        assert_eq!(found[3].json(), expected);
        assert!(rows(history(vec![ServiceRevision::default()])).is_err());
    }
}
