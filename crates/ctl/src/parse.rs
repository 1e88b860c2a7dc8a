//! Parsers of the values that users type: sizes, durations, CPUs, limits. Flags and stack files share one grammar.

use std::time::Duration;

use flota_api::constraint::NodeProperty;
use flota_api::model::{Bound, OnPartition};

use crate::error::Usage;

/// Parses a size such as `512`, `64k`, `256m` or `1.5g` to bytes; units are powers of 1024, as in Docker.
pub(crate) fn bytes(text: &str) -> Result<u64, Usage> {
    flota_stack::parse::bytes(text).map_err(Usage)
}

/// Parses a size of which `-1` stands for no bound.
pub(crate) fn bytes_or_unlimited(text: &str) -> Result<Bound, Usage> {
    flota_stack::setting::bytes_or_unlimited(text).map_err(Usage)
}

/// Splits a text into words as a shell does.
pub(crate) fn words(text: &str) -> Result<Vec<String>, Usage> {
    flota_stack::words::split(text).map_err(Usage)
}

/// Parses a number of CPUs such as `0.5` or `2` to units of 10^-9 CPU.
pub(crate) fn cpus(text: &str) -> Result<u64, Usage> {
    flota_stack::parse::cpus(text).map_err(Usage)
}

/// Parses a duration such as `300ms`, `10s`, `1m30s` or `2h`.
pub(crate) fn duration(text: &str) -> Result<Duration, Usage> {
    flota_stack::parse::duration(text).map_err(Usage)
}

/// Parses a duration of which there may be none: an empty text and `0` give zero, which stands for that.
pub(crate) fn duration_or_none(text: &str) -> Result<Duration, Usage> {
    flota_stack::parse::duration_or_none(text).map(Option::unwrap_or_default).map_err(Usage)
}

/// Parses `run` or `stop:TIME`.
pub(crate) fn on_partition(text: &str) -> Result<OnPartition, Usage> {
    flota_stack::parse::on_partition(text).map_err(Usage)
}

/// Parses `replace` or `keep`; returns whether it is the latter.
pub(crate) fn on_node_loss(text: &str) -> Result<bool, Usage> {
    flota_stack::parse::on_node_loss(text).map_err(Usage)
}

/// Parses a filter `KEY=VALUE`; only rows with that value are listed.
pub(crate) fn filter(text: &str) -> Result<(String, String), Usage> {
    let (key, value) = text.split_once('=').ok_or_else(|| Usage("it is KEY=VALUE".into()))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Parses a placement preference such as `spread=node.labels.zone`, as Docker has it.
pub(crate) fn preference(text: &str) -> Result<NodeProperty, Usage> {
    let key = text
        .strip_prefix("spread=")
        .ok_or_else(|| Usage("it is spread=KEY, such as spread=node.labels.zone".into()))?;
    NodeProperty::parse(key).map_err(|error| Usage(error.to_string()))
}

/// Parses `NAME=VALUE`, of which only the value may be empty.
pub(crate) fn assignment(text: &str) -> Result<(String, String), Usage> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair.ok_or_else(|| Usage(format!("`{text}` does not have the form NAME=VALUE")))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Parses a label `NAME=value`.
pub(crate) fn label(text: &str) -> Result<(String, String), Usage> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        Err(Usage(format!("`{text}` does not have the form KEY=VALUE")))
    } else {
        Ok((key.into(), value.into()))
    }
}
