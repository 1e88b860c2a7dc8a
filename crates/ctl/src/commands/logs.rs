//! `ctl service logs` and `ctl task logs`.

use std::cell::RefCell;
use std::collections::BTreeMap;

use clap::Args;

use flota_api::proto::streams::frame::Frame as F;
use flota_api::proto::streams::{LogLine, LogsRequest};
use flota_api::version::Timestamp;

use crate::client::Client;
use crate::printer;

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Service or task to print the logs of
    name: String,
    /// Go on with new lines as they are written
    #[arg(short, long)]
    follow: bool,
    /// Number of lines of each task to print, from the end
    #[arg(short = 'n', long)]
    tail: Option<u64>,
    /// Print when each line was written
    #[arg(short, long)]
    timestamps: bool,
    /// Print lines without the name of the task
    #[arg(long)]
    raw: bool,
}

pub(crate) async fn run(logs: Logs, service: bool, client: &Client) -> anyhow::Result<()> {
    let printed = RefCell::new(Printed::default());
    let mut missing = 0;
    let request = || F::Logs(printed.borrow_mut().request(&logs, service));
    let each = |frame| match frame {
        F::Log(line) if printed.borrow_mut().is_new(&line) => print(&logs, &line),
        F::Error(error) => {
            missing += 1;
            printer::say(&format!("warning: {error}"));
        }
        _ => {}
    };
    client.receive(request, each).await?;
    anyhow::ensure!(missing == 0, "the logs of {missing} tasks could not be read");
    Ok(())
}

fn print(logs: &Logs, line: &LogLine) {
    let mut out = Vec::new();
    if logs.timestamps {
        out.extend_from_slice(format!("{} ", Timestamp(line.at)).as_bytes());
    }
    if !logs.raw {
        out.extend_from_slice(format!("{}@{} | ", line.task_name, line.node_name).as_bytes());
    }
    out.extend_from_slice(&line.line);
    out.push(b'\n');
    printer::bytes(line.stream, &out);
}

/// How far the log of each task was printed. A lost stream is read from the start again, and printed from the line
/// after the last printed one.
#[derive(Debug, Default)]
struct Printed(BTreeMap<String, Position>);

#[derive(Debug)]
struct Position {
    /// Time at which the last printed line was written.
    at: u64,
    /// Number of printed lines with that time.
    count: u64,
    /// Number of lines with that time that were skipped, while the log is read again up to this position.
    skipped: Option<u64>,
}

impl Printed {
    /// Returns the next request: first for the lines that the user asked for, and for whole logs once some lines were
    /// printed. After `--tail 0` the request stays the same, because older lines are not printed.
    fn request(&mut self, logs: &Logs, service: bool) -> LogsRequest {
        self.0.values_mut().for_each(|position| position.skipped = Some(0));
        let name = |wanted: bool| if wanted { logs.name.clone() } else { String::new() };
        let tail = logs.tail.filter(|tail| *tail == 0 || self.0.is_empty());
        LogsRequest {
            task: name(!service),
            service: name(service),
            follow: logs.follow,
            tail: tail.unwrap_or(0),
            tail_set: tail.is_some(),
        }
    }

    /// Returns whether the line has not been printed yet, and counts it as printed.
    fn is_new(&mut self, line: &LogLine) -> bool {
        let first = Position { at: line.at, count: 0, skipped: None };
        let position = self.0.entry(line.task_id.clone()).or_insert(first);
        match &mut position.skipped {
            Some(_) if line.at < position.at => return false,
            Some(skipped) if line.at == position.at => {
                *skipped += 1;
                if *skipped == position.count {
                    position.skipped = None;
                }
                return false;
            }
            _ => position.skipped = None,
        }
        position.count = if line.at == position.at { position.count + 1 } else { 1 };
        position.at = line.at;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(tail: Option<u64>) -> Logs {
        Logs { name: "web".into(), follow: true, tail, timestamps: false, raw: true }
    }

    #[test]
    fn a_log_that_is_read_again_goes_on_after_the_last_printed_line() {
        let line = |task: &str, at: u64| LogLine { task_id: task.into(), at, ..LogLine::default() };
        let mut printed = Printed::default();
        assert!(printed.request(&logs(Some(3)), true).tail_set);
        let all: Vec<_> = [("a", 1), ("a", 2), ("a", 2), ("b", 5)].map(|(task, at)| line(task, at)).into();
        assert!(all.iter().all(|line| printed.is_new(line)));
        assert!(!printed.request(&logs(Some(3)), true).tail_set, "all of it, as the end has moved on");
        assert!(!all.iter().any(|line| printed.is_new(line)), "nothing is printed twice");
        let new = [("a", 2), ("a", 1), ("b", 6), ("c", 0)];
        assert!(new.iter().all(|(task, at)| printed.is_new(&line(task, *at))), "also after the clock went back");
        let _ = printed.request(&logs(None), true);
        assert!(printed.is_new(&line("b", 7)), "the log was cut in front of this line");
    }

    #[test]
    fn only_new_lines_stay_only_new_lines() {
        let mut printed = Printed::default();
        assert!(printed.is_new(&LogLine::default()));
        let request = printed.request(&logs(Some(0)), false);
        assert!(request.tail_set && request.tail == 0 && request.task == "web" && request.service.is_empty());
    }
}
