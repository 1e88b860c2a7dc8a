//! `ctl service logs` and `ctl task logs`.

use std::cell::RefCell;
use std::collections::BTreeMap;

use clap::Args;

use flota_api::proto::streams::frame::Frame as F;
use flota_api::proto::streams::{LogLine, LogsRequest};
use flota_api::text::printable;
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
    let request = || F::Logs(printed.borrow().request(&logs, service));
    let each = |frame| match frame {
        F::Log(line) => {
            let missing = printed.borrow_mut().count(&line);
            if let Some(missing) = missing {
                print(&logs, &line, missing);
            }
        }
        F::Error(error) => {
            missing += 1;
            printer::message(&format!("warning: {error}"));
        }
        _ => {}
    };
    client.receive(request, each).await?;
    anyhow::ensure!(missing == 0, "the logs of {missing} tasks could not be read");
    Ok(())
}

fn print(logs: &Logs, line: &LogLine, missing: u64) {
    let source = format!("{}@{}", line.task_name, line.node_name);
    let source = printable(&source);
    if missing > 0 {
        printer::message(&format!("warning: {source}: {missing} lines are missing here"));
    }
    let mut out = Vec::new();
    if logs.timestamps {
        out.extend_from_slice(format!("{} ", Timestamp(line.at)).as_bytes());
    }
    if !logs.raw {
        out.extend_from_slice(format!("{source} | ").as_bytes());
    }
    out.extend_from_slice(&line.line);
    out.push(b'\n');
    printer::bytes(line.stream, &out);
}

/// The number of the next line of each task whose log is being printed. A lost stream is read from the start again, and
/// lines with lower numbers are skipped.
#[derive(Debug, Default)]
struct Printed(BTreeMap<String, u64>);

impl Printed {
    /// Returns the next request: first for the lines that the user asked for, and for whole logs once some lines were
    /// printed. After `--tail 0` the request stays the same, because older lines are not printed.
    fn request(&self, logs: &Logs, service: bool) -> LogsRequest {
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

    /// Counts the line as printed, and returns how many lines are missing before it; `None` if it was printed before.
    fn count(&mut self, line: &LogLine) -> Option<u64> {
        let next = self.0.entry(line.task_id.clone()).or_insert(line.number);
        let missing = line.number.checked_sub(*next)?;
        *next = line.number + 1;
        Some(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(tail: Option<u64>) -> Logs {
        Logs { name: "web".into(), follow: true, tail, timestamps: false, raw: true }
    }

    fn line(task: &str, number: u64) -> LogLine {
        LogLine { task_id: task.into(), number, ..LogLine::default() }
    }

    #[test]
    fn a_log_that_is_read_again_goes_on_after_the_last_printed_line() {
        let mut printed = Printed::default();
        assert!(printed.request(&logs(Some(3)), true).tail_set);
        let all = [("a", 7), ("a", 8), ("b", 5)].map(|(task, number)| line(task, number));
        assert!(all.iter().all(|line| printed.count(line) == Some(0)), "a log may begin with any line");
        assert!(!printed.request(&logs(Some(3)), true).tail_set, "all of it, as the end has moved on");
        let again = [("a", 6), ("a", 7), ("a", 8), ("b", 5)];
        assert!(again.iter().all(|(task, number)| printed.count(&line(task, *number)).is_none()));
        let new = [("a", 9), ("b", 6), ("c", 0)];
        assert!(new.iter().all(|(task, number)| printed.count(&line(task, *number)) == Some(0)));
    }

    #[test]
    fn lines_that_were_dropped_before_they_could_be_read_are_counted() {
        let mut printed = Printed::default();
        assert_eq!(printed.count(&line("a", 10)), Some(0));
        assert_eq!(printed.count(&line("b", 0)), Some(0));
        assert_eq!(printed.count(&line("a", 131)), Some(120));
        assert_eq!(printed.count(&line("a", 132)), Some(0));
    }

    #[test]
    fn only_new_lines_stay_only_new_lines() {
        let mut printed = Printed::default();
        assert_eq!(printed.count(&LogLine::default()), Some(0));
        let request = printed.request(&logs(Some(0)), false);
        assert!(request.tail_set && request.tail == 0 && request.task == "web" && request.service.is_empty());
    }
}
