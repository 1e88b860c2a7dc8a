//! Simulates clusters from many seeds, on every core, and says which of them went wrong.
//!
//! `flota-simulate FIRST COUNT [SECONDS]`: seeds FIRST to FIRST + COUNT - 1, with so many seconds of trouble each.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use flota_tests::sim::run::{Options, simulate};

fn main() -> ExitCode {
    let arguments: Vec<u64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let [first, count, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: flota-simulate FIRST COUNT [SECONDS]");
        return ExitCode::from(2);
    };
    let seconds = rest.first().copied().unwrap_or(30);
    let (next, failed, simulated) = (AtomicU64::new(*first), AtomicU64::new(0), AtomicU64::new(0));
    let operations = AtomicU64::new(0);
    let begun = Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= first + count {
                        return;
                    }
                    let outcome = simulate(Options { trouble: seconds * 1_000, ..Options::new(seed) });
                    simulated.fetch_add(outcome.virtual_ms, Ordering::SeqCst);
                    operations.fetch_add(u64::try_from(outcome.operations).unwrap_or(0), Ordering::SeqCst);
                    if outcome.violation.is_some() {
                        failed.fetch_add(1, Ordering::SeqCst);
                        println!("{}\n", outcome.report());
                    }
                }
            });
        }
    });
    let failed = failed.load(Ordering::SeqCst);
    let hours = simulated.load(Ordering::SeqCst) / 3_600 / 10;
    println!(
        "seeds {first} to {}: {}.{:02} simulated hours, {} operations, in {:?}: {failed} failed",
        first + count - 1,
        hours / 100,
        hours % 100,
        operations.load(Ordering::SeqCst),
        begun.elapsed()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
