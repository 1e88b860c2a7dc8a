//! `ctl`: the command line. It parses, runs, prints what went wrong, and exits with the code of docs/cli.md.

mod cli;
mod client;
mod commands;
mod error;
mod parse;
mod printer;
mod progress;
mod sandbox;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // The init of a sandbox's node needs a process of one thread: it runs before any runtime is built.
    if let Some(code) = sandbox::run_hidden() {
        return code;
    }
    let cli = cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return error::print(&anyhow::anyhow!("failed to start: {error}")),
    };
    let result = runtime.block_on(cli.run());
    // A thread may still wait for standard input.
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => error::print(&error),
    }
}
