//! The log of a simulation, in order: events of the simulation itself, and the logs of the programs. The same seed
//! gives the same lines.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

use super::host::Host;
use super::time;

#[derive(Default)]
struct Lines {
    all: Vec<String>,
    /// Host whose process runs now.
    host: Option<Host>,
}

/// The log of one simulation; clones share it.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Lines>>);

impl Log {
    /// Adds a line.
    pub fn add(&self, text: fmt::Arguments<'_>) {
        let mut lines = self.0.lock().expect("no holder panics");
        let mut line = format!("{:>7} ", time::now());
        match lines.host {
            Some(host) => write!(line, "{host} {text}"),
            None => write!(line, "-- {text}"),
        }
        .expect("a string takes everything");
        lines.all.push(line);
    }

    /// Sets the host that the following lines belong to.
    pub(super) fn set_host(&self, host: Option<Host>) {
        self.0.lock().expect("no holder panics").host = host;
    }

    /// Returns all lines.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no holder panics").all.clone()
    }

    /// Returns the first line that contains this text.
    pub fn find(&self, text: &str) -> Option<String> {
        let lines = self.0.lock().expect("no holder panics");
        lines.all.iter().find(|line| line.contains(text)).cloned()
    }

    /// Returns the last `count` lines as one text.
    pub fn tail(&self, count: usize) -> String {
        let lines = self.0.lock().expect("no holder panics");
        lines.all[lines.all.len().saturating_sub(count)..].join("\n")
    }
}

/// Captures the logs of the programs.
pub(super) struct Capture(pub(super) Log);

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let written = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
        written.expect("a string takes everything");
    }
}

impl Subscriber for Capture {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::INFO && metadata.target().starts_with("flota")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        let metadata = event.metadata();
        self.0.add(format_args!("{} {}:{}", metadata.level(), metadata.target(), fields.0));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}
