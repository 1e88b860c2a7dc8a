//! Simulates clusters, each from a seed and in a process of its own, and reports the seeds that violate an invariant.
//!
//! `flota-simulate FIRST COUNT [SECONDS]` runs the seeds FIRST to FIRST + COUNT - 1, with SECONDS of disturbances each.
//! `flota-simulate --log SEED [SECONDS] [FAULT] [FOCUS]` runs one seed and prints its log, optionally with an injected
//! fault, and with a part of what else goes wrong. `flota-simulate --scale WORKERS TASKS` runs one large cluster and
//! prints what it costs. `flota-simulate --crash WORKERS TASKS` prints how much a service in a crash loop adds to the
//! Raft log. `flota-simulate --schedule NODES TASKS` prints how fast the scheduler alone is. `flota-simulate --loops
//! NODES TASKS` prints what the control loops cost by themselves.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is a command-line program")]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flota_tests::sim::child::{fault, run_child, simulate};
use flota_tests::sim::crash_loop;
use flota_tests::sim::focus::Focus;
use flota_tests::sim::loops;
use flota_tests::sim::run::{Options, Outcome};
use flota_tests::sim::scale::Scale;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(outcome) = run_child(&arguments) {
        println!("{outcome}");
        return ExitCode::SUCCESS;
    }
    let numbers: Vec<u64> = arguments.iter().filter_map(|text| text.parse().ok()).collect();
    let is = |mode: &str| arguments.first().is_some_and(|first| first == mode);
    let held = match numbers.as_slice() {
        [seed, rest @ ..] if is("--log") => {
            let fault = arguments.iter().find_map(|name| fault(name));
            let focus = arguments.iter().find_map(|name| Focus::named(name)).unwrap_or_default();
            log(Options { trouble: millis(rest), fault, focus, ..Options::new(*seed) })
        }
        [workers, tasks] if is("--scale") => scale(*workers, *tasks),
        [workers, tasks] if is("--crash") => crash(*workers, *tasks),
        [nodes, tasks] if is("--schedule") => {
            let rate = *tasks as f64 / loops::schedule(*nodes, *tasks).as_secs_f64();
            show("the scheduler alone", rate, "tasks per CPU second");
            true
        }
        [nodes, tasks] if is("--loops") => {
            let costs = loops::measure(*nodes, *tasks);
            let passes = [
                ("all loops, a look at everything", costs.full_pass),
                ("all loops, a changed label", costs.label),
                ("all loops, a lost node with 200 tasks", costs.lost_node),
            ];
            passes.into_iter().for_each(|(what, taken)| show(what, taken.as_secs_f64() * 1e3, "ms"));
            true
        }
        [first, count, rest @ ..] => many(*first, *count, millis(rest)),
        _ => {
            eprintln!(
                "usage: flota-simulate FIRST COUNT [SECONDS], --log SEED [SECONDS] [FAULT] [FOCUS], --scale WORKERS TASKS, --crash WORKERS TASKS, --schedule NODES TASKS, or --loops NODES TASKS"
            );
            return ExitCode::from(2);
        }
    };
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn millis(rest: &[u64]) -> u64 {
    rest.first().copied().unwrap_or(30) * 1_000
}

fn run(options: Options) -> Outcome {
    simulate(&std::env::current_exe().expect("this program has a path"), options)
}

fn log(options: Options) -> bool {
    let outcome = run(options);
    println!("{}", outcome.log.join("\n"));
    match &outcome.violation {
        Some(violation) => println!("{violation}"),
        None => println!("all invariants held"),
    }
    outcome.violation.is_none()
}

/// The largest figures that a large cluster may have.
const MOST_TIME: Duration = Duration::from_secs(600);
const MOST_MEMORY_MIB: u64 = 4_096;

fn scale(workers: u64, tasks: u64) -> bool {
    let Ok(workers) = u16::try_from(workers) else {
        println!("{workers} workers are more than can be simulated");
        return false;
    };
    let begun = Instant::now();
    let cost = match (Scale { workers, tasks }).run() {
        Ok(cost) => cost,
        Err(missing) => {
            println!("{workers} workers, {tasks} tasks: {missing}");
            return false;
        }
    };
    let (time, memory) = (begun.elapsed(), peak_memory_mib());
    println!("{tasks} tasks, {workers} workers, three managers");
    show("create to assigned", tasks as f64 / cost.until_assigned.as_secs_f64(), "tasks per CPU second");
    show("create to running", tasks as f64 / cost.cpu().as_secs_f64(), "tasks per CPU second");
    for (who, cpu) in [("the leader", cost.leader), ("its followers", cost.followers), ("the workers", cost.others)] {
        show(&format!("  CPU time of {who}"), cpu.as_secs_f64(), "s");
    }
    show("  virtual time until all are assigned", cost.assigned_ms as f64 / 1e3, "s");
    show("  virtual time until all run", cost.running_ms as f64 / 1e3, "s");
    show("a lost and returned node, CPU time of the leader", cost.lost_node.as_secs_f64() * 1e3, "ms");
    show("memory of the leader", cost.memory as f64 / 1e6, "MB");
    show("  memory of a follower, which has no sessions", cost.follower_memory as f64 / 1e6, "MB");
    show("leader gone -> all sessions with the next", cost.reconnected_ms as f64 / 1e3, "s");
    show("  CPU time of the next leader meanwhile", cost.reconnect.as_secs_f64(), "s");
    show("time of the whole simulation", time.as_secs_f64(), "s");
    show("memory of the whole simulation, at most", memory as f64, "MiB");
    time <= MOST_TIME && memory <= MOST_MEMORY_MIB
}

fn crash(workers: u64, tasks: u64) -> bool {
    let entries = u16::try_from(workers).map_err(|_| format!("{workers} workers are more than can be simulated"));
    match entries.and_then(|workers| crash_loop::measure(workers, tasks)) {
        Ok(entries) => show("a crash loop of all tasks, Raft entries a second", entries, "entries"),
        Err(missing) => {
            println!("{workers} workers, {tasks} tasks: {missing}");
            return false;
        }
    }
    true
}

fn show(what: &str, value: f64, unit: &str) {
    println!("{what:58} {value:11.3} {unit}");
}

/// The most memory that this process has had so far (VmHWM, proc_pid_status(5)).
fn peak_memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel says how much memory a process has");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("a process has memory") / 1_024
}

fn many(first: u64, count: u64, trouble: u64) -> bool {
    let next = AtomicU64::new(first);
    // Failed seeds, milliseconds of virtual time, operations.
    let totals = Mutex::new((Vec::new(), 0, 0));
    let begun = Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::SeqCst);
            if seed >= first + count {
                return;
            }
            let outcome = run(Options { trouble, ..Options::new(seed) });
            let mut totals = totals.lock().expect("no holder panics");
            totals.1 += outcome.virtual_ms;
            totals.2 += outcome.operations;
            if outcome.violation.is_some() {
                totals.0.push(seed);
                println!("{}\n", outcome.report());
            }
        }
    };
    std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(work))));
    let (mut failed, millis, operations) = totals.into_inner().expect("no holder panics");
    failed.sort_unstable();
    let hundredths_of_hours = millis / 36_000;
    println!(
        "seeds {first} to {}: {}.{:02} simulated hours, {operations} operations, in {:?}; failed: {failed:?}",
        first + count - 1,
        hundredths_of_hours / 100,
        hundredths_of_hours % 100,
        begun.elapsed(),
    );
    failed.is_empty()
}
