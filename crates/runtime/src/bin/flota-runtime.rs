//! The supervisor's entry. The OCI command line comes with its own issue; until then every other word is an error.
#![expect(clippy::print_stderr, reason = "a command line program")]

use std::path::Path;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["supervise", dir] => {
            if let Err(error) = flota_runtime::supervisor::supervise(Path::new(dir)) {
                eprintln!("{error}");
                std::process::exit(1);
            }
        }
        _ => {
            eprintln!("error: flota-runtime: only `supervise DIR` is there yet, which flotad calls");
            std::process::exit(2);
        }
    }
}
