//! Prints results to standard output and messages to standard error. The program ends when nothing more can be printed:
//! quietly if the reader, such as `head`, has closed the pipe.

use std::io::{self, Write};

use comfy_table::{Table, presets};
use serde_json::Value;

use flota_api::proto::control::{Filter, ListHeader, ListRequest};
use flota_api::reason::Reason;
use flota_api::text::{printable, printable_lines};

use crate::error::Refused;
use crate::terminal;

/// How a list is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A table for people.
    #[default]
    Table,
    /// A JSON array.
    Json,
}

/// Prints a line of results.
pub(crate) fn line(text: &str) {
    if let Err(error) = writeln!(io::stdout(), "{}", printable_lines(text)) {
        end(&error);
    }
}

/// Ends the program, because its output can't be written. That also ends a program at the other end of a stream.
fn end(error: &io::Error) -> ! {
    terminal::restore();
    let is_closed = error.kind() == io::ErrorKind::BrokenPipe;
    if !is_closed {
        message(&format!("error: failed to write the output: {error}"));
    }
    #[expect(clippy::exit, reason = "nothing is left to do")]
    std::process::exit(i32::from(!is_closed));
}

/// Prints a message that is not a result.
pub(crate) fn message(text: &str) {
    let _ = writeln!(io::stderr(), "{}", printable_lines(text));
}

/// Prints what a user should know about a change that was made.
pub(crate) fn warnings(texts: &[String]) {
    texts.iter().for_each(|text| message(&format!("warning: {text}")));
}

/// Prints how old an answer may be, if one manager gave it from what it knows.
pub(crate) fn age(header: Option<ListHeader>) {
    if let Some(header) = header.filter(|header| header.stale) {
        message(&match header.age_ms.map(std::time::Duration::from_millis) {
            Some(age) => format!("stale: this may be {:.1} s old", age.as_secs_f64()),
            None => "stale: age unknown: this manager has not caught up since it started".to_owned(),
        });
    }
}

/// Prints output of another program, unchanged.
pub(crate) fn bytes(stream: u32, bytes: &[u8]) {
    let result = if stream == 2 {
        io::stderr().write_all(bytes).and_then(|()| io::stderr().flush())
    } else {
        io::stdout().write_all(bytes).and_then(|()| io::stdout().flush())
    };
    if let Err(error) = result {
        end(&error);
    }
}

/// Prints a JSON value, indented.
pub(crate) fn json(value: &Value) {
    line(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Prints whole objects, as one JSON array or as a page for people.
pub(crate) fn objects(objects: Vec<Value>, pretty: bool) {
    if !pretty {
        return json(&Value::Array(objects));
    }
    for (index, object) in objects.iter().enumerate() {
        if index > 0 {
            line("");
        }
        page(object, 0);
    }
}

/// Prints `name: value` lines, nested values indented, and leaves empty values out.
fn page(value: &Value, depth: usize) {
    let empty = |it: &Value| match it {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    let plain = |it: &Value| printable(&it.as_str().map_or_else(|| it.to_string(), str::to_owned)).into_owned();
    let margin = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields.iter().filter(|(_, inner)| !empty(inner)) {
                if inner.is_object() || inner.is_array() {
                    line(&format!("{margin}{name}:"));
                    page(inner, depth + 1);
                } else {
                    line(&format!("{margin}{name}: {}", plain(inner)));
                }
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items.iter().for_each(|item| {
                line(&format!("{margin}-"));
                page(item, depth + 1);
            });
        }
        Value::Array(items) => items.iter().for_each(|item| line(&format!("{margin}- {}", plain(item)))),
        other => line(&format!("{margin}{}", plain(other))),
    }
}

/// Prints rows as a table, as JSON, or as ids alone.
pub(crate) fn rows(options: &RowOptions, headings: &[&str], rows: Vec<(Value, Vec<String>)>) {
    if options.quiet {
        rows.iter().for_each(|(value, _)| line(value["id"].as_str().unwrap_or_default()));
    } else if options.format == Format::Json {
        json(&Value::Array(rows.into_iter().map(|(value, _)| value).collect()));
    } else {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(headings);
        for (_, cells) in rows {
            table.add_row(cells.iter().map(|cell| shorten(&printable(cell), options.no_trunc)).collect::<Vec<_>>());
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table.to_string().lines().for_each(|row| line(row.trim_end()));
    }
}

fn shorten(cell: &str, whole: bool) -> String {
    const MOST: usize = 100;
    if whole || cell.chars().count() <= MOST {
        cell.to_owned()
    } else {
        cell.chars().take(MOST - 1).chain(['…']).collect()
    }
}

/// Shortens an id to its first 12 characters, unless the flags ask for whole ids.
pub(crate) fn short_id(id: &str, options: &RowOptions) -> String {
    if options.no_trunc { id.to_owned() } else { id.chars().take(12).collect() }
}

/// The flags of every command that prints rows.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct RowOptions {
    /// Format to print: table or json
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print only rows where KEY is VALUE; may be repeated
    #[arg(long = "filter", value_name = "KEY=VALUE", value_parser = crate::parse::filter)]
    pub(crate) filters: Vec<(String, String)>,
    /// Print whole ids and texts
    #[arg(long)]
    pub(crate) no_trunc: bool,
}

impl RowOptions {
    /// Refuses a filter with another key than these. Managers judge the filters of their lists.
    pub(crate) fn check_filters(&self, keys: &[&str]) -> Result<(), Refused> {
        let unknown = self.filters.iter().find(|(key, _)| !keys.contains(&key.as_str()));
        unknown.map_or(Ok(()), |(key, value)| {
            let text = format!("the filter `{key}={value}` has an unknown key: the keys are {}", keys.join(", "));
            Err(Refused { reason: Reason::UnknownFilter, text })
        })
    }

    /// Whether a row of `ctl`'s own, as JSON, passes the filters.
    pub(crate) fn passes(&self, row: &Value) -> bool {
        self.filters.iter().all(|(key, value)| {
            let shown = row[key].as_str().map_or_else(|| row[key].to_string(), str::to_owned);
            shown == *value
        })
    }
}

/// The flags of lists that a manager answers.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ListOptions {
    #[command(flatten)]
    pub(crate) rows: RowOptions,
    /// Print what this manager knows, even without a quorum, and how old it may be
    #[arg(long)]
    pub(crate) stale: bool,
}

impl ListOptions {
    /// Returns the request for a list with these flags.
    pub(crate) fn request(&self) -> ListRequest {
        ListRequest { stale: self.stale, filters: self.filters() }
    }

    /// Returns the filters, which the manager applies.
    pub(crate) fn filters(&self) -> Vec<Filter> {
        self.rows.filters.iter().map(|(key, value)| Filter { key: key.clone(), value: value.clone() }).collect()
    }
}
