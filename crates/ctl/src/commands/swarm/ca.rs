//! `ctl swarm ca` shows the CA of the cluster, and replaces it.

use std::cell::RefCell;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use flota_api::clock::Clock;
use flota_api::model::NodeState;
use flota_api::proto::control::{CaInfo, CaProgress, Empty, RotateCaRequest, WaitingNode};
use flota_api::proto::types::GivenCa;
use flota_api::version::Timestamp;
use flota_identity::CaCertificate;

use crate::client::{Client, request_id};
use crate::error::Usage;
use crate::printer::line;
use crate::progress::{self, WaitOptions};

/// Most nodes that the progress names.
const NAMED: usize = 5;
/// A CA that expires within this time is warned of.
const SOON: std::time::Duration = std::time::Duration::from_secs(90 * 86_400);

/// The files of a CA that a user gives.
#[derive(Debug, Args)]
pub(crate) struct CaFiles {
    /// File with the certificate of the CA to use, in PEM (default: a new CA)
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    ca_cert: Option<PathBuf>,
    /// File with the private key of the CA to use, in PEM
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Ca {
    /// Replace the CA by another one while everything runs, and wait until every node uses it
    #[arg(long)]
    rotate: bool,
    #[command(flatten)]
    files: CaFiles,
    #[command(flatten)]
    wait: WaitOptions,
}

impl CaFiles {
    /// Reads the files, if they are given.
    pub(super) fn read(&self) -> anyhow::Result<Option<GivenCa>> {
        let (Some(certificate), Some(key)) = (&self.ca_cert, &self.ca_key) else { return Ok(None) };
        let read =
            |path: &Path| std::fs::read_to_string(path).with_context(|| format!("failed to read `{}`", path.display()));
        Ok(Some(GivenCa { certificate_pem: read(certificate)?, key_pem: read(key)? }))
    }
}

pub(super) async fn run(client: &Client, args: &Ca) -> anyhow::Result<()> {
    let given = args.files.read()?;
    if !args.rotate {
        if given.is_some() || args.wait.detach {
            return Err(Usage("--ca-cert, --ca-key and --detach need --rotate".into()).into());
        }
        line(&described(&get(client).await?, Clock::system().now())?);
        return Ok(());
    }
    let request = RotateCaRequest { request_id: request_id(), ca: given };
    let begun = client.change(request, |mut control, request| async move { control.rotate_ca(request).await }).await?;
    let last = RefCell::new(begun);
    let ours = signer(&last.borrow())?.digest;
    progress::until(&args.wait, "replacing the CA", || async {
        last.replace(get(client).await?);
        let now = last.borrow();
        if signer(&now)?.digest != ours {
            anyhow::bail!("another rotation has replaced this one; `ctl swarm ca` shows it");
        }
        Ok(now.rotation.as_ref().map(left))
    })
    .await?;
    match &last.borrow().rotation {
        Some(rotation) => line(&format!("The CA is being replaced: {}.", left(rotation))),
        None => line(&format!("The CA has been replaced. The new one: {ours}. The join tokens are new, too.")),
    }
    Ok(())
}

async fn get(client: &Client) -> anyhow::Result<CaInfo> {
    client.read(Empty {}, |mut control, request| async move { control.get_ca(request).await }).await
}

/// Returns the CA that signs.
fn signer(info: &CaInfo) -> anyhow::Result<CaCertificate> {
    let der = info.trusted_der.first().context("the manager's answer names no CA")?;
    Ok(CaCertificate::read(der)?)
}

/// Returns how many nodes use the new CA, and some that do not.
fn left(it: &CaProgress) -> String {
    let mut text = format!("{} of {} nodes use the new one", it.renewed, it.nodes);
    let missing = usize::try_from(it.nodes.saturating_sub(it.renewed)).unwrap_or(usize::MAX);
    let named: Vec<String> = it.waiting.iter().take(NAMED).map(named).collect();
    if !named.is_empty() {
        let more = missing.saturating_sub(named.len());
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        // Writing to a string can't fail.
        let _ = write!(text, "; missing: {}{more}", named.join(", "));
    }
    text
}

fn named(node: &WaitingNode) -> String {
    let name = if node.name.is_empty() { &node.id } else { &node.name };
    match NodeState::from(node.state()) {
        NodeState::Ready => name.clone(),
        state => format!("{name} ({state} since {})", Timestamp(node.state_since)),
    }
}

/// Describes the CAs that nodes trust, at the time `now`.
fn described(info: &CaInfo, now: Timestamp) -> anyhow::Result<String> {
    let mut text = String::new();
    for (number, der) in info.trusted_der.iter().enumerate() {
        let ca = CaCertificate::read(der)?;
        let title = if number == 0 { "CA" } else { "CA that is being replaced, and trusted until then" };
        let end = match now {
            now if now >= ca.not_after => " (expired: nodes trust it, but it should be replaced)",
            now if now.until(ca.not_after) < SOON => " (soon: replace it with `ctl swarm ca --rotate`)",
            _ => "",
        };
        let lines = [
            format!("{title}:"),
            format!("  SHA-256:    {}", ca.digest),
            format!("  Subject:    {}", ca.subject),
            format!("  Not before: {}", ca.not_before),
            format!("  Not after:  {}{end}", ca.not_after),
        ];
        text.push_str(&lines.join("\n"));
        text.push('\n');
    }
    if let Some(rotation) = &info.rotation {
        let begun = Timestamp(rotation.begun_at);
        let _ = writeln!(text, "The CA is being replaced since {begun}: {}.", left(rotation));
        let is_away = |node: &WaitingNode| NodeState::from(node.state()) != NodeState::Ready;
        if rotation.waiting.iter().any(is_away) {
            text.push_str(
                "It ends when nodes that are away have come back, or are removed with `ctl node rm --force`.\n",
            );
        }
    }
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::proto::types::NodeState as WireState;
    use flota_identity::RootCa;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn node(name: &str, state: WireState) -> WaitingNode {
        WaitingNode { id: format!("{name}-id"), name: name.into(), state: state.into(), state_since: NOW.0 }
    }

    #[test]
    fn both_cas_and_the_nodes_that_are_missing_are_shown_during_a_rotation() {
        let [new, old] = [(); 2].map(|()| RootCa::generate(&"c".into(), NOW.to_system()).expect("made"));
        let trusted_der = [&new, &old].map(|ca| ca.certificate().to_vec().into()).to_vec();
        let waiting = vec![node("w1", WireState::Ready), node("w2", WireState::Down)];
        let rotation = Some(CaProgress { begun_at: NOW.0, nodes: 4, renewed: 2, waiting });
        let shown = described(&CaInfo { trusted_der: trusted_der.clone(), rotation }, NOW).expect("it is whole");
        let (first, second) = (shown.find(&new.digest()), shown.find(&old.digest()));
        assert!(first.is_some() && first < second, "{shown}");
        let missing = format!("2 of 4 nodes use the new one; missing: w1, w2 (down since {NOW}).");
        assert!(shown.contains(&missing) && shown.contains("`ctl node rm --force`"), "{shown}");
        let after = CaInfo { trusted_der: trusted_der[..1].to_vec(), rotation: None };
        let shown = described(&after, NOW).expect("it is whole");
        assert!(!shown.contains(&old.digest()) && !shown.contains("being replaced"), "{shown}");
        assert!(!shown.contains("(soon") && !shown.contains("(expired"), "{shown}");
        let end = NOW + flota_api::defaults::CA_LIFE;
        let before = Timestamp(end.0 - 86_400_000);
        assert!(described(&after, before).expect("it is whole").contains("(soon: replace it"));
        assert!(described(&after, end).expect("it is whole").contains("(expired"));
    }

    #[test]
    fn a_long_list_of_missing_nodes_is_cut() {
        let waiting = (0..8).map(|number| node(&format!("w{number}"), WireState::Ready)).collect();
        let text = left(&CaProgress { begun_at: NOW.0, nodes: 20, renewed: 3, waiting });
        assert_eq!(text, "3 of 20 nodes use the new one; missing: w0, w1, w2, w3, w4 and 12 more");
    }
}
