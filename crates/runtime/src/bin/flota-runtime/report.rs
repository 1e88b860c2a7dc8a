//! Errors and warnings: one line each, on standard error and, if a log file is given, in that file for callers to
//! read.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use crate::arguments::{Arguments, LogFormat};

pub(crate) struct Report {
    log: Option<PathBuf>,
    format: LogFormat,
    debug: bool,
}

impl Report {
    pub(crate) fn new(arguments: &Arguments) -> Self {
        Self { log: arguments.log.clone(), format: arguments.log_format, debug: arguments.debug }
    }

    pub(crate) fn error(&self, text: &str) {
        let text = text.trim_end().replace('\n', " ");
        self.write("error", &text);
        eprintln!("error: {text}");
    }

    pub(crate) fn warn(&self, text: &str) {
        let text = text.trim_end().replace('\n', " ");
        self.write("warning", &text);
        if self.log.is_none() {
            eprintln!("warning: {text}");
        }
    }

    /// Logs a message only with `--debug`.
    pub(crate) fn debug(&self, text: &str) {
        if !self.debug {
            return;
        }
        self.write("debug", text);
        if self.log.is_none() {
            eprintln!("{}", self.line("debug", text));
        }
    }

    fn write(&self, level: &str, text: &str) {
        let Some(path) = &self.log else { return };
        // A log that can't be written must not prevent the operation itself.
        let file = File::options().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| writeln!(file, "{}", self.line(level, text)));
    }

    fn line(&self, level: &str, text: &str) -> String {
        let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        match self.format {
            LogFormat::Json => serde_json::json!({ "level": level, "msg": text, "time": now }).to_string(),
            LogFormat::Text => format!("time=\"{now}\" level={level} msg={text:?}"),
        }
    }
}
