//! `ctl`: the command line. Parse, run, say what went wrong, end with the code that INTERFACE.md names.

mod cli;
mod client;
mod commands;
mod error;
mod parse;
mod pick;
mod printer;
mod progress;
mod sandbox;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // The sandbox's init needs a process of one thread: before any runtime.
    if let Some(code) = sandbox::run_hidden() {
        return code;
    }
    let cli = cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return error::say(&anyhow::anyhow!("failed to start: {error}")),
    };
    let result = runtime.block_on(commands::run(cli));
    // A thread may still wait for standard input.
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => error::say(&error),
    }
}
