//! Values as users type them: sizes, durations, CPUs, limits. One grammar for flags and for stack files.

use std::time::Duration;

use crate::error::Usage;

/// `512`, `64k`, `256m`, `1.5g`: bytes, in powers of 1024 (as Docker).
pub(crate) fn bytes(text: &str) -> Result<u64, Usage> {
    flota_stack::parse::bytes(text).map_err(Usage)
}

/// `0.5`, `2`: CPUs, in 10^-9.
pub(crate) fn cpus(text: &str) -> Result<u64, Usage> {
    flota_stack::parse::cpus(text).map_err(Usage)
}

/// `300ms`, `10s`, `1m30s`, `2h`.
pub(crate) fn duration(text: &str) -> Result<Duration, Usage> {
    flota_stack::parse::duration(text).map_err(Usage)
}

/// `KEY=VALUE`, which a row must have to be listed.
pub(crate) fn filter(text: &str) -> Result<(String, String), Usage> {
    let (key, value) = text.split_once('=').ok_or_else(|| Usage("it is KEY=VALUE".into()))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// `NAME=value` in a list of labels.
pub(crate) fn label(text: &str) -> Result<(String, String), Usage> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() { Err(Usage(format!("`{text}` has the form KEY=VALUE"))) } else { Ok((key.into(), value.into())) }
}
