//! The OCI command line, and the supervisor's entry. Arguments → the library → exit code.
//!
//! `main` is C's: what Rust's own does before it (a guard page, handlers, a look at its memory map) is a part of each
//! start of a container that nobody needs.
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
mod report;
#[cfg(not(test))]
mod title;

#[cfg(not(test))]
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
extern "C" fn main(_: i32, arguments: *const *mut std::ffi::c_char) -> i32 {
    // As Rust's own: a hook that does not read must not end this process.
    flota_runtime::process::ignore_broken_pipes();
    #[cfg(target_arch = "x86_64")]
    let is_protected = entry::is_protected();
    #[cfg(not(target_arch = "x86_64"))]
    let is_protected = false;
    // What was done before this would be done once more.
    if !is_protected && let Err(error) = protect() {
        eprintln!("error: {error}");
        return 1;
    }
    if std::env::args_os().skip(1).eq(["supervise"]) {
        // SAFETY: this is `main`, and supervisors do without arguments and environment.
        return i32::from(supervise(unsafe { title::room(arguments) }));
    }
    i32::from(start())
}

/// A container called like a verb costs this and no more.
#[cfg(not(test))]
fn protect() -> Result<(), flota_runtime::StepError> {
    let shows_itself = |it: OsString| ["create", "run", "exec", "supervise"].iter().any(|verb| it == *verb);
    if std::env::args_os().skip(1).any(shows_itself) { flota_runtime::protect_binary() } else { Ok(()) }
}

fn start() -> u8 {
    // It stays as long as its container: it does without what the command line takes.
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    if let Some((verb, [dashes, program @ ..])) = words.split_first()
        && verb == "init"
        && dashes == "--"
    {
        return init::run(program);
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
        Verb::Checkpoint(_) | Verb::Restore(_) => {
            let text = "failed to checkpoint: this runtime leaves checkpoint and restore out".to_owned();
            Err(flota_runtime::RunError { text, code: None })
        }
    }
}
