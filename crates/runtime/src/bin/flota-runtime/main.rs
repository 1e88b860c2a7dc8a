//! The OCI command line and the supervisor's entry. It parses the arguments, calls the library and returns the exit
//! code.
//!
//! `main` is the C function, because the preparations of Rust's own `main` (a guard page, handlers, a look at its
//! memory map) would add to the time of each container start without being needed.
#![cfg_attr(not(test), no_main)]
#![expect(clippy::print_stderr, clippy::print_stdout, reason = "a command line program")]

mod arguments;
#[cfg(target_arch = "x86_64")]
mod entry;
mod events;
mod exec;
mod foreground;
mod init;
mod lifecycle;
mod limits;
mod listing;
mod namespaces;
mod report;
#[cfg(not(test))]
mod title;

#[cfg(not(test))]
use std::ffi::OsString;

use clap::Parser;

use arguments::{Arguments, Verb};

/// An empty `main` for the test harness, which brings its own.
#[cfg(test)]
fn main() {
    let _ = start();
}

/// The function that the C library calls. `std::env::args` works without its arguments.
#[cfg(not(test))]
#[expect(unsafe_code, reason = "a symbol that the C library looks for")]
// SAFETY: no other function of this program has this name.
#[unsafe(no_mangle)]
extern "C" fn main(_: i32, arguments: *const *mut std::ffi::c_char) -> i32 {
    // Rust's own `main` does this too: a hook that does not read its input must not end this process.
    flota_runtime::process::ignore_broken_pipes();
    #[cfg(target_arch = "x86_64")]
    let is_protected = entry::is_protected();
    #[cfg(not(target_arch = "x86_64"))]
    let is_protected = false;
    // A process that was protected at its entry must not do it again.
    if !is_protected && let Err(error) = protect() {
        eprintln!("error: {error}");
        return 1;
    }
    if std::env::args_os().skip(1).eq(["supervise"]) {
        // SAFETY: this is `main`, and supervisors use neither arguments nor the environment.
        return i32::from(supervise(unsafe { title::room(arguments) }));
    }
    i32::from(start())
}

/// Runs the program from a protected file, if a verb needs that. A container with the name of a verb only costs this
/// step.
#[cfg(not(test))]
fn protect() -> Result<(), flota_runtime::StepError> {
    let shows_itself = |it: OsString| ["create", "run", "exec", "supervise"].iter().any(|verb| it == *verb);
    if std::env::args_os().skip(1).any(shows_itself) { flota_runtime::protect_binary() } else { Ok(()) }
}

fn start() -> u8 {
    // A supervisor stays as long as its container, so it avoids the memory that the command line parser takes.
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    if let Some((verb, [dashes, program @ ..])) = words.split_first()
        && verb == "init"
        && dashes == "--"
    {
        return init::run(program);
    }
    if let [verb, dashes, request @ ..] = words.as_slice()
        && verb == flota_runtime::owned_namespaces::VERB
        && dashes == "--"
    {
        return namespaces::run(request);
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
            // As in runc: an error of `exec` itself must be distinguishable from the process's own exit code.
            let otherwise = if matches!(arguments.verb, Verb::Exec(_)) { 255 } else { 1 };
            error.code.and_then(|it| u8::try_from(it).ok()).unwrap_or(otherwise)
        }
    }
}

#[cfg(not(test))]
fn supervise(title: &mut [u8]) -> u8 {
    match flota_runtime::supervisor::launch(title) {
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
        Verb::Checkpoint(_) => Err(left_out("checkpoint")),
        Verb::Restore(_) => Err(left_out("restore")),
    }
}

/// The error for a verb that this runtime does not have.
fn left_out(verb: &str) -> flota_runtime::RunError {
    let text = format!("failed to {verb}: this runtime leaves checkpoint and restore out");
    flota_runtime::RunError { text, code: None }
}
