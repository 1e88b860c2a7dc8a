//! `ctl swarm …` creates, joins and leaves a cluster. Backups, and what follows a disaster, are in recovery.rs.

mod autolock;
mod ca;
mod recovery;
mod user;

use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;

use flota_api::clock::Clock;
use flota_api::proto::control::{ClusterInfo, Empty, RotateJoinTokenRequest, UpdateClusterRequest};
use flota_api::proto::node::{InitRequest, JoinRequest, LeaveRequest, ReconnectRequest};
use flota_api::proto::types::Role;
use flota_api::reason::Reason;
use flota_api::version::Timestamp;

use crate::client::{Client, failure, request_id};
use crate::error::{Refused, Usage};
use crate::parse;
use crate::printer::line;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum JoinAs {
    Worker,
    Manager,
}

/// The settings that apply if neither a service nor its node has its own.
#[derive(Debug, Args)]
pub(crate) struct Defaults {
    /// Forbid programs to gain privileges, as by setuid, where neither service nor node says otherwise
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    no_new_privileges: Option<bool>,
    /// Move tasks by itself to nodes that have come, or have come back, a minute after that
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    rebalance: Option<bool>,
    /// Shortest period of the heartbeats of nodes
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    dispatcher_heartbeat: Option<Duration>,
    /// Number of missed heartbeats after which a node is down
    #[arg(long, value_name = "NUMBER")]
    missed_heartbeats: Option<u64>,
    /// Validity of the certificates that nodes get from then on (default 90 days)
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    cert_expiry: Option<Duration>,
    /// How long a worker that was off can renew its certificate after that has expired (default 365 days)
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    cert_renewal_grace: Option<Duration>,
    /// Time after which a manager that is down is replaced by a node that may be one; 0 for never (default)
    #[arg(long, value_name = "TIME", value_parser = parse::duration_or_none)]
    dead_manager_after: Option<Duration>,
    /// Number of tasks of each slot that are kept, the one that runs included (default 2)
    #[arg(long, value_name = "NUMBER")]
    task_history_limit: Option<u64>,
    /// Seal the keys of managers on disk: after a start, each waits for `ctl swarm unlock`
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    autolock: Option<bool>,
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Defaults {
    fn request(&self) -> Option<UpdateClusterRequest> {
        let request = UpdateClusterRequest {
            no_new_privileges: self.no_new_privileges,
            auto_rebalance: self.rebalance,
            heartbeat_ms: self.dispatcher_heartbeat.map(millis),
            heartbeats_missed: self.missed_heartbeats,
            certificate_life_ms: self.cert_expiry.map(millis),
            renewal_grace_ms: self.cert_renewal_grace.map(millis),
            dead_manager_after_ms: self.dead_manager_after.map(millis),
            task_history_limit: self.task_history_limit,
            autolock: self.autolock,
            ..UpdateClusterRequest::default()
        };
        let is_given = request != UpdateClusterRequest::default();
        is_given.then(|| UpdateClusterRequest { request_id: request_id(), ..request })
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Swarm {
    /// Make this node the first manager of a new cluster
    Init {
        /// Address at which other nodes reach this one: IP or IP:PORT (default: the machine's)
        #[arg(long, default_value = "", hide_default_value = true)]
        advertise_addr: String,
        /// Addresses that networks get their subnets from; may be repeated (default: 10.0.0.0/8 and a local IPv6 prefix)
        #[arg(long)]
        default_addr_pool: Vec<IpNet>,
        /// Length of the prefixes of IPv4 subnets from the pools
        #[arg(long, default_value_t = 24)]
        default_addr_pool_mask_length: u8,
        /// Make this manager, whose cluster has lost its majority for good, the only one; everything else stays in place
        #[arg(long)]
        force_new_cluster: bool,
        /// With --force-new-cluster, say what would be kept and lost, and change nothing
        #[arg(long, requires = "force_new_cluster")]
        dry_run: bool,
        #[command(flatten)]
        given_ca: ca::CaFiles,
        #[command(flatten)]
        defaults: Defaults,
    },
    /// Show the CA that signs the certificates of nodes, or replace it
    Ca(ca::Ca),
    /// Change the defaults of the cluster
    Update {
        #[command(flatten)]
        defaults: Defaults,
    },
    /// Manage users: who may use the cluster from outside, with a certificate
    #[command(subcommand)]
    User(user::User),
    /// Join a cluster
    Join {
        /// Token that `ctl swarm join-token` prints on a manager
        #[arg(long)]
        token: String,
        /// Manager to join: HOST[:PORT], port 2377 by default
        manager: String,
        /// Address at which other nodes reach this one: IP or IP:PORT (default: the machine's)
        #[arg(long, default_value = "", hide_default_value = true)]
        advertise_addr: String,
    },
    /// Tell this node where managers are now, after the addresses of all managers have changed
    Reconnect {
        /// Managers: HOST[:PORT], port 2377 by default
        #[arg(required = true)]
        managers: Vec<String>,
    },
    /// Open the keys of this manager, which is locked since it has started; the unlock key is read from standard input
    Unlock,
    /// Print the key that opens the keys of locked managers, or replace it
    UnlockKey(autolock::UnlockKeyFlags),
    /// Leave the cluster: stop the tasks, and forget everything about it
    Leave {
        /// Leave even as a manager, and even if no manager can be reached
        #[arg(short, long)]
        force: bool,
    },
    /// Write a backup of the whole state of the cluster, with its keys, to a file
    Backup(recovery::BackupFlags),
    /// Make this node, which belongs to no cluster, the only manager of the cluster in a backup
    Restore(recovery::RestoreFlags),
    /// Print what another machine needs to join
    JoinToken {
        /// Role of the new node: worker or manager
        role: JoinAs,
        /// Make a new token; the old one is refused from then on
        #[arg(long)]
        rotate: bool,
        /// Time for which the new token is valid (default: until it is rotated)
        #[arg(long, value_name = "TIME", value_parser = parse::duration, requires = "rotate")]
        ttl: Option<Duration>,
        /// Print only the token
        #[arg(short, long)]
        quiet: bool,
    },
}

pub(crate) async fn run(verb: Swarm, client: &Client) -> anyhow::Result<()> {
    match verb {
        Swarm::Ca(args) => ca::run(client, &args).await,
        Swarm::User(verb) => user::run(client, verb).await,
        Swarm::Unlock => autolock::unlock(client).await,
        Swarm::UnlockKey(flags) => autolock::unlock_key(client, &flags).await,
        Swarm::Init {
            force_new_cluster: true, dry_run, advertise_addr, default_addr_pool, given_ca, defaults, ..
        } => {
            let has_settings =
                !advertise_addr.is_empty() || !default_addr_pool.is_empty() || defaults.request().is_some();
            if has_settings || given_ca.read()?.is_some() {
                let text = "--force-new-cluster takes no settings: the cluster has them already";
                return Err(Usage(text.into()).into());
            }
            recovery::force_new_cluster(client, dry_run).await
        }
        Swarm::Backup(flags) => recovery::backup(client, flags).await,
        Swarm::Restore(flags) => recovery::restore(client, flags).await,
        Swarm::Init {
            advertise_addr, default_addr_pool, default_addr_pool_mask_length, given_ca, defaults, ..
        } => {
            let request = InitRequest {
                advertise: advertise_addr,
                address_pools: default_addr_pool.iter().map(ToString::to_string).collect(),
                subnet_length: default_addr_pool_mask_length.into(),
                // The node's own certificate is made before the defaults can be set.
                certificate_life_ms: defaults.cert_expiry.map_or(0, millis),
                ca: given_ca.read()?,
            };
            init(client, request, &defaults).await
        }
        Swarm::Update { defaults } => {
            let none = || {
                Usage("no change is given: use --no-new-privileges, --rebalance, --dispatcher-heartbeat, --missed-heartbeats, --cert-expiry, --cert-renewal-grace, --dead-manager-after, --task-history-limit or --autolock".into())
            };
            update(client, defaults.request().ok_or_else(none)?).await?;
            line("Cluster updated.");
            if defaults.autolock == Some(true) {
                autolock::explain_new(client).await?;
            }
            Ok(())
        }
        Swarm::Join { token, manager, advertise_addr } => {
            let request = JoinRequest { token, manager: with_port(&manager), advertise: advertise_addr };
            let joined =
                client.node().await?.join(request).await.map_err(failure).context("failed to join")?.into_inner();
            line(&format!("This node ({}) is in cluster {}.", joined.node_id, joined.cluster_id));
            Ok(())
        }
        Swarm::Reconnect { managers } => {
            let request = ReconnectRequest { managers: managers.iter().map(|it| with_port(it)).collect() };
            let found =
                client.node().await?.reconnect(request).await.map_err(failure).context("failed to reconnect")?;
            line(&match found.into_inner().found.len() {
                0 => "This node has found the leader of its cluster.".to_owned(),
                1 => "This manager has found another one.".to_owned(),
                count => format!("This manager has found {count} others."),
            });
            Ok(())
        }
        Swarm::Leave { force } => {
            client.node().await?.leave(LeaveRequest { force }).await.map_err(failure).context("failed to leave")?;
            line("This node has left the cluster.");
            Ok(())
        }
        Swarm::JoinToken { role, rotate, ttl, quiet } => {
            let cluster = if rotate {
                let role = Role::from(role).into();
                let request = RotateJoinTokenRequest { request_id: request_id(), role, ttl_ms: ttl.map(millis) };
                client
                    .change(request, |mut control, request| async move { control.rotate_join_token(request).await })
                    .await?
            } else {
                client.read(Empty {}, |mut control, request| async move { control.get_cluster(request).await }).await?
            };
            join_token(client, role, cluster, quiet).await
        }
    }
}

/// Returns the address with a port: its own, or the usual one.
fn with_port(manager: &str) -> String {
    if let Ok(bare) = manager.parse::<Ipv6Addr>() {
        return format!("[{bare}]:{}", flota_api::defaults::PORT);
    }
    let has_port = manager.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if has_port { manager.to_owned() } else { format!("{manager}:{}", flota_api::defaults::PORT) }
}

async fn update(client: &Client, request: UpdateClusterRequest) -> anyhow::Result<()> {
    client.change(request, |mut control, request| async move { control.update_cluster(request).await }).await?;
    Ok(())
}

async fn init(client: &Client, request: InitRequest, defaults: &Defaults) -> anyhow::Result<()> {
    let node =
        client.node().await?.init(request).await.map_err(failure).context("failed to begin a cluster")?.into_inner();
    line(&format!("Cluster {} begins: this node ({}) is its manager.", node.cluster_id, node.node_id));
    if let Some(request) = defaults.request() {
        update(client, request).await?;
    }
    let cluster =
        client.read(Empty {}, |mut control, request| async move { control.get_cluster(request).await }).await?;
    line("\nTo add a worker, run there:\n");
    line(&format!("    ctl swarm join --token {} {}\n", cluster.worker_token, node.address));
    line("To add a manager: `ctl swarm join-token manager`.");
    if defaults.autolock == Some(true) {
        line("");
        autolock::explain_new(client).await?;
    }
    Ok(())
}

impl From<JoinAs> for Role {
    fn from(role: JoinAs) -> Self {
        match role {
            JoinAs::Worker => Self::Worker,
            JoinAs::Manager => Self::Manager,
        }
    }
}

async fn join_token(client: &Client, role: JoinAs, cluster: ClusterInfo, quiet: bool) -> anyhow::Result<()> {
    let (name, token, expires_at) = match role {
        JoinAs::Worker => ("worker", cluster.worker_token, cluster.worker_token_expires_at),
        JoinAs::Manager => ("manager", cluster.manager_token, cluster.manager_token_expires_at),
    };
    if token.is_empty() {
        let text = "only an admin sees the join tokens";
        return Err(Refused { reason: Reason::Denied, text: text.into() }.into());
    }
    let expires_at = expires_at.map(Timestamp);
    if let Some(at) = expires_at.filter(|at| *at <= Clock::system().now()) {
        bail!(
            "the join token for a {name} has expired at {at}; `ctl swarm join-token --rotate {name}` makes a new one"
        );
    }
    if quiet {
        line(&token);
        return Ok(());
    }
    let address = client.manager_address().await?;
    line(&format!("To add a {name}, run there:\n\n    ctl swarm join --token {token} {address}"));
    if let Some(at) = expires_at {
        line(&format!("\nThe token is valid until {at}."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::with_port;

    #[test]
    fn a_manager_has_the_usual_port_unless_another_is_given() {
        for (given, whole) in [
            ("m1", "m1:2377"),
            ("m1:1", "m1:1"),
            ("198.18.0.1", "198.18.0.1:2377"),
            ("fd00::1", "[fd00::1]:2377"),
            ("[fd00::1]", "[fd00::1]:2377"),
            ("[fd00::1]:1", "[fd00::1]:1"),
        ] {
            assert_eq!(with_port(given), whole);
        }
    }
}
