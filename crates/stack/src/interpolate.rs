//! Variables in the values of a stack file (Compose specification, "Interpolation"): `$NAME`, `${NAME}`, `${NAME:-default}` and
//! `${NAME-default}`, `${NAME:+other}` and `${NAME+other}`, `${NAME:?why}` and `${NAME?why}`. With the colon, an empty value
//! counts as none. What stands behind the sign may have variables itself. `$$` stands for a dollar sign. Keys have no variables.
//!
//! Unlike in Docker, a variable without a value is an error and not empty, because few files mean that; `${NAME:-}` does.

use crate::tree::{Node, Value};

/// Most levels of variables inside of each other.
const DEPTH_BOUND: usize = 16;
/// Largest text with the values of its variables, in bytes.
const TEXT_BOUND: usize = 1 << 20;

/// Returns the value of a variable of the environment.
type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Puts the values of variables into all values of the tree. A value that needs one which does not exist is an error where it
/// is used.
pub(crate) fn interpolate(node: &mut Node, environment: Environment<'_>) {
    match &mut node.value {
        Value::Null => {}
        Value::Scalar(text) => {
            if let Ok(written) = text
                && written.contains('$')
            {
                *text = substitute(written, environment, 0).map_err(|why| format!("`{written}`: {why}"));
            }
        }
        Value::List(items) => items.iter_mut().for_each(|item| interpolate(item, environment)),
        Value::Map(entries) => entries.values_mut().for_each(|value| interpolate(value, environment)),
    }
}

/// Returns the text with the values of its variables.
fn substitute(text: &str, environment: Environment<'_>, depth: usize) -> Result<String, String> {
    if depth > DEPTH_BOUND {
        return Err(format!("variables are nested in more than {DEPTH_BOUND} levels"));
    }
    let (mut whole, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        whole.push_str(before);
        rest = if let Some(after) = after.strip_prefix('$') {
            whole.push('$');
            after
        } else if let Some(inner) = after.strip_prefix('{') {
            let (expression, after) = braced(inner).ok_or("a `}` is missing behind `${`")?;
            whole.push_str(&evaluate(expression, environment, depth)?);
            after
        } else {
            let (name, after) = split_name(after);
            if name.is_empty() {
                return Err("a `$` begins a variable, as in `${NAME}`; `$$` stands for a dollar sign".to_owned());
            }
            whole.push_str(&environment(name).ok_or_else(|| unset(name))?);
            after
        };
        if whole.len() > TEXT_BOUND {
            return Err(format!("it has more than {TEXT_BOUND} bytes with its variables"));
        }
    }
    whole.push_str(rest);
    Ok(whole)
}

/// Splits what follows `${` at the brace that ends it.
fn braced(text: &str) -> Option<(&str, &str)> {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(found) = text[at..].find(['$', '}']) {
        at += found;
        let rest = &text[at..];
        if rest.starts_with("$$") {
            at += 2;
        } else if rest.starts_with("${") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with('$') {
            at += 1;
        } else if depth == 0 {
            return Some((&text[..at], &text[at + 1..]));
        } else {
            (depth, at) = (depth - 1, at + 1);
        }
    }
    None
}

/// Splits a text behind the name of a variable with which it begins.
fn split_name(text: &str) -> (&str, &str) {
    let is_part =
        |(at, byte): (usize, u8)| byte == b'_' || byte.is_ascii_alphabetic() || at > 0 && byte.is_ascii_digit();
    let end = text.bytes().enumerate().position(|it| !is_part(it));
    text.split_at(end.unwrap_or(text.len()))
}

/// Returns what an expression in braces stands for.
fn evaluate(expression: &str, environment: Environment<'_>, depth: usize) -> Result<String, String> {
    let (name, rest) = split_name(expression);
    let (is_empty_none, sign) = rest.strip_prefix(':').map_or((false, rest), |sign| (true, sign));
    let mut words = sign.chars();
    let sign = words.next();
    if name.is_empty() || sign.is_none() && is_empty_none {
        return Err(format!("`${{{expression}}}` is not a variable"));
    }
    let value = environment(name).filter(|value| !(is_empty_none && value.is_empty()));
    match (sign, value) {
        (None, value) => value.ok_or_else(|| unset(name)),
        (Some('-' | '?'), Some(value)) => Ok(value),
        (Some('-'), None) | (Some('+'), Some(_)) => substitute(words.as_str(), environment, depth + 1),
        (Some('+'), None) => Ok(String::new()),
        (Some('?'), None) => {
            let why = substitute(words.as_str(), environment, depth + 1)?;
            Err(if why.is_empty() { unset(name) } else { format!("the variable `{name}` is needed: {why}") })
        }
        (Some(_), _) => Err(format!("`${{{expression}}}` is not a variable")),
    }
}

fn unset(name: &str) -> String {
    format!("the environment of ctl has no variable `{name}`; `${{{name}:-}}` stands for nothing then")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn substituted(text: &str) -> Result<String, String> {
        let environment = |name: &str| match name {
            "TAG" | "tag_2" => Some("1.2".to_owned()),
            "EMPTY" => Some(String::new()),
            "ODD" => Some("${TAG}$$".to_owned()),
            _ => None,
        };
        substitute(text, &environment, 0)
    }

    #[test]
    fn variables_have_their_values_or_what_stands_for_them() {
        for (text, expected) in [
            ("a $TAG b${TAG}c", "a 1.2 b1.2c"),
            ("$tag_2-x $TAG.$TAG/", "1.2-x 1.2.1.2/"),
            ("$$TAG $$$TAG $${TAG}", "$TAG $1.2 ${TAG}"),
            ("${EMPTY}|${EMPTY-a}|${EMPTY:-a}|${NONE-a}|${NONE:-a}|${TAG:-a}", "||a|a|a|1.2"),
            ("${EMPTY+a}|${EMPTY:+a}|${NONE+a}|${TAG+a}|${TAG:+a}|${EMPTY?x}", "a|||a|a|"),
            ("${NONE:-${OTHER:-${TAG}}}", "1.2"),
            ("${NONE:-$TAG}-${TAG:+${NONE:-}x}", "1.2-x"),
            ("${NONE:-a:b-c?d e}", "a:b-c?d e"),
            ("${NONE-$$}}", "$}"),
            ("${TAG:-${NONE}}", "1.2"),
            ("${ODD}", "${TAG}$$"),
            ("é${NONE:-ü}", "éü"),
            ("", ""),
        ] {
            assert_eq!(substituted(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_variable_or_has_no_value_is_refused() {
        for (text, expected) in [
            ("$NONE", "the environment of ctl has no variable `NONE`"),
            ("a${NONE}", "the environment of ctl has no variable `NONE`"),
            ("${NONE:-${OTHER}}", "the environment of ctl has no variable `OTHER`"),
            ("${NONE:?set it, $TAG}", "the variable `NONE` is needed: set it, 1.2"),
            ("${EMPTY:?}", "the environment of ctl has no variable `EMPTY`"),
            ("5 $", "a `$` begins a variable"),
            ("$5", "a `$` begins a variable"),
            ("${TAG", "a `}` is missing"),
            ("${TAG:-${NONE:-}", "a `}` is missing"),
            ("${}", "`${}` is not a variable"),
            ("${TAG:}", "`${TAG:}` is not a variable"),
            ("${TAG/a/b}", "`${TAG/a/b}` is not a variable"),
            ("${2}", "`${2}` is not a variable"),
            ("${ TAG}", "`${ TAG}` is not a variable"),
        ] {
            let why = substituted(text).expect_err(text);
            assert!(why.starts_with(expected), "{text}: {why}");
        }
        let deep = "${A:-".repeat(100_000) + &"}".repeat(100_000);
        assert_eq!(substituted(&deep), Err("variables are nested in more than 16 levels".into()));
        let huge = "$A".repeat(TEXT_BOUND);
        let huge = substitute(&huge, &|_| Some("xx".repeat(1_000)), 0);
        assert_eq!(huge, Err("it has more than 1048576 bytes with its variables".into()));
    }
}
