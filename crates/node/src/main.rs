//! `flotad`: the daemon that runs on each node. It decides nothing itself: it wires the worker, and on managers the
//! manager, to the node's sockets.
//!
//! `config.rs` reads the settings, `daemon.rs` runs until a signal, `node.rs` joins and leaves clusters, `cluster.rs`
//! starts and stops manager and worker, `local.rs` serves `ctl`, `registries.rs` asks registries for the manager, `rpc.rs`
//! checks who may call what.

mod address;
mod autolock;
mod backups;
mod calls;
mod cluster;
mod config;
mod daemon;
mod join;
mod local;
mod metrics;
mod node;
mod observed;
mod port;
mod registries;
mod renewal;
mod rpc;
mod scheduled_backups;
mod state_dir;
mod telemetry;
mod uploads;

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Dependencies enable two providers of rustls, so there is no default unless it is chosen.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = config::Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            telemetry::print_final(&format!("error: flotad: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: config::Arguments) -> anyhow::Result<()> {
    // Errors in the settings are reported before anything is touched.
    let config = config::Config::resolve(arguments)?;
    telemetry::start(&config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()?;
    let result = runtime.block_on(daemon::run(config));
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match result? {
        daemon::End::Stopped => Ok(()),
        daemon::End::Restarts => Err(restart()),
    }
}

/// Starts the program again in this process, with the same arguments. Descriptors are closed (close-on-exec), and with them
/// the lock of the data folder is given back. Returns only if that fails.
fn restart() -> anyhow::Error {
    // An upgrade may have replaced the file; the path of this process's own program still leads to it.
    let own = std::env::current_exe().ok().filter(|it| it.exists()).unwrap_or_else(|| "/proc/self/exe".into());
    let error = std::process::Command::new(own).args(std::env::args_os().skip(1)).exec();
    anyhow::Error::new(error).context("failed to restart")
}
