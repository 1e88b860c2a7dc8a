//! Parses the command line. clap stops at the first value that it can't read; a user learns all of them at once.

use std::ffi::{OsStr, OsString};

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::cli::Cli;

/// Most values that are looked at, so that the search for what is wrong ends.
const BOUND: usize = 64;

/// Parses the arguments, the first of which is the name of the program.
///
/// # Errors
/// If only values are wrong, and several of them, the command is returned without them, and with what is wrong with each in
/// [`Cli::unread`]. Everything else is an error.
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<Cli, clap::Error> {
    let (mut left, mut unread) = (arguments, Vec::new());
    loop {
        let error = match Cli::try_parse_from(&left) {
            Ok(cli) => return Ok(Cli { unread, ..cli }),
            Err(error) => error,
        };
        match without(&left, &error).filter(|_| unread.len() < BOUND) {
            Some(rest) => {
                unread.push(summary(&error));
                left = rest;
            }
            // Help was asked for, or nothing else is wrong.
            None if unread.is_empty() || !error.use_stderr() => return Err(error),
            None => {
                unread.push(summary(&error));
                return Err(clap::Error::raw(ErrorKind::ValueValidation, format!("{}\n", unread.join("; "))));
            }
        }
    }
}

/// Returns the arguments without the one whose value can't be read; `None` if something else is wrong.
fn without(arguments: &[OsString], error: &clap::Error) -> Option<Vec<OsString>> {
    if !matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
        return None;
    }
    let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) else { return None };
    let removed = |places: &[usize]| {
        let all = arguments.iter().enumerate().filter(|(index, _)| !places.contains(index));
        all.map(|(_, it)| it.clone()).collect::<Vec<_>>()
    };
    let tail = |it: &OsStr| it.to_str().is_some_and(|it| it.starts_with('-') && it.ends_with(value.as_str()));
    let flag = |it: &OsString| it.to_str().is_some_and(|it| it.starts_with('-'));
    // The value stands alone behind its flag, or in one argument with it.
    let candidates = arguments.iter().enumerate().skip(1).filter_map(|(index, it)| {
        let alone = *it == **value && flag(&arguments[index - 1]);
        if alone { Some(removed(&[index - 1, index])) } else { tail(it).then(|| removed(&[index])) }
    });
    // The same text may be the good value of another flag: without that one, the same is still wrong.
    let count = |it: &[OsString]| Cli::try_parse_from(it).err().filter(|left| summary(left) == summary(error));
    candidates.into_iter().find(|rest| count(rest).is_none())
}

/// Returns what an error of clap says, without the hint at the help.
fn summary(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
    let text = lines.collect::<Vec<_>>().join(" ");
    text.strip_prefix("error: ").unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        parse(line.split(' ').map(OsString::from).collect())
    }

    fn unread(line: &str) -> Vec<String> {
        let cli = parsed(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        cli.unread
    }

    #[test]
    fn every_value_that_cannot_be_read_is_told_however_it_is_written() {
        assert_eq!(unread("ctl service create --limit-memory 1g web"), [""; 0]);
        let found =
            unread("ctl service create --replicas=x --limit-memory 1q --reserve-memory 1g -l=a --limit-cpu=1q web");
        assert_eq!(found.len(), 3, "{found:?}");
        for (text, flag) in found.iter().zip(["--replicas", "--limit-memory", "--limit-cpu"]) {
            assert!(text.starts_with("invalid value '") && text.contains(flag), "{text}");
        }
        let found = unread("ctl service create --env 1q --limit-memory 1q --mode 1q web");
        assert_eq!(found.len(), 2, "the text is a good value of the first flag: {found:?}");
    }

    #[test]
    fn what_is_wrong_in_another_way_is_an_error_of_its_own() {
        for (line, words) in [
            ("ctl service create --replicas x", ["'x' for '--replicas", "<IMAGE>"]),
            ("ctl service nonsense", ["nonsense", "subcommand"]),
        ] {
            let error = parsed(line).expect_err("it is wrong");
            let text = error.to_string();
            assert!(words.iter().all(|it| text.contains(it)), "{text}");
            assert!(text.starts_with("error: ") && error.exit_code() == 2, "{text}");
        }
        let error = parsed("ctl service create --replicas x --help").expect_err("it is help");
        assert_eq!(error.exit_code(), 0);
    }
}
