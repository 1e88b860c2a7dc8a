//! Parses the command line. clap stops at the first value that it can't read; a user learns all of them at once.

use std::ffi::OsString;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::cli::Cli;

/// Most values that are looked at, so that the search for what is wrong ends.
const BOUND: usize = 64;

/// Parses the arguments, the first of which is the name of the program.
///
/// # Errors
/// Something else is wrong than values. If only they are, the command is returned without them, and with what is wrong with
/// each in [`Cli::unread`].
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
    if !is_of_value(error) {
        return None;
    }
    let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) else { return None };
    // Clap names the flag as `--limit-memory <LIMIT_MEMORY>`, whichever of its spellings was used.
    let named = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(named)) => named.split(' ').next().unwrap_or_default(),
        _ => "",
    };
    let removed = |places: &[usize]| {
        let all = arguments.iter().enumerate().filter(|(index, _)| !places.contains(index));
        all.map(|(_, it)| it.clone()).collect::<Vec<_>>()
    };
    let candidates = (1..arguments.len()).filter_map(|index| {
        let (before, this) = (arguments[index - 1].to_str()?, arguments[index].to_str()?);
        if this == value && before.starts_with('-') && !before.contains('=') {
            return Some((before, removed(&[index - 1, index])));
        }
        let flag = flag_with(this, value)?;
        Some((flag, removed(&[index])))
    });
    let candidates: Vec<(&str, Vec<OsString>)> = candidates.collect();
    // The same text may be a good value of another flag: without that one, the same is still wrong.
    let helps = |rest: &[OsString]| match Cli::try_parse_from(rest) {
        Ok(_) => true,
        Err(left) if is_of_value(&left) => summary(&left) != summary(error),
        Err(left) => left.kind() == ErrorKind::MissingRequiredArgument,
    };
    let by_name = candidates.iter().find(|(flag, _)| *flag == named);
    let by_effect = || candidates.iter().find(|(_, rest)| helps(rest));
    // If none helps alone, the same is wrong several times.
    let any = || candidates.first().filter(|_| candidates.len() > 1);
    by_name.or_else(by_effect).or_else(any).map(|(_, rest)| rest.clone())
}

fn is_of_value(error: &clap::Error) -> bool {
    matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue)
}

/// Returns the flag of an argument that is a flag with this value: `--flag=VALUE`, `-f=VALUE` or `-fVALUE`.
fn flag_with<'a>(argument: &'a str, value: &str) -> Option<&'a str> {
    let flag = argument.strip_suffix(value)?;
    match flag.strip_suffix('=') {
        Some(flag) => flag.starts_with('-').then_some(flag),
        None => (flag.len() == 2 && flag.starts_with('-') && flag != "--" && !value.is_empty()).then_some(flag),
    }
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
        let found = unread("ctl service update web --image nginx --replicas= --network-add front --limit-cpu d");
        assert_eq!(found.len(), 2, "no flag that only looks like it is taken for one: {found:?}");
        let found =
            unread("ctl service create --reserve-memory 1q --limit-memory 1q --label-add = --label-add = web 1q");
        assert_eq!(found.len(), 4, "also the same one twice: {found:?}");
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
