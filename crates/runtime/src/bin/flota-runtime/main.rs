//! The OCI command line, and the supervisor's entry. Arguments → the library → exit code.
//!
//! `main` is C's: what Rust's own does before it (a guard page, handlers, a look at its memory map) is a part of each
//! start of a container that nobody needs.
#![cfg_attr(not(test), no_main)]
#![expect(clippy::print_stderr, clippy::print_stdout, reason = "a command line program")]

mod arguments;
#[cfg(all(target_arch = "x86_64", not(test)))]
mod entry;
mod events;
mod exec;
mod foreground;
mod init;
mod lifecycle;
mod limits;
mod listing;
mod report;

use std::ffi::OsString;

use clap::Parser;

use arguments::{Arguments, Verb};

/// For the test harness, which brings its own.
#[cfg(test)]
fn main() {
    let _ = start();
}

/// Where the C library begins. `std::env::args` knows the arguments without it.
#[cfg(not(test))]
#[expect(unsafe_code, reason = "a symbol that the C library looks for")]
// SAFETY: no other function of this program has this name.
#[unsafe(no_mangle)]
extern "C" fn main() -> i32 {
    // As Rust's own: a hook that does not read must not end this process.
    flota_runtime::process::ignore_broken_pipes();
    i32::from(start())
}

#[cfg(all(target_arch = "x86_64", not(test)))]
use entry::is_protected;

#[cfg(not(all(target_arch = "x86_64", not(test))))]
fn is_protected() -> bool {
    false
}

fn start() -> u8 {
    // First of all: what was done before would be done once more. A container called like a verb costs that and no more.
    let shows_itself = |it: &OsString| ["create", "run", "exec", "supervise"].iter().any(|verb| it == verb);
    if !is_protected()
        && std::env::args_os().skip(1).any(|it| shows_itself(&it))
        && let Err(error) = flota_runtime::protect_binary()
    {
        eprintln!("error: {error}");
        return 1;
    }
    // These stay as long as their container: they do without what the command line takes.
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    match words.split_first() {
        Some((verb, [])) if verb == "supervise" => return supervise(),
        Some((verb, [dashes, program @ ..])) if verb == "init" && dashes == "--" => return init::run(program),
        _ => {}
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { 2 } else { 0 };
        }
    };
    let report = report::Report::new(&arguments);
    report.debug(&format!("{:?}", arguments.verb));
    let result = run(&arguments, &report);
    report.debug(&format!("done: {:?}", result.as_ref().map_err(|error| &error.text)));
    match result {
        Ok(code) => u8::try_from(code).unwrap_or(255),
        Err(error) => {
            report.error(&error.text);
            // As runc: what `exec` itself fails at must not be taken for the process's own code.
            let otherwise = if matches!(arguments.verb, Verb::Exec(_)) { 255 } else { 1 };
            error.code.and_then(|it| u8::try_from(it).ok()).unwrap_or(otherwise)
        }
    }
}

fn supervise() -> u8 {
    match flota_runtime::supervisor::launch() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{}", error.text);
            1
        }
    }
}

fn run(arguments: &Arguments, report: &report::Report) -> Result<i32, flota_runtime::RunError> {
    let root = arguments.root();
    match &arguments.verb {
        Verb::Create(it) => lifecycle::create(arguments, it, report),
        Verb::Run(it) => lifecycle::run(arguments, it, report),
        Verb::Start(it) => lifecycle::start(&root, it),
        Verb::State(it) => listing::state(&root, it),
        Verb::Kill(it) => lifecycle::kill(&root, it),
        Verb::Delete(it) => lifecycle::delete(&root, it, report),
        Verb::Pause(it) => lifecycle::pause(&root, it),
        Verb::Resume(it) => lifecycle::resume(&root, it),
        Verb::Exec(it) => exec::exec(&root, it),
        Verb::Ps(it) => listing::ps(&root, it),
        Verb::List(it) => listing::list(&root, it),
        Verb::Update(it) => limits::update(&root, it),
        Verb::Events(it) => events::events(&root, it),
        Verb::Spec(it) => listing::spec(it),
        Verb::Features => listing::features(),
        Verb::Checkpoint(_) | Verb::Restore(_) => {
            let text = "failed to checkpoint: this runtime leaves checkpoint and restore out".to_owned();
            Err(flota_runtime::RunError { text, code: None })
        }
    }
}
