//! Runs simulations in processes of their own. tokio counts the runtimes of a process and draws from that count, so a
//! simulation is reproducible only if no other has run before it in its process.

use std::path::Path;
use std::process::Command;

use flota_raft_store::faults::Fault;
use serde_json::{Value, json};

use super::focus::Focus;
use super::run::{Options, Outcome, simulate_here};
use super::violation::Kind;

/// First argument of a child process.
const CHILD: &str = "--child";

const FAULTS: [Fault; 33] = [
    Fault::LeaderRestore,
    Fault::EarlyAcknowledgement,
    Fault::EarlyRead,
    Fault::LostWakeup,
    Fault::DoublePlacement,
    Fault::DoubleAddress,
    Fault::LostNews,
    Fault::NoNews,
    Fault::RefusalWithoutProof,
    Fault::AgeOfContact,
    Fault::OrderByClock,
    Fault::RunAgain,
    Fault::LostPlaces,
    Fault::EarlyStart,
    Fault::OverlappingUpdate,
    Fault::EarlyStop,
    Fault::EarlySuccessor,
    Fault::CrowdedNode,
    Fault::WrongShrink,
    Fault::JobAgain,
    Fault::CrowdedJob,
    Fault::SilentTasks,
    Fault::LingeringLoops,
    Fault::DeafPause,
    Fault::LenientUpdate,
    Fault::BlindUpdate,
    Fault::BlindWorker,
    Fault::LabelUpdate,
    Fault::JumpyMoves,
    Fault::EarlyForget,
    Fault::EagerDrop,
    Fault::CarelessDeparture,
    Fault::EarlyCa,
];

/// Returns the fault with this name.
pub fn fault(name: &str) -> Option<Fault> {
    FAULTS.into_iter().find(|fault| format!("{fault:?}") == name)
}

/// Runs a simulation in a child process; `program` is the path of `flota-simulate`.
///
/// # Panics
/// The process can't be started.
pub fn simulate(program: &Path, options: Options) -> Outcome {
    let name = options.fault.map_or_else(|| "none".into(), |fault| format!("{fault:?}"));
    let numbers = [options.seed, options.managers.into(), options.workers.into(), options.trouble];
    let mut command = Command::new(program);
    command.arg(CHILD).args(numbers.map(|number| number.to_string())).arg(name).arg(format!("{:?}", options.focus));
    let output = command.output().expect("the program is there");
    let value: Value = match serde_json::from_slice(&output.stdout) {
        Ok(value) => value,
        Err(_) => json!({"violation": Kind::BrokenOff.because(String::from_utf8_lossy(&output.stderr))}),
    };
    let log = value["log"].as_array().cloned().unwrap_or_default();
    Outcome {
        options,
        violation: serde_json::from_value(value["violation"].clone()).expect("the other process is the same program"),
        log: log.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        virtual_ms: value["virtual_ms"].as_u64().unwrap_or_default(),
        operations: value["operations"].as_u64().unwrap_or_default(),
    }
}

/// If this process is a child, runs its simulation and returns the text for standard output.
pub fn run_child(arguments: &[String]) -> Option<String> {
    let [first, numbers @ .., name, focus] = arguments else { return None };
    let numbers: Vec<u64> = numbers.iter().filter_map(|text| text.parse().ok()).collect();
    let (CHILD, [seed, managers, workers, trouble]) = (first.as_str(), numbers.as_slice()) else { return None };
    let options = Options {
        managers: u16::try_from(*managers).ok()?,
        workers: u16::try_from(*workers).ok()?,
        trouble: *trouble,
        fault: fault(name),
        focus: Focus::named(focus)?,
        ..Options::new(*seed)
    };
    let outcome = simulate_here(options);
    let value = json!({
        "violation": outcome.violation,
        "log": outcome.log,
        "virtual_ms": outcome.virtual_ms,
        "operations": outcome.operations,
    });
    Some(value.to_string())
}
