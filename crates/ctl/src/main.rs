//! `ctl`, the command line: parses the arguments, runs the command, prints the error, if any, and exits with a code of
//! docs/cli.md.

mod arguments;
mod cli;
mod client;
mod commands;
mod context;
mod error;
mod new_file;
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
    let runtime = match runtime() {
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

/// Returns the runtime. The command runs on the main thread, which waits for the reader of what it prints. Connections are
/// answered on another one, because the other side closes those that it hears nothing from.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    #[test]
    fn connections_are_answered_while_a_command_waits_for_the_reader_of_its_output() {
        let (answered, waits) = std::sync::mpsc::channel();
        super::runtime().expect("it starts").block_on(async {
            tokio::spawn(async move { answered.send(()) });
            waits.recv_timeout(Duration::from_secs(20)).expect("another task runs while this thread is blocked");
        });
    }
}
