//! `ctl`, the command line: parses the arguments, runs the command, prints the error, if any, and exits with a code of
//! docs/cli.md.

mod arguments;
mod cli;
mod client;
mod commands;
mod context;
mod error;
mod parse;
mod printer;
mod progress;
mod sandbox;
mod terminal;

use std::process::ExitCode;

fn main() -> ExitCode {
    // The init of a sandbox's node needs a process of one thread, so it runs before any async runtime is built.
    if let Some(code) = sandbox::run_hidden() {
        return code;
    }
    let cli = match arguments::parse(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return error::print(&anyhow::anyhow!("failed to start: {error}")),
    };
    let result = runtime.block_on(cli.run());
    // A thread may still block on standard input, so the shutdown does not wait for it.
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => error::print(&error),
    }
}
