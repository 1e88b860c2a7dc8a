//! The report of a process that the supervisor has forked, sent over a pipe: a number, or the reason of a failure.

use std::fs::File;
use std::io::{self, Read, Write};

use crate::error::{Act, RunError};

/// Largest report in bytes, which fits into an empty pipe.
const BOUND: usize = 16 << 10;

/// Sends the report. A supervisor that has ended is ignored.
pub(super) fn write(mut pipe: &File, result: &Result<i32, RunError>) {
    let report = serde_json::to_vec(result).unwrap_or_default();
    let _ = pipe.write_all(&report[..report.len().min(BOUND)]);
}

/// Reads the report from a non-blocking pipe; `None` if nothing has arrived. It reads only once: a started process may
/// hold the other end open, so the pipe may never end.
pub(super) fn read(mut pipe: &File) -> Option<Result<i32, RunError>> {
    let mut report = vec![0; BOUND];
    let count = match pipe.read(&mut report) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
        Err(error) => return Some(Err(error).act(|| "receive from a new process".into()).map_err(Into::into)),
        Ok(count) => count,
    };
    let report = &report[..count];
    Some(match serde_json::from_slice(report) {
        Ok(result) => result,
        Err(_) if report.is_empty() => Err(RunError::new("failed to start a process: it ended without a report")),
        // The report was truncated. The rest still contains the reason.
        Err(_) => Err(RunError::new(String::from_utf8_lossy(report))),
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn report_arrives_as_it_was_sent_and_a_long_one_is_cut() {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let (reader, writer) = (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)));
        let failed = RunError { text: "no such file".into(), code: Some(127) };
        for result in [Ok(7), Err(failed)] {
            write(&writer, &result);
            assert_eq!(read(&reader), Some(result));
        }
        write(&writer, &Err(RunError::new("x".repeat(100_000))));
        assert!(matches!(read(&reader), Some(Err(error)) if error.text.len() == BOUND));
        drop(writer);
        assert!(matches!(read(&reader), Some(Err(error)) if error.text.contains("without a report")));
    }
}
