//! `flotad`: the daemon, one on each node.

mod cluster;
mod config;
mod daemon;
mod join;
mod local;
mod node;
mod rpc;
mod state_dir;
mod telemetry;
mod uploads;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Two TLS libraries could each claim to be the default: this one is it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = config::Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            telemetry::say_last(&format!("error: flotad: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: config::Arguments) -> anyhow::Result<()> {
    // Everything that can be wrong with the settings is said before anything is touched.
    let config = config::Config::resolve(arguments)?;
    telemetry::start(&config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()?;
    let result = runtime.block_on(daemon::run(config));
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}
