//! Splits a text into words as a shell does (POSIX, "Quoting"), without expanding anything. Also used by `ctl` for its
//! flags.
//!
//! Unlike in a script, a `#` begins no comment: what is behind it would be lost without a message.

/// Splits `text` at white space, except within quotes. A backslash makes the next character literal; within double quotes
/// only a dollar sign, a backquote, a double quote or a backslash, and within single quotes none. Before the end of a line,
/// a backslash removes that end.
///
/// # Errors
/// A quote is not closed, or nothing follows the last backslash; the message names the text.
pub fn split(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, _) if character.is_whitespace() => words.extend(word.take()),
            (None | Some('"'), '\\') => {
                let next = characters.next().ok_or_else(|| format!("`{text}` ends with a backslash"))?;
                let is_kept = quote.is_some() && !matches!(next, '$' | '`' | '"' | '\\' | '\n');
                if is_kept {
                    word.get_or_insert_default().push('\\');
                }
                if next != '\n' {
                    word.get_or_insert_default().push(next);
                }
            }
            _ => word.get_or_insert_default().push(character),
        }
    }
    if quote.is_some() {
        return Err(format!("`{text}` has an unclosed quote"));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn words_are_those_of_a_shell() {
        for (text, expected) in [
            ("", &[][..]),
            (" \t\n", &[]),
            ("serve  -p 80", &["serve", "-p", "80"]),
            ("sh -c 'echo \"a b\" $X'", &["sh", "-c", "echo \"a b\" $X"]),
            (r#"a"b c"'d e'f"#, &["ab cd ef"]),
            ("'' \"\"", &["", ""]),
            (r"a\ b \' \\ \#", &["a b", "'", "\\", "#"]),
            (r#""\" \\ \$ \` \n""#, &["\" \\ $ ` \\n"]),
            (r"'a\b'", &[r"a\b"]),
            ("a\\\nb \\\n c", &["ab", "c"]),
            ("\"a\\\nb\"", &["ab"]),
            ("run #1 x#y", &["run", "#1", "x#y"]),
            ("$HOME *", &["$HOME", "*"]),
        ] {
            assert_eq!(split(text).expect(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_finished_is_an_error() {
        for (text, expected) in [
            ("'a", "`'a` has an unclosed quote"),
            ("a \"b'", "`a \"b'` has an unclosed quote"),
            ("a\\", "`a\\` ends with a backslash"),
            ("\"a\\", "`\"a\\` ends with a backslash"),
        ] {
            assert_eq!(split(text), Err(expected.to_owned()));
        }
    }
}
