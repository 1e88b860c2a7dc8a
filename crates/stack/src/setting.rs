//! Values of a task's settings as people write them, for stack files and the flags of `ctl`.

use std::num::NonZeroU64;

use flota_api::model::{Bound, LogDriver, LogSpec};

use crate::parse;

/// Parses a size that may be `-1`, which stands for no bound.
///
/// # Errors
/// A message that names the text and the form that is expected.
pub fn bytes_or_unlimited(text: &str) -> Result<Bound, String> {
    match text.trim() {
        "-1" => Ok(Bound::Unlimited),
        text => parse::bytes(text).map(Bound::At).map_err(|error| format!("{error}, or -1 for unlimited")),
    }
}

/// Returns the log driver of this name; Docker has more of them.
///
/// # Errors
/// The driver is not supported; the text names those that are.
pub fn log_driver(name: &str) -> Result<LogDriver, String> {
    let found = LogDriver::ALL.iter().copied().find(|it| it.as_str() == name);
    found.ok_or_else(|| format!("the log driver `{name}` is not supported: it is json-file or none"))
}

/// Sets an option of a log by its name in Docker. An empty value removes it.
///
/// # Errors
/// There is no such option, or it can't have this value.
pub fn set_log_option(log: &mut LogSpec, name: &str, value: &str) -> Result<(), String> {
    let positive = |number: u64| NonZeroU64::new(number).ok_or_else(|| format!("{name} is at least 1"));
    match (name, value) {
        ("max-size", "") => log.max_size = None,
        ("max-file", "") => log.max_file = None,
        ("max-size", _) => log.max_size = Some(positive(parse::bytes(value)?)?),
        ("max-file", _) => {
            let number = value.parse().map_err(|_| format!("`{value}` is not a number of files"))?;
            log.max_file = Some(positive(number)?);
        }
        _ => return Err(format!("the log option `{name}` is not supported: they are max-size and max-file")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_may_be_unlimited() {
        assert_eq!(bytes_or_unlimited("-1"), Ok(Bound::Unlimited));
        assert_eq!(bytes_or_unlimited("1g"), Ok(Bound::At(1 << 30)));
        let error = bytes_or_unlimited("-2").expect_err("it is negative");
        assert!(error.ends_with("such as 512, 64k, 256m or 1.5g, or -1 for unlimited"), "{error}");
    }

    #[test]
    fn options_of_a_log_are_set_removed_and_refused() {
        let mut log = LogSpec::default();
        for (name, value) in [("max-size", "10m"), ("max-file", "3")] {
            set_log_option(&mut log, name, value).expect("an option");
        }
        assert_eq!((log.max_size.map(NonZeroU64::get), log.max_file.map(NonZeroU64::get)), (Some(10 << 20), Some(3)));
        set_log_option(&mut log, "max-file", "").expect("it is removed");
        assert_eq!(log.max_file, None);
        for (name, value, expected) in [
            ("max-size", "x", "`x` is not a size such as"),
            ("max-size", "0", "max-size is at least 1"),
            ("max-file", "-1", "`-1` is not a number of files"),
            ("max-file", "0", "max-file is at least 1"),
            ("compress", "true", "the log option `compress` is not supported"),
        ] {
            let error = set_log_option(&mut log, name, value).expect_err(expected);
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(log_driver("none").is_ok() && log_driver("syslog").is_err());
    }
}
