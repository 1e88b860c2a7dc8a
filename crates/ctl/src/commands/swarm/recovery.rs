//! `ctl swarm backup`, `restore` and `init --force-new-cluster`.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use futures::stream;

use flota_api::proto::node::{
    BackupRequest, BackupSummary, ForceNewClusterRequest, ObjectCounts, RecoveryReport, RestorePart, RestoreSettings,
};
use flota_api::version::Timestamp;

use crate::client::{Client, failure};
use crate::error::Usage;
use crate::new_file::NewFile;
use crate::printer::{line, message};

/// Bytes of a backup in one message.
const PART: usize = 1 << 20;
/// Largest file with a passphrase, in bytes.
const PASSPHRASE_BOUND: u64 = 4_096;

#[derive(Debug, Args)]
pub(crate) struct BackupFlags {
    /// File to write, which must not exist yet
    file: PathBuf,
    /// Encrypt the backup with the passphrase in this file (`-`: standard input)
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreFlags {
    /// Backup to restore
    file: PathBuf,
    /// File with the passphrase of the backup (`-`: standard input)
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Address at which other nodes reach this one: IP or IP:PORT (default: the machine's)
    #[arg(long, default_value = "", hide_default_value = true)]
    advertise_addr: String,
    /// Check the backup and say what would be kept and lost, and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn force_new_cluster(client: &Client, dry_run: bool) -> anyhow::Result<()> {
    let begun = client.node().await?.force_new_cluster(ForceNewClusterRequest { dry_run }).await;
    let report = begun.map_err(failure).context("failed to begin a new cluster")?.into_inner();
    if dry_run {
        line(&format!("This manager ({}) would be the only one of cluster {}.", report.node_id, report.cluster_id));
    } else {
        let RecoveryReport { node_id, cluster_id, epoch, .. } = &report;
        line(&format!("This manager ({node_id}) is now the only one of cluster {cluster_id}, in epoch {epoch}."));
    }
    describe(&report).iter().for_each(|text| line(text));
    if !dry_run {
        line("\nTo add a manager: `ctl swarm join-token manager`. Managers that come back must join again.");
    }
    Ok(())
}

pub(crate) async fn backup(client: &Client, flags: BackupFlags) -> anyhow::Result<()> {
    let passphrase = passphrase(flags.passphrase_file.as_deref())?;
    let (mut file, mut written) = (NewFile::create(&flags.file)?, 0);
    let parts = client.node().await?.backup(BackupRequest { passphrase }).await;
    let mut parts = parts.map_err(failure).context("failed to make a backup")?.into_inner();
    let summary = loop {
        let part = parts.message().await.map_err(failure).context("failed to make a backup")?;
        let Some(part) = part else { bail!("failed to make a backup: it ended before it was whole") };
        if let Some(summary) = part.summary {
            break summary;
        }
        file.write(&part.data)?;
        written += u64::try_from(part.data.len())?;
    };
    let BackupSummary { cluster_id, index, bytes, is_newest, objects, .. } = summary;
    if written != bytes {
        bail!("failed to make a backup: it has {written} bytes, and {bytes} were announced");
    }
    file.finish()?;
    if !is_newest {
        message(&format!(
            "warning: no majority of managers answers: changes after entry {index} may be missing in the backup"
        ));
    }
    let name = flags.file.display();
    line(&format!("Backup of cluster {cluster_id} at entry {index}: {bytes} bytes in {name}."));
    line(&counts(&objects.unwrap_or_default()));
    Ok(())
}

pub(crate) async fn restore(client: &Client, flags: RestoreFlags) -> anyhow::Result<()> {
    let settings = RestoreSettings {
        passphrase: passphrase(flags.passphrase_file.as_deref())?,
        advertise: flags.advertise_addr,
        dry_run: flags.dry_run,
    };
    let path = flags.file.display().to_string();
    let mut file = fs_err::File::open(&flags.file).with_context(|| format!("failed to read the backup {path}"))?;
    // The first message has the settings, and the last one may be empty.
    let mut parts = vec![RestorePart { settings: Some(settings), ..RestorePart::default() }];
    loop {
        let mut data = Vec::new();
        let count = Read::by_ref(&mut file).take(u64::try_from(PART)?).read_to_end(&mut data);
        if count.with_context(|| format!("failed to read the backup {path}"))? == 0 {
            break;
        }
        parts.push(RestorePart { data: data.into(), settings: None });
    }
    let restored = client.node().await?.restore(stream::iter(parts)).await;
    let report = restored.map_err(failure).with_context(|| format!("failed to restore {path}"))?.into_inner();
    let made_at = Timestamp(report.made_at);
    if flags.dry_run {
        line(&format!("The backup is whole: cluster {}, made at {made_at}.", report.cluster_id));
    } else {
        let RecoveryReport { node_id, cluster_id, epoch, .. } = &report;
        line(&format!(
            "Cluster {cluster_id} is restored as of {made_at}: this node ({node_id}) is its only manager, in epoch {epoch}."
        ));
    }
    describe(&report).iter().for_each(|text| line(text));
    Ok(())
}

/// Returns what a new beginning keeps and loses, as lines for users.
fn describe(report: &RecoveryReport) -> Vec<String> {
    let mut lines = vec![format!("Kept: {}", counts(&report.kept.unwrap_or_default()))];
    lines.push(format!("      everything up to entry {}", report.index));
    if report.uncertain_entries > 0 {
        let count = report.uncertain_entries;
        lines.push(format!("      with {count} entries behind those that are known to be committed"));
    }
    for manager in &report.lost_managers {
        let mut text = format!("Lost: manager {} ({}), {} tasks there", manager.name, manager.address, manager.tasks);
        if !manager.volumes.is_empty() {
            text += &format!(", data of volumes there: {}", manager.volumes.join(", "));
        }
        lines.push(text);
    }
    if !report.lost_images.is_empty() {
        lines.push(format!("Lost: images that no other node holds: {}", report.lost_images.join(", ")));
    }
    lines
}

fn counts(it: &ObjectCounts) -> String {
    format!(
        "{} services, {} tasks, {} networks, {} volumes, {} secrets, {} configs, {} images, {} workers",
        it.services, it.tasks, it.networks, it.volumes, it.secrets, it.configs, it.images, it.workers
    )
}

/// Reads a passphrase: the file's first line. Empty without a file.
fn passphrase(file: Option<&Path>) -> anyhow::Result<String> {
    let Some(file) = file else { return Ok(String::new()) };
    let mut text = String::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin().take(PASSPHRASE_BOUND).read_to_string(&mut text),
        _ => fs_err::File::open(file).and_then(|it| it.take(PASSPHRASE_BOUND).read_to_string(&mut text)),
    };
    read.context("failed to read the passphrase")?;
    match text.lines().next() {
        Some(passphrase) if !passphrase.is_empty() => Ok(passphrase.to_owned()),
        _ => Err(Usage("--passphrase-file: its first line is empty, and a passphrase is not".into()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::proto::node::LostManager;

    #[test]
    fn a_passphrase_is_the_first_line_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        for (text, expected) in [("one\ntwo\n", "one"), ("a b", "a b"), ("x\r\n", "x")] {
            fs_err::write(&path, text).unwrap();
            assert_eq!(passphrase(Some(&path)).unwrap(), expected);
        }
        for text in ["", "\n", "\nnot the first"] {
            fs_err::write(&path, text).unwrap();
            assert_eq!(crate::error::code(&passphrase(Some(&path)).unwrap_err()), 2, "{text:?}");
        }
        assert_eq!(passphrase(None).unwrap(), "");
    }

    #[test]
    fn a_report_names_what_is_lost() {
        let lost = |name: &str, volumes: &[&str]| LostManager {
            name: name.into(),
            address: "10.0.0.2:1".into(),
            tasks: 2,
            volumes: volumes.iter().map(ToString::to_string).collect(),
        };
        let report = RecoveryReport {
            index: 9,
            uncertain_entries: 3,
            kept: Some(ObjectCounts { services: 1, ..ObjectCounts::default() }),
            lost_managers: vec![lost("m2", &["a", "b"]), lost("m3", &[])],
            lost_images: vec!["web".into()],
            ..RecoveryReport::default()
        };
        let expected = [
            "Kept: 1 services, 0 tasks, 0 networks, 0 volumes, 0 secrets, 0 configs, 0 images, 0 workers",
            "      everything up to entry 9",
            "      with 3 entries behind those that are known to be committed",
            "Lost: manager m2 (10.0.0.2:1), 2 tasks there, data of volumes there: a, b",
            "Lost: manager m3 (10.0.0.2:1), 2 tasks there",
            "Lost: images that no other node holds: web",
        ];
        assert_eq!(describe(&report), expected);
    }
}
