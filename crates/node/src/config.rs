//! Settings from flags and from the settings file; a flag wins. Errors are found before anything is touched.

mod backups;
mod offers;
mod registries;

pub(crate) use backups::BackupSchedule;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use serde::Deserialize;

use flota_api::model::Balancer;
use flota_image::Registries;
use flota_worker::NodeOffers;

const FILE: &str = "/etc/flota/flotad.toml";
/// Where vendors put the files of CDI devices, and where programs put those that they generate.
const CDI_FOLDERS: [&str; 2] = ["/etc/cdi", "/run/cdi"];
const FILE_BOUND: u64 = 1 << 20;
/// The other nodes must learn one key before there is another.
const SHORTEST_KEY_LIFE: Duration = Duration::from_secs(10);

/// The daemon of Flota, a container cluster
#[derive(Debug, Parser)]
#[command(name = "flotad", version = flota_api::VERSION)]
pub(crate) struct Arguments {
    /// Settings file (TOML); flags override it [default: /etc/flota/flotad.toml]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Folder for state that outlives a boot [default: /var/lib/flota]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Folder in memory for the socket and run-time files [default: /run/flota]
    #[arg(long)]
    run_dir: Option<PathBuf>,
    /// Address to listen at for other nodes, IP:PORT [default: 0.0.0.0:2377]
    #[arg(long)]
    listen: Option<String>,
    /// Address to answer `/metrics`, `/healthz` and `/readyz` at over plain HTTP, IP:PORT [default: none]
    #[arg(long)]
    metrics_listen: Option<String>,
    /// Address of the traffic between tasks on different nodes [default: that at which other nodes reach this one]
    #[arg(long)]
    data_path_addr: Option<IpAddr>,
    /// Log level: error, warn, info, debug or trace [default: info]
    #[arg(long)]
    log: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    data_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    listen: Option<String>,
    metrics_listen: Option<String>,
    data_path_addr: Option<IpAddr>,
    /// What spreads connections to virtual IPs; the best that the kernel can do if absent.
    balancer: Option<String>,
    /// How long the node uses a key for encrypted networks.
    tunnel_key_life: Option<String>,
    log: Option<String>,
    runtime: Option<PathBuf>,
    /// Multiplies Raft's heartbeat and election times, for links slower than a LAN.
    raft_patience: Option<u32>,
    /// Runtime classes: name and path of the program.
    runtimes: BTreeMap<String, PathBuf>,
    devices: Vec<offers::Device>,
    allow: offers::Allow,
    registries: BTreeMap<String, registries::Registry>,
    /// Whether tasks can't gain privileges unless their service says otherwise; the cluster's default if absent.
    no_new_privileges: Option<bool>,
    /// Profile of AppArmor for tasks.
    apparmor_profile: Option<String>,
    /// Labels that the node's owner sets, for constraints.
    labels: BTreeMap<String, String>,
    /// Folders with the files of CDI devices, the one with priority last.
    cdi_spec_dirs: Option<Vec<PathBuf>>,
    backup: Option<backups::Settings>,
}

/// The settings that the daemon runs with.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) listen: SocketAddr,
    /// Where metrics are served; nowhere if absent.
    pub(crate) metrics_listen: Option<SocketAddr>,
    pub(crate) log: String,
    pub(crate) runtime: PathBuf,
    pub(crate) raft_patience: u32,
    /// The runtimes, devices and privileges that tasks may use on this node.
    pub(crate) offers: NodeOffers,
    /// How images are pulled.
    pub(crate) registries: Registries,
    /// When a manager writes backups; never if `None`.
    pub(crate) backup: Option<BackupSchedule>,
}

impl Config {
    /// Reads the settings file and merges it with the flags.
    pub(crate) fn resolve(arguments: Arguments) -> anyhow::Result<Self> {
        let file = match &arguments.config {
            Some(path) => read(path)?,
            // The user did not name it, so it need not exist.
            None if Path::new(FILE).exists() => read(Path::new(FILE))?,
            None => File::default(),
        };
        let default_listen = format!("0.0.0.0:{}", flota_api::defaults::PORT);
        let listen = arguments.listen.or(file.listen).unwrap_or(default_listen);
        let listen = listen.parse().with_context(|| format!("listen: `{listen}` is not IP:PORT"))?;
        let metrics_listen = arguments.metrics_listen.or(file.metrics_listen).filter(|text| !text.is_empty());
        let address = |text: &String| text.parse().with_context(|| format!("metrics-listen: `{text}` is not IP:PORT"));
        let metrics_listen = metrics_listen.as_ref().map(address).transpose()?;
        let log = arguments.log.or(file.log).unwrap_or_else(|| "info".into());
        if !["error", "warn", "info", "debug", "trace"].contains(&log.as_str()) {
            bail!("log: `{log}` is not one of error, warn, info, debug, trace");
        }
        let raft_patience = file.raft_patience.unwrap_or(1);
        if !(1..=100).contains(&raft_patience) {
            bail!("raft-patience: {raft_patience} is not between 1 and 100");
        }
        let mut offers = offers::resolve(file.runtimes, file.devices, file.allow, file.no_new_privileges, file.labels)?;
        offers.data_address = arguments.data_path_addr.or(file.data_path_addr);
        if let Some(address) = offers.data_address.filter(|it| it.is_unspecified() || it.is_multicast()) {
            bail!("data-path-addr: {address} is not an address of a machine");
        }
        offers.cdi_folders = file.cdi_spec_dirs.unwrap_or_else(|| CDI_FOLDERS.map(PathBuf::from).into());
        if let Some(path) = offers.cdi_folders.iter().find(|path| !path.is_absolute()) {
            bail!("cdi-spec-dirs: `{}` is not an absolute path", path.display());
        }
        offers.balancer = file.balancer.as_deref().map(balancer).transpose()?;
        offers.app_armor = file.apparmor_profile;
        if offers.app_armor.as_ref().is_some_and(|name| name.is_empty() || name.contains(char::is_control)) {
            bail!("apparmor-profile: the name is not valid; `unconfined` stands for no profile");
        }
        offers.tunnel_key_life = file.tunnel_key_life.as_deref().map(key_life).transpose()?;
        let registries = registries::resolve(file.registries)?;
        let backup = file.backup.map(backups::resolve).transpose()?;
        let beside =
            std::env::current_exe().context("failed to find the path of flotad")?.with_file_name("flota-runtime");
        let runtime = file.runtime.unwrap_or(beside);
        if !runtime.is_file() {
            bail!("runtime: the program {} does not exist", runtime.display());
        }
        let absolute =
            |path: PathBuf| std::path::absolute(&path).with_context(|| format!("`{}` is not a path", path.display()));
        Ok(Self {
            data_dir: absolute(arguments.data_dir.or(file.data_dir).unwrap_or_else(|| "/var/lib/flota".into()))?,
            run_dir: absolute(arguments.run_dir.or(file.run_dir).unwrap_or_else(|| "/run/flota".into()))?,
            listen,
            metrics_listen,
            log,
            runtime,
            raft_patience,
            offers,
            registries,
            backup,
        })
    }

    /// The path of the local socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir.join("flota.sock")
    }

    /// The times for Raft.
    pub(crate) fn timing(&self) -> flota_raft_store::raft::Timing {
        let normal = flota_raft_store::raft::Timing::default();
        let times = |duration: Duration| duration * self.raft_patience;
        flota_raft_store::raft::Timing {
            heartbeat: times(normal.heartbeat),
            election: (times(normal.election.0), times(normal.election.1)),
        }
    }
}

fn balancer(text: &str) -> anyhow::Result<Balancer> {
    let known = Balancer::ALL.iter().find(|it| it.as_str() == text);
    known.copied().with_context(|| format!("balancer: `{text}` is not one of bpf, nftables"))
}

fn key_life(text: &str) -> anyhow::Result<Duration> {
    let life =
        humantime::parse_duration(text).with_context(|| format!("tunnel-key-life: `{text}` is not a duration"))?;
    if life < SHORTEST_KEY_LIFE {
        bail!("tunnel-key-life: {text} is less than {SHORTEST_KEY_LIFE:?}");
    }
    Ok(life)
}

fn read(path: &Path) -> anyhow::Result<File> {
    let about =
        std::fs::metadata(path).with_context(|| format!("failed to read the settings file {}", path.display()))?;
    if about.len() > FILE_BOUND {
        bail!("the settings file {} has more than {FILE_BOUND} bytes", path.display());
    }
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("failed to read the settings file {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("failed to parse the settings file {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_life_of_a_key_is_a_duration_that_lets_other_nodes_learn_it() {
        assert_eq!(key_life("12h").expect("a duration"), Duration::from_secs(43_200));
        for (text, expected) in
            [("12", "tunnel-key-life: `12` is not a duration"), ("9s", "tunnel-key-life: 9s is less than 10s")]
        {
            assert_eq!(key_life(text).expect_err(text).to_string(), expected);
        }
    }
}
